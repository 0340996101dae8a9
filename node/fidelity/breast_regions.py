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
"""Smallest share of the image that is accepted as breast; below it all of it is measured. Chosen, not measured."""
_UNEVEN = 0.25
"""Greatest spread of air from its 10th to its 90th percentile, over the distance of the median of air to that of the
breast. Air of 11 images has at most 0.04; the dark fat of a breast that fills the image has 0.65."""
_ALONG = 0.6
"""A bright part that lies along more than this share of the image's border is air. Breasts of 30 images lie along at
most 0.48 of the border, the bright air of a raw image along 0.67."""
_NARROW = 0.15
"""Half the width of a narrow part, over the square root of the breast's area: 15 mm for a breast of 10 cm x 10 cm."""
_STRIP = 0.005
"""Smallest area of a strip, over that of the breast. The tip in which a breast ends at the border is smaller."""
_PART = 0.2
"""Smallest area of a part of the breast, over that of the largest part. Chosen, not measured."""


@dataclass(frozen=True)
class Window:
    """A display window on stored values (VOI LUT Function, PS3.3 C.11.2.1.2 and C.11.2.1.3).

    ``low`` and ``high``: Window Center minus and plus half of Window Width, in stored values. ``shape``:
    ``linear_exact`` is black at ``low``, white at ``high`` and linear in between; ``linear`` is white one unit before
    its end; ``sigmoid`` is a logistic curve with 0.12 at ``low`` and 0.88 at ``high``, which continues beyond them.
    ``unit``: that unit of ``linear``, in stored values; negative if a rescale with a falling slope precedes the window.
    """

    low: float
    high: float
    shape: Shape = "linear_exact"
    unit: float = 1.0

    @property
    def width(self) -> float:
        """Window Width in stored values, the unit of errors "in window widths"."""
        return self.high - self.low

    def show(self, values: NDArray[np.generic]) -> NDArray[np.float32]:
        """``values`` as a display shows them if ``high`` is bright: float32, 0..1."""
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
    """The breast per cell of 16 x 16 pixels: bool (ceil(rows/16), ceil(columns/16)).

    ``pixels``: uint16 (rows, columns), stored values. ``photometric``: MONOCHROME1 if dense tissue is dark.
    ``padding``: bool, the same shape. Cells that are mostly padding, and those of an even background, count as air,
    however bright they are.

    The breast consists of the largest connected regions brighter than air, grown by one cell so that they contain the
    skin line. If these are nearly empty, or are noisy air that is brighter than the breast, or if the dark cells are
    too uneven for air, every cell counts as breast: measuring too much is the safe mistake.
    """
    from scipy.ndimage import binary_dilation, binary_fill_holes, label

    blocks = cell_means(pixels)
    outside = _background(pixels)
    if padding is not None:
        outside |= cell_means(padding) > 0.5
    if photometric == "MONOCHROME1":
        blocks = blocks.max() - blocks
    inside = ~outside
    if outside.any() and inside.any():  # padding may be all of the air, and a threshold needs some
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
    """Whether the bright part is air, as in a raw image whose values rise with the exposure, and whose header does not
    say FOR PROCESSING. Air lies along most of the image's border, a breast does not. Borders of films are ignored."""
    bare, _ = without_strips(bright)
    border = np.concatenate([bare[0], bare[-1], bare[1:-1, 0], bare[1:-1, -1]])
    return bool(border.mean() > _ALONG)


def _background(pixels: Pixels) -> Mask:
    """Cells whose pixels all have the most frequent value of the image's corners, if at least two share it: bool.

    They are air that the modality has made even.
    """
    corners, counts = np.unique(pixels[[0, 0, -1, -1], [0, -1, 0, -1]], return_counts=True)
    even = (pixels == corners[counts.argmax()]) & (counts.max() > 1)
    return np.asarray(cell_means(even) == 1)


def _air_threshold(values: NDArray[np.float32]) -> float:
    """Threshold between air and tissue: Otsu's, of the logarithm, so that the dim rim of the breast is not air."""
    from skimage.filters import threshold_otsu

    low, high = float(values.min()), float(values.max())
    if high <= low:
        return high
    scale = (high - low) / 256
    logs = np.log2((values - low) / scale + 1.0)
    return float((2 ** threshold_otsu(logs) - 1.0) * scale + low)


def _is_uneven(air: NDArray[np.float32], breast: NDArray[np.float32]) -> bool:
    """Whether the cells below the threshold are tissue too, as in an image that the breast fills."""
    low, middle, high = np.percentile(air, (10, 50, 90))
    return bool(high - low > _UNEVEN * (np.median(breast) - middle))


def without_strips(mask: Mask) -> tuple[Mask, Mask]:
    """A breast mask without narrow strips along the image's border, and its part that is not narrow.

    Borders of scanned films and of collimation are such strips. A nipple in profile is narrow too, but it does not
    touch the image's border, and stays in the first mask. The second mask is the morphological opening.
    """
    from scipy.ndimage import distance_transform_edt, label

    if mask.all():
        return mask, mask
    reach = _NARROW * float(np.sqrt(mask.sum()))
    thick = distance_transform_edt(mask) > reach  # the breast continues beyond the image's border
    if not thick.any():
        return mask, mask
    thick = _large_parts(*label(thick))
    wide = mask & (distance_transform_edt(~thick) <= reach)
    narrow, _ = label(mask & ~wide, np.ones((3, 3)))
    touching = np.unique(np.concatenate([narrow[0], narrow[-1], narrow[:, 0], narrow[:, -1]]))
    strips = touching[(touching > 0) & (np.bincount(narrow.ravel())[touching] >= _STRIP * mask.sum())]
    return mask & ~np.isin(narrow, strips), wide


def _large_parts(labels: NDArray[np.int32], count: int) -> Mask:
    """The largest of the parts 1 to ``count``, and those with at least ``_PART`` of its area."""
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    return np.isin(labels, 1 + np.flatnonzero(sizes >= _PART * sizes.max()))


def breast_tiles(mask: Mask, rows: int, columns: int) -> list[tuple[int, int]]:
    """Top left corners (row, column) of the tiles of 256 x 256 pixels that contain breast.

    The last tiles of a row or column are moved inward, so that no pixel is left out. Raises as ``all_tiles``.
    """
    tiles = []
    for row, column in all_tiles(rows, columns):
        top, left = row // CELL, column // CELL
        bottom, right = -(-(row + TILE) // CELL), -(-(column + TILE) // CELL)
        if mask[top:bottom, left:right].any():
            tiles.append((row, column))
    return tiles


def all_tiles(rows: int, columns: int) -> list[tuple[int, int]]:
    """Top left corners (row, column) of all tiles, row by row. Raises ValueError if a side is shorter than a tile."""
    return [(row, column) for row in _starts(rows) for column in _starts(columns)]


def _starts(size: int) -> list[int]:
    if size < TILE:
        raise ValueError(f"images below {TILE} pixels a side are not measured, this one has {size}")
    starts = list(range(0, size - TILE + 1, TILE))
    if starts[-1] + TILE < size:
        starts.append(size - TILE)
    return starts
