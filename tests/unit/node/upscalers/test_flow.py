"""Proves the interpolant, the velocity and the sampler of ``mammo`` on distributions whose velocity is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from node.upscalers import flow


def normal(count: int, seed: int) -> Tensor:
    return torch.randn(count, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_it_goes_from_noise_to_residual() -> None:
    z, r = normal(6, 1), normal(6, 2)
    assert torch.equal(flow.interpolant(z, r, torch.zeros(6, dtype=torch.float64)), z)
    torch.testing.assert_close(flow.interpolant(z, r, torch.ones(6, dtype=torch.float64)), r)


def test_independent_noise_of_unit_variance_keeps_it_all_the_way() -> None:
    z, r = normal(200_000, 1), normal(200_000, 2)
    for t in (0.2, 0.5, 0.9):
        x = flow.interpolant(z, r, torch.full((200_000,), t, dtype=torch.float64))
        assert float(x.var()) == pytest.approx(1, abs=0.01)


def test_the_velocity_is_the_derivative() -> None:
    z, r, t, step = normal(5, 1), normal(5, 2), torch.linspace(0.1, 0.9, 5, dtype=torch.float64), 1e-6
    slope = (flow.interpolant(z, r, t + step) - flow.interpolant(z, r, t - step)) / (2 * step)
    torch.testing.assert_close(flow.velocity(z, r, t), slope, atol=1e-6, rtol=1e-6)


def test_each_image_has_its_own_time() -> None:
    z, r = torch.ones(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    x = flow.interpolant(z, r, torch.tensor([0.0, 1.0]))
    assert torch.equal(x[0], z[0])
    assert float(x[1].abs().max()) < 1e-6


def test_the_mean_is_read_off_the_start() -> None:
    """At the start, v(x, 0) = pi / 2 E[r] for any x."""
    asked: list[float] = []

    def v(x: Tensor, t: float) -> Tensor:
        asked.append(t)
        return torch.full_like(x, math.pi / 2 * 0.3)

    assert float(flow.mean(v, torch.zeros(1, 1))) == pytest.approx(0.3)
    assert asked == [0.0]


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_without_a_velocity_noise_stays_as_it_was_drawn(steps: int) -> None:
    z = normal(50, 3)
    assert torch.equal(flow.sample(lambda x, t: torch.zeros_like(x), z, steps), z)


@pytest.mark.parametrize(("steps", "evaluations"), [(1, 1), (2, 3), (4, 7)])
def test_evaluations_per_step(steps: int, evaluations: int) -> None:
    asked: list[float] = []

    def v(x: Tensor, t: float) -> Tensor:
        asked.append(t)
        return torch.zeros_like(x)

    flow.sample(v, torch.zeros(1), steps)
    assert len(asked) == evaluations
    assert asked[0] == 0.0
    assert max(asked) < 1


def test_a_gaussian_residual_is_reached() -> None:
    """r is normal with mean 0.8 and deviation 0.6. Then v is linear in x, and its flow ends in exactly that
    distribution."""
    centre, spread = 0.8, 0.6

    def v(x: Tensor, t: float) -> Tensor:
        cos, sin = math.cos(math.pi / 2 * t), math.sin(math.pi / 2 * t)
        away = x - sin * centre
        variance = cos**2 + (spread * sin) ** 2
        mean_r, mean_z = centre + spread**2 * sin / variance * away, cos / variance * away
        return math.pi / 2 * (cos * mean_r - sin * mean_z)

    made = flow.sample(v, normal(100_000, 4), 16)
    assert float(made.mean()) == pytest.approx(centre, abs=0.02)
    assert float(made.std()) == pytest.approx(spread, abs=0.02)
