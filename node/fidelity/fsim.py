"""FSIM (Zhang et al., IEEE TIP 20(8), 2011) of 256 x 256 grey tiles, with the features of a tile kept for reuse.

Results equal those of ``piq.fsim(chromatic=False)``, as tests/unit/node/fidelity/test_fidelity.py checks. piq builds
its filters and computes the original's phase congruency again on every call. Here one original is compared with several
candidates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from storage.formats.geometry import TILE

if TYPE_CHECKING:
    import torch

_SCALES, _ORIENTATIONS = 4, 4
_T1, _T2 = 0.85, 160.0
"""The paper's constants for the similarity of phase congruency and of gradient magnitude."""
_EPS = float(np.finfo(np.float32).eps)
_SAMPLED = 61
"""Subsampling factor of the values that bracket the median."""


@dataclass(frozen=True)
class Features:
    """Phase congruency and gradient magnitude of one tile, float32, shape (256, 256) each."""

    congruency: torch.Tensor
    gradient: torch.Tensor


def features(tile: torch.Tensor) -> Features:
    """Features of a tile, float32 (256, 256) with values 0..1."""
    grey = tile * 255.0
    return Features(_phase_congruency(grey), _gradient(grey))


def similarity(x: Features, y: Features) -> float:
    """FSIM of two tiles from their features; 1 for identical tiles, even if their phase congruency is 0 everywhere."""
    alike, weight = _alike_and_weight(x, y)
    total = weight.sum()
    if total == 0:
        return float(alike.mean())  # phase congruency is equal everywhere, so only the gradient differs
    return float((alike * weight).sum() / total)


def _alike_and_weight(x: Features, y: Features) -> tuple[torch.Tensor, torch.Tensor]:
    """The similarity of two tiles at each pixel, and its weight: the larger phase congruency."""
    import torch

    alike = _alike(x.congruency, y.congruency, _T1) * _alike(x.gradient, y.gradient, _T2)
    return alike, torch.maximum(x.congruency, y.congruency)


def _alike(x: torch.Tensor, y: torch.Tensor, constant: float) -> torch.Tensor:
    return (2.0 * x * y + constant) / (x * x + y * y + constant)


def _gradient(grey: torch.Tensor) -> torch.Tensor:
    """Gradient magnitude by Scharr's filters. Pixels outside the tile count as 0."""
    import torch

    around = torch.nn.functional.pad(grey[None, None], (1, 1, 1, 1))[0, 0]
    down = (around[:-2] + around[2:]).mul_(3.0).add_(around[1:-1], alpha=10.0)
    across = (around[:, :-2] + around[:, 2:]).mul_(3.0).add_(around[:, 1:-1], alpha=10.0)
    right, below = down[:, 2:] - down[:, :-2], across[2:] - across[:-2]
    return torch.addcmul(right * right, below, below).sqrt_().div_(16.0)


def _phase_congruency(grey: torch.Tensor) -> torch.Tensor:
    import torch

    bank = _filters()
    spectrum = torch.fft.fft2(grey)
    kept, total = torch.zeros(TILE, TILE), torch.zeros(TILE, TILE)
    filtered = torch.empty(_SCALES, TILE, TILE, dtype=torch.complex64)
    for orientation in range(_ORIENTATIONS):  # one orientation at a time fits into the processor's cache
        response = torch.fft.ifft2(torch.mul(spectrum, bank.filters[orientation], out=filtered))
        even, odd = response.real.contiguous(), response.imag.contiguous()
        amplitude = torch.addcmul(even * even, odd, odd).sqrt_()
        total += amplitude.sum(dim=0)
        sum_even, sum_odd = even.sum(dim=0), odd.sum(dim=0)
        strength = torch.addcmul(sum_even * sum_even, sum_odd, sum_odd).sqrt_().add_(_EPS)
        mean_even, mean_odd = sum_even / strength, sum_odd / strength
        across = even.mul_(mean_odd).addcmul_(odd, mean_even, value=-1).abs_().sum(dim=0)
        energy = torch.addcmul(sum_even * mean_even, sum_odd, mean_odd).sub_(across)
        kept += energy.sub_(_noise_threshold(amplitude[0], orientation)).clamp_(min=0)
    return (kept + _EPS) / (total + _EPS)


def _noise_threshold(finest: torch.Tensor, orientation: int) -> float:
    """Kovesi's noise threshold, from the median amplitude of the finest scale, which has a Rayleigh distribution."""
    bank = _filters()
    lower = _lower_median(finest.numpy().ravel())
    noise_power = -(float(lower) ** 2) / math.log(0.5) / float(bank.finest_power[orientation])
    spread = float(bank.sum_squares[orientation] + 2 * bank.sum_products[orientation])
    tau = math.sqrt(noise_power * spread)
    return (tau * math.sqrt(math.pi / 2) + 2.0 * math.sqrt((2 - math.pi / 2) * tau**2)) / 1.7


def _lower_median(values: NDArray[np.float32]) -> np.float32:
    """The value of rank (n - 1) // 2. A subsample brackets it, and only values within the bracket are sorted."""
    rank = (values.size - 1) // 2
    sample = np.sort(values[::_SAMPLED])
    low, high = sample[sample.size * 47 // 100], sample[sample.size * 53 // 100]
    near = values[(values >= low) & (values <= high)]
    rank_of_near = rank - int(np.count_nonzero(values < low))
    if not 0 <= rank_of_near < near.size:
        near, rank_of_near = values, rank
    found: np.float32 = np.partition(near, rank_of_near)[rank_of_near]
    return found


@dataclass(frozen=True)
class _Bank:
    filters: torch.Tensor
    finest_power: torch.Tensor
    sum_squares: torch.Tensor
    sum_products: torch.Tensor


@lru_cache(maxsize=1)
def _filters() -> _Bank:
    """Log-Gabor filters, shape (orientations, scales, 256, 256), and the sums that the noise threshold needs."""
    import torch

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
