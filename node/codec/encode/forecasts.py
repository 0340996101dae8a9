"""Forecasts the bytes of each scale with the baseline upscaler, by a search on a sample of the image.

A candidate is a scale, with companding or without. The search always continues with the candidate whose forecast is
lowest, and stops once the search of that candidate has ended.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from node.codec.encode.quantiser_walk import AIM, Walk
from storage.records import OperatingPoint, Trial

START = {1: 2.0, 2: 0.9, 4: 0.5}
"""JPEG XL distance at which the search of a scale starts: the typical result on 14 mammograms."""
_SAMPLE_LOOKS = 5
"""Most times that the sample is coded per candidate. Chosen, not measured."""
_CLOSE = 0.1
"""The search ends when |ln(burden / ``AIM``)| is at most this: the sample is no more exact."""
DEARER = 1.25
"""log2 increase of the bytes per halving of the burden. It converts one trial into a forecast, and is typical of the
images at hand."""
_COMPANDED = 0.95
"""Companding is considered if its first forecast is at most this share of the one without. Films have 0.83 to 0.88;
two digital images with 0.98 took 13% and 41% more bytes in all when companded."""
_COMPANDING_SAVES = 0.83
"""Smallest factor by which companding changed the bytes of any image. A scale that would not be the cheapest even with
this factor is not tried with companding."""

CodeAndMeasure = Callable[[OperatingPoint], tuple[int, float, tuple[str, ...]]]
"""Codes the sample at an operating point and returns the bytes of the base, the burden of the structure, and a sentence
for each limit of the whole image that it misses."""


@dataclass(frozen=True)
class SampleForecast:
    """The result of one search on the sample.

    ``base_bytes``: forecast bytes of the base of the whole image, at least 1; if ``trial`` failed, those at the last
    distance. ``slope``: as in ``Walk``.
    """

    point: OperatingPoint
    base_bytes: int
    slope: float
    trial: Trial


@dataclass(frozen=True)
class SampleSearch:
    """Searches on one sample, which ``code_and_measure`` codes at ``effort`` and upscales by ``upscaler``."""

    code_and_measure: CodeAndMeasure
    effort: int
    upscaler: str

    def forecasts(self, scales: Sequence[int], area: float) -> list[SampleForecast]:
        """One forecast per scale, in the order of ``scales``. The trial of a scale that cannot pass says why.

        ``area``: pixels of breast in the image, over pixels of the sample.
        """
        plain = [self._begun(scale, companded=False) for scale in scales]
        least = min(candidate.forecast for candidate in plain)
        starts = [[candidate, *self._companded_too(candidate, least)] for candidate in plain]
        self._search_cheapest([candidate for start in starts for candidate in start])
        found = [min(start, key=lambda each: each.forecast) for start in starts]
        return [candidate.result(area, self.upscaler) for candidate in found]

    def _begun(self, scale: int, *, companded: bool) -> _Candidate:
        """A candidate after its first trial."""
        point = OperatingPoint(scale, "jpegxl", START[scale], self.effort, companded)
        candidate = _Candidate(point, Walk(point.distance))
        candidate.refine(self.code_and_measure)
        return candidate

    def _companded_too(self, plain: _Candidate, least: float) -> Iterator[_Candidate]:
        """The same scale with companding, if that promises enough. ``least``: the lowest forecast so far."""
        if plain.forecast * _COMPANDING_SAVES > least:
            return
        companded = self._begun(plain.point.scale, companded=True)
        if companded.forecast <= _COMPANDED * plain.forecast:
            yield companded

    def _search_cheapest(self, candidates: Sequence[_Candidate]) -> None:
        """Refine the cheapest candidate, whichever it is at the time, until the search of the cheapest has ended."""
        while not (best := min(candidates, key=lambda each: each.forecast)).ended:
            best.refine(self.code_and_measure)


@dataclass
class _Candidate:
    """A scale, companded or not. ``forecast``: bytes of the sample at the distance that just passes, infinite if none
    does. ``size`` and ``wrong``: bytes of the base and missed limits in the last trial. ``seconds``: wall time."""

    point: OperatingPoint
    walk: Walk
    forecast: float = math.inf
    distance: float = 0.0
    ended: bool = False
    looks: int = 0
    size: int = 0
    wrong: tuple[str, ...] = ()
    seconds: float = 0.0

    def refine(self, code_and_measure: CodeAndMeasure) -> None:
        """Code the sample once more, at the next distance, and update the forecast."""
        began = time.monotonic()
        point = replace(self.point, distance=round(self.walk.distance, 4))
        self.size, burden, self.wrong = code_and_measure(point)
        self.forecast = self.size * (burden / AIM) ** DEARER
        self.looks += 1
        moves = self.walk.set_next_distance(burden)
        self.distance = self.walk.distance
        self.ended = abs(math.log(burden / AIM)) <= _CLOSE or not moves or self.looks == _SAMPLE_LOOKS
        if burden > 1 and not moves:
            self.forecast = math.inf
        self.seconds += time.monotonic() - began

    def result(self, area: float, upscaler: str) -> SampleForecast:
        failed = self.forecast == math.inf
        point = replace(self.point, distance=round(self.distance, 4))
        size = max(round((self.size if failed else self.forecast) * area), 1)
        wrong = self.wrong if failed else ()
        trial = Trial(str(point), upscaler, size, wrong, round(self.seconds, 2), sample=True)
        return SampleForecast(point, size, self.walk.slope, trial)
