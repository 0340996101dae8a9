"""The network of ``mammo``: a small convolutional denoiser of latents, saved and loaded as diffusers does.

The latent of an image is its pixel-unshuffle by 4: 16 channels at a quarter of each side, invertible, so that no
autoencoder stands between the pixels and the model (CODEC_NOTES: an 8-bit VAE is the bottleneck of published
work). What is diffused is the residual of the original to the consistent base, in units of its local standard
deviation. No group statistics and no attention: what a pixel becomes depends on its surroundings within ``halo``
pixels and on nothing else, so an image may be cut into tiles without a trace.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name everybody uses

UNSHUFFLE = 4
"""Pixels per latent along each side."""
STRIDE = 8
"""Pixels per cell of the coarsest grid: crops start and end on multiples of it."""
_EMBEDDED = 16


class Block(nn.Module):
    """Two 3 x 3 convolutions around a residual; the condition scales and shifts between them."""

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
        scale, shift = self.modulation(condition)[:, :, None, None].chunk(2, dim=1)
        hidden = F.silu(self.first(x) * (1 + scale) + shift)
        result: Tensor = x + self.second(hidden)
        return result


class MammoNetwork(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Predicts the clean latent from a noisy one: E[x0 | x_s, base, rung], float32.

    Two resolutions (4 and 8 pixels), ``width`` and ``2 * width`` channels. Preconditioned as in Karras et al.
    2022 (arXiv 2206.00364, eq. 7) for data of unit variance and the straight path x_s = (1 - s) x0 + s noise:
    at s = 1 the noisy input has weight zero, so that one step gives the posterior mean and no draw at all.
    ``damping`` is not used here: it records the best damping of plain bicubic found on the training data
    (a list of [scale, distance, damping]), the baseline that figures are compared with.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        width: int = 48,
        blocks: tuple[int, int, int] = (1, 2, 1),
        embedding: int = 64,
        damping: list[list[float]] | None = None,
    ) -> None:
        super().__init__()
        latent, wide = UNSHUFFLE**2, 2 * width
        self.embed = nn.Sequential(
            nn.Linear(_EMBEDDED + 3, embedding), nn.SiLU(), nn.Linear(embedding, embedding), nn.SiLU()
        )
        self.enter = nn.Conv2d(2 * latent + 1, width, 3, padding=1)
        self.before = nn.ModuleList(Block(width, embedding) for _ in range(blocks[0]))
        self.narrow = nn.Conv2d(width, wide, 2, stride=2)
        self.middle = nn.ModuleList(Block(wide, embedding) for _ in range(blocks[1]))
        self.widen = nn.Conv2d(wide, 4 * width, 1)
        self.after = nn.ModuleList(Block(width, embedding) for _ in range(blocks[2]))
        self.leave = nn.Conv2d(width, latent, 3, padding=1)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(_bias(self.leave))

    @property
    def halo(self) -> int:
        """Pixels of surroundings that can change a pixel; a multiple of STRIDE."""
        fine = 2 + 2 * (len(self.before) + len(self.after))
        return -(-(UNSHUFFLE * fine + STRIDE * (2 * len(self.middle) + 1)) // STRIDE) * STRIDE

    def forward(self, noisy: Tensor, seen: Tensor, time: Tensor, rung: Tensor) -> Tensor:
        """The clean latent, shape of ``noisy``.

        ``noisy``: (n, 16, h, w), x_s. ``seen``: (n, 17, h, w), what is known of the place (conditioning.py).
        ``time``: (n,), s in 0..1. ``rung``: (n, 3), see ``conditioning.rung_features``. h and w are even.
        """
        s = time[:, None, None, None]
        energy = torch.square(1 - s) + torch.square(s)
        condition = self.embed(torch.cat([_waves(time), rung], dim=1))
        x = self.enter(torch.cat([noisy * ((1 - s) / torch.sqrt(energy)), seen], dim=1))
        for block in self.before:
            x = block(x, condition)
        y = self.narrow(x)
        for block in self.middle:
            y = block(y, condition)
        x = x + F.pixel_shuffle(self.widen(y), 2)
        for block in self.after:
            x = block(x, condition)
        result: Tensor = noisy * ((1 - s) / energy) + self.leave(F.silu(x)) * (s / torch.sqrt(energy))
        return result


def to_latent(pixels: Tensor) -> Tensor:
    """(n, 1, rows, columns) to (n, 16, rows/4, columns/4)."""
    return F.pixel_unshuffle(pixels, UNSHUFFLE)


def to_pixels(latent: Tensor) -> Tensor:
    """The inverse of ``to_latent``, exactly."""
    return F.pixel_shuffle(latent, UNSHUFFLE)


def _waves(time: Tensor) -> Tensor:
    frequencies = torch.pi * 2.0 ** torch.arange(_EMBEDDED // 2, device=time.device) / 4
    angles = time[:, None] * frequencies
    return torch.cat([torch.sin(angles), torch.cos(angles)], dim=1)


def _bias(layer: nn.Conv2d) -> Any:
    return layer.bias
