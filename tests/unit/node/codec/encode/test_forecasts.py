"""Proves how samples are coded (node/codec/encode/forecasts.py)."""

from __future__ import annotations

import pytest

from node.codec.encode.forecasts import SampleSearch
from storage.records import OperatingPoint


@pytest.mark.parametrize(("share", "companded"), [(0.85, True), (0.97, False), (1.1, False)])
def test_samples_are_companded_where_it_saves_enough(share: float, companded: bool) -> None:
    def measure(point: OperatingPoint) -> tuple[int, float, tuple[str, ...]]:
        size = 10000 * point.distance**-0.8 * (share if point.companded else 1)
        return round(size), point.distance**0.6, ()

    found = SampleSearch(measure, 5, "bicubic").forecasts((2, 1), 1.0)
    assert [forecast.point.companded for forecast in found] == [companded, companded]


def test_each_scale_is_companded_where_that_saves_enough() -> None:
    def measure(point: OperatingPoint) -> tuple[int, float, tuple[str, ...]]:
        factor = {(2, True): 0.85, (1, True): 1.1}.get((point.scale, point.companded), 1.0)
        return round(10000 * point.distance**-0.8 * factor), point.distance**0.6, ()

    found = SampleSearch(measure, 5, "bicubic").forecasts((2, 1), 1.0)
    assert [(forecast.point.scale, forecast.point.companded) for forecast in found] == [(2, True), (1, False)]


def test_a_scale_that_cannot_pass_says_why() -> None:
    def measure(point: OperatingPoint) -> tuple[int, float, tuple[str, ...]]:
        coarse = point.scale == 2
        if coarse:
            return 1000, 3.0, ("lost share is 3, above 1",)
        return 100_000, point.distance**0.6, ()

    half, full = SampleSearch(measure, 5, "bicubic").forecasts((2, 1), 4.0)
    assert half.trial.failures == ("lost share is 3, above 1",)
    assert (half.trial.payload_bytes, half.trial.sample) == (4000, True)
    assert not full.trial.failures
