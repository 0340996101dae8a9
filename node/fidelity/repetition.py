"""Repetition: whether an error resembles itself far away, as lost lines of a grid do, and a pattern of tiles in drawn
noise. Lost noise and noise do not.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from node.fidelity.threads import on_all_cores

Float = NDArray[np.float32]
Mask = NDArray[np.bool_]

SIDE = 256
"""Side of the squares whose autocorrelation is measured, in pixels."""
_FAR = 48
"""Pixels beyond which noise does not resemble itself: film grain and detector blur reach less far."""
_WIDEST = 8
"""Longest period that counts, in pixels. Line filters find wider ones."""
_FILLED = 0.75
"""Least share of a square that counts."""
_SQUARES = 24
"""Most squares that are measured, evenly spread."""
_SURE = 8
"""Fewer squares count less, in proportion to the root of their number, because chance counts more in them."""


def repetition(error: Float, original: Float, inside: Mask) -> float:
    """The greatest autocorrelation of ``error`` beyond ``_FAR`` pixels, in the mean of squares of SIDE pixels, as a
    share of the energy of ``original`` with these periods.

    ``error``, ``original``: float32 (rows, columns). ``inside``: bool, the same shape, the pixels that count. 0 where
    no square holds enough of them.
    """
    rows, columns = error.shape
    places = [
        np.s_[row : row + SIDE, column : column + SIDE]
        for row in range(0, rows - SIDE + 1, SIDE)
        for column in range(0, columns - SIDE + 1, SIDE)
    ]
    places = [where for where in places if inside[where].mean() >= _FILLED]
    some = places[:: -(-len(places) // _SQUARES) or 1]
    if not some:
        return 0.0

    def one(where: tuple[slice, slice]) -> Float:
        own, found = (_correlation(image[where], inside[where]) for image in (original, error))
        return found / max(float(own[0, 0]), 1e-6)

    far = np.mean(on_all_cores(one, some), axis=0)
    near = np.arange(-_FAR, _FAR + 1)
    far[np.ix_(near, near)] = 0
    return float(np.abs(far).max() * min(1.0, (len(some) / _SURE) ** 0.5))


def _correlation(values: Float, inside: Mask) -> Float:
    """The autocorrelation of one square that fades towards its borders: float32 (SIDE, SIDE)."""
    from scipy import fft

    fading = np.hanning(SIDE).astype(np.float32)
    part = np.where(inside, values - values[inside].mean(), np.float32(0)) * fading[:, None] * fading
    power = np.square(np.abs(fft.rfft2(part)))
    power[np.hypot(fft.fftfreq(SIDE)[:, None], fft.rfftfreq(SIDE)) < 1 / _WIDEST] = 0
    return np.asarray(fft.irfft2(power, s=part.shape), dtype=np.float32)
