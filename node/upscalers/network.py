"""The network of ``mammo``: a small convolutional velocity field over latents, saved and loaded as diffusers does.

The latent of an image is its pixel-unshuffle by 4: 16 channels at a quarter of each side, invertible, so that no
autoencoder stands between the pixels and the model. No group statistics and no attention: what a pixel becomes depends
on its surroundings within ``halo`` pixels and on nothing else, so an image may be cut into tiles without a trace.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name everybody uses

UNSHUFFLE = 4
"""Pixels per latent cell along each side."""
STRIDE = 8
"""Pixels per cell of the coarsest grid: crops and tiles start and end on multiples of it."""
LATENT = UNSHUFFLE**2
SEEN = LATENT + 5
"""Channels that the network is shown of a place (conditioning.py)."""
POINT = 3
"""Numbers that say how the base was made (conditioning.py)."""
_WAVES = 4


class Block(nn.Module):
    """Two 3 x 3 convolutions around a residual; time and operating point scale and shift between them."""

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


class MammoNetwork(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """v(x_t, t) of flow.py, given what is seen of the place and how the base was made.

    Two resolutions, 4 and 8 pixels a cell, of ``width`` and ``wide`` channels; ``blocks``: how many blocks there are
    before, at and after the coarser one. x_t enters with the weight sin(pi t / 2), its share of r: at t = 0 the result
    depends on no draw. The last layer starts at 0, so that an untrained network changes nothing.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self, width: int = 64, wide: int = 96, blocks: tuple[int, int, int] = (1, 2, 1), embedding: int = 32
    ) -> None:
        super().__init__()
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
        """Itself, its large convolutions now in ``dtype``; what conditions them and the last layer stay float32."""
        for part in (self.enter, self.narrow, self.widen):
            part.to(dtype)
        for block in [*self.before, *self.middle, *self.after]:
            block.first.to(dtype)
            block.second.to(dtype)
        return self

    @property
    def halo(self) -> int:
        """Pixels of surroundings that can change a pixel; a multiple of STRIDE."""
        fine = 2 + 2 * (len(self.before) + len(self.after))
        return -(-(UNSHUFFLE * fine + STRIDE * (2 * len(self.middle) + 1)) // STRIDE) * STRIDE

    def forward(self, x: Tensor | None, seen: Tensor, t: Tensor, point: Tensor) -> Tensor:
        """The velocity: float32, (n, 16, h, w).

        ``x``: (n, 16, h, w), the latent of x_t; None is as good where t is 0. ``seen``: (n, 21, h, w), see
        ``conditioning.scene``. ``t``: (n,), 0..1.
        ``point``: (n, 3), see ``conditioning.point_features``. h and w are even.
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
