"""The channelised Hotelling observer: detectability of a known signal by the best linear observer of a few channels.

The observer knows the signal and its position exactly. It sees p channels, each the inner product of the image with a
kernel at that position. From n positions without and with the signal it estimates the mean difference of the channels
and their covariance K. Its template is w = K^-1 (mean difference), and its detectability is d' = w . difference /
sqrt(w K w) (Myers and Barrett, J Opt Soc Am A 4, 2447 (1987)). The channels of round signals are Laguerre-Gauss
functions (Gallas and Barrett, J Opt Soc Am A 20, 1725 (2003)); those of lines are Hermite-Gauss functions of even order
across the line.

d' at the positions from which K was estimated is too high by about p / n. Therefore positions are split into ten
groups, and each group is tested with the template of the other nine. ``background``, which holds responses at other
positions without a signal, improves the estimate of K for large signals, of which few can be planted. The interval of a
ratio of two d' is a bootstrap over positions, the same ones for both images. Each position stays in its group, so no
template is tested on a position from which it was estimated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.polynomial import hermite, laguerre
from numpy.typing import NDArray

Values = NDArray[np.float64]
Kernels = NDArray[np.float32]

GROUPS = 10
"""Number of groups of positions for cross-validation."""
DRAWS = 400
"""Bootstrap draws for an interval."""


@dataclass(frozen=True)
class Ratio:
    """d' of a reconstruction over d' of its original, with the bounds of the 95% interval."""

    original: float
    reconstruction: float
    ratio: float
    low: float
    high: float


def laguerre_gauss(distance: NDArray[np.floating], width: float, count: int) -> Kernels:
    """``count`` Laguerre-Gauss functions of ``width`` at these distances from the centre: float32 (count, ...).

    u_j(r) = sqrt(2) / a exp(-pi r^2 / a^2) L_j(2 pi r^2 / a^2), orthonormal over the plane.
    """
    square = 2 * math.pi * np.square(distance / width)
    envelope = math.sqrt(2) / width * np.exp(-square / 2)
    return np.stack([envelope * laguerre.lagval(square, np.eye(count)[j]) for j in range(count)]).astype(np.float32)


def hermite_gauss(distance: NDArray[np.floating], width: float, count: int) -> Kernels:
    """``count`` Hermite-Gauss functions of even order, orthonormal on a line: float32 (count, ...)."""
    x = distance / width
    made = []
    for order in range(0, 2 * count, 2):
        norm = math.sqrt(2.0**order * math.factorial(order) * math.sqrt(math.pi) * width)
        made.append(hermite.hermval(x, np.eye(order + 1)[order]) * np.exp(-x * x / 2) / norm)
    return np.stack(made).astype(np.float32)


@dataclass(frozen=True)
class Responses:
    """Channel responses, (positions, channels), without and with the signal at the same positions, and elsewhere."""

    absent: Values
    present: Values
    background: Values | None = None


def detectability(responses: Responses, weights: Values | None = None) -> Values:
    """d' of an observer with these channel responses: shape (draws,).

    ``weights``: (draws, positions), the count of each position in each draw; None means one draw of all. Positions are
    split into groups by their order, which must be random.
    """
    absent, present = responses.absent, responses.present
    places, channels = absent.shape
    weights = np.ones((1, places)) if weights is None else weights
    scale = absent.std(axis=0) + 1e-12
    classes = [(values - absent.mean(axis=0)) / scale for values in (absent, present)]
    groups = min(GROUPS, places)
    member = np.arange(places) % groups == np.arange(groups)[:, None]
    own = weights[:, None] * member  # (draws, groups, places)
    others = weights[:, None] * ~member
    mean, spread = _moments(classes, others, channels)
    if responses.background is not None:
        count, total = len(responses.background), 2 * others.sum(axis=-1)[..., None, None]
        further = np.cov((responses.background / scale).T).reshape(channels, channels)
        spread = (total * spread + count * further) / (total + count)
    template = np.linalg.solve(spread, (mean[1] - mean[0])[..., None])[..., 0]
    size = np.sqrt(np.einsum("dgc,dgce,dge->dg", template, spread, template))
    template /= size[..., None] + 1e-300
    overall, _ = _moments(classes, weights[:, None], channels)
    signal, noise = np.zeros(len(weights)), np.zeros(len(weights))
    for values, middle, sign in zip(classes, overall, (-1, 1), strict=True):
        scores = np.einsum("dgc,dgnc->dgn", template, values - middle[:, :, None])
        noise += np.einsum("dgn,dgn->d", own, np.square(scores)) / 2
        signal += sign * np.einsum("dgn,dgc,nc->d", own, template, values)
    total = weights.sum(axis=1)
    return np.asarray(signal / total / np.sqrt(noise / (total - 1)))


def _moments(classes: list[Values], weights: Values, channels: int) -> tuple[list[Values], Values]:
    """Weighted means of both classes, (draws, groups, channels), and the mean of their covariances."""
    total = weights.sum(axis=-1)[..., None]
    means, spread = [], np.zeros((*weights.shape[:2], channels, channels))
    for values in classes:
        mean = weights @ values / total
        products = (values[:, :, None] * values[:, None]).reshape(len(values), -1)
        second = (weights @ products).reshape(*weights.shape[:2], channels, channels) / total[..., None]
        covariance = second - mean[..., :, None] * mean[..., None, :]
        spread += covariance * (total / np.maximum(total - 1, 1))[..., None] / 2
        means.append(mean)
    return means, spread


def compared(original: Responses, reconstruction: Responses, seed: int = 1) -> Ratio:
    """Both d' and their ratio, from responses at the same positions in both images."""
    places = len(original.absent)
    random = np.random.default_rng(seed)
    weights = np.ones((DRAWS + 1, places))
    weights[1:] = random.multinomial(places, np.full(places, 1 / places), size=DRAWS)
    both = [detectability(responses, weights) for responses in (original, reconstruction)]
    low, high = np.nanpercentile(both[1][1:] / both[0][1:], [2.5, 97.5])
    return Ratio(float(both[0][0]), float(both[1][0]), float(both[1][0] / both[0][0]), float(low), float(high))
