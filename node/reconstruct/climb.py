"""Up the ladder: which rung to try next, so that the smallest payload that passes is found in a few attempts.

Rungs that differ in nothing but distance are a flight: the gate's figures rise as distance falls, so a flight is
searched by bisection over the forecasts. Every attempt corrects them: the sample's tiles are not the image's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from node.fidelity.gate import Thresholds
from node.reconstruct.forecast import Forecast
from storage.records import Rung, Verdict

MAX_PASSING = 2
"""Passing attempts after which no smaller one is looked for."""
_WORTH_TRYING = 0.97
"""A rung is tried after another has passed where its forecast is below this share of that one's bytes."""
_DOUBT = (0.015, 0.03, 1.0)
"""How far below the gate (mean and 5th percentile of tile FSIM, PSNR in dB) the forecast of the finest rung of a
flight must be for the flight to be given up unseen."""

Figures = tuple[float, float, float]


@dataclass
class _Flight:
    """Rungs of one scale and coder, coarsest first; ``low`` up to ``high`` are still open."""

    rungs: list[Rung]
    low: int = 0
    high: int = 0
    off: Figures | None = None

    def __post_init__(self) -> None:
        self.rungs.sort(key=lambda rung: -rung.distance)
        self.high = len(self.rungs)


@dataclass
class Climb:
    """The search over one ladder. ``forecast`` is asked for few rungs; ``reach``: what may be added to its figures."""

    ladder: Sequence[Rung]
    forecast: Callable[[Rung], Forecast]
    thresholds: Thresholds
    reach: Figures = (0.0, 0.0, 0.0)
    _flights: list[_Flight] = field(init=False)
    _off: Figures = (0.0, 0.0, 0.0)
    _bytes_off: float = 1.0
    _smallest: int | None = None
    _passed: int = 0

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

    def heard(self, rung: Rung, verdict: Verdict, payload_bytes: int, *, passed: bool) -> None:
        """What an attempt came to: the forecasts are corrected, and what it rules out is closed."""
        flight = next(flight for flight in self._flights if rung in flight.rungs)
        made = self.forecast(rung)
        measured = _figures(verdict)
        off = tuple(now - then for now, then in zip(measured, _figures(made.verdict), strict=True))
        self._off = flight.off = (off[0], off[1], off[2])
        self._bytes_off = payload_bytes / max(made.payload_bytes, 1)
        number = flight.rungs.index(rung)
        if passed:
            flight.high = number
            self._passed += 1
            self._smallest = min(payload_bytes, self._smallest or payload_bytes)
        else:
            flight.low = number + 1

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
        return self.forecast(rung).payload_bytes * self._bytes_off, rung

    def _expected(self, flight: _Flight, rung: Rung, doubt: Iterable[float] = (0.0, 0.0, 0.0)) -> bool:
        """Whether the corrected forecast of a rung passes."""
        figures = _figures(self.forecast(rung).verdict)
        least = (self.thresholds.fsim_mean, self.thresholds.fsim_p5, self.thresholds.psnr_db)
        parts = zip(figures, flight.off or self._off, self.reach, doubt, least, strict=True)
        return all(figure + off + reach + spare >= floor for figure, off, reach, spare, floor in parts)


def _figures(verdict: Verdict) -> Figures:
    return verdict.fsim_mean, verdict.fsim_p5, verdict.psnr_db
