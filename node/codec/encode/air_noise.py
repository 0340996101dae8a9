"""Takes noise out of the air around a breast before it is coded: it would take bytes, and it is drawn anyway.

The air of a film, or of an image whose air the modality did not make black, has as much noise as the breast, and often
more area. Letters, the nipple in profile and whatever else stands out of the noise stay.
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
"""Side of the cells of which the noise is measured, in samples."""
_SHARE, _QUANTILE = 0.8, 1.2816
"""The quantile of the finest octave's absolute values that stands for the noise, and what it is of a normal
distribution, in standard deviations. Black air is clipped, so that many samples have no noise at all."""
_NOISE = 4.0
"""Variance that counts as noise, over that of the finest octave."""


def without_air_noise(samples: Float, air: Mask) -> Float:
    """Samples with the noise of air taken out: float32 (rows, columns), in grey levels.

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
