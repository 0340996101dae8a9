"""Draws contact sheets: chosen places of an image, original and reconstruction side by side.

All pixels are drawn one to one. A difference is drawn in units of the original's local noise (the median absolute
deviation of what a Gaussian of 2 pixels removes, in blocks of 32 x 32 pixels), or of the rounding of a 256-level
display if that is larger. Mid-grey is 0; black and white are at least four times the noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pictures
from PIL import ImageDraw, ImageFont
from scipy.ndimage import distance_transform_edt, gaussian_filter, median_filter, uniform_filter, zoom

from benchmarks.coded import Coded
from storage.formats.geometry import TILE

Float = NDArray[np.float32]
Grey = NDArray[np.uint8]

SIDE = 384
"""Side of a place, in pixels; shorter if the image is smaller."""
PLACES = 6
"""Largest number of places per image."""
NOISES = 4.0
"""Difference that is drawn black or white, in units of local noise."""
NARROWEST = 40
"""Largest ratio of the image's window to a narrow window. Even narrower windows show only rounding and air."""
_GAP, _TITLE, _THUMB = 6, 24, 300
_BLOCK = 32
_COARSE = 8
_RIM = 48
_TEXT, _FAINT, _PAPER = (235, 235, 235), (170, 170, 170), (18, 18, 18)
_MARK = (255, 210, 0)


@dataclass(frozen=True)
class Place:
    """A square of the image, by its top left corner, and the reason for its choice."""

    row: int
    column: int
    side: int
    why: str

    def of(self, image: NDArray[np.generic]) -> Float:
        return image[self.row : self.row + self.side, self.column : self.column + self.side].astype(np.float32)


@dataclass(frozen=True)
class Panel:
    """One picture of a sheet, uint8 (side, side), and its caption."""

    title: str
    grey: Grey


def places_of(coded: Coded) -> list[Place]:
    """Up to six squares: the worst tile by the gate, the worst one well inside the breast, fine structure, dense
    tissue, fatty tissue and the skin line.

    Their corners are at least half of a side apart, so a small breast has fewer.
    """
    side = min(SIDE, *coded.original.shape)
    tissue = _without_rim(coded.breast)
    corners, inside = _corners(tissue, side)
    deep = inside >= min(0.98, float(inside.max()) - 0.02)
    brightness, fine = _brightness_and_detail(coded, side, corners)
    chosen: list[Place] = []
    for row, column in coded.worst:
        middle = (row + (TILE - side) // 2, column + (TILE - side) // 2)
        top, left = (int(np.clip(at, 0, size - side)) for at, size in zip(middle, coded.original.shape, strict=True))
        place = Place(top, left, side, ("worst tile by the gate", "worst in the breast")[len(chosen)])
        if not chosen or place.of(tissue).mean() > min(0.9, float(inside.max()) - 0.1):
            _take(chosen, place)
        if len(chosen) == 2:
            break
    wishes: list[tuple[str, Float]] = [
        ("finest structure", np.where(deep, fine, -np.inf)),
        ("dense tissue", np.where(deep, brightness, -np.inf)),
        ("fatty tissue", np.where(deep, -brightness, -np.inf)),
        ("skin line", -np.abs(inside - 0.55)),
        ("breast", np.where(deep, inside, -np.inf)),
        ("breast", np.where(deep, inside, -np.inf)),
    ]
    for why, score in wishes:
        for index in np.argsort(-score, kind="stable"):
            if len(chosen) == PLACES or not np.isfinite(score[index]):
                break
            if _take(chosen, Place(int(corners[index, 0]), int(corners[index, 1]), side, why)):
                break
    return chosen


def _take(chosen: list[Place], place: Place) -> bool:
    free = all(max(abs(place.row - o.row), abs(place.column - o.column)) >= place.side // 2 for o in chosen)
    if free:
        chosen.append(place)
    return free


def _without_rim(breast: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The breast without 48 pixels along the skin line, which is no structure, and along the frame, where film has an
    edge."""
    coarse = np.pad(breast[::_COARSE, ::_COARSE], 1)
    deep = distance_transform_edt(coarse)[1:-1, 1:-1] * _COARSE > _RIM
    return np.kron(deep, np.ones((_COARSE, _COARSE), dtype=bool))[: breast.shape[0], : breast.shape[1]]


def _corners(breast: NDArray[np.bool_], side: int) -> tuple[NDArray[np.intp], Float]:
    """Top left corners, on a grid of 64 pixels, of the squares with more than 20% of breast; and that share."""
    rows, columns = breast.shape
    grid = [(row, column) for row in range(0, rows - side + 1, 64) for column in range(0, columns - side + 1, 64)]
    share = [breast[row : row + side : 4, column : column + side : 4].mean() for row, column in grid]
    found = np.array(share, dtype=np.float32)
    return np.array(grid)[found > 0.2], found[found > 0.2]


def _brightness_and_detail(coded: Coded, side: int, corners: NDArray[np.intp]) -> tuple[Float, Float]:
    """Mean brightness of each square through the window, and its variance at the scale of vessels."""
    low, high = coded.window
    image = np.clip((coded.original.astype(np.float32) - low) / (high - low), 0, 1)
    vessels = np.square(gaussian_filter(image, 1.4) - gaussian_filter(image, 4.0))
    smooth = [uniform_filter(each[::_COARSE, ::_COARSE], side // _COARSE) for each in (image, vessels)]
    middle = (corners + side // 2) // _COARSE
    rows, columns = (np.minimum(middle[:, axis], smooth[0].shape[axis] - 1) for axis in (0, 1))
    return smooth[0][rows, columns], smooth[1][rows, columns]


def difference(image: NDArray[np.generic], coded: Coded, place: Place) -> Grey:
    """``image - original`` at a place, in units of the original's local noise."""
    original = place.of(coded.original)
    step = (coded.window[1] - coded.window[0]) / 256
    over = (place.of(image) - original) / local_noise(original, step)
    return _grey(over / (2 * NOISES) + 0.5)


def local_noise(image: Float, step: float = 1.0) -> Float:
    """Standard deviation of the noise at each pixel, in grey levels, at least that of rounding to ``step``."""
    rough = np.abs(image - gaussian_filter(image, 2.0))
    block = min(_BLOCK, *image.shape)
    rows, columns = (-(-size // block) for size in image.shape)
    whole = np.pad(rough, [(0, rows * block - image.shape[0]), (0, columns * block - image.shape[1])], mode="symmetric")
    blocks = whole.reshape(rows, block, columns, block).transpose(0, 2, 1, 3).reshape(rows, columns, -1)
    median = median_filter(1.4826 * np.median(blocks, axis=2), 3, mode="nearest")
    smooth = zoom(median, block, order=1, mode="nearest", grid_mode=True)[: image.shape[0], : image.shape[1]]
    return np.maximum(smooth, step / np.sqrt(12)).astype(np.float32)


def windowed(image: NDArray[np.generic], place: Place, window: tuple[float, float], *, inverted: bool = False) -> Grey:
    """A place as displayed through a window."""
    shown = (place.of(image) - window[0]) / max(window[1] - window[0], 1e-6)
    return _grey(1 - shown if inverted else shown)


def narrow_window(coded: Coded, place: Place) -> tuple[float, float]:
    """The window that shows the faintest contrast of a place.

    It is the 0.5th to 99.5th percentile, widened by a fifth on each side, of a quarter of the place: among the quarters
    with the most breast, the one whose range is narrowest. Other parts may be clipped.
    """
    values, breast = place.of(coded.original), place.of(_without_rim(coded.breast)) > 0
    half, found = place.side // 2, []
    for row in range(0, place.side - half + 1, max(1, half // 4)):
        for column in range(0, place.side - half + 1, max(1, half // 4)):
            part = np.s_[row : row + half, column : column + half]
            low, high = np.percentile(values[part], [0.5, 99.5])
            found.append((-round(float(breast[part].mean()), 2), float(high - low), float(low), float(high)))
    _, _, low, high = min(found)
    room = (high - low) / 5
    low, high = max(low - room, float(values.min())), min(high + room, float(values.max()))
    return low, max(high, low + (coded.window[1] - coded.window[0]) / NARROWEST)


def _grey(shown: Float) -> Grey:
    return np.rint(255 * np.clip(shown, 0, 1)).astype(np.uint8)


def sheet(
    rows: Sequence[Sequence[Panel]], heading: Sequence[str], overview: Grey, marks: Sequence[Place], scale: int
) -> Pictures.Image:
    """Rows of panels below a heading and an overview with marked places. ``scale``: reduction of the overview."""
    side, columns = rows[0][0].grey.shape[0], max(map(len, rows))
    width = columns * (side + _GAP) + _GAP
    top = max(overview.shape[0], 28 * len(heading)) + 2 * _GAP
    made = Pictures.new("RGB", (width, top + len(rows) * (side + _TITLE + _GAP)), _PAPER)
    draw, words = ImageDraw.Draw(made), ImageFont.load_default(15)
    made.paste(Pictures.fromarray(overview).convert("RGB"), (_GAP, _GAP))
    for number, place in enumerate(marks, 1):
        left, up = _GAP + place.column // scale, _GAP + place.row // scale
        draw.rectangle((left, up, left + place.side // scale, up + place.side // scale), outline=_MARK)
        draw.text((left + 3, up + 1), str(number), _MARK, ImageFont.load_default(14))
    for number, line in enumerate(heading):
        font = ImageFont.load_default(22 if number == 0 else 17)
        draw.text((overview.shape[1] + 4 * _GAP, _GAP + 28 * number), line, _TEXT, font)
    for number, row in enumerate(rows):
        y = top + number * (side + _TITLE + _GAP)
        for column, panel in enumerate(row):
            x = _GAP + column * (side + _GAP)
            draw.text((x + 2, y + 3), panel.title, _TEXT if column == 0 else _FAINT, words)
            made.paste(Pictures.fromarray(panel.grey).convert("RGB"), (x, y + _TITLE))
    return made


def overview_of(coded: Coded, *, inverted: bool = False) -> tuple[Grey, int]:
    """The whole original, reduced, and the factor of reduction."""
    scale = max(1, -(-coded.original.shape[0] // _THUMB))
    rows, columns = (size // scale * scale for size in coded.original.shape)
    small = coded.original[:rows, :columns].reshape(rows // scale, scale, columns // scale, scale).mean(axis=(1, 3))
    shown = (small.astype(np.float32) - coded.window[0]) / (coded.window[1] - coded.window[0])
    return _grey(1 - shown if inverted else shown), scale
