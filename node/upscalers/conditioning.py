"""Conditioning channels of ``mammo``: the detail of the base in units of the missing noise.

This normalisation removes absolute intensity, gain and bit depth, so that all detectors look alike to the network.
Training and inference both use this module.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name everybody uses

from node.upscalers.network import STRIDE, UNSHUFFLE, to_latent
from storage.formats.geometry import DCT_BLOCK

Float = NDArray[np.float32]

_SMOOTH = 16
"""Side of the blocks, in pixels, whose means are subtracted from the image to leave its detail."""
_COMPRESSED_FROM = 4.0
"""Scale of the asinh that compresses large detail, in standard deviations of the missing noise."""


def scene(upsampled: Float, deviation: Float, quantisation_rms: float, scale: int) -> Tensor:
    """Channels for the network: float32 (21, padded rows / 4, padded columns / 4), padded to multiples of STRIDE.

    ``upsampled``: the base by ``Operator.lift``, full size, grey levels. ``deviation``: standard deviation of the
    missing noise, grey levels. ``quantisation_rms``: RMS coding error of the base, grey levels.

    16 channels are the latent of detail over deviation. One is the logarithm of quantisation over deviation. These are
    0 where the deviation is 0. Four are the sine and cosine of a cell's row and column in its 8 x 8 block of the coder,
    because errors depend on them.
    """
    pixels = torch.from_numpy(padded(upsampled))[None, None]
    units = torch.from_numpy(padded(deviation))[None, None]
    divisor = torch.where(units > 0, units, 1.0)
    compressed = torch.asinh((pixels - _smooth(pixels)) / divisor / _COMPRESSED_FROM) * _COMPRESSED_FROM
    coarse = F.avg_pool2d(divisor, UNSHUFFLE)
    quantisation = torch.log2(max(quantisation_rms, 1e-3) / coarse).clamp(-6, 3) / 3
    noiseless = F.avg_pool2d(units, UNSHUFFLE) == 0
    latent = to_latent(torch.where(units > 0, compressed, 0.0))
    seen = torch.cat([latent, quantisation.masked_fill(noiseless, 0.0)], dim=1)[0]
    return torch.cat([seen, _phases(seen.shape[1], seen.shape[2], scale)])


def point_features(scale: int, distance: float) -> Tensor:
    """The operating point as float32 (3,): 1 if scale is 1, 1 if scale is 4, half the log2 of the distance."""
    return torch.tensor([float(scale == 1), float(scale == 4), math.log2(max(distance, 0.05)) / 2])


def padded(image: Float) -> Float:
    """``image``, padded to multiples of STRIDE by repeating the last row and column."""
    margins = [(0, -size % STRIDE) for size in image.shape]
    return np.pad(image, margins, mode="edge") if any(end for _, end in margins) else np.ascontiguousarray(image)


def _phases(rows: int, columns: int, scale: int) -> Tensor:
    """Position of each cell's centre in the coder's grid: float32 (4, rows, columns)."""
    angles = [2 * math.pi * (torch.arange(n) + 0.5) * (UNSHUFFLE / (DCT_BLOCK * scale)) for n in (rows, columns)]
    down, across = angles[0][:, None].expand(rows, columns), angles[1].expand(rows, columns)
    return torch.stack([torch.sin(down), torch.cos(down), torch.sin(across), torch.cos(across)])


def _smooth(pixels: Tensor) -> Tensor:
    """The image without detail finer than about 32 pixels: interpolated means of 16 x 16 pixels."""
    rows, columns = pixels.shape[-2:]
    margin = (0, -columns % _SMOOTH, 0, -rows % _SMOOTH)
    whole = F.pad(pixels, margin, mode="replicate") if any(margin) else pixels
    means = F.avg_pool2d(whole, _SMOOTH)
    size = (means.shape[-2] * _SMOOTH, means.shape[-1] * _SMOOTH)
    return F.interpolate(means, size=size, mode="bilinear", align_corners=False)[..., :rows, :columns]
