"""Measures whether an error repeats itself, by its autocorrelation at long distances.

Lost lines of a grid repeat themselves, and so would a pattern of tiles in drawn noise. Noise itself does not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from node.fidelity.threads import on_all_cores

Float = NDArray[np.float32]
Mask = NDArray[np.bool_]

SIDE = 256
"""Side of the squares whose autocorrelation is measured, in pixels."""
_FAR = 48
"""Distance beyond which noise is not correlated, in pixels. Film grain and detector blur reach less far. No measurement
is recorded."""
_WIDEST = 8
"""Longest period that counts, in pixels. Line filters find longer ones. Chosen, not measured."""
_FILLED = 0.75
"""Smallest share of a square's pixels that must count. Chosen, not measured."""
_SQUARES = 24
"""Largest number of squares that are measured, evenly spread. It takes 0.2 s on one core."""
_SURE = 8
"""With fewer squares the result is scaled down by the root of their number, since chance has more weight. Chosen, not
measured."""


@dataclass(frozen=True)
class Repetition:
    """The squares of an original in which errors are measured, each with the original's energy.

    ``inside``: bool (rows, columns), the pixels that count.
    """

    inside: Mask
    squares: list[tuple[tuple[slice, slice], float]]

    @classmethod
    def of(cls, original: Float, inside: Mask) -> Repetition:
        """Choose the squares of ``original``, float32 (rows, columns). ``inside``: bool, the same shape."""
        rows, columns = original.shape
        places = [
            np.s_[row : row + SIDE, column : column + SIDE]
            for row in range(0, rows - SIDE + 1, SIDE)
            for column in range(0, columns - SIDE + 1, SIDE)
        ]
        places = [where for where in places if inside[where].mean() >= _FILLED]
        some = places[:: -(-len(places) // _SQUARES) or 1]
        energies = on_all_cores(lambda where: float(_correlation(original[where], inside[where])[0, 0]), some)
        return cls(inside, list(zip(some, energies, strict=True)))

    def look(self, error: Float) -> float:
        """The largest absolute autocorrelation of ``error`` beyond ``_FAR`` pixels, averaged over the squares.

        It is a share of the original's energy at periods up to ``_WIDEST``, and 0 if no square has enough counted
        pixels. ``error``: float32, the original's shape.
        """
        if not self.squares:
            return 0.0

        def one(square: tuple[tuple[slice, slice], float]) -> Float:
            where, energy = square
            return _correlation(error[where], self.inside[where]) / max(energy, 1e-6)

        far = np.mean(on_all_cores(one, self.squares), axis=0)
        near = np.arange(-_FAR, _FAR + 1)
        far[np.ix_(near, near)] = 0
        return float(np.abs(far).max() * min(1.0, (len(self.squares) / _SURE) ** 0.5))


def _correlation(values: Float, inside: Mask) -> Float:
    """The autocorrelation of one square under a Hann window, for periods up to ``_WIDEST``: float32 (SIDE, SIDE)."""
    from scipy import fft

    fading = np.hanning(SIDE).astype(np.float32)
    part = np.where(inside, values - values[inside].mean(), np.float32(0)) * fading[:, None] * fading
    power = np.square(np.abs(fft.rfft2(part)))
    power[np.hypot(fft.fftfreq(SIDE)[:, None], fft.rfftfreq(SIDE)) < 1 / _WIDEST] = 0
    return np.asarray(fft.irfft2(power, s=part.shape), dtype=np.float32)
