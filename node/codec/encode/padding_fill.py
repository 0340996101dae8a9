"""Fills padding before an image is downsampled, with values that continue the pixels beside it.

A step to the padding value would ring through the downsampling operator into the breast and cost bytes there. Near
valid pixels the filling is smooth and local. Farther away than ``_FADE`` pixels it is one value, so that air need
not be coded.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint16]
Mask = NDArray[np.bool_]
Float = NDArray[np.float32]

_BLOCK = 8
"""Pixels a side of the squares whose means are interpolated: as far as the operator reaches at scale 4."""
_FADE = 64
"""Pixels from the valid ones, at which the filling is one value. Chosen, not measured."""
_BLUR = 1.5
"""Standard deviation, in blocks, by which the means of blocks without a valid pixel are smoothed."""


def filled(pixels: Pixels, mask: Mask) -> Pixels:
    """``pixels`` with those of ``mask`` replaced: uint16, shape (rows, columns), within the range of the others.

    ``mask``: bool, the same shape, true where padding is; at least one pixel has to be valid. Isolated padding becomes
    about the mean of the 8 x 8 pixels around it. About 0.2 s for 26 megapixels.
    """
    import torch

    rows, columns = pixels.shape
    means = _block_means(pixels, mask)
    shape = (means.shape[0] * _BLOCK, means.shape[1] * _BLOCK)
    large = torch.nn.functional.interpolate(torch.from_numpy(means)[None, None], shape, mode="bilinear")[0, 0]
    result = pixels.copy()
    np.copyto(result, large[:rows, :columns].round_().to(torch.int32).numpy(), where=mask, casting="unsafe")
    return result


def _block_means(pixels: Pixels, mask: Mask) -> Float:
    """The mean of the valid pixels of each block, and where it has none what the filling is to be there."""
    from scipy.ndimage import distance_transform_edt, gaussian_filter

    counts = _block_sums((~mask).view(np.uint8))
    empty = counts == 0
    means: Float = np.divide(_block_sums(np.where(mask, np.uint16(0), pixels)), np.maximum(counts, 1), dtype=np.float32)
    if not empty.any():
        return means
    distance, (row, column) = distance_transform_edt(empty, return_indices=True)
    nearest = means[row, column]
    beside = nearest[(distance > 0) & (distance <= 1)]
    far = np.float32(np.rint(np.median(beside)))
    near = np.clip(1 - (distance - 1) / (_FADE / _BLOCK - 1), 0, 1).astype(np.float32)
    smooth = gaussian_filter(nearest, _BLUR)
    return np.where(empty, far + near * (smooth - far), means).astype(np.float32)


def _block_sums(values: NDArray[np.unsignedinteger[Any]]) -> Float:
    """Sums over blocks of 8 x 8 pixels, those beyond the border being 0: float32."""
    rows, columns = values.shape
    lines = np.zeros((-(-rows // _BLOCK), columns), dtype=np.uint32)
    for row in range(_BLOCK):
        part = values[row::_BLOCK]
        lines[: len(part)] += part
    return np.add.reduceat(lines, np.arange(0, columns, _BLOCK), axis=1).astype(np.float32)
