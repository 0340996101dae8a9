"""The search for the smallest rung that passes (node/codec/climb.py) and its forecasts (forecast.py)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset

from node.codec.climb import _SAVED, MAX_PASSING, Climb
from node.codec.engine import Decoded, make_base
from node.codec.forecast import FEW, Figures, Forecast, Sample, spread_over
from node.codec.guide import WEIGHT_TILE
from node.codec.guiding import RAISES
from node.fidelity.gate import Reference, measure
from storage.records import Rung, Thresholds, Verdict
from tests.samples import breast
from tests.test_engine import original_of

DISTANCES = (4.0, 3.0, 2.0, 1.5, 1.0, 0.7, 0.5, 0.3, 0.2, 0.1)
LADDER = tuple(Rung(scale, "jpegxl", distance) for scale in (2, 1) for distance in DISTANCES)
GATE = Thresholds(0.93, 0.90, 28.42)


@dataclass
class World:
    """Rungs with true figures, and forecasts that are off by ``bias``."""

    needed: dict[int, float]
    bias: float = 0.0
    asked: list[Rung] = field(default_factory=list)
    ladder: tuple[Rung, ...] = LADDER
    psnr_db: float = 40.0

    def true(self, rung: Rung) -> Figures:
        good = 0.93 + 0.01 * (self.needed[rung.scale] - rung.distance)
        return Figures(good, good - 0.03, self.psnr_db)

    def bytes_of(self, rung: Rung) -> int:
        return int(100_000 / (rung.distance + 0.1) / rung.scale)

    def forecast(self, rung: Rung) -> Forecast:
        self.asked.append(rung)
        mean, p5, psnr = self.true(rung)
        return Forecast(Figures(mean + self.bias, p5 + self.bias, psnr), int(0.9 * self.bytes_of(rung)))

    def climb(self) -> tuple[list[Rung], Rung | None]:
        """The attempts, and the smallest that passed."""
        search, attempts = Climb(self.ladder, self.forecast, GATE), []
        best: Rung | None = None
        while (rung := search.next()) is not None:
            attempts.append(rung)
            mean, p5, psnr = self.true(rung)
            passed = mean >= 0.93 and p5 >= 0.90
            if passed and (best is None or self.bytes_of(rung) < self.bytes_of(best)):
                best = rung
            search.heard(rung, Verdict(psnr, mean, p5, 9), self.bytes_of(rung), passed=passed)
        return attempts, best

    def smallest(self) -> Rung | None:
        passing = [rung for rung in self.ladder if min(self.true(rung)[0] - 0.93, self.true(rung)[1] - 0.90) >= 0]
        return min(passing, key=self.bytes_of, default=None)


@given(st.floats(0.05, 5), st.floats(0.05, 5))
def test_right_forecasts_find_the_smallest_at_once(two: float, one: float) -> None:
    world = World({2: two, 1: one})
    attempts, best = world.climb()
    smallest = world.smallest()
    if smallest is not None:
        assert best is not None
        assert world.bytes_of(best) <= world.bytes_of(smallest) / 0.97 + 1
        assert len(attempts) <= MAX_PASSING


@given(st.floats(0.3, 4), st.floats(0.3, 4), st.floats(-0.01, 0.01))
def test_wrong_forecasts_are_corrected(two: float, one: float, bias: float) -> None:
    """A bias that all rungs share is gone after the first attempt; what is taken has passed for certain."""
    world = World({2: two, 1: one}, bias)
    attempts, best = world.climb()
    assert best is not None
    assert min(world.true(best)[0] - 0.93, world.true(best)[1] - 0.90) >= 0
    assert len(attempts) <= 6
    assert len(set(attempts)) == len(attempts)


def test_few_rungs_are_forecast() -> None:
    world = World({2: 1.2, 1: 1.2})
    world.climb()
    assert len(set(world.asked)) <= 14


@given(st.floats(0.1, 3), st.floats(0.1, 3))
def test_between_near_forecasts_none_is_asked_for(two: float, one: float) -> None:
    """On a ladder as fine as the shipped one: few forecasts, and what is taken is within a rung of the smallest."""
    distances = [round(3.0 * 0.89**number, 3) for number in range(17)]
    ladder = tuple(Rung(scale, "jpegxl", distance) for scale in (2, 1) for distance in distances)
    world = World({2: two, 1: one}, ladder=ladder)
    attempts, best = world.climb()
    assert len(world.asked) == len(set(world.asked)) <= 14
    assert len(attempts) <= 4
    smallest = world.smallest()
    if smallest is not None:
        assert best is not None
        assert world.bytes_of(best) <= world.bytes_of(smallest) / 0.85


def test_hopeless_is_given_up_without_an_attempt() -> None:
    world = World({2: -9.0, 1: -9.0})
    assert world.climb() == ([], None)
    search = Climb(LADDER, world.forecast, GATE)
    assert search.next() is None
    told = search.forecasts()
    assert told
    assert all(outcome.forecast and outcome.verdict.failures for outcome in told)
    assert any("tile FSIM mean would be" in sentence for outcome in told for sentence in outcome.verdict.failures)


def test_single_places_that_fail_make_it_leap() -> None:
    """Where only tiles fail, the next attempt is finer by more than one rung."""
    world = World({2: 3.0, 1: -9.0})
    search = Climb(LADDER, world.forecast, GATE)
    first = search.next()
    assert first is not None
    search.heard(first, Verdict(40, 0.95, 0.92, 9), world.bytes_of(first), passed=True)
    search.refused(first)
    second = search.next()
    assert second is not None
    assert DISTANCES.index(second.distance) - DISTANCES.index(first.distance) >= 2


def test_what_mending_costs_at_one_scale_sends_it_to_another() -> None:
    """The cheapest base passes, with patches three times as large; the other scale's base is a little dearer alone."""
    world = World({2: 1.6, 1: 1.6})
    search = Climb(LADDER, world.forecast, GATE)
    first = search.next()
    assert first is not None
    mean, p5, psnr = world.true(first)
    size = world.bytes_of(first)
    search.heard(first, Verdict(psnr, mean, p5, 9), size, passed=True)
    assert search.next() is None
    search.mended(first, 3 * size, 0)
    second = search.next()
    assert second is not None
    assert second.scale != first.scale


def balancing(world: World) -> tuple[Climb, Rung]:
    """A search that balances, and its first rung."""
    search = Climb(world.ladder, world.forecast, GATE, balancing=True)
    first = search.next()
    assert first is not None
    assert search.balances(first)
    return search, first


def test_what_could_be_had_instead_is_told() -> None:
    """By what has been forecast: the bytes of the best of the other scale, less what balance saves; nothing where that
    will not pass."""
    world = World({2: 2.0, 1: 2.0})
    search, first = balancing(world)
    others = [world.forecast(rung).payload_bytes for rung in dict.fromkeys(world.asked) if rung.scale != first.scale]
    assert others
    assert search.instead_of(first) in [_SAVED[1] * each for each in others]
    alone = World({2: 2.0, 1: -9.0})
    search, first = balancing(alone)
    assert search.instead_of(first) == math.inf


def test_where_there_is_noise_half_the_size_saves_less() -> None:
    """Bytes are half at scale 2; with noise, balance saves less there, and mending takes more."""
    needed = {2: 1.0, 1: 2.3}  # 45,454 bytes at scale 2, 47,619 at scale 1, both coded alike everywhere
    assert balancing(World(needed))[1].scale == 2
    assert balancing(World(needed, psnr_db=32.0))[1].scale == 1
    search = Climb(LADDER, World(needed, psnr_db=32.0).forecast, GATE)
    first = search.next()
    assert first is not None
    assert first.scale == 2, "without balance nothing is known of either"


@pytest.mark.parametrize("other_passes", [True, False])
def test_what_was_given_up_comes_again_where_nothing_passes(other_passes: bool) -> None:
    world = World({2: 2.0, 1: 2.0})
    search, first = balancing(world)
    even = ((*world.true(first),), world.bytes_of(first))
    search.heard(first, Verdict(40, 0.92, 0.89, 9), 10**6, passed=False, even=even, given_up=True)
    second = search.next()
    assert second is not None
    assert second.scale != first.scale
    even = ((*world.true(second),), world.bytes_of(second))
    verdict = Verdict(40, 0.94, 0.91, 9) if other_passes else Verdict(40, 0.92, 0.89, 9)
    search.heard(second, verdict, world.bytes_of(second), passed=other_passes, even=even)
    if other_passes:
        assert search.next() is None
        return
    assert search.next() == first
    assert search.balances(first)
    assert search.instead_of(first) == math.inf
    search.heard(first, Verdict(40, 0.92, 0.89, 9), 10**6, passed=False, even=even)
    assert search.next() is None


def test_what_is_too_large_is_not_forecast() -> None:
    """Bytes grow as distance falls: where a coarse rung of a scale is near the limit, its finer ones are over it."""
    world = World({2: 2.0, 1: 0.1})
    search = Climb(LADDER, world.forecast, GATE)
    assert search.next() == Rung(2, "jpegxl", 2.0)
    limit = world.bytes_of(Rung(2, "jpegxl", 2.0))
    smoothed = [rung for rung in world.asked if rung.scale == 1 and rung.distance > 0.5]
    assert 0 < len(smoothed) <= 2
    for rung in smoothed:
        coarser = [other.distance for other in smoothed if other.distance > rung.distance]
        if coarser:
            nearest = Rung(1, "jpegxl", min(coarser))
            assert 0.9 * world.bytes_of(nearest) * (nearest.distance / rung.distance) ** 0.7 < limit


@pytest.mark.parametrize("equalised", [False, True])
def test_a_sample_of_the_whole_forecasts_it(equalised: bool) -> None:
    """Figures of the consistent base on 12 tiles are near those of the image; bytes are of the right size."""
    pixels = breast(1300, 1024)
    original, reference = original_of(pixels), Reference(pixels, Dataset())
    sample = Sample(original, reference, equalised=equalised)
    last = None
    for distance in (2.0, 0.5):
        rung = Rung(2, "jpegxl", distance, sample_bits=12)
        forecast = sample.forecast(rung)
        base = make_base(original, rung)
        true = measure(reference, Decoded.of(base).pixels(base), None)
        assert forecast.figures.fsim_mean == pytest.approx(true.fsim_mean, abs=0.03)
        assert forecast.figures.psnr_db == pytest.approx(true.psnr_db, abs=1.5)
        assert 0.4 < forecast.payload_bytes / len(base.coded) < 2.5
        assert last is None or (forecast.figures.fsim_mean > last.figures.fsim_mean)
        last = forecast


def test_a_guided_sample_has_its_tiles_where_the_guide_has_its_own() -> None:
    pixels = breast(1300, 1024)
    reference = Reference(pixels, Dataset())
    tiles = spread_over(reference.tiles, FEW)
    sample = Sample(original_of(pixels), reference, equalised=True, tiles=tiles, guided=True)
    excerpt = sample._reference
    assert len(excerpt.tiles) == FEW
    for (row, column), (top, left) in zip(tiles, excerpt.tiles, strict=True):
        assert (top % WEIGHT_TILE, left % WEIGHT_TILE) == (0, 0)
        within, of = pixels[row : row + 256, column : column + 256], excerpt.pixels[top : top + 256, left : left + 256]
        assert np.array_equal(within, of)
    assert excerpt.pixels.shape == (768, 768), "what goes through the network at once"


def test_fine_detail_is_raised_until_it_no_longer_helps() -> None:
    """A coarse coder wants more of it than a fine one; beyond the best, figures fall."""
    pixels = breast(1300, 1024)
    sample = Sample(original_of(pixels), Reference(pixels, Dataset()), equalised=True)
    chosen = {}
    for distance in (2.0, 0.3):
        rung = Rung(1, "jpegxl", distance, sample_bits=12)
        base, decoded = sample._coded(rung)
        rooms = [sample._bare(base, decoded, by).fsim_mean - GATE.fsim_mean for by in RAISES]
        tails = [sample._bare(base, decoded, by).fsim_p5 - GATE.fsim_p5 for by in RAISES]
        room = [min(pair) for pair in zip(rooms, tails, strict=True)]
        chosen[distance] = RAISES.index(sample.best_raise(rung, GATE))
        assert room[chosen[distance]] >= max(room) - 0.001
    assert chosen[2.0] >= chosen[0.3]


@pytest.mark.parametrize("lossless", [2, 1])
def test_a_lossless_rung_is_forecast_once(lossless: int) -> None:
    """It is as far from every other as can be, and no forecast tells of it but its own."""
    exact = Rung(lossless, "jpegxl", 0.0)
    ladder = (*(rung for rung in LADDER if rung.scale == 2 and rung.distance > 0.9), exact)
    world = World({2: -0.5, 1: -9.0} if lossless == 2 else {2: -9.0, 1: 0.0}, ladder=ladder)
    search = Climb(ladder, world.forecast, GATE, balancing=True)
    tried = []
    while (rung := search.next()) is not None:
        tried.append(rung)
        even = ((*world.true(rung),), world.bytes_of(rung)) if search.balances(rung) else None
        passed = world.true(rung)[0] >= 0.93
        search.heard(rung, Verdict(40, *world.true(rung)[:2], 9), world.bytes_of(rung), passed=passed, even=even)
        assert len(tried) < 9
    assert world.asked.count(exact) <= 1
    assert len(world.asked) == len(set(world.asked))
    if lossless == 1:
        assert tried[-1] == exact
