"""Up the ladder: which rung to try next, so that the smallest payload that passes is found in a few attempts.

Rungs that differ in nothing but distance are a flight: the gate's figures rise as distance falls, so a flight is
searched by bisection over the forecasts, and between two that are near, what lies there is interpolated. Every attempt
corrects them: the sample's tiles are not the image's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from node.reconstruct.forecast import Figures, Forecast
from storage.records import Rung, RungOutcome, Thresholds, Verdict

MAX_PASSING = 2
"""Passing attempts after which no smaller one is looked for."""
_WORTH_TRYING = 0.97
"""A rung is tried after another has passed where its forecast is below this share of that one's bytes."""
_DOUBT = Figures(0.015, 0.03, 1.0)
"""How far below the gate (mean and 5th percentile of tile FSIM, PSNR in dB) the forecast of the finest rung of a
flight must be for the flight to be given up unseen."""

_NEAR = 1.65
"""Forecasts of rungs whose distances are at most this many times each other are interpolated between."""

_REACH_OF_TEXTURE = Figures(0.06, 0.10, 0.0)
"""How much texture may raise the figures of the consistent base."""
_NOTHING = Figures(0.0, 0.0, 0.0)
_NAMES = ("tile FSIM mean", "tile FSIM 5th percentile", "PSNR in dB")


@dataclass
class _Flight:
    """Rungs of one scale and coder, coarsest first; ``low`` up to ``high`` are still open.

    ``off``: what was measured less what was forecast; ``extra``: bytes that the last attempt took besides its base.
    """

    rungs: list[Rung]
    low: int = 0
    high: int = 0
    off: Figures | None = None
    extra: int | None = None

    def __post_init__(self) -> None:
        self.rungs.sort(key=lambda rung: -rung.distance)
        self.high = len(self.rungs)


@dataclass
class Climb:
    """The search over one ladder. ``forecast`` is asked for few rungs; ``textured``: texture may raise its figures."""

    ladder: Sequence[Rung]
    forecast: Callable[[Rung], Forecast]
    thresholds: Thresholds
    textured: bool = False
    _flights: list[_Flight] = field(init=False)
    _off: Figures = _NOTHING
    _bytes_off: float = 1.0
    _extra: int = 0
    _smallest: int | None = None
    _passed: int = 0
    _asked: dict[Rung, Forecast] = field(default_factory=dict)
    _tried: set[Rung] = field(default_factory=set)

    def __post_init__(self) -> None:
        flights: dict[tuple[object, ...], list[Rung]] = {}
        for rung in dict.fromkeys(self.ladder):
            flights.setdefault((rung.scale, rung.coder, rung.effort, rung.sample_bits), []).append(rung)
        self._flights = [_Flight(rungs) for rungs in flights.values()]

    def next(self) -> Rung | None:
        """The rung with the smallest forecast among those that may pass; None where the search is over."""
        if self._passed >= MAX_PASSING:
            return None
        offers = [offer for flight in self._flights if (offer := self._offer(flight)) is not None]
        offers = [offer for offer in offers if self._smallest is None or offer[0] < _WORTH_TRYING * self._smallest]
        return min(offers, key=lambda offer: offer[0])[1] if offers else None

    def heard(self, rung: Rung, verdict: Verdict, base_bytes: int, payload_bytes: int, *, passed: bool) -> None:
        """What an attempt came to: the forecasts are corrected, and what it rules out is closed."""
        self._tried.add(rung)
        flight = next(flight for flight in self._flights if rung in flight.rungs)
        made = self._forecast(flight, rung)
        measured = _figures(verdict)
        off = tuple(now - then for now, then in zip(measured, made.figures, strict=True))
        self._off = flight.off = Figures(*off)
        self._bytes_off = base_bytes / max(made.payload_bytes, 1)
        self._extra = flight.extra = payload_bytes - base_bytes
        number = flight.rungs.index(rung)
        if passed:
            flight.high = number
            self._passed += 1
            self._smallest = min(payload_bytes, self._smallest or payload_bytes)
        elif all(now >= least for now, least in zip(measured, _least(self.thresholds), strict=True)):
            # single places fail, and rungs beside this one would fail in them too
            flight.low = number + max(1, (flight.high - number) // 2)
        else:
            flight.low = number + 1

    def forecasts(self) -> tuple[RungOutcome, ...]:
        """Outcomes of the rungs that were forecast and never tried, as the forecasts stand now."""
        outcomes = []
        for flight in self._flights:
            for rung in flight.rungs:
                if rung in self._asked and rung not in self._tried:
                    outcomes.append(self._outcome(flight, rung))
        return tuple(outcomes)

    def _outcome(self, flight: _Flight, rung: Rung) -> RungOutcome:
        made = self._asked[rung]
        mean, p5, psnr = (now + off for now, off in zip(made.figures, flight.off or self._off, strict=True))
        named = zip(_NAMES, (mean, p5, psnr), _least(self.thresholds), strict=True)
        missed = tuple(f"{name} would be {value:.4g}, below {least:g}" for name, value, least in named if value < least)
        size = round(self._bytes(flight, made))
        why = missed or (f"would take about {size} bytes",)
        return RungOutcome(str(rung), size, Verdict(psnr, mean, p5, 0, failures=why), 0.0, forecast=True)

    def _forecast(self, flight: _Flight, rung: Rung) -> Forecast:
        """Of one rung: as asked for, or from two near ones of its flight, else asked for now."""
        if rung not in self._asked:
            known = [other for other in flight.rungs if other in self._asked]
            coarser = [other for other in known if other.distance > rung.distance]
            finer = [other for other in known if other.distance < rung.distance]
            if coarser and finer and coarser[-1].distance <= _NEAR * finer[0].distance:
                return self._between(coarser[-1], finer[0], rung)
            self._asked[rung] = self.forecast(rung)
        return self._asked[rung]

    def _between(self, coarse: Rung, fine: Rung, rung: Rung) -> Forecast:
        """Figures linear, bytes geometric, in the logarithm of distance."""
        share = math.log(rung.distance / coarse.distance) / math.log(fine.distance / coarse.distance)
        one, other = self._asked[coarse], self._asked[fine]
        figures = (low + share * (high - low) for low, high in zip(one.figures, other.figures, strict=True))
        size = max(one.payload_bytes, 1) ** (1 - share) * max(other.payload_bytes, 1) ** share
        return Forecast(Figures(*figures), round(size))

    def _offer(self, flight: _Flight) -> tuple[float, Rung] | None:
        """The coarsest open rung of a flight that is expected to pass, after its bytes."""
        if flight.low >= flight.high:
            return None
        low, high = flight.low, flight.high
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self._expected(flight, flight.rungs[middle]) else (middle + 1, high)
        if low == flight.high:
            low = flight.high - 1
            if flight.high < len(flight.rungs) or not self._expected(flight, flight.rungs[low], _DOUBT):
                return None
        rung = flight.rungs[low]
        return self._bytes(flight, self._forecast(flight, rung)), rung

    def _bytes(self, flight: _Flight, made: Forecast) -> float:
        """What a rung may take: its base, and what mending took on its flight; on another flight, where other places
        are wrong, half of that."""
        return made.payload_bytes * self._bytes_off + (self._extra / 2 if flight.extra is None else flight.extra)

    def _expected(self, flight: _Flight, rung: Rung, doubt: Figures = _NOTHING) -> bool:
        """Whether the corrected forecast of a rung passes."""
        figures = self._forecast(flight, rung).figures
        reach = _REACH_OF_TEXTURE if self.textured else _NOTHING
        least = _least(self.thresholds)
        parts = zip(figures, flight.off or self._off, reach, doubt, least, strict=True)
        return all(figure + off + reach + spare >= floor for figure, off, reach, spare, floor in parts)


def _least(thresholds: Thresholds) -> Figures:
    return Figures(thresholds.fsim_mean, thresholds.fsim_p5, thresholds.psnr_db)


def _figures(verdict: Verdict) -> Figures:
    return Figures(verdict.fsim_mean, verdict.fsim_p5, verdict.psnr_db)
