"""Reductions of an image to square cells."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def padded_to_cells(values: NDArray[Any], side: int, *, edge: bool = False) -> NDArray[Any]:
    """An image (rows, columns) of whole cells: beyond its border zeros, or with ``edge`` the border repeated."""
    pad = [(0, -length % side) for length in values.shape]
    if not any(after for _, after in pad):
        return values
    return np.pad(values, pad, mode="edge") if edge else np.pad(values, pad)


def reduced(values: NDArray[Any], side: int, by: np.ufunc, dtype: type | None = None) -> NDArray[Any]:
    """One value per cell of ``side`` x ``side`` pixels: (rows / side, columns / side). The image holds whole cells.

    Rows are reduced first: numpy is slow along a short last axis.
    """
    rows, columns = (length // side for length in values.shape)
    lines = by.reduce(values.reshape(rows, side, -1), axis=1, dtype=dtype)
    return np.asarray(by.reduce(lines.reshape(rows, columns, side), axis=2))
