"""An original down the ladder: code, reconstruct, measure against the original; the smallest that passes is taken.

The search works on the base alone, made consistent and equalised, which costs no network: a posterior mean hardly moves
what the gate measures. Only the rung that is taken is given to the upscaler, and its image is served where it passes.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from node.reconstruct.installed import Installed, installed
from node.reconstruct.upscalers.catalogue import Catalogue
from storage.errors import PayloadError
from storage.payload import Base, Rendition, decode_base, derived_uid, encode_base, encode_rendition, seed_of
from storage.pixels import pixel_digest
from storage.records import Rung, RungOutcome, Thresholds, Verdict

if TYPE_CHECKING:
    from node.fidelity.gate import Reference
    from node.reconstruct.engine import Decoded, Original
    from node.reconstruct.forecast import Sample
    from node.reconstruct.guide import Guide
    from node.reconstruct.guiding import Raising
    from node.reconstruct.mending import Mended
    from node.reconstruct.upscalers.protocol import Upscaler

Pixels = NDArray[np.uint16]

_UNSURE = (0.003, 0.006, 0.05)
"""What the mean and 5th percentile of tile FSIM and the PSNR in dB of a few tiles may be off by."""
_DEARER = 1.03
"""What the upscaler's image may cost in bytes, guide and its own patches included, against the consistent base's."""


@dataclass(frozen=True)
class EncodeRequest:
    """Encode an original down the ladder, verifying each rung. Without thresholds the first rung is measured.

    ``patch_share``: the part of the tiles with breast that exact patches may cover; ``regions`` (row, column, height,
    width, in pixels) are patched whatever the gate says of them.
    """

    original: Path
    original_digest: str
    original_uid: str
    ladder: tuple[Rung, ...]
    thresholds: Thresholds | None
    patch_share: float = 0.0
    regions: tuple[tuple[int, int, int, int], ...] = ()


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
    subject = _Subject.of(request, catalogue.configured())
    search = _search(request, subject)
    failed: list[RungOutcome] = []
    best: _Attempt | None = None
    while (rung := search.next()) is not None:
        attempt = subject.attempt(rung)
        passed = not attempt.verdict.gated or attempt.verdict.passed
        search.heard(rung, attempt.bare, len(attempt.data), attempt.payload_bytes, passed=passed)
        if not passed:
            failed.append(attempt.outcome)
        elif best is None or attempt.payload_bytes < best.payload_bytes:
            failed += [] if best is None else [best.dearer]
            best = attempt
        else:
            failed.append(attempt.dearer)
    forecast = search.forecasts()
    if best is None:
        return EncodeResult(tried=(*forecast, *failed))
    return subject.result(subject.followed(best), (*forecast, *failed))


def reverify(request: ReverifyRequest, catalogue: Catalogue) -> EncodeResult:
    """What the configured upscaler makes of an existing base, where it passes the gate; else why it does not.

    Raises PayloadError where the base is not one of this very original.
    """
    subject = _Subject.of(request, catalogue.configured())
    data = request.base.read_bytes()
    base = decode_base(data)
    if base.pixel_digest != subject.original.pixel_digest:
        raise PayloadError(f"base {_sha256(data)} was made of other pixels than original {request.original_digest} has")
    attempt = subject.make(base, data, time.monotonic())
    if attempt.verdict.gated and not attempt.verdict.passed:
        return EncodeResult(tried=(attempt.outcome,))
    return subject.result(subject.followed(attempt), ())


@dataclass(frozen=True)
class _Attempt:
    """One rung of one image, measured. ``bare``: the verdict without exact patches."""

    base: Base
    data: bytes
    digest: str
    guide: bytes
    points: bytes
    patches: bytes
    output: Pixels
    verdict: Verdict
    bare: Verdict
    seconds: float
    decoded: Decoded | None = None
    raising: Raising | None = None

    @property
    def payload_bytes(self) -> int:
        return len(self.data) + len(self.guide) + len(self.points) + len(self.patches)

    @property
    def outcome(self) -> RungOutcome:
        return RungOutcome(str(self.base.rung), self.payload_bytes, self.verdict, self.seconds)

    @property
    def dearer(self) -> RungOutcome:
        """What is told of a rung that passed where another takes less."""
        why = f"passes with {self.payload_bytes} bytes, more than the one taken"
        return replace(self.outcome, verdict=replace(self.verdict, failures=(why,)))


@dataclass(frozen=True)
class _Subject:
    """The image at hand, decoded once, and what is asked of it."""

    request: EncodeRequest | ReverifyRequest
    original: Original
    reference: Reference
    upscaler: Upscaler

    @classmethod
    def of(cls, request: EncodeRequest | ReverifyRequest, upscaler: Upscaler) -> _Subject:
        from node.reconstruct.engine import read_original

        original, reference = read_original(request.original, request.original_digest)
        return cls(request, original, reference, upscaler)

    @property
    def searches_bare(self) -> bool:
        """Whether rungs are tried with the base alone, equalised, and the upscaler is asked at the end."""
        return self.upscaler.guided and self.upscaler.detail == 0 and self.request.thresholds is not None

    def attempt(self, rung: Rung) -> _Attempt:
        """Code, reconstruct, mend and measure one rung."""
        from node.reconstruct.engine import make_base

        began = time.monotonic()
        base = make_base(self.original, rung)
        return self.make(base, encode_base(base), began)

    def make(self, base: Base, data: bytes, began: float) -> _Attempt:
        """Reconstruct, mend and measure one base, whose bytes are ``data``."""
        from node.reconstruct.engine import Decoded, draw, finish
        from node.reconstruct.guide import encode_guide

        digest = _sha256(data)
        upscaler, decoded, raising = self.upscaler, None, None
        if not upscaler.guided:
            output = finish(draw(base, upscaler, seed=seed_of(digest), steps=upscaler.steps))
            return self._measured(base, data, digest, b"", output, began)
        decoded = Decoded.of(base)
        if self.searches_bare:
            raising, guide, output = self._raised(base, decoded)
        else:
            guide, output = self._guided(base, digest, decoded)
        made = self._measured(base, data, digest, encode_guide(guide), output, began)
        return replace(made, decoded=decoded, raising=raising)

    def _raised(self, base: Base, decoded: Decoded) -> tuple[Raising, Guide, Pixels]:
        """The base with its fine detail raised, as far as that suits the image; how, and the guide that says so."""
        from node.reconstruct.guiding import Raising, calmed, equalised, raised, weight_tiles_with_breast

        thresholds = self.request.thresholds
        assert thresholds is not None
        raising = Raising(self.sample.best_raise(base.rung, thresholds), weight_tiles_with_breast(self.reference))
        guide = equalised(base, raising)
        output = raised(base, decoded, guide)
        calm = calmed(self.reference, raising, output, thresholds.error_p999)
        if (calm.inside != raising.inside).any():
            guide = equalised(base, calm)
            output = raised(base, decoded, guide)
        return calm, guide, output

    @cached_property
    def sample(self) -> Sample:
        """Of the image, for forecasts."""
        from node.reconstruct.forecast import Sample

        return Sample(self.original, self.reference, equalised=self.searches_bare)

    def followed(self, best: _Attempt) -> _Attempt:
        """``best`` as the upscaler makes it, where that passes too, is as near the original and costs no more.

        The network is not run where a sample of the image shows that nothing will come of it.
        """
        if not self.searches_bare:
            return best
        from node.fidelity.gate import as_a_whole
        from node.reconstruct.guide import encode_guide
        from node.reconstruct.guiding import helped

        base, began, seed = best.base, time.monotonic() - best.seconds, seed_of(best.digest)
        hopes = self._hopes(best)
        if any(hopes):
            assert best.raising is not None
            images = helped(self.reference, base, self.upscaler, seed=seed, raising=best.raising, decoded=best.decoded)
            for hope, (guide, output) in zip(hopes, images, strict=False):
                if not (hope and self._promises(as_a_whole(self.reference, output), best.bare)):
                    continue
                told = encode_guide(guide)
                made = self._measured(base, best.data, best.digest, told, output, began)
                better = made.verdict.passed and made.verdict.psnr_db >= best.verdict.psnr_db
                if better and made.payload_bytes <= _DEARER * best.payload_bytes + len(told):
                    return made
        return replace(best, seconds=time.monotonic() - began)

    def _hopes(self, best: _Attempt) -> list[bool]:
        """Which of the images that ``guiding.helped`` gives may be taken, by what they gain on a few tiles; all of them
        where the image has not many more."""
        from node.reconstruct.forecast import FEW, Sample

        if len(self.reference.tiles) < 4 * FEW:
            return [True, True]
        assert best.raising is not None
        bare = (best.bare.fsim_mean, best.bare.fsim_p5, best.bare.psnr_db)
        sample = Sample(self.original, self.reference, equalised=True, tiles=FEW)
        gains = sample.gains(best.base.rung, self.upscaler, seed=seed_of(best.digest), by=best.raising.by)
        expected = [[sum(each) for each in zip(bare, gain, _UNSURE, strict=True)] for gain in gains]
        return [self._promises((mean, p5, psnr), best.bare) for mean, p5, psnr in expected]

    def _promises(self, figures: tuple[float, float, float], bare: Verdict) -> bool:
        """Whether an image with these figures may pass, and be nearer the original than the base alone."""
        mean, p5, psnr = figures
        thresholds = self.request.thresholds
        assert thresholds is not None
        return mean >= thresholds.fsim_mean and p5 >= thresholds.fsim_p5 and psnr >= bare.psnr_db

    def result(self, taken: _Attempt, before: tuple[RungOutcome, ...]) -> EncodeResult:
        """The rendition of the rung that was taken."""
        upscaler, request, seed = self.upscaler, self.request, seed_of(taken.digest)
        name, weights, steps = upscaler.name, upscaler.weights_digest, upscaler.steps
        told = _told(taken.guide, taken.points, taken.patches)
        tried = (*map(_noted, before), taken.outcome)
        rendition = Rendition(
            base_digest=taken.digest,
            original_uid=request.original_uid,
            derived_uid=derived_uid(request.original_uid, taken.digest, name, weights, steps, seed, told),
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
            guide=taken.guide,
            points=taken.points,
            patches=taken.patches,
            extra=_extremes(taken.output, self.original.padding_pixels),
        )
        return EncodeResult(tried, rendition, taken.data, encode_rendition(rendition), installed(upscaler))

    def _guided(self, base: Base, digest: str, decoded: Decoded | None) -> tuple[Guide, Pixels]:
        from node.reconstruct.guiding import guided

        upscaler = self.upscaler
        return guided(
            self.reference,
            base,
            upscaler,
            seed=seed_of(digest),
            steps=upscaler.steps,
            detail=upscaler.detail,
            decoded=decoded,
        )

    def _measured(self, base: Base, data: bytes, digest: str, guide: bytes, output: Pixels, began: float) -> _Attempt:
        from node.fidelity.gate import Box
        from node.reconstruct.mending import mended
        from node.reconstruct.patches import encode_patches
        from node.reconstruct.points import encode_points

        regions = [Box(*region) for region in self.request.regions]
        request = self.request
        made = mended(self.reference, base, output, request.thresholds, request.patch_share, regions)
        points = b"" if made.points is None else encode_points(made.points)
        patches = b"" if made.patches is None else encode_patches(made.patches)
        verdict = _with_figures(made, output, base, patches)
        seconds = time.monotonic() - began
        return _Attempt(base, data, digest, guide, points, patches, made.pixels, verdict, made.bare, seconds)


# --- the order in which rungs are tried -----------------------------------------------------------------------


class _Search(Protocol):
    """Which rung to try next, given what those before came to."""

    def next(self) -> Rung | None: ...

    def heard(self, rung: Rung, verdict: Verdict, base_bytes: int, payload_bytes: int, *, passed: bool) -> None: ...

    def forecasts(self) -> tuple[RungOutcome, ...]:
        """Outcomes of rungs that were forecast and never tried."""


def _search(request: EncodeRequest, subject: _Subject) -> _Search:
    """By forecast, smallest payload first; in the ladder's order where the forecast (of the consistent base) says
    nothing about what the upscaler will make of it, or where nothing is gated."""
    upscaler = subject.upscaler
    if request.thresholds is None:
        return _InOrder(request.ladder[:1])
    if not (upscaler.guided or upscaler.consistent) or len(request.ladder) < 3:
        return _InOrder(request.ladder)
    from node.reconstruct.climb import Climb

    return Climb(request.ladder, subject.sample.forecast, request.thresholds, textured=upscaler.detail > 0)


class _InOrder:
    """The ladder as it is, up to the first rung that passes."""

    def __init__(self, ladder: tuple[Rung, ...]) -> None:
        self._left = list(ladder)

    def next(self) -> Rung | None:
        return self._left.pop(0) if self._left else None

    def heard(self, rung: Rung, verdict: Verdict, base_bytes: int, payload_bytes: int, *, passed: bool) -> None:
        if passed:
            self._left.clear()

    def forecasts(self) -> tuple[RungOutcome, ...]:
        return ()


def _noted(outcome: RungOutcome) -> RungOutcome:
    """What is kept of a rung that was not taken: why, and the three figures of the image, to five digits."""
    psnr, mean, p5 = (
        float(f"{figure:.5g}")
        for figure in (outcome.verdict.psnr_db, outcome.verdict.fsim_mean, outcome.verdict.fsim_p5)
    )
    verdict = replace(outcome.verdict, psnr_db=psnr, fsim_mean=mean, fsim_p5=p5, figures={})
    return replace(outcome, verdict=verdict, seconds=round(outcome.seconds, 2))


def _with_figures(made: Mended, output: Pixels, base: Base, patches: bytes) -> Verdict:
    """What the gate says, and how consistent the output, before it was patched, is with its base."""
    from node.reconstruct.engine import consistency

    away = consistency(output, base)
    figures = {
        **made.verdict.figures,
        "consistency_max": away.maximum,
        "consistency_rms": away.rms,
        "quantisation_rms": base.quantisation_rms,
        "patch_bytes": float(len(patches)),
    }
    return replace(made.verdict, figures=figures)


def _told(*parts: bytes) -> str:
    """Digest of what the encoder adds to a base (guide, points, patches); empty where it adds nothing."""
    if any(parts[1:]):
        return _sha256(" ".join(_sha256(part) for part in parts).encode())
    return _sha256(parts[0]) if parts[0] else ""


def _extremes(pixels: Pixels, padding: NDArray[np.bool_] | None) -> dict[str, int]:
    """Smallest and largest pixel value outside padding, for the derived header."""
    shown = pixels if padding is None else pixels[~padding]
    return {"minimum": int(shown.min()), "maximum": int(shown.max())}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
