"""Finds where to measure: the breast, the tiles with breast, and the display window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from storage.formats.geometry import CELL, TILE, cell_means

Pixels = NDArray[np.uint16]
Mask = NDArray[np.bool_]
Shape = Literal["linear", "linear_exact", "sigmoid"]

_MIN_BREAST = 0.02
"""Least share of the image in a segmentation; below it the whole image is measured."""
_UNEVEN = 0.25
"""Greatest spread of air, from its 10th to its 90th percentile, over how far the breast's median is above its own. Air
of 11 images has at most 0.04; the dark fat of a breast that fills the image has 0.65."""
_ALONG = 0.6
"""Share of the image's border beyond which what is bright is air. Breasts of 30 images lie along at most 0.48 of it,
bright air of a raw image along 0.67."""
_NARROW = 0.15
"""Half the width of a narrow part, over the square root of the breast's area: 15 mm for a breast of 10 cm x 10 cm."""
_STRIP = 0.005
"""Least area of a strip, over that of the breast: the tip in which a breast ends at the border is less."""
_PART = 0.2
"""Least area of a part of the breast, over that of the largest one."""


@dataclass(frozen=True)
class Window:
    """Which stored values are shown how (VOI LUT Function, PS3.3 C.11.2.1.2 and C.11.2.1.3).

    ``low`` and ``high``: Window Center less and plus half of Window Width, in stored values. ``linear_exact``: black at
    ``low``, white at ``high``, linear between. ``linear``: white one unit of the window's values before its end, which
    is ``unit`` stored values; negative where stored values rise as the window's fall. ``sigmoid``: a logistic curve,
    0.12 at ``low`` and 0.88 at ``high``, that goes on beyond.
    """

    low: float
    high: float
    shape: Shape = "linear_exact"
    unit: float = 1.0

    @property
    def width(self) -> float:
        """That of the header, in stored values. Errors are given as shares of it."""
        return self.high - self.low

    def show(self, values: NDArray[np.generic]) -> NDArray[np.float32]:
        """Values as a display would show them, where that of ``high`` is bright: float32, 0..1."""
        low, width = self.low, self.width
        if self.shape == "linear":
            low, width = low + max(-self.unit, 0.0), width - abs(self.unit)
        shown = (np.asarray(values, dtype=np.float32) - np.float32(low)) * np.float32(1 / width)
        if self.shape != "sigmoid":
            return np.clip(shown, 0.0, 1.0, out=shown)
        shown -= np.float32(0.5)
        shown *= np.float32(-4)
        np.exp(np.clip(shown, -80.0, 80.0, out=shown), out=shown)  # beyond, float32 overflows
        shown += np.float32(1)
        np.reciprocal(shown, out=shown)
        return shown


def breast_mask(pixels: Pixels, photometric: str, padding: Mask | None = None) -> Mask:
    """The breast on a grid of 16 x 16 pixel blocks: bool, shape (ceil(rows/16), ceil(columns/16)).

    ``pixels``: uint16, shape (rows, columns), stored values. ``photometric``: MONOCHROME1 where dense tissue is dark.
    ``padding``: bool, like ``pixels``; blocks that are mostly padding are no breast, and count as air however bright.
    So do those of an even background.

    The largest connected regions brighter than air, grown by one block so that the skin line is in them. Where that
    finds next to nothing, or noisy air that is brighter than the breast, or dark blocks too uneven for air, every
    block counts as breast: measuring too much is the safe mistake.
    """
    from scipy.ndimage import binary_dilation, binary_fill_holes, label

    blocks = cell_means(pixels)
    outside = _background(pixels)
    if padding is not None:
        outside |= cell_means(padding) > 0.5
    if photometric == "MONOCHROME1":
        blocks = blocks.max() - blocks
    inside = ~outside
    if outside.any() and inside.any():  # padding may be all of the air, and tissue alone has no threshold to it
        blocks = np.where(outside, np.minimum(blocks, blocks[inside].min()), blocks)
    above = blocks > _air_threshold(blocks)
    labels, count = label(above & inside)
    if count == 0 or _is_uneven(blocks[~above], blocks[above]):
        return np.ones(blocks.shape, dtype=bool)
    breast = np.asarray(binary_fill_holes(_large_parts(labels, count)))
    if breast.mean() < _MIN_BREAST or (not outside.any() and _is_air(breast)):
        return np.ones(blocks.shape, dtype=bool)
    return np.asarray(binary_dilation(breast), dtype=bool)


def _is_air(bright: Mask) -> bool:
    """Whether the bright part is air, as in a raw image whose values rise with the exposure, and which is not marked as
    for processing. Air lies along most of the image's border, a breast does not; borders of films do not count."""
    bare, _ = without_strips(bright)
    border = np.concatenate([bare[0], bare[-1], bare[1:-1, 0], bare[1:-1, -1]])
    return bool(border.mean() > _ALONG)


def _background(pixels: Pixels) -> Mask:
    """Blocks of the one value that most corners of the image have: air that the modality has made even. Bool."""
    corners, counts = np.unique(pixels[[0, 0, -1, -1], [0, -1, 0, -1]], return_counts=True)
    even = (pixels == corners[counts.argmax()]) & (counts.max() > 1)
    return np.asarray(cell_means(even) == 1)


def _air_threshold(values: NDArray[np.float32]) -> float:
    """Between air and tissue: Otsu's threshold of the logarithm, where the dim rim of the breast is not air."""
    from skimage.filters import threshold_otsu

    low, high = float(values.min()), float(values.max())
    if high <= low:
        return high
    scale = (high - low) / 256
    logs = np.log2((values - low) / scale + 1.0)
    return float((2 ** threshold_otsu(logs) - 1.0) * scale + low)


def _is_uneven(air: NDArray[np.float32], breast: NDArray[np.float32]) -> bool:
    """Whether what is darker than the threshold is tissue, too, as where a breast fills the image."""
    low, middle, high = np.percentile(air, (10, 50, 90))
    return bool(high - low > _UNEVEN * (np.median(breast) - middle))


def without_strips(mask: Mask) -> tuple[Mask, Mask]:
    """A breast mask without the narrow strips along the image's border that it holds, and what of it is not narrow.

    Borders of scanned films and of collimation are such strips. A nipple in profile is narrow too; it does not touch
    the image's border, and stays in the first mask.
    """
    from scipy.ndimage import distance_transform_edt, label

    if mask.all():
        return mask, mask
    reach = _NARROW * float(np.sqrt(mask.sum()))
    thick = distance_transform_edt(mask) > reach  # beyond the image's border the breast goes on
    if not thick.any():
        return mask, mask
    thick = _large_parts(*label(thick))
    wide = mask & (distance_transform_edt(~thick) <= reach)
    narrow, _ = label(mask & ~wide, np.ones((3, 3)))
    touching = np.unique(np.concatenate([narrow[0], narrow[-1], narrow[:, 0], narrow[:, -1]]))
    strips = touching[(touching > 0) & (np.bincount(narrow.ravel())[touching] >= _STRIP * mask.sum())]
    return mask & ~np.isin(narrow, strips), wide


def _large_parts(labels: NDArray[np.int32], count: int) -> Mask:
    """The largest of the parts 1 to ``count``, and those of a good share of its area."""
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    return np.isin(labels, 1 + np.flatnonzero(sizes >= _PART * sizes.max()))


def breast_tiles(mask: Mask, rows: int, columns: int) -> list[tuple[int, int]]:
    """Top-left corners (row, column) of the 256-pixel tiles that hold breast.

    Tiles lie on a grid from the top left; the last ones are moved inward so that no pixel is left out.
    """
    tiles = []
    for row, column in all_tiles(rows, columns):
        top, left = row // CELL, column // CELL
        bottom, right = -(-(row + TILE) // CELL), -(-(column + TILE) // CELL)
        if mask[top:bottom, left:right].any():
            tiles.append((row, column))
    return tiles


def all_tiles(rows: int, columns: int) -> list[tuple[int, int]]:
    """Top-left corners (row, column) of all tiles of an image, row by row."""
    return [(row, column) for row in _starts(rows) for column in _starts(columns)]


def _starts(size: int) -> list[int]:
    if size < TILE:
        raise ValueError(f"images below {TILE} pixels a side are not measured, this one has {size}")
    starts = list(range(0, size - TILE + 1, TILE))
    if starts[-1] + TILE < size:
        starts.append(size - TILE)
    return starts
