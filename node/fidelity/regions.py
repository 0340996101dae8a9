"""Where to measure: the breast, the tiles that hold some of it, and the display window to see it through."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from node.fidelity.fsim import TILE

Pixels = NDArray[np.uint16]
Mask = NDArray[np.bool_]

_BLOCK = 16
_MIN_BREAST = 0.02
"""Below this share of the image a segmentation is not believed, and everything is measured."""


@dataclass(frozen=True)
class Window:
    """Stored values shown as black and as white; linear between (PS3.3 C.11.2.1.2)."""

    low: float
    high: float

    @property
    def width(self) -> float:
        return self.high - self.low

    def show(self, values: NDArray[np.generic]) -> NDArray[np.float32]:
        """Values as a display would show them: float32, 0..1, clipped."""
        shown = (np.asarray(values, dtype=np.float32) - np.float32(self.low)) * np.float32(1 / self.width)
        return np.clip(shown, 0.0, 1.0, out=shown)


def breast_mask(pixels: Pixels, photometric: str, padding: Mask | None = None) -> Mask:
    """The breast on a grid of 16 x 16 pixel blocks: bool, shape (ceil(rows/16), ceil(columns/16)).

    The largest connected region brighter than air, grown by one block so that the skin line is in it. Where that
    finds next to nothing, every block counts as breast: measuring too much is the safe mistake.
    """
    from scipy.ndimage import binary_dilation, binary_fill_holes, label

    blocks = _block_means(pixels)
    outside = _block_means(padding) > 0.5 if padding is not None else np.zeros(blocks.shape, dtype=bool)
    if photometric == "MONOCHROME1":
        blocks = blocks.max() - blocks
    inside = ~outside
    threshold = _air_threshold(blocks[inside]) if inside.any() else np.inf
    bright = (blocks > threshold) & inside
    labels, count = label(bright)
    if count == 0:
        return np.ones(blocks.shape, dtype=bool)
    sizes = np.bincount(labels.ravel())[1:]
    breast = np.asarray(binary_fill_holes(labels == int(sizes.argmax()) + 1))
    if breast.mean() < _MIN_BREAST:
        return np.ones(blocks.shape, dtype=bool)
    return np.asarray(binary_dilation(breast), dtype=bool)


def _air_threshold(values: NDArray[np.float32]) -> float:
    """Between air and tissue: Otsu's threshold of the logarithm, where the dim rim of the breast is not air."""
    from skimage.filters import threshold_otsu

    low, high = float(values.min()), float(values.max())
    if high <= low:
        return high
    scale = (high - low) / 256
    logs = np.log2((values - low) / scale + 1.0)
    return float((2 ** threshold_otsu(logs) - 1.0) * scale + low)


def _block_means(values: NDArray[np.generic]) -> NDArray[np.float32]:
    rows, columns = values.shape
    pad = ((0, -rows % _BLOCK), (0, -columns % _BLOCK))
    padded = np.pad(values, pad, mode="edge") if any(p[1] for p in pad) else values
    shape = (padded.shape[0] // _BLOCK, _BLOCK, padded.shape[1] // _BLOCK, _BLOCK)
    means: NDArray[np.float32] = padded.reshape(shape).mean(axis=(1, 3), dtype=np.float32)
    return means


def breast_tiles(mask: Mask, rows: int, columns: int) -> list[tuple[int, int]]:
    """Top-left corners (row, column) of the 256-pixel tiles that hold breast.

    Tiles lie on a grid from the top left; the last ones are moved inward so that no pixel is left out.
    """
    tiles = []
    for row, column in all_tiles(rows, columns):
        top, left = row // _BLOCK, column // _BLOCK
        bottom, right = -(-(row + TILE) // _BLOCK), -(-(column + TILE) // _BLOCK)
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


def display_window(header: Dataset, pixels: Pixels, mask: Mask) -> Window:
    """The image's own first window, in stored values; without one, the breast's 0.5 to 99.5 percentile."""
    own = _own_window(header)
    if own is not None:
        return own
    rows, columns = pixels.shape
    breast = pixels[::4, ::4][np.kron(mask, np.ones((4, 4), dtype=bool))[: -(-rows // 4), : -(-columns // 4)]]
    low, high = (float(value) for value in np.percentile(breast, [0.5, 99.5]))
    return Window(low, max(high, low + 1.0))


def _own_window(header: Dataset) -> Window | None:
    try:
        centre, width = (_first(header.get(name)) for name in ("WindowCenter", "WindowWidth"))
        slope = _first(header.get("RescaleSlope")) or 1.0
        intercept = _first(header.get("RescaleIntercept")) or 0.0
    except (TypeError, ValueError):
        return None
    if centre is None or width is None or width < 1 or slope == 0:
        return None
    ends = sorted(((centre - width / 2 - intercept) / slope, (centre + width / 2 - intercept) / slope))
    return Window(ends[0], ends[1])


def _first(value: Any) -> float | None:
    """The first of one or several values; None where there is none. Raises ValueError or TypeError."""
    if value is None or value == "":
        return None
    if hasattr(value, "__iter__") and not isinstance(value, str):
        values = list(value)
        return float(values[0]) if values else None
    return float(value)
