"""Builds the operator of storage/formats/resample.py as exact matrices from its definition (docs/FORMATS.md)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def axis_matrix(size_in: int, size_out: int) -> Any:
    """The exact (size_out, size_in) matrix, scipy CSR float64, of an antialiased bicubic resize along one axis.

    Same taps as torch's ``interpolate(mode="bicubic", antialias=True)``: Keys' kernel with a = -0.5, stretched
    by the scale when shrinking, rows normalised to one.
    """
    from scipy.sparse import csr_matrix

    scale = size_in / size_out
    stretch = max(scale, 1.0)
    support = 2.0 * stretch
    out = np.arange(size_out)
    centre = scale * (out + 0.5)
    low = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    high = np.minimum((centre + support + 0.5).astype(np.int64), size_in)
    width = int((high - low).max())
    taps = low[:, None] + np.arange(width)[None, :]
    weights = _keys((taps - centre[:, None] + 0.5) / stretch) * (taps < high[:, None])
    weights /= weights.sum(axis=1, keepdims=True)
    index = (np.repeat(out, width), np.minimum(taps, size_in - 1).ravel())
    matrix = csr_matrix((weights.ravel(), index), shape=(size_out, size_in))
    matrix.eliminate_zeros()
    return matrix


def _keys(x: NDArray[np.float64], a: float = -0.5) -> NDArray[np.float64]:
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
