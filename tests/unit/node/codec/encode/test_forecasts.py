"""Proves how samples are coded (node/codec/encode/forecasts.py)."""

from __future__ import annotations

import pytest

from node.codec.encode.forecasts import forecasts_of
from node.upscalers.bicubic import Bicubic
from node.upscalers.protocol import Upscaler
from storage.records import OperatingPoint


@pytest.mark.parametrize(("share", "companded"), [(0.85, True), (0.97, False), (1.1, False)])
def test_samples_are_companded_where_it_saves_enough(share: float, companded: bool) -> None:
    def look(point: OperatingPoint, _: Upscaler) -> tuple[int, float]:
        size = 10000 * point.distance**-0.8 * (share if point.companded else 1)
        return round(size), point.distance**0.6

    found = forecasts_of(look, [Bicubic()], (2, 1), 5, 1.0)
    assert [forecast.point.companded for forecast in found] == [companded, companded]
