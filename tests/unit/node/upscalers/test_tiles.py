"""Proves that tile plans cover their canvas, and that blending weights sum to one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.upscalers.tiles import TilePlan, blend


@st.composite
def plans(draw: st.DrawFn) -> tuple[int, int, TilePlan]:
    align = draw(st.sampled_from([1, 4, 8]))
    tile = align * draw(st.integers(4, 12))
    overlap = draw(st.integers(1, tile // 2))
    rows, columns = draw(st.integers(1, 260)), draw(st.integers(1, 260))
    return rows, columns, TilePlan.cover(rows, columns, tile=tile, overlap=overlap, align=align)


def cut(plan: TilePlan, canvas: np.ndarray) -> list[np.ndarray]:
    return [canvas[top : top + plan.tile, left : left + plan.tile] for top, left in plan.positions]


@given(plans())
@settings(deadline=None)
def test_every_pixel_is_covered_and_no_tile_leaves_the_canvas(case: tuple[int, int, TilePlan]) -> None:
    rows, columns, plan = case
    for size, length, starts in ((rows, plan.rows, plan.tops), (columns, plan.columns, plan.lefts)):
        assert starts[0] == 0
        assert starts[-1] + plan.tile == length >= size
        steps = np.diff(starts)
        assert (steps > 0).all()
        assert (plan.tile - steps >= plan.overlap).all()


@given(plans())
@settings(deadline=None)
def test_the_canvas_grows_no_more_than_it_must(case: tuple[int, int, TilePlan]) -> None:
    rows, columns, plan = case
    assert plan.rows == plan.tile or plan.rows - rows < 8
    assert plan.columns == plan.tile or plan.columns - columns < 8


@given(plans(), st.sampled_from([1, 2]), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_blending_the_tiles_of_an_image_gives_the_image_back(
    case: tuple[int, int, TilePlan], factor: int, seed: int
) -> None:
    plan = case[2].scaled(factor)
    canvas = np.random.default_rng(seed).uniform(-1, 1, (plan.rows, plan.columns)).astype(np.float32)
    blended = blend(plan, iter(cut(plan, canvas)))
    assert blended.dtype == np.float32
    np.testing.assert_allclose(blended, canvas, rtol=0, atol=1e-6)


@given(plans())
@settings(deadline=None)
def test_blended_values_stay_between_those_of_the_tiles(case: tuple[int, int, TilePlan]) -> None:
    plan = case[2]
    levels = np.linspace(-1, 1, len(plan.positions), dtype=np.float32)
    blended = blend(plan, [np.full((plan.tile, plan.tile), level, np.float32) for level in levels])
    assert blended.min() >= levels.min() - 1e-6
    assert blended.max() <= levels.max() + 1e-6


def test_outside_the_flanks_pixels_are_untouched() -> None:
    plan = TilePlan.cover(100, 64, tile=64, overlap=16, align=8)
    assert plan.tops == (0, 40)
    canvas = np.random.default_rng(3).normal(size=(plan.rows, plan.columns)).astype(np.float32)
    blended = blend(plan, cut(plan, canvas))
    # The seam lies at row (40 + 64) / 2 = 52, the cross-fade reaches 8 rows to either side.
    assert np.array_equal(blended[:44], canvas[:44])
    assert np.array_equal(blended[60:], canvas[60:])


def test_one_tile_is_returned_bit_for_bit() -> None:
    plan = TilePlan.cover(5, 64, tile=64, overlap=32)
    assert plan.positions == [(0, 0)]
    canvas = np.random.default_rng(4).normal(size=(64, 64)).astype(np.float32)
    assert np.array_equal(blend(plan, [canvas]), canvas)


def test_a_step_between_tiles_becomes_a_monotonous_cross_fade() -> None:
    plan = TilePlan.cover(64, 112, tile=64, overlap=16)
    blended = blend(plan, [np.zeros((64, 64), np.float32), np.ones((64, 64), np.float32)])
    assert plan.lefts == (0, 48)
    assert (np.diff(blended[0]) >= 0).all()
    assert np.diff(blended[0]).max() < 0.11
    assert (blended == blended[0]).all()


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_missing_or_surplus_tile_is_an_error(count: int) -> None:
    plan = TilePlan.cover(64, 112, tile=64, overlap=16)
    with pytest.raises(ValueError, match="zip"):
        blend(plan, [np.zeros((64, 64), np.float32)] * count)


@pytest.mark.parametrize(
    ("rows", "tile", "overlap", "align", "message"),
    [
        (0, 64, 16, 8, "0 x 64"),
        (64, 60, 16, 8, "multiple of 8"),
        (64, 64, 0, 8, "overlap 0"),
        (64, 64, 33, 8, "1 .. 32"),
    ],
)
def test_impossible_plans_are_refused(rows: int, tile: int, overlap: int, align: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TilePlan.cover(rows, 64, tile=tile, overlap=overlap, align=align)
