"""The downsampling operator D, bicubic upsampling U, and the lift that makes an image consistent with its base.

D is torchvision's antialiased bicubic resize (the compression step of arXiv 2310.05299), U its bicubic upsampling.
Both are separable and linear, so each is an exact sparse matrix per axis, and ``M = D U`` is a narrow band matrix of
the small size. ``lift(r) = U M^-1 r`` is a right inverse of D: ``D lift(r) = r`` exactly. For an integer scale, U
equals ``D^T`` up to a factor except at the border. There ``x + lift(y - D x)`` is the orthogonal projection of x onto
``{x : D x = y}``, and ``lift(y)`` is the projection of plain bicubic. A banded solve of the small size and one
upsampling therefore replace iterated back-projection.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]

OPERATOR = "torchvision-bicubic-antialias/1"
"""Name of the operator, which every base records."""


@dataclass(frozen=True)
class Operator:
    """D for one image: from (rows, columns) to ceil(rows/scale), ceil(columns/scale)."""

    rows: int
    columns: int
    scale: int

    @property
    def low_rows(self) -> int:
        return -(-self.rows // self.scale)

    @property
    def low_columns(self) -> int:
        return -(-self.columns // self.scale)

    def down(self, image: NDArray[Any]) -> Float:
        """D x: float32, shape (low_rows, low_columns), in the grey levels of ``image``."""
        return _resize(image, self.low_rows, self.low_columns)

    def up(self, small: NDArray[Any]) -> Float:
        """U y: plain bicubic, float32, shape (rows, columns)."""
        return _resize(small, self.rows, self.columns)

    def lift(self, residual: NDArray[Any]) -> Float:
        """U M^-1 r: the smooth image whose downsampling is exactly ``residual`` (float32, full size)."""
        if self.scale == 1:
            return np.asarray(residual, dtype=np.float32)
        return self.up(self._prefilter(residual))

    def project(self, image: Float, base: NDArray[Any]) -> Float:
        """``image`` corrected so that D of it equals ``base``."""
        residual = np.asarray(base, dtype=np.float32) - self.down(image)
        lifted = self.lift(residual)
        lifted += image
        return lifted

    def _prefilter(self, small: NDArray[Any]) -> Float:
        """M^-1 y along both axes; LAPACK's banded LU in float64, one right-hand side per line."""
        from scipy.linalg import solve_banded

        vertical = _band(self.rows, self.low_rows)
        horizontal = _band(self.columns, self.low_columns)
        # LAPACK is column-major: a Fortran-ordered copy holds each image column contiguously, and the
        # transpose of a C-ordered image holds each image row contiguously.
        columns = np.asfortranarray(small, dtype=np.float64)
        columns = solve_banded((len(vertical) // 2,) * 2, vertical, columns, overwrite_b=True, check_finite=False)
        lines = np.ascontiguousarray(columns).T
        lines = solve_banded((len(horizontal) // 2,) * 2, horizontal, lines, overwrite_b=True, check_finite=False)
        return np.ascontiguousarray(lines.T, dtype=np.float32)


@lru_cache(maxsize=64)
def _band(size: int, low: int) -> NDArray[np.float64]:
    """M = D U along one axis in LAPACK band storage, shape (2k+1, low).

    The matrix is measured by resizing unit vectors with torch, which computes its taps in float32. If a size is not a
    multiple of the scale, exact taps (tests/support/exact_operator.py) would differ by a visible part of a grey level.
    """
    product = _resize(_resize(np.eye(low, dtype=np.float32), size, low), low, low)
    row, column = np.nonzero(product)
    k = int(np.abs(row - column).max())
    band = np.zeros((2 * k + 1, low))
    band[k + row - column, column] = product[row, column]
    return band


def _resize(image: NDArray[Any], rows: int, columns: int) -> Float:
    """Antialiased bicubic resize by the torch function that torchvision calls. Importing torchvision takes a second."""
    import torch
    from torch.nn.functional import interpolate

    tensor = torch.from_numpy(np.require(image, np.float32, ["C", "W"]))
    if tuple(tensor.shape) == (rows, columns):
        return tensor.numpy()
    resized: Float = interpolate(tensor[None, None], size=(rows, columns), mode="bicubic", antialias=True)[0, 0].numpy()
    return resized
