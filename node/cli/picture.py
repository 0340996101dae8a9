"""Original, reconstruction and difference side by side, at a readable window, each saying what it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from node.fidelity.regions import Window, breast_mask, display_window
from storage.dicomfile import integer_pixels, opened

_HEIGHT = 900
_CAPTION = 60
_DETAIL = 448


def side_by_side(original: Path, copy: Path, derived_uid: str) -> Image.Image:
    """Whole images above, a full-resolution detail below; differences are magnified, and the caption says how much."""
    with opened(original) as file:
        header = file.header()
    first, second = integer_pixels(original), integer_pixels(copy)
    mask = breast_mask(first, str(header.get("PhotometricInterpretation", "")))
    window = display_window(header, first, mask)
    inverted = header.get("PhotometricInterpretation") == "MONOCHROME1"
    difference = second.astype(np.int32) - first
    reach = max(float(np.percentile(np.abs(difference), 99.9)), 1.0)
    panels = [
        ("original", _grey(first, window, inverted)),
        ("reconstruction, not for primary interpretation", _grey(second, window, inverted)),
        (f"difference, full scale ±{reach:.0f} grey levels", _grey(difference, Window(-reach, reach), False)),
    ]
    row, column = _detail_corner(mask, first.shape)
    details = [(title, panel[row : row + _DETAIL, column : column + _DETAIL]) for title, panel in panels]
    top = [_scaled(panel, _HEIGHT) for _, panel in panels]
    width = max(image.width for image in top)
    bottom = [_scaled(panel, width) for _, panel in details]
    return _sheet([title for title, _ in panels], top, bottom, width, derived_uid)


def _sheet(titles: list[str], top: list[Image.Image], bottom: list[Image.Image], width: int, uid: str) -> Image.Image:
    gap = 8
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


def _grey(values: NDArray[np.generic], window: Window, inverted: bool) -> NDArray[np.uint8]:
    shown = window.show(values)
    return ((1.0 - shown if inverted else shown) * 255).round().astype(np.uint8)


def _scaled(panel: NDArray[np.uint8], height: int) -> Image.Image:
    image = Image.fromarray(panel)
    return image.resize((round(image.width * height / image.height), height), Image.Resampling.LANCZOS)


def _detail_corner(mask: NDArray[np.bool_], shape: tuple[int, ...]) -> tuple[int, int]:
    """Where to cut the detail: around the centre of the breast."""
    rows, columns = np.nonzero(mask)
    row, column = int(rows.mean() * 16) - _DETAIL // 2, int(columns.mean() * 16) - _DETAIL // 2
    return max(0, min(row, shape[0] - _DETAIL)), max(0, min(column, shape[1] - _DETAIL))
