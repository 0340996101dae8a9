"""The trigonometric interpolant between drawn noise and the residual, and the integration of its velocity.

M. S. Albergo and E. Vanden-Eijnden, *Stochastic Interpolants*, arXiv 2303.08797, section 4.2, with alpha = cos and
beta = sin: ``x_t = cos(pi t / 2) z + sin(pi t / 2) r`` for t from 0 (noise z) to 1 (residual r). All values are in
units of the deviation of the missing noise, sigma(x). The velocity is ``v(x, t) = E[dx_t/dt | x_t = x]``, and
``dx/dt = v(x, t)`` carries the distribution of z into that of r.

``mammo`` uses two properties. If r is Gaussian with zero mean and the covariance of z, v is 0 everywhere, so a network
that returns 0 leaves the noise of the ``bicubic`` upscaler unchanged. ``v(x, 0) = pi / 2 E[r]`` for every x, so one
evaluation at t = 0 gives the posterior mean of the residual without sampling.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Velocity = Callable[[Tensor, float], Tensor]
"""``v(x, t)``: a tensor of the shape of x."""


def interpolant(z: Tensor, r: Tensor, t: Tensor) -> Tensor:
    """x_t. ``z``, ``r``: (n, ...). ``t``: (n,), 0..1."""
    angle = _as_wide(t, z)
    return torch.cos(angle) * z + torch.sin(angle) * r


def velocity(z: Tensor, r: Tensor, t: Tensor) -> Tensor:
    """d/dt x_t, whose conditional mean the network learns. Shapes as for ``interpolant``."""
    angle = _as_wide(t, z)
    return math.pi / 2 * (torch.cos(angle) * r - torch.sin(angle) * z)


def mean(v: Velocity, like: Tensor) -> Tensor:
    """E[r], from one evaluation at t = 0, where v does not depend on x. ``like``: a tensor of the result's shape."""
    return 2 / math.pi * v(torch.zeros_like(like), 0.0)


def sample(v: Velocity, z: Tensor, steps: int) -> Tensor:
    """x_1 from x_0 = z by ``steps`` equal steps of Heun's method: 2 ``steps`` - 1 evaluations.

    The last step is Euler's, since v at t = 1 adds no information.
    """
    x, width = z, 1.0 / steps
    for number in range(steps):
        t = number * width
        first = v(x, t)
        if number == steps - 1:
            return x + width * first
        second = v(x + width * first, t + width)
        x = x + width / 2 * (first + second)
    return x


def _as_wide(t: Tensor, like: Tensor) -> Tensor:
    return (math.pi / 2 * t).reshape(-1, *([1] * (like.ndim - 1)))
