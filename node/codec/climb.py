"""Up the ladder: which rung to try next, so that the smallest payload that passes is found in a few attempts.

Rungs that differ in nothing but distance, on one side of 0.5, are a flight: the figures rise as distance falls, so it
is searched by bisection over the forecasts, and between two that are near, what lies there is interpolated. Every
attempt corrects them: the sample's tiles are not the image's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from node.codec.attempts import Even
from node.codec.forecast import Figures, Forecast
from storage.records import Rung, RungOutcome, Thresholds, Verdict

MAX_PASSING = 2
"""Passing attempts after which no smaller one is looked for."""
_WORTH_TRYING, _WORTH_BALANCING = 0.97, 0.9
"""A rung is tried after another has passed where its forecast is below this share of that one's bytes; the second where
rungs are balanced, which takes some looks."""
_DOUBT = Figures(0.015, 0.03, 1.0)
"""How far below the gate (mean and 5th percentile of tile FSIM, PSNR in dB) the forecast of the finest rung of a
scale must be for the flight to be given up unseen."""

_NEAR, _NEAR_ENOUGH = 1.65, 2.1
"""Forecasts of rungs whose distances are at most this many times each other are interpolated between; the second where
rungs are balanced, which finds what is missed."""
_REACH, _SURE = 1.15, 0.4
"""Doublings of distance as far as which one forecast tells of the rungs beside it, where rungs are balanced; and as far
as which it tells enough of the rung that is to be tried."""
_PER_DOUBLING = {1: (1.15, 0.6), 2: (0.95, 0.48), 4: (1.7, 0.25)}
_PER_DOUBLING_OF_AVIF = (1.3, 0.75)
"""Octaves by which bytes fall, and by which 1 - FSIM rises, where distance doubles, by scale, and of AVIF at full size;
measured on mammograms."""
_PSNR_PER_DOUBLING = 2.0
_LIKELY = 3
"""The first forecast of a flight is of the rung that comes after one in so many of its open ones: coarse ones pass."""

_LEAST_GROWTH = 0.7
"""Bytes grow by at least this power of how much finer the distance is; typically by 1.1."""

_SMOOTHED = 0.5
"""Above this distance libjxl smooths what it decodes (gaborish), so figures and bytes leap: another flight."""

_SAVED = {1: 0.9, 2: 0.8}
"""What of its bytes an image typically takes once it is balanced, by scale."""
_QUIET, _SAVED_OF_NOISE = 36.0, {1: 0.8, 2: 1.05}
"""PSNR in dB below which there is quantum noise, and what is saved then; in film it is weak."""
_FULL_SIZE_AVIF = (1, "avif")
_LEFT_BY_AVIF, _LEFT_OF_NOISE = 1.1, 1.35
"""How much more AVIF takes at full size than its forecasts promise, without and with quantum noise, in which it never
took less than JPEG XL."""
_MENDING, _FINER_MENDS = 6000, 0.65
"""Bytes that mending noisy images typically takes at full size, and what of them it takes at the next finer scale."""

_REACH_OF_TEXTURE = Figures(0.06, 0.10, 0.0)
"""How much texture may raise the figures of the consistent base."""
_NOTHING = Figures(0.0, 0.0, 0.0)
_NAMES = ("tile FSIM mean", "tile FSIM 5th percentile", "PSNR in dB")


@dataclass
class _Flight:
    """Rungs of one scale and coder, coarsest first; ``low`` up to ``high`` are still open.

    ``offs``: what was measured less what was forecast, ``passing``: bytes of bases that passed, both by rung number;
    ``patches``: bytes of exact patches that a rung of it took.
    """

    rungs: list[Rung]
    low: int = 0
    offs: dict[int, Figures] = field(default_factory=dict)
    passing: dict[int, int] = field(default_factory=dict)
    patches: int | None = None

    def __post_init__(self) -> None:
        self.rungs.sort(key=lambda rung: -rung.distance)

    @property
    def high(self) -> int:
        return min(self.passing, default=len(self.rungs))

    def off(self, rung: Rung) -> Figures | None:
        """What the forecast of a rung is off by: as measured at its neighbours, and between two of them linear."""
        number = self.rungs.index(rung)
        below = max((known for known in self.offs if known <= number), default=None)
        above = min((known for known in self.offs if known >= number), default=None)
        if below is None or above is None or below == above:
            nearest = above if below is None else below
            return None if nearest is None else self.offs[nearest]
        share = (number - below) / (above - below)
        pairs = zip(self.offs[below], self.offs[above], strict=True)
        return Figures(*(one + share * (other - one) for one, other in pairs))


@dataclass
class Climb:
    """The search over one ladder. ``forecast`` is asked for few rungs; ``textured``: texture may raise its figures;
    ``balancing``: rungs are balanced before they are measured."""

    ladder: Sequence[Rung]
    forecast: Callable[[Rung], Forecast]
    thresholds: Thresholds
    textured: bool = False
    balancing: bool = False
    _flights: list[_Flight] = field(init=False)
    _off: Figures = _NOTHING
    _bytes_off: float = 1.0
    _patches: int = 0
    _mending: tuple[int, int] | None = None
    _asked: dict[Rung, Forecast] = field(default_factory=dict)
    _tried: set[Rung] = field(default_factory=set)
    _balanced: set[tuple[int, str]] = field(default_factory=set)
    _saved: dict[int, float] = field(default_factory=dict)
    _given_up: list[Rung] = field(default_factory=list)

    def __post_init__(self) -> None:
        flights: dict[tuple[object, ...], list[Rung]] = {}
        for rung in dict.fromkeys(self.ladder):
            smoothed = rung.coder == "jpegxl" and rung.distance > _SMOOTHED
            flights.setdefault((rung.scale, rung.coder, rung.effort, rung.sample_bits, smoothed), []).append(rung)
        self._flights = [_Flight(rungs) for rungs in flights.values()]

    def next(self) -> Rung | None:
        """The rung with the smallest forecast among those that may pass; None where the search is over."""
        passing = [size + (flight.patches or 0) for flight in self._flights for size in flight.passing.values()]
        if len(passing) >= MAX_PASSING:
            return None
        smallest = (_WORTH_BALANCING if self.balancing else _WORTH_TRYING) * min(passing, default=math.inf)
        best: Rung | None = None
        for flight in self._flights:
            rung = self._offer(flight, smallest)
            while rung is not None and self._unsure(flight, rung):
                self._ask(rung)
                rung = self._offer(flight, smallest)
            if rung is not None and (size := self._bytes(flight, rung)) < smallest:
                smallest, best = size, rung
        if best is None and not passing and self._given_up:
            best = self._given_up.pop(0)
            self._balanced.discard(_kind(best))
        return best

    def instead_of(self, rung: Rung) -> float:
        """What the base of another scale or coder, not balanced yet, would take, by what has been forecast; infinite
        where none is expected to pass."""
        return min(
            (
                self._base_bytes(flight, other)
                for flight in self._flights
                for other in flight.rungs
                if _kind(other) not in {*self._balanced, _kind(rung)}
                and other in self._asked
                and self._expected(flight, other)
            ),
            default=math.inf,
        )

    def balances(self, rung: Rung) -> bool:
        """Whether a rung is to be balanced: those of one scale and coder once, from then on as they are."""
        return self.balancing and rung.distance > 0 and _kind(rung) not in self._balanced

    def heard(
        self,
        rung: Rung,
        verdict: Verdict,
        base_bytes: int,
        *,
        passed: bool,
        even: Even | None = None,
        given_up: bool = False,
    ) -> None:
        """What a trial came to, before anything was mended: the forecasts are corrected, and what it rules out is
        closed. ``passed``: as a whole. ``even``: figures and bytes before the rung was balanced; where it was, all
        rungs of its scale and coder are closed, since it has become whichever of them suits. ``given_up``: for the
        sake of another; it comes again where none passes."""
        self._tried.add(rung)
        flight = self._flight(rung)
        made = self._forecast(flight, rung)
        number = flight.rungs.index(rung)
        figures, size = (_figures(verdict), base_bytes) if even is None else even
        self._off = flight.offs[number] = Figures(
            *(now - then for now, then in zip(figures, made.figures, strict=True))
        )
        self._bytes_off = size / max(made.payload_bytes, 1)
        if even is not None:
            self._close(rung)
            if given_up:
                self._given_up.append(rung)
            if passed and size:
                self._saved[rung.scale] = base_bytes / size
        elif not passed:
            flight.low = number + 1
        if passed:
            flight.passing[number] = base_bytes

    def _close(self, rung: Rung) -> None:
        """No more of this scale and coder."""
        self._balanced.add(_kind(rung))
        for other in self._flights:
            if _kind(other.rungs[0]) == _kind(rung):
                other.low = len(other.rungs)

    def mended(self, rung: Rung, patch_bytes: int, point_bytes: int) -> None:
        """What exact patches and points a rung that passed has taken."""
        self._patches = self._flight(rung).patches = patch_bytes
        if self.balancing:
            self._mending = rung.scale, patch_bytes // 2 + point_bytes
            self._flight(rung).patches = patch_bytes + point_bytes

    def refused(self, rung: Rung) -> None:
        """A rung that passed as a whole cannot be mended: rungs beside it would fail in the same places."""
        flight = self._flight(rung)
        number = flight.rungs.index(rung)
        del flight.passing[number]
        flight.low = number + max(1, (flight.high - number) // 2)

    def forecasts(self) -> tuple[RungOutcome, ...]:
        """Outcomes of rungs that were forecast and never tried, as the forecasts stand now: per scale and coder the
        largest that would not pass and the smallest that would."""
        outcomes: dict[tuple[int, str, bool], RungOutcome] = {}
        for flight in self._flights:
            for rung in flight.rungs:
                if rung in self._asked and rung not in self._tried:
                    passing = self._expected(flight, rung)
                    key = rung.scale, rung.coder, passing
                    if not passing or key not in outcomes:
                        outcomes[key] = self._outcome(flight, rung)
        return tuple(outcomes.values())

    def _flight(self, rung: Rung) -> _Flight:
        return next(flight for flight in self._flights if rung in flight.rungs)

    def _outcome(self, flight: _Flight, rung: Rung) -> RungOutcome:
        made = self._asked[rung]
        mean, p5, psnr = (now + off for now, off in zip(made.figures, flight.off(rung) or self._off, strict=True))
        named = zip(_NAMES, (mean, p5, psnr), _least(self.thresholds), strict=True)
        missed = tuple(f"{name} would be {value:.4g}, below {least:g}" for name, value, least in named if value < least)
        size = round(self._bytes(flight, rung))
        why = missed or (f"would take about {size} bytes",)
        return RungOutcome(str(rung), size, Verdict(psnr, mean, p5, 0, failures=why), 0.0, forecast=True)

    def _forecast(self, flight: _Flight, rung: Rung) -> Forecast:
        """Of one rung: as asked for, or from two near ones of its flight, else asked for now."""
        if rung not in self._asked:
            known = [other for other in flight.rungs if other in self._asked]
            coarser = [other for other in known if other.distance > rung.distance]
            finer = [other for other in known if other.distance < rung.distance]
            near = _NEAR_ENOUGH if self.balancing else _NEAR
            if coarser and finer and coarser[-1].distance <= near * finer[0].distance:
                return self._between(coarser[-1], finer[0], rung)
            beside = self._nearest(flight, rung)
            if beside is not None and _doublings(beside, rung) <= _REACH:
                return self._beside(beside, rung)
            self._ask(rung)
        return self._asked[rung]

    def _ask(self, rung: Rung) -> None:
        self._asked[rung] = self.forecast(rung)

    def _nearest(self, flight: _Flight, rung: Rung) -> Rung | None:
        """The forecast rung of a flight from which others are told, where rungs are balanced."""
        known = [other for other in flight.rungs if other in self._asked] if self.balancing else []
        return min(known, key=lambda other: _doublings(other, rung), default=None)

    def _unsure(self, flight: _Flight, rung: Rung) -> bool:
        """Whether what is thought of a rung rests on one forecast that is rather far."""
        beside = self._nearest(flight, rung)
        return beside is not None and _doublings(beside, rung) > _SURE

    def _beside(self, known: Rung, rung: Rung) -> Forecast:
        """By how figures and bytes typically change with distance."""
        made, doublings = self._asked[known], math.log2(rung.distance / known.distance)
        smaller, worse = _PER_DOUBLING_OF_AVIF if _kind(rung) == _FULL_SIZE_AVIF else _PER_DOUBLING[rung.scale]
        mean, p5 = (1 - (1 - figure) * 2 ** (worse * doublings) for figure in made.figures[:2])
        psnr = made.figures.psnr_db - _PSNR_PER_DOUBLING * doublings
        return Forecast(Figures(mean, p5, psnr), round(made.payload_bytes * 2 ** (-smaller * doublings)))

    def _between(self, coarse: Rung, fine: Rung, rung: Rung) -> Forecast:
        """Figures linear, bytes geometric, in the logarithm of distance."""
        share = math.log(rung.distance / coarse.distance) / math.log(fine.distance / coarse.distance)
        one, other = self._asked[coarse], self._asked[fine]
        figures = (low + share * (high - low) for low, high in zip(one.figures, other.figures, strict=True))
        size = max(one.payload_bytes, 1) ** (1 - share) * max(other.payload_bytes, 1) ** share
        return Forecast(Figures(*figures), round(size))

    def _offer(self, flight: _Flight, limit: float) -> Rung | None:
        """The coarsest open rung of a flight that is expected to pass; None where it takes no less than ``limit``.

        A rung that takes as much and is not expected to pass ends the search of a flight: the finer ones take more.
        """
        if flight.low >= flight.high:
            return None
        low, high = flight.low, flight.high
        if self._at_least(flight, flight.rungs[low]) >= limit:
            return None
        if self.balancing and self._nearest(flight, flight.rungs[low]) is None:
            self._ask(flight.rungs[low + (high - low) // _LIKELY])
        while low < high:
            middle = (low + high) // 2
            rung = flight.rungs[middle]
            if self._at_least(flight, rung) >= limit or self._expected(flight, rung):
                high = middle
            elif self._bytes(flight, rung) >= limit:
                return None
            else:
                low = middle + 1
        if low < flight.high:
            return flight.rungs[low] if self._at_least(flight, flight.rungs[low]) < limit else None
        last = flight.rungs[-1]
        if flight.passing or not self._finest(flight) or not self._expected(flight, last, _DOUBT):
            return None
        return last

    def _at_least(self, flight: _Flight, rung: Rung) -> float:
        """What a rung takes, or where it has not been forecast, what it takes at least, going by the next coarser one
        that has; 0 where none has."""
        coarser = [other for other in flight.rungs if other in self._asked and other.distance > rung.distance]
        if coarser and rung not in self._asked:
            growth = math.pow(coarser[-1].distance / rung.distance, _LEAST_GROWTH)
            return self._base_bytes(flight, coarser[-1]) * growth + self._mending_bytes(flight, coarser[-1])
        return self._bytes(flight, rung) if rung in self._asked else 0.0

    def _finest(self, flight: _Flight) -> bool:
        """Whether no other flight of its scale goes on where this one ends."""
        last = flight.rungs[-1]
        others = (rung for other in self._flights for rung in other.rungs if rung.scale == last.scale)
        return last.distance <= min(rung.distance for rung in others)

    def _bytes(self, flight: _Flight, rung: Rung) -> float:
        """What a rung may take, mended."""
        return self._base_bytes(flight, rung) + self._mending_bytes(flight, rung)

    def _base_bytes(self, flight: _Flight, rung: Rung) -> float:
        saved, made = 1.0, self._forecast(flight, rung)
        if self.balances(rung):  # by what another coder has saved at this scale, where one has been balanced
            typical = _SAVED_OF_NOISE if self._noisy else _SAVED
            saved = max(typical.get(rung.scale, 1.0), min(self._saved.get(rung.scale, 0.0), 1.0))
            if _kind(rung) == _FULL_SIZE_AVIF:
                saved *= _LEFT_OF_NOISE if self._noisy else _LEFT_BY_AVIF
        return made.payload_bytes * self._bytes_off * saved

    def _mending_bytes(self, flight: _Flight, rung: Rung) -> float:
        """What mending another rung of the flight took; on another flight, where other places are wrong, half the
        patches; and where rungs are balanced, less on finer scales and more on coarser ones. ``rung``: one of
        the flight."""
        if flight.patches is not None:
            return flight.patches
        if self._mending is None and not (self.balancing and self._noisy):
            return self._patches / 2
        scale, taken = self._mending or (1, _MENDING)
        return taken * math.pow(_FINER_MENDS, math.log2(scale / rung.scale))

    @property
    def _noisy(self) -> bool:
        """Of the image, not of a rung: by what was forecast first."""
        first = next(iter(self._asked.values()), None)
        return first is not None and first.figures.psnr_db < _QUIET

    def _expected(self, flight: _Flight, rung: Rung, doubt: Figures = _NOTHING) -> bool:
        """Whether the corrected forecast of a rung passes."""
        figures = self._forecast(flight, rung).figures
        reach = _REACH_OF_TEXTURE if self.textured else _NOTHING
        least = _least(self.thresholds)
        parts = zip(figures, flight.off(rung) or self._off, reach, doubt, least, strict=True)
        return all(figure + off + reach + spare >= floor for figure, off, reach, spare, floor in parts)


def _doublings(one: Rung, other: Rung) -> float:
    """Of distance, from one to the other, either way; a lossless one is far from all others."""
    if one.distance == other.distance:
        return 0.0
    return abs(math.log2(one.distance / other.distance)) if one.distance and other.distance else math.inf


def _kind(rung: Rung) -> tuple[int, str]:
    """What is balanced once: a scale and coder."""
    return rung.scale, rung.coder


def _least(thresholds: Thresholds) -> Figures:
    return Figures(thresholds.fsim_mean, thresholds.fsim_p5, thresholds.psnr_db)


def _figures(verdict: Verdict) -> Figures:
    return Figures(verdict.fsim_mean, verdict.fsim_p5, verdict.psnr_db)
