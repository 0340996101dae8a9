"""Noise that belongs to an object and a place: the same numbers on any tiling, machine and release of numpy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_VALUES = 4
_SCALE = np.float32(1 / np.sqrt(_VALUES * (65536.0**2 - 1) / 12))
_CENTRE = np.float32(_VALUES * 65535 / 2)


def noise_rows(seed: int, rows: range, columns: int) -> NDArray[np.float32]:
    """Nearly normal noise of unit variance: float32, shape (len(rows), columns).

    Row r is a function of ``seed`` and r alone, and a shorter row is the beginning of a longer one. Each value is the
    sum of four uniform 16-bit integers of Philox 4x64 (Salmon et al. 2011), exact in float32 before it is scaled:
    numpy promises the bit stream for ever, but not what its normal distribution makes of it.
    """
    out = np.empty((len(rows), columns), dtype=np.float32)
    for line, row in enumerate(rows):
        raw = np.random.Philox(key=np.array([seed, row], dtype=np.uint64)).random_raw(columns)
        out[line] = raw.astype("<u8").view("<u2").reshape(columns, _VALUES).sum(axis=1, dtype=np.uint32)
    out -= _CENTRE
    out *= _SCALE
    return out
