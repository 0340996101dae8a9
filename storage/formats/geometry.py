"""Sizes of the squares that images are divided into, and operations on such grids.

Every grid starts at the image's top left pixel. The squares at the right and lower border may be cut off.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

_Value = TypeVar("_Value", bound=np.generic)

CELL = 16
"""Side of a cell, in pixels: the unit of breast masks, local measurements, coded residuals and exact patches."""
TILE = 256
"""Side of a tile, in pixels: the unit of FSIM and of the band energies."""
DCT_BLOCK = 8
"""Side of the smallest transform block of JPEG XL, in samples (ISO/IEC 18181-1)."""

Cells = NDArray[np.bool_]
"""Marked cells of an image: bool, shape ``cell_grid``."""


def cell_grid(rows: int, columns: int) -> tuple[int, int]:
    """The number of cells, down and across, that cover ``rows`` x ``columns`` pixels."""
    return -(-rows // CELL), -(-columns // CELL)


def cell_pixels(cells: NDArray[_Value], rows: int, columns: int, side: int = CELL) -> NDArray[_Value]:
    """Repeat the value of each cell, ``side`` pixels a side, for each of its pixels: shape (rows, columns)."""
    return np.repeat(np.repeat(cells, side, axis=0), side, axis=1)[:rows, :columns]


def reduced(values: NDArray[Any], side: int, by: np.ufunc, dtype: type | None = None) -> NDArray[Any]:
    """One value per square of ``side`` x ``side`` pixels: shape (rows / side, columns / side), rounded up.

    Squares that the border cuts off are reduced over the pixels that they have. Rows are reduced first: numpy is slow
    along a short last axis.
    """
    rows, columns = values.shape
    whole = rows // side * side
    lines = by.reduce(values[:whole].reshape(rows // side, side, columns), axis=1, dtype=dtype)
    if whole < rows:
        lines = np.concatenate([lines, by.reduce(values[whole:], axis=0, dtype=dtype)[None]])
    return np.asarray(by.reduceat(lines, np.arange(0, columns, side), axis=1))


def cell_means(values: NDArray[Any]) -> NDArray[np.float32]:
    """The mean of each cell over the pixels that it has: float32, shape ``cell_grid``."""
    sides = (np.minimum(CELL, length - np.arange(0, length, CELL)) for length in values.shape)
    return np.asarray(reduced(values, CELL, np.add, np.float64) / np.outer(*sides), dtype=np.float32)


def flat_cells(values: NDArray[Any]) -> Cells:
    """The cells whose pixels have one value."""
    return np.asarray(reduced(values, CELL, np.maximum) == reduced(values, CELL, np.minimum))


def cell_quantiles(
    values: NDArray[np.float32], counted: NDArray[np.bool_], side: int, share: float
) -> NDArray[np.float32]:
    """A quantile, ``share`` from 0 to 1, of the ``counted`` pixels in each square of ``side`` x ``side`` pixels.

    float32, shape (rows / side, columns / side), rounded up; 0 where no pixel counts. Only every second row and column
    is used.
    """
    pad = [(0, -length % side) for length in values.shape]
    some = np.pad(np.where(counted, values, np.float32(np.nan)), pad, constant_values=np.nan)[::2, ::2]
    half = side // 2
    cells = some.reshape(some.shape[0] // half, half, some.shape[1] // half, half).transpose(0, 2, 1, 3)
    ordered = np.sort(cells.reshape(*cells.shape[:2], -1), axis=2)
    known = (~np.isnan(ordered)).sum(axis=2)
    at = (np.maximum(known - 1, 0) * share).astype(np.intp)
    found = np.take_along_axis(ordered, at[..., None], axis=2)[..., 0]
    return np.where(known > 0, found, 0).astype(np.float32)


def counts_at_half_steps(marks: NDArray[np.bool_], side: int) -> NDArray[np.int64]:
    """The number of marked pixels in each square of ``side`` x ``side`` pixels within the image, at steps of half a
    side: int64."""
    half = side // 2
    rows, columns = (length // half * half for length in marks.shape)
    quarters = reduced(marks[:rows, :columns], half, np.add, np.int64)
    halves = quarters[:-1] + quarters[1:]
    return np.asarray(halves[:, :-1] + halves[:, 1:])
