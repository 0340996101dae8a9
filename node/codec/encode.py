"""An original down the ladder: the smallest rung whose reconstruction passes the gate against this very original.

Rungs are tried in the order of their forecasts, each measured as a whole (attempts.py); the smallest that is promising
is mended, measured again and taken.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from node.codec.attempts import Attempt, Even, Subject, Trial, sha256
from node.codec.source import read_original
from node.upscalers.catalogue import Catalogue
from node.upscalers.installed import Installed, installed
from node.upscalers.protocol import Upscaler
from storage.errors import PayloadError
from storage.payload import Rendition, decode_base, derived_uid, encode_rendition, seed_of
from storage.pixels import pixel_digest
from storage.records import Rung, RungOutcome, Thresholds, Verdict

Pixels = NDArray[np.uint16]


@dataclass(frozen=True)
class EncodeRequest:
    """Encode an original down the ladder, verifying each rung. Without thresholds the first rung is measured.

    ``patch_share``: the part of the tiles with breast that exact patches may cover; ``regions`` (row, column, height,
    width, in pixels) are patched whatever the gate says of them. ``coarseness``: the map, in hex, of a base that is to
    be made again, of a ladder of one rung. Without ``balance`` every rung is coded alike everywhere.
    """

    original: Path
    original_digest: str
    original_uid: str
    ladder: tuple[Rung, ...]
    thresholds: Thresholds | None
    patch_share: float = 0.0
    regions: tuple[tuple[int, int, int, int], ...] = ()
    coarseness: str = ""
    balance: bool = True


@dataclass(frozen=True)
class ReverifyRequest:
    """Let the configured upscaler make a base that is there already, and measure that; fields as of EncodeRequest."""

    original: Path
    original_digest: str
    original_uid: str
    base: Path
    thresholds: Thresholds | None
    patch_share: float = 0.0
    regions: tuple[tuple[int, int, int, int], ...] = ()


@dataclass(frozen=True)
class EncodeResult:
    """What each rung came to, and, where one was taken, its rendition, both as object bytes, and the model."""

    tried: tuple[RungOutcome, ...]
    made: Rendition | None = None
    base: bytes = b""
    rendition: bytes = b""
    model: Installed | None = None


def encode_and_verify(request: EncodeRequest, catalogue: Catalogue) -> EncodeResult:
    """Take the rung with the smallest payload whose reconstruction passes the gate against this very original.

    Raises NotReconstructable or PixelError where the pixels rule it out.
    """
    subject = _subject(request, catalogue.configured())
    search = _search(request, subject)
    coarseness = subject.coarseness(request.coarseness)
    failed: list[RungOutcome] = []
    waiting: list[Trial] = []
    best: Attempt | None = None
    while True:
        while (rung := search.next()) is not None:
            enough = math.inf
            if request.balance and search.balances(rung):
                enough = search.instead_of(rung) if best is None else best.payload_bytes
                trial = subject.balanced(rung, request.ladder, enough)
            else:
                trial = subject.try_rung(rung, coarseness)
            passed, given_up = trial.promising, not trial.promising and enough < math.inf
            search.heard(rung, trial.bare, len(trial.data), passed=passed, even=trial.even, given_up=given_up)
            if trial.promising:
                waiting.append(trial)
                if trial.even is not None:  # what mending it takes says whether another is worth trying
                    break
            else:
                failed.append(trial.outcome)
        hopeful = [trial for trial in waiting if best is None or _may_be_smaller(trial, best)]
        if not hopeful:
            break
        smallest = min(hopeful, key=lambda trial: trial.payload_bytes)
        waiting.remove(smallest)
        attempt = subject.mended(smallest)
        if not attempt.passed:
            failed.append(attempt.outcome)
            search.refused(smallest.asked)
            continue
        search.mended(smallest.asked, len(attempt.patches), len(attempt.points))
        if best is not None:
            best, attempt = sorted((best, attempt), key=lambda one: one.payload_bytes)
            failed.append(attempt.dearer)
        best = best or attempt
    before = (*search.forecasts(), *failed, *(trial.dearer for trial in waiting))
    if best is None:
        return EncodeResult(tried=before)
    return _result(request, subject, subject.finished(best), before)


def _may_be_smaller(trial: Trial, best: Attempt) -> bool:
    """Balanced bases are as small as can be, and may need other mending. Of the rest, those of the scale of the best
    need much the same patches; at another they may do without."""
    if trial.even is not None:
        return trial.payload_bytes < best.payload_bytes
    same = trial.base.rung.scale == best.trial.base.rung.scale
    return not same and trial.payload_bytes < best.without_points


def reverify(request: ReverifyRequest, catalogue: Catalogue) -> EncodeResult:
    """What the configured upscaler makes of an existing base, where it passes the gate; else why it does not.

    Raises PayloadError where the base is not one of this very original.
    """
    subject = _subject(request, catalogue.configured())
    data = request.base.read_bytes()
    base = decode_base(data)
    if base.pixel_digest != subject.original.pixel_digest:
        raise PayloadError(f"base {sha256(data)} was made of other pixels than original {request.original_digest} has")
    trial = subject.try_base(base, data, time.monotonic())
    if not trial.promising:
        return EncodeResult(tried=(trial.outcome,))
    attempt = subject.finished(subject.mended(trial))
    if not attempt.passed:
        return EncodeResult(tried=(attempt.outcome,))
    return _result(request, subject, attempt, ())


def _subject(request: EncodeRequest | ReverifyRequest, upscaler: Upscaler) -> Subject:
    original, reference = read_original(request.original, request.original_digest)
    return Subject(original, reference, upscaler, request.thresholds, request.patch_share, request.regions)


def _result(
    request: EncodeRequest | ReverifyRequest, subject: Subject, taken: Attempt, before: tuple[RungOutcome, ...]
) -> EncodeResult:
    """The rendition of the attempt that was taken."""
    upscaler, base_digest = subject.upscaler, taken.trial.digest
    seed, steps = seed_of(base_digest), upscaler.steps
    name, weights = upscaler.name, upscaler.weights_digest
    tried = (*map(_noted, before), taken.outcome)
    rendition = Rendition(
        base_digest=base_digest,
        original_uid=request.original_uid,
        derived_uid=derived_uid(request.original_uid, base_digest, name, weights, steps, seed, taken.told),
        upscaler=name,
        method=upscaler.method,
        generative=upscaler.generative,
        weights_digest=weights,
        numerics=upscaler.numerics,
        steps=steps,
        seed=seed,
        output_digest=pixel_digest(taken.output),
        verdict=taken.verdict,
        tried=tried,
        guide=taken.trial.guide,
        points=taken.points,
        patches=taken.patches,
        extra=_extremes(taken.output, subject.original.padding_pixels),
    )
    return EncodeResult(tried, rendition, taken.trial.data, encode_rendition(rendition), installed(upscaler))


# --- the order in which rungs are tried -----------------------------------------------------------------------


class _Search(Protocol):
    """Which rung to try next, given what those before came to."""

    def next(self) -> Rung | None:
        """None where no other is worth trying."""

    def balances(self, rung: Rung) -> bool:
        """Whether a rung is to be coded as coarsely as each place of the image allows."""

    def instead_of(self, rung: Rung) -> float:
        """Bytes of the best there is instead of a rung that is to be balanced; infinite where there is none."""

    def heard(
        self, rung: Rung, verdict: Verdict, base_bytes: int, *, passed: bool, even: Even | None, given_up: bool
    ) -> None:
        """What a trial came to; ``passed``: as a whole; ``even``: as it was before it was balanced; ``given_up``: for
        the sake of another."""

    def mended(self, rung: Rung, patch_bytes: int, point_bytes: int) -> None:
        """A rung that passed was mended, with exact patches and points of so many bytes."""

    def refused(self, rung: Rung) -> None:
        """A rung that passed as a whole cannot be mended."""

    def forecasts(self) -> tuple[RungOutcome, ...]:
        """Outcomes of rungs that were forecast and never tried."""


def _search(request: EncodeRequest, subject: Subject) -> _Search:
    """By forecast, smallest payload first; in the ladder's order where the forecast (of the consistent base) says
    nothing about what the upscaler will make of it, or where nothing is gated."""
    upscaler = subject.upscaler
    if request.thresholds is None:
        return _InOrder(request.ladder[:1])
    if not (upscaler.guided or upscaler.consistent) or len(request.ladder) < 3:
        return _InOrder(request.ladder)
    from node.codec.climb import Climb

    textured = upscaler.detail > 0
    return Climb(request.ladder, subject.sample.forecast, request.thresholds, textured, balancing=subject.searches_bare)


class _InOrder:
    """The ladder as it is, up to the first rung that passes."""

    def __init__(self, ladder: tuple[Rung, ...]) -> None:
        self._left = list(ladder)
        self._found = False

    def next(self) -> Rung | None:
        return self._left.pop(0) if self._left and not self._found else None

    def balances(self, rung: Rung) -> bool:
        return False

    def instead_of(self, rung: Rung) -> float:
        return math.inf

    def heard(
        self, rung: Rung, verdict: Verdict, base_bytes: int, *, passed: bool, even: Even | None, given_up: bool
    ) -> None:
        self._found = passed

    def mended(self, rung: Rung, patch_bytes: int, point_bytes: int) -> None:
        """Nothing follows from it."""

    def refused(self, rung: Rung) -> None:
        self._found = False

    def forecasts(self) -> tuple[RungOutcome, ...]:
        return ()


def _noted(outcome: RungOutcome) -> RungOutcome:
    """What is kept of a rung that was not taken: why, and the three figures of the image, to five digits."""
    psnr, mean, p5 = (
        float(f"{figure:.5g}")
        for figure in (outcome.verdict.psnr_db, outcome.verdict.fsim_mean, outcome.verdict.fsim_p5)
    )
    verdict = replace(outcome.verdict, psnr_db=psnr, fsim_mean=mean, fsim_p5=p5, figures={})
    return replace(outcome, verdict=verdict, seconds=round(outcome.seconds, 2), coarseness="")


def _extremes(pixels: Pixels, padding: NDArray[np.bool_] | None) -> dict[str, int]:
    """Smallest and largest pixel value outside padding, for the derived header."""
    shown = pixels if padding is None else pixels[~padding]
    return {"minimum": int(shown.min()), "maximum": int(shown.max())}
