"""Draws original, reconstruction and difference side by side, with titles, at the display window."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from node.fidelity.breast_regions import Window
from node.fidelity.reference import Reference
from storage.dicom.dicomfile import opened
from storage.dicom.pixels import integer_pixels
from storage.formats.geometry import CELL

_HEIGHT = 900
"""Height of the images in the upper row, in pixels."""
_CAPTION = 60
"""Height of a line of text, in pixels."""
_DETAIL = 448
"""Side of the detail, in pixels of the original."""


def side_by_side(original: Path, copy: Path, derived_uid: str) -> Image.Image:
    """Whole images in the upper row, a detail at full resolution and its own window in the lower row.

    The difference is amplified; its title states the range.
    """
    with opened(original) as file:
        reference = Reference(integer_pixels(original), file.header())
    first, second = reference.pixels, integer_pixels(copy)
    window, inverted = reference.window, reference.inverted
    difference = second.astype(np.int32) - first
    reach = max(float(np.percentile(np.abs(difference), 99.9)), 1.0)
    titles = [
        "original",
        "reconstruction, not for primary use",
        f"difference, ±{100 * reach / window.width:.1f}% of the window",
    ]
    magnified = Window(-reach, reach)

    def panels(view: tuple[slice, slice], seen: Window, height: int) -> list[Image.Image]:
        shown = [grey(first[view], seen, inverted), grey(second[view], seen, inverted)]
        return [_scaled(panel, height) for panel in (*shown, grey(difference[view], magnified, False))]

    top = panels((slice(None), slice(None)), window, _HEIGHT)
    view = _detail(reference.mask, first)
    low, high = (float(value) for value in np.percentile(first[view], [0.5, 99.5]))
    own = Window(low, high)
    bottom = panels(view, own if own.width >= 1 else window, top[0].width)
    return _sheet(titles, top, bottom, derived_uid)


def _sheet(titles: list[str], top: list[Image.Image], bottom: list[Image.Image], uid: str) -> Image.Image:
    gap, width = 8, top[0].width
    height = _CAPTION + _HEIGHT + gap + max(image.height for image in bottom) + _CAPTION
    sheet = Image.new("L", (len(top) * (width + gap) - gap, height), 24)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=22)
    for number, title in enumerate(titles):
        left = number * (width + gap)
        draw.text((left + 8, 18), title, fill=235, font=font)
        sheet.paste(top[number], (left, _CAPTION))
        sheet.paste(bottom[number], (left, _CAPTION + _HEIGHT + gap))
    draw.text((8, height - _CAPTION + 18), f"reconstruction {uid}", fill=160, font=ImageFont.load_default(size=18))
    return sheet


def grey(values: NDArray[np.generic], window: Window, inverted: bool) -> NDArray[np.uint8]:
    """Stored values as 8-bit grey levels of a display. ``inverted``: the least value is shown white."""
    shown = window.show(values)
    return ((1.0 - shown if inverted else shown) * 255).round().astype(np.uint8)


def _scaled(panel: NDArray[np.uint8], height: int) -> Image.Image:
    image = Image.fromarray(panel)
    return image.resize((round(image.width * height / image.height), height), Image.Resampling.LANCZOS)


def _detail(mask: NDArray[np.bool_], pixels: NDArray[np.uint16]) -> tuple[slice, slice]:
    """The square for the detail: within the breast, with the highest contrast."""
    best, corner = -1.0, (0, 0)
    for row in range(0, max(pixels.shape[0] - _DETAIL, 0) + 1, 64):
        for column in range(0, max(pixels.shape[1] - _DETAIL, 0) + 1, 64):
            inside = mask[row // CELL : (row + _DETAIL) // CELL, column // CELL : (column + _DETAIL) // CELL]
            busy = float(pixels[row : row + _DETAIL : 8, column : column + _DETAIL : 8].std()) * inside.mean() ** 8
            if busy > best:
                best, corner = busy, (row, column)
    return slice(corner[0], corner[0] + _DETAIL), slice(corner[1], corner[1] + _DETAIL)
