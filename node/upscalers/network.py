"""The network of ``mammo``: a small convolutional velocity field over latents.

The latent of an image is its pixel-unshuffle by 4: 16 channels at a quarter of each side. It is invertible, so the
model needs no autoencoder. The network has no group statistics and no attention: an output pixel depends only on the
input within ``halo`` pixels, so an image can be processed in tiles without seams.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name everybody uses

UNSHUFFLE = 4
"""Pixels per latent cell along each side."""
STRIDE = 8
"""Pixels per cell of the coarsest grid: crops and tiles start and end on multiples of it."""
LATENT = UNSHUFFLE**2
"""Channels of a latent."""
SEEN = LATENT + 5
"""Conditioning channels per latent cell (conditioning.scene)."""
POINT = 3
"""Numbers that describe the operating point (conditioning.point_features)."""
_WAVES = 4
"""Frequencies in the embedding of t."""


@dataclass(frozen=True)
class NetworkConfig:
    """Size of the network, as in config.json of a model.

    ``width`` and ``wide``: channels at 4 and at 8 pixels per cell. ``blocks``: number of blocks before, at and after
    the coarser resolution. ``embedding``: length of the embedding of t and the operating point.
    """

    width: int = 64
    wide: int = 96
    blocks: tuple[int, int, int] = (1, 2, 1)
    embedding: int = 32


class Block(nn.Module):
    """A residual block of two 3 x 3 convolutions. Time and operating point scale and shift the channels in between."""

    def __init__(self, width: int, embedding: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(_bias(self.second))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.modulation(condition)[:, :, None, None].to(x.dtype).chunk(2, dim=1)
        hidden = F.silu(torch.addcmul(shift, self.first(x), 1 + scale))
        result: Tensor = x + self.second(hidden)
        return result


class MammoNetwork(nn.Module):
    """v(x_t, t) of flow.py, given the conditioning channels and the operating point.

    x_t is weighted by sin(pi t / 2), its share of r, so at t = 0 the result does not depend on drawn noise. The last
    layer is initialised to 0: an untrained network changes nothing.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        width, wide, blocks, embedding = config.width, config.wide, config.blocks, config.embedding
        self.embed = nn.Sequential(
            nn.Linear(2 * _WAVES + POINT, embedding), nn.SiLU(), nn.Linear(embedding, embedding), nn.SiLU()
        )
        self.enter = nn.Conv2d(LATENT + SEEN, width, 3, padding=1)
        self.before = nn.ModuleList(Block(width, embedding) for _ in range(blocks[0]))
        self.narrow = nn.Conv2d(width, wide, 2, stride=2)
        self.middle = nn.ModuleList(Block(wide, embedding) for _ in range(blocks[1]))
        self.widen = nn.Conv2d(wide, 4 * width, 1)
        self.after = nn.ModuleList(Block(width, embedding) for _ in range(blocks[2]))
        self.leave = nn.Conv2d(width, LATENT, 3, padding=1)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(_bias(self.leave))

    def with_trunk(self, dtype: torch.dtype) -> MammoNetwork:
        """Convert the large convolutions to ``dtype`` and return self; conditioning and the last layer stay float32."""
        for part in (self.enter, self.narrow, self.widen):
            part.to(dtype)
        for block in [*self.before, *self.middle, *self.after]:
            block.first.to(dtype)
            block.second.to(dtype)
        return self

    @property
    def halo(self) -> int:
        """Distance in pixels within which the input can change an output pixel; a multiple of STRIDE."""
        fine = 2 + 2 * (len(self.before) + len(self.after))
        return -(-(UNSHUFFLE * fine + STRIDE * (2 * len(self.middle) + 1)) // STRIDE) * STRIDE

    @property
    def spare(self) -> int:
        """Latent cells of ``halo`` that the blocks after the coarser resolution do not need: an even number."""
        return (self.halo // UNSHUFFLE - 2 * len(self.after) - 1) // 2 * 2

    def forward(self, x: Tensor | None, seen: Tensor, t: Tensor, point: Tensor, spare: int = 0) -> Tensor:
        """The velocity: float32, (n, 16, h - 2 ``spare``, w - 2 ``spare``).

        ``x``: (n, 16, h, w), the latent of x_t; None if t is 0. ``seen``: (n, 21, h, w), see ``conditioning.scene``.
        ``t``: (n,), 0..1. ``point``: (n, 3), see ``conditioning.point_features``. h and w are even.
        """
        kind = self.enter.weight.dtype
        condition = self.embed(torch.cat([_waves(t), point], dim=1))
        if x is None:
            y = F.conv2d(seen.to(kind), self.enter.weight[:, LATENT:], self.enter.bias, padding=1)
        else:
            weight = torch.sin(math.pi / 2 * t)[:, None, None, None]
            y = self.enter(torch.cat([x * weight, seen], dim=1).to(kind))
        for block in self.before:
            y = block(y, condition)
        z = self.narrow(y)
        for block in self.middle:
            z = block(z, condition)
        if spare:  # the last blocks need not compute this even number of cells at each border
            y, z = (part[..., by:-by, by:-by] for part, by in ((y, spare), (z, spare // 2)))
        y = y + F.pixel_shuffle(self.widen(z), 2)
        for block in self.after:
            y = block(y, condition)
        result: Tensor = self.leave(F.silu(y).to(self.leave.weight.dtype))
        return result


def to_latent(pixels: Tensor) -> Tensor:
    """(n, 1, rows, columns) to (n, 16, rows / 4, columns / 4)."""
    return F.pixel_unshuffle(pixels, UNSHUFFLE)


def to_pixels(latent: Tensor) -> Tensor:
    """The inverse of ``to_latent``, exactly."""
    return F.pixel_shuffle(latent, UNSHUFFLE)


def _waves(t: Tensor) -> Tensor:
    angles = t[:, None] * (math.pi / 2 * 2.0 ** torch.arange(_WAVES, device=t.device))
    return torch.cat([torch.sin(angles), torch.cos(angles)], dim=1)


def _bias(layer: nn.Conv2d) -> Any:
    return layer.bias
