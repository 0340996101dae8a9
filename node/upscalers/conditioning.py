"""What the network of ``mammo`` is shown of an image: the base's own detail in units of the missing noise.

Absolute intensity, gain and bit depth fall out here, so that the network meets every detector in the same units.
Training and inference both come through this module.
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
"""Pixels over which the image is averaged before it is subtracted from itself."""
_BEND = 4.0
"""Detail louder than this many deviations is compressed, by asinh."""


def scene(lifted: Float, deviation: Float, quantisation_rms: float, scale: int) -> Tensor:
    """Channels for the network: float32 (21, padded rows / 4, padded columns / 4), padded to multiples of STRIDE.

    ``lifted``: the consistent base at full size, grey levels. ``deviation``: of the missing noise, grey levels; what is
    shown is 0 where it is 0. ``quantisation_rms``: of the base's own error, grey levels.

    16 channels are the latent of detail over deviation, one is the logarithm of quantisation over deviation; four say
    where in its 8 x 8 block of the coder a cell lies (sine and cosine of row and of column): errors follow blocks.
    """
    pixels = torch.from_numpy(padded(lifted))[None, None]
    units = torch.from_numpy(padded(deviation))[None, None]
    over = torch.where(units > 0, units, 1.0)
    bent = torch.asinh((pixels - _smooth(pixels)) / over / _BEND) * _BEND
    coarse = F.avg_pool2d(over, UNSHUFFLE)
    noise = torch.log2(max(quantisation_rms, 1e-3) / coarse).clamp(-6, 3) / 3
    quiet = F.avg_pool2d(units, UNSHUFFLE) == 0
    latent = to_latent(torch.where(units > 0, bent, 0.0))
    seen = torch.cat([latent, noise.masked_fill(quiet, 0.0)], dim=1)[0]
    return torch.cat([seen, _phases(seen.shape[1], seen.shape[2], scale)])


def point_features(scale: int, distance: float) -> Tensor:
    """How the base was made, as three numbers: scale 1 or not, 4 or not, the logarithm of the distance. Shape (3,)."""
    return torch.tensor([float(scale == 1), float(scale == 4), math.log2(max(distance, 0.05)) / 2])


def padded(image: Float) -> Float:
    """``image`` with its last rows and columns repeated up to multiples of STRIDE."""
    margins = [(0, -size % STRIDE) for size in image.shape]
    return np.pad(image, margins, mode="edge") if any(end for _, end in margins) else np.ascontiguousarray(image)


def _phases(rows: int, columns: int, scale: int) -> Tensor:
    """float32 (4, rows, columns): the place of each cell's centre in the coder's grid."""
    angles = [2 * math.pi * (torch.arange(n) + 0.5) * (UNSHUFFLE / (DCT_BLOCK * scale)) for n in (rows, columns)]
    down, across = angles[0][:, None].expand(rows, columns), angles[1].expand(rows, columns)
    return torch.stack([torch.sin(down), torch.cos(down), torch.sin(across), torch.cos(across)])


def _smooth(pixels: Tensor) -> Tensor:
    """The image without detail below 32 pixels or so: means of 16 x 16 pixels, interpolated."""
    rows, columns = pixels.shape[-2:]
    margin = (0, -columns % _SMOOTH, 0, -rows % _SMOOTH)
    whole = F.pad(pixels, margin, mode="replicate") if any(margin) else pixels
    means = F.avg_pool2d(whole, _SMOOTH)
    size = (means.shape[-2] * _SMOOTH, means.shape[-1] * _SMOOTH)
    return F.interpolate(means, size=size, mode="bilinear", align_corners=False)[..., :rows, :columns]
