"""What the network of ``mammo`` sees of an image: the base's own detail in units of the missing detail's strength.

Absolute intensity, gain and bit depth fall out here, so that the network meets every detector in the same units.
Training and inference both come through this module.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from node.codec.guide import Map, share_map, unit_map
from node.upscalers.network import STRIDE, UNSHUFFLE, to_latent
from storage.coarseness import Coarseness
from storage.records import Rung

Float = NDArray[np.float32]

_SMOOTH = 16
_BEND = 4.0


@dataclass(frozen=True)
class Scene:
    """One image, ready for the network; ``padded`` rows and columns are multiples of STRIDE.

    ``seen``: float32 (17, padded rows / 4, padded columns / 4). ``unit``: float32 (rows, columns), the standard
    deviation in grey levels that the network's output is multiplied with. ``share``: float32 (rows, columns),
    1 where the network is followed, fading to 0 in tiles whose level is 0.
    """

    seen: Tensor
    unit: Float
    share: Float
    rung: Tensor


def scene(
    image: Float, levels: Map, quantisation_rms: float, rung: Rung, coarseness: Coarseness | None = None
) -> Scene:
    """``image``: the consistent base at full size, grey levels. ``levels``: the guide's. ``coarseness``: the base's."""
    rows, columns = image.shape
    unit = unit_map(levels, rows, columns)
    pixels = torch.from_numpy(_padded(image))[None, None]
    units = torch.from_numpy(_padded(unit))[None, None]
    detail = (pixels - _smooth(pixels)) / units
    bent = torch.asinh(detail / _BEND) * _BEND
    coarse = F.avg_pool2d(units, UNSHUFFLE)
    quantisation = torch.full_like(coarse, max(quantisation_rms, 1e-3))
    if coarseness is not None:
        coarser = np.reciprocal(coarseness.scaling(UNSHUFFLE))
        average = float(np.sqrt(np.mean(np.square(coarser, dtype=np.float64))))
        quantisation *= torch.from_numpy(_to_shape(np.asarray(coarser / average, dtype=np.float32), coarse.shape[-2:]))
        rung = replace(rung, distance=rung.distance * average)
    noise = torch.log2(quantisation / coarse).clamp(-6, 3) / 3
    return Scene(
        seen=torch.cat([to_latent(bent), noise], dim=1)[0],
        unit=unit,
        share=share_map(levels, rows, columns),
        rung=rung_features(rung),
    )


def rung_features(rung: Rung) -> Tensor:
    """The rung as three numbers: scale 4 or not, the logarithm of the distance, lossless or not. Shape (3,)."""
    lossless = rung.distance == 0
    distance = math.log2(max(rung.distance, 0.03))
    return torch.tensor([float(rung.scale == 4) - float(rung.scale == 1), distance / 3, float(lossless)])


def _to_shape(values: Float, shape: Sequence[int]) -> Float:
    """``values`` with their last rows and columns repeated."""
    return np.pad(values, [(0, size - own) for size, own in zip(shape, values.shape, strict=True)], mode="edge")


def _padded(image: Float) -> Float:
    margins = [(0, -size % STRIDE) for size in image.shape]
    return np.pad(image, margins, mode="edge") if any(end for _, end in margins) else np.ascontiguousarray(image)


def _smooth(pixels: Tensor) -> Tensor:
    """The image without detail below 32 pixels or so: means of 16 x 16 pixels, interpolated."""
    rows, columns = pixels.shape[-2:]
    margin = (0, -columns % _SMOOTH, 0, -rows % _SMOOTH)
    whole = F.pad(pixels, margin, mode="replicate") if any(margin) else pixels
    means = F.avg_pool2d(whole, _SMOOTH)
    size = (means.shape[-2] * _SMOOTH, means.shape[-1] * _SMOOTH)
    return F.interpolate(means, size=size, mode="bilinear", align_corners=False)[..., :rows, :columns]
