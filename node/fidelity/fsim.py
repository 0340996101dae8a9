"""FSIM (Zhang et al., IEEE TIP 20(8), 2011) of 256 x 256 grey tiles, with the features of a tile kept for reuse.

Equal to ``piq.fsim(chromatic=False)`` (tests/test_fidelity.py holds it to that), which builds its filters anew and
computes the original's phase congruency again on every call; a ladder compares one original with many candidates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch

TILE = 256
_SCALES, _ORIENTATIONS = 4, 4
_T1, _T2 = 0.85, 160.0
_EPS = torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class Features:
    """Phase congruency and gradient magnitude of one tile, float32, shape (256, 256) each."""

    congruency: torch.Tensor
    gradient: torch.Tensor


def features(tile: torch.Tensor) -> Features:
    """Features of a tile: float32, shape (256, 256), values 0..1."""
    grey = tile * 255.0
    return Features(_phase_congruency(grey), _gradient(grey))


def similarity(x: Features, y: Features) -> float:
    """FSIM of two tiles from their features; 1 for identical tiles, also for two that hold nothing at all."""
    congruency = _alike(x.congruency, y.congruency, _T1)
    gradient = _alike(x.gradient, y.gradient, _T2)
    weight = torch.maximum(x.congruency, y.congruency)
    total = weight.sum()
    if total == 0:
        return float(gradient.mean())
    return float((congruency * gradient * weight).sum() / total)


def _alike(x: torch.Tensor, y: torch.Tensor, constant: float) -> torch.Tensor:
    return (2.0 * x * y + constant) / (x * x + y * y + constant)


def _gradient(grey: torch.Tensor) -> torch.Tensor:
    scharr = torch.tensor([[-3.0, 0.0, 3.0], [-10.0, 0.0, 10.0], [-3.0, 0.0, 3.0]]) / 16
    kernels = torch.stack([scharr, scharr.T])[:, None]
    both = torch.nn.functional.conv2d(grey[None, None], kernels, padding=1)[0]
    return both.square().sum(dim=0).sqrt()


def _phase_congruency(grey: torch.Tensor) -> torch.Tensor:
    bank = _filters()
    response = torch.fft.ifft2(torch.fft.fft2(grey) * bank.filters)  # (orientations, scales, 256, 256)
    even, odd = response.real, response.imag
    amplitude = response.abs()
    sum_even, sum_odd = even.sum(dim=1, keepdim=True), odd.sum(dim=1, keepdim=True)
    strength = torch.sqrt(sum_even**2 + sum_odd**2) + _EPS
    mean_even, mean_odd = sum_even / strength, sum_odd / strength
    energy = (even * mean_even + odd * mean_odd - (even * mean_odd - odd * mean_even).abs()).sum(dim=1)
    # noise estimate: the finest scale's median power per orientation (Kovesi), then its Rayleigh threshold
    median = torch.median((amplitude[:, 0] ** 2).flatten(1), dim=1).values
    noise_power = (-median / math.log(0.5)) / bank.finest_power
    tau = torch.sqrt(noise_power * (bank.sum_squares + 2 * bank.sum_products))
    threshold = (tau * math.sqrt(math.pi / 2) + 2.0 * torch.sqrt((2 - math.pi / 2) * tau**2)) / 1.7
    kept = torch.clamp(energy - threshold[:, None, None], min=0)
    congruency: torch.Tensor = (kept.sum(dim=0) + _EPS) / (amplitude.sum(dim=(0, 1)) + _EPS)
    return congruency


@dataclass(frozen=True)
class _Bank:
    filters: torch.Tensor
    finest_power: torch.Tensor
    sum_squares: torch.Tensor
    sum_products: torch.Tensor


@lru_cache(maxsize=1)
def _filters() -> _Bank:
    """Log-Gabor filters, shape (orientations, scales, 256, 256), and the constants the noise estimate needs."""
    axis = torch.arange(-TILE / 2, TILE / 2) / TILE
    down, across = torch.meshgrid(axis, axis, indexing="ij")
    radius = torch.sqrt(down**2 + across**2)
    theta = torch.atan2(-across, down)
    low_pass = torch.fft.ifftshift(1.0 / (1.0 + (radius / 0.45) ** 30))
    radius, theta = torch.fft.ifftshift(radius), torch.fft.ifftshift(theta)
    radius[0, 0] = 1.0
    gabors = []
    for scale in range(_SCALES):
        centre = 1.0 / (6 * 2**scale)
        gabor = torch.exp(-(torch.log(radius / centre) ** 2) / (2 * math.log(0.55) ** 2)) * low_pass
        gabor[0, 0] = 0.0
        gabors.append(gabor)
    spreads = []
    sigma = math.pi / (_ORIENTATIONS * 1.2)
    for orientation in range(_ORIENTATIONS):
        angle = orientation * math.pi / _ORIENTATIONS
        sine = torch.sin(theta) * math.cos(angle) - torch.cos(theta) * math.sin(angle)
        cosine = torch.cos(theta) * math.cos(angle) + torch.sin(theta) * math.sin(angle)
        distance = torch.atan2(sine, cosine).abs()
        spreads.append(torch.exp(-(distance**2) / (2 * sigma**2)))
    filters = torch.stack(spreads)[:, None] * torch.stack(gabors)[None]
    spatial = torch.fft.ifft2(filters).real * TILE
    products = torch.zeros(_ORIENTATIONS)
    for first in range(_SCALES):
        for second in range(first + 1, _SCALES):
            products += (spatial[:, first] * spatial[:, second]).sum(dim=(1, 2))
    return _Bank(
        filters=filters,
        finest_power=(filters[:, 0] ** 2).sum(dim=(1, 2)),
        sum_squares=(spatial**2).sum(dim=(1, 2, 3)),
        sum_products=products,
    )
