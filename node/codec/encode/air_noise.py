"""Removes the noise of the air around a breast before coding: it would take bytes, and the decoder draws it anyway.

The air of a film, or of an image whose air the modality did not make black, has as much noise as the breast, and often
more area. Letters, the nipple in profile and whatever else stands out from the noise are kept.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from node.fidelity.bands import finest_octave
from storage.formats.geometry import cell_pixels, cell_quantiles

Float = NDArray[np.float32]
Mask = NDArray[np.bool_]

_SIDE = 9
"""Side of the squares whose mean and variance are compared with the noise, in samples."""
_CELL = 64
"""Side of the cells in which the noise is measured, in samples."""
_SHARE, _QUANTILE = 0.8, 1.2816
"""Quantile of the finest octave's absolute values that stands for the noise, and its value for a normal distribution,
in standard deviations. It is not the median because black air is clipped, so that many samples have no noise."""
_NOISE = 4.0
"""Variance that counts as noise, over that of the finest octave. Measured noise has 1.9 to 2.4, but the variance of a
single square varies."""


def without_air_noise(samples: Float, air: Mask) -> Float:
    """Samples without the noise of the air: float32 (rows, columns), grey levels; ``samples`` itself if there is none.

    ``air``: bool, the same shape. Each sample moves towards the mean of its square by the share of the square's
    variance that noise explains (Lee 1980, IEEE PAMI 2:165, the local linear minimum mean square error filter).
    """
    from scipy.ndimage import uniform_filter

    fine = cell_quantiles(np.abs(finest_octave(samples)), air, _CELL, _SHARE)
    if not fine.any():
        return samples
    noise = np.square(fine * np.float32(1 / _QUANTILE))
    mean = uniform_filter(samples, _SIDE)
    detail = samples - mean
    variance = uniform_filter(np.square(detail), _SIDE)
    rows, columns = samples.shape
    explained = cell_pixels(noise * np.float32(_NOISE), rows, columns, _CELL)
    kept = 1 - np.minimum(explained / np.maximum(variance, 1e-6), 1)
    return np.where(air, mean + detail * kept, samples).astype(np.float32)
