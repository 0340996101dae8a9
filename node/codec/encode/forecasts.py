"""Forecasts the bytes of each scale and upscaler, by a search on a sample of the image.

The candidate with the lowest forecast is searched until its operating point is found. Every other candidate is searched
only for as long as its forecast is lower.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from node.codec.encode.quantiser_walk import AIM, Walk
from node.upscalers.protocol import Upscaler
from storage.records import OperatingPoint, Trial

START = {1: 2.0, 2: 0.9, 4: 0.5}
"""JPEG XL distance at which the search of a scale starts: the typical answer on 14 mammograms."""
_SAMPLE_LOOKS = 5
"""Most times that the sample is coded per candidate."""
_CLOSE = 0.1
"""The search ends when the natural logarithm of burden over aim is at most this: the sample is no more exact."""
_DEARER = 1.25
"""log2 increase of the bytes per halving of the burden; typical. It converts one look into a forecast."""
_RESERVE = 0.98
"""Another upscaler is preferred to the baseline if its forecast is at most this share of the baseline's."""
_COMPANDED = 0.95
"""Samples are companded if the first forecast is at most this share of the other. Films have 0.83 to 0.88; two digital
images with 0.98 took 13% and 41% more bytes on the whole when companded."""

Look = Callable[[OperatingPoint, Upscaler], tuple[int, float, tuple[str, ...]]]
"""Codes the sample at an operating point and returns the bytes of the base, the burden of the structure, and a sentence
for each limit of the whole image that it misses."""


@dataclass(frozen=True)
class SampleForecast:
    """The result of one search on the sample.

    ``payload_bytes``: forecast for the whole image; if ``trial`` failed, the bytes at the last distance. ``slope``: of
    the burden over the distance, as in ``Walk``.
    """

    point: OperatingPoint
    upscaler: Upscaler
    payload_bytes: int
    slope: float
    trial: Trial


def forecasts_of(
    look: Look, upscalers: Sequence[Upscaler], scales: Sequence[int], effort: int, area: float
) -> list[SampleForecast]:
    """The forecasts of the scales, in no order; the trials of those that cannot pass say why.

    The last upscaler is the baseline and makes the first looks. Each scale is coded with companded samples and without.
    ``area``: pixels of breast in the image, over those in the sample.
    """

    def candidate(scale: int, companded: bool, upscaler: Upscaler, distance: float) -> _Candidate:
        one = _Candidate(OperatingPoint(scale, "jpegxl", distance, effort, companded), upscaler, Walk(distance))
        one.refine(look)
        return one

    def cheapest(candidates: Sequence[_Candidate]) -> _Candidate:
        while not (best := min(candidates, key=lambda each: each.forecast)).ended:
            best.refine(look)
        return best

    def started(scale: int) -> list[_Candidate]:
        plain, companded = (candidate(scale, each, baseline, START[scale]) for each in (False, True))
        return [plain, companded] if companded.forecast <= _COMPANDED * plain.forecast else [plain]

    *others, baseline = upscalers
    pairs = [started(scale) for scale in scales]
    best = cheapest([each for pair in pairs for each in pair])
    found = [min(pair, key=lambda each: each.forecast) for pair in pairs]
    for upscaler in others:
        other = candidate(best.point.scale, best.point.companded, upscaler, best.distance)
        while other.forecast <= _RESERVE * best.forecast and not other.ended:
            other.refine(look)
        if other.forecast <= _RESERVE * best.forecast:
            found.append(other)
    return [each.result(area) for each in found]


@dataclass
class _Candidate:
    """A scale and an upscaler. ``forecast``: bytes of the sample at the distance that just passes, infinite if none
    does; ``size`` and ``wrong``: what the last look found; ``seconds``: wall time so far."""

    point: OperatingPoint
    upscaler: Upscaler
    walk: Walk
    forecast: float = math.inf
    distance: float = 0.0
    ended: bool = False
    looks: int = 0
    size: int = 0
    wrong: tuple[str, ...] = ()
    seconds: float = 0.0

    def refine(self, look: Look) -> None:
        """Code the sample once more, at the next distance of the secant method."""
        began = time.monotonic()
        point = replace(self.point, distance=round(self.walk.distance, 4))
        self.size, burden, self.wrong = look(point, self.upscaler)
        self.forecast = self.size * (burden / AIM) ** _DEARER
        self.looks += 1
        moves = self.walk.step(burden)
        self.distance = self.walk.distance
        self.ended = abs(math.log(burden / AIM)) <= _CLOSE or not moves or self.looks == _SAMPLE_LOOKS
        if burden > 1 and not moves:
            self.forecast = math.inf
        self.seconds += time.monotonic() - began

    def result(self, area: float) -> SampleForecast:
        failed = self.forecast == math.inf
        point = replace(self.point, distance=round(self.distance, 4))
        size = round((self.size if failed else self.forecast) * area)
        wrong = self.wrong if failed else ()
        trial = Trial(str(point), self.upscaler.name, size, wrong, round(self.seconds, 2), sample=True)
        return SampleForecast(point, self.upscaler, size, self.walk.slope, trial)
