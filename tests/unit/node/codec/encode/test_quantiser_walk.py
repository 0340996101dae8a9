"""Proves that a walk finds the greatest distance that passes (node/codec/encode/quantiser_walk.py)."""

from __future__ import annotations

import numpy as np
import pytest

from node.codec.encode.quantiser_walk import AIM, COARSEST, FINEST, Walk


def burden_at(distance: float, steep_from: float, at: float) -> float:
    """A burden that is 1 at the distance ``at``, and rises only a little more beyond ``steep_from`` times that
    distance."""
    over = np.log2(distance / at)
    return float(2 ** (0.9 * over if over < np.log2(steep_from) else 0.9 * np.log2(steep_from) + 0.2 * over))


@pytest.mark.parametrize("start", [0.5, 2.0, 8.0])
@pytest.mark.parametrize("at", [1.0, 3.0])
@pytest.mark.parametrize("steep_from", [1.2, 100.0])
def test_a_walk_comes_near_within_six_distances(start: float, at: float, steep_from: float) -> None:
    walk = Walk(start)
    for _ in range(5):
        if not walk.set_next_distance(burden_at(walk.distance, steep_from, at)):
            break
    assert 0.93 < burden_at(walk.distance, steep_from, at) < 1.02


def test_the_next_distance_lies_between_the_nearest_that_passes_and_the_nearest_that_fails() -> None:
    walk = Walk(2.6)
    for burden in (0.6 * AIM, 1.53 * AIM):
        assert walk.set_next_distance(burden)
    low, high = 2.6, walk.distance
    assert low < high
    assert walk.set_next_distance(1.31 * AIM), "two that fail say little of what passes"
    wanted = 2 ** np.interp(0, np.log2([0.6, 1.31]), np.log2([low, high]))
    assert walk.distance == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize(("burden", "end"), [(100.0, FINEST), (0.001, COARSEST)])
def test_a_walk_ends_where_no_distance_is_left(burden: float, end: float) -> None:
    walk = Walk(1.0)
    steps = sum(walk.set_next_distance(burden) for _ in range(20))
    assert steps < 20
    assert walk.distance == end
