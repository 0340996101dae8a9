"""Attempts at one image: a rung coded, reconstructed and measured as a whole; then mended, and measured again.

Rungs are tried with the base alone, made consistent and equalised, which costs no network: a posterior mean hardly
moves what the gate measures. One that may do is balanced (balancing.py) before it is measured in full. Mending is for
what will be taken; so is the network, whose image is served where it passes the gate and is nearer the original.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from storage.payload import Base, encode_base, seed_of
from storage.records import Rung, RungOutcome, Thresholds, Verdict

if TYPE_CHECKING:
    from node.codec.balancing import Drawn
    from node.codec.engine import Decoded
    from node.codec.forecast import Gain, Sample
    from node.codec.guide import Guide
    from node.codec.guiding import Raising
    from node.codec.mending import Mended
    from node.codec.source import Original
    from node.fidelity.gate import Reference, Survey
    from node.upscalers.protocol import Upscaler
    from storage.coarseness import Coarseness

Pixels = NDArray[np.uint16]
Floats = NDArray[np.float64]
Region = tuple[int, int, int, int]
"""Row, column, height and width, in pixels."""

Even = tuple[tuple[float, float, float], int]
"""Mean and 5th percentile of tile FSIM and PSNR in dB of an image coded alike everywhere, and the bytes of its base."""

_RELIEFS = 3
"""How often a balanced base is made finer in single tiles before it is mended."""
_MORE_TO_MEND = 1.1
"""How many more single places the upscaler's image may have that miss the gate, against the consistent base's."""
_MORE_BYTES = 1.02
"""What of the payload of the consistent base the upscaler's may take, mended."""


@dataclass(frozen=True)
class Trial:
    """One rung of one image, measured before anything is mended.

    ``asked``: the rung that was to be tried; the base's may be another of its scale, where it was balanced.
    ``promising``: whether it passes what the gate asks of the whole image; single places can be mended. ``even``: the
    figures of the image coded alike everywhere, and the bytes of that base, where it was balanced after that.
    """

    asked: Rung
    base: Base
    data: bytes
    digest: str
    guide: bytes
    output: Pixels
    found: Survey
    bare: Verdict
    promising: bool
    seconds: float
    decoded: Decoded | None = None
    raising: Raising | None = None
    even: Even | None = None

    @property
    def payload_bytes(self) -> int:
        """What mending adds is left out: on all rungs of an image it is nearly the same."""
        return len(self.data) + len(self.guide)

    @property
    def outcome(self) -> RungOutcome:
        return RungOutcome(str(self.base.rung), self.payload_bytes, self.bare, self.seconds, coarseness=self.coarseness)

    @property
    def coarseness(self) -> str:
        """The base's map, in hex; empty where it has none."""
        return "" if self.base.coarseness is None else self.base.coarseness.pack().hex()

    @property
    def dearer(self) -> RungOutcome:
        """What is told of a rung that passes where another takes less."""
        return _dearer(self.outcome, " before mending")


@dataclass(frozen=True)
class Attempt:
    """A trial mended: what will be served where its verdict is good."""

    trial: Trial
    points: bytes
    patches: bytes
    output: Pixels
    verdict: Verdict
    seconds: float

    @property
    def passed(self) -> bool:
        """True where nothing is gated, too."""
        return self.verdict.passed or not self.verdict.gated

    @property
    def told(self) -> str:
        """Digest of what the encoder adds to a base (guide, points, patches); empty where it adds nothing."""
        guide, *mending = self.trial.guide, self.points, self.patches
        if any(mending):
            return sha256(" ".join(sha256(part) for part in (guide, *mending)).encode())
        return sha256(guide) if guide else ""

    @property
    def payload_bytes(self) -> int:
        return self.without_points + len(self.points)

    @property
    def without_points(self) -> int:
        """What other trials of the image are compared with: on all rungs points take nearly the same."""
        return self.trial.payload_bytes + len(self.patches)

    @property
    def outcome(self) -> RungOutcome:
        return replace(self.trial.outcome, payload_bytes=self.payload_bytes, verdict=self.verdict, seconds=self.seconds)

    @property
    def dearer(self) -> RungOutcome:
        """As of a trial."""
        return _dearer(self.outcome)


@dataclass(frozen=True)
class Subject:
    """The image at hand, decoded once, and what is asked of it. ``regions`` are patched whatever the gate says."""

    original: Original
    reference: Reference
    upscaler: Upscaler
    thresholds: Thresholds | None
    patch_share: float
    regions: Sequence[Region]

    @property
    def searches_bare(self) -> bool:
        """Whether rungs are tried with the base alone, equalised, and the upscaler is asked at the end."""
        return self.upscaler.guided and self.upscaler.detail == 0 and self.thresholds is not None

    @cached_property
    def sample(self) -> Sample:
        """Of the image, for forecasts."""
        from node.codec.forecast import Sample

        return Sample(self.original, self.reference, equalised=self.searches_bare)

    def coarseness(self, packed: str) -> Coarseness | None:
        """A map of this image from its hex; None where there is none."""
        from storage.coarseness import Coarseness

        return Coarseness.unpack(bytes.fromhex(packed), *self.reference.pixels.shape) if packed else None

    def try_rung(self, rung: Rung, coarseness: Coarseness | None = None) -> Trial:
        """Code, reconstruct and measure one rung, alike everywhere or by a map that is known."""
        from node.codec.engine import make_base

        began = time.monotonic()
        base = make_base(self.original, rung, coarseness)
        return self.try_base(base, encode_base(base), began)

    def balanced(self, rung: Rung, ladder: Sequence[Rung], enough: float = math.inf) -> Trial:
        """A rung coded as coarsely as each place allows, in the fewest bytes found with which the image passes as a
        whole; ``ladder``: the rungs it may become, of its scale and coder. Not promising where none passes, in about
        ``enough`` bytes."""
        from node.codec.balancing import Drawn, Seen, balanced, headroom_of
        from node.codec.engine import make_decoded
        from node.codec.relief import nudged, relieved

        assert self.thresholds is not None
        began = time.monotonic()
        base, decoded = make_decoded(self.original, rung)
        raising, guide, output = self._raised(base, decoded)
        first = Seen.of(self.reference, Drawn(base, decoded, guide, output))
        alike = [other for other in ladder if replace(other, distance=rung.distance) == rung]
        taken = balanced(self.original, self.reference, self.thresholds, raising, alike, first, enough)
        made = self._of(taken.drawn, began, taken.scores)
        tile_bytes = taken.tile_bytes(self.reference) if rung.scale == 1 else None
        for number in range(_RELIEFS):
            coarseness = made.base.coarseness
            if coarseness is None or not made.promising:
                break
            headroom = headroom_of(made.base, made.base.rung)
            finer = relieved(coarseness, made.found, self.thresholds, headroom, tile_bytes, again=number > 0)
            if finer is None:
                break
            relief = self._of(Drawn.of(self.original, made.base.rung, finer, raising), began)
            if not relief.promising:  # the image was at the limit, and a coder is not quite monotonic
                finer = nudged(finer, relief.found, self.thresholds, headroom)
                relief = self._of(Drawn.of(self.original, made.base.rung, finer, raising), began)
            if not relief.promising:
                break
            made, tile_bytes = relief, None
        even = (first.mean, first.p5, first.psnr_db), first.payload_bytes
        return replace(made, asked=rung, raising=raising, even=even)

    def _of(self, drawn: Drawn, began: float, scores: Floats | None = None) -> Trial:
        from node.codec.guide import encode_guide

        data = encode_base(drawn.base)
        made = self._measured(drawn.base, data, sha256(data), encode_guide(drawn.guide), drawn.output, began, scores)
        return replace(made, decoded=drawn.decoded)

    def try_base(self, base: Base, data: bytes, began: float) -> Trial:
        """Reconstruct and measure one base, whose bytes are ``data``."""
        from node.codec.engine import Decoded, draw, finish
        from node.codec.guide import encode_guide

        digest = sha256(data)
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

    def finished(self, best: Attempt) -> Attempt:
        """``best``; or what the upscaler makes of its base, where that passes mended, is as near the original, and
        takes hardly more."""
        if self.searches_bare:
            for made in self._followed(best.trial):
                attempt = self.mended(made)
                if attempt.verdict.passed and attempt.payload_bytes <= _MORE_BYTES * best.payload_bytes:
                    return attempt
        return best

    def _raised(self, base: Base, decoded: Decoded) -> tuple[Raising, Guide, Pixels]:
        """The base with its fine detail raised, as far as that suits the image; how, and the guide that says so."""
        from node.codec.guiding import Raising, calmed, equalised, raised, weight_tiles_with_breast

        thresholds = self.thresholds
        assert thresholds is not None
        raising = Raising(self.sample.best_raise(base.rung, thresholds), weight_tiles_with_breast(self.reference))
        guide = equalised(base, raising)
        output = raised(base, decoded, guide)
        calm = calmed(self.reference, raising, output, thresholds.error_p999)
        if (calm.inside != raising.inside).any():
            guide = equalised(base, calm)
            output = raised(base, decoded, guide)
        return calm, guide, output

    def _guided(self, base: Base, digest: str, decoded: Decoded) -> tuple[Guide, Pixels]:
        from node.codec.guiding import guided

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

    def _followed(self, bare: Trial) -> Iterator[Trial]:
        """What the upscaler makes of a trial's base, where it passes as a whole, is as near the original as the base
        alone, and has hardly more to mend.

        The network is not run where a sample of the image shows that nothing will come of it.
        """
        from node.codec.guide import encode_guide
        from node.codec.guiding import helped
        from node.fidelity.gate import spots, tile_scores

        hopes = self._hopes(bare)
        if not any(hopes):
            return
        assert bare.raising is not None
        assert self.thresholds is not None
        began, seed = time.monotonic() - bare.seconds, seed_of(bare.digest)
        room = _MORE_TO_MEND * len(spots(bare.found, self.thresholds))
        images = helped(self.reference, bare.base, self.upscaler, seed=seed, raising=bare.raising, decoded=bare.decoded)
        for hope, (guide, output) in zip(hopes, images, strict=False):
            if not hope:
                continue
            scores = np.array(tile_scores(self.reference, output)[0])
            if scores.mean() < self.thresholds.fsim_mean or np.percentile(scores, 5) < self.thresholds.fsim_p5:
                continue
            made = self._measured(bare.base, bare.data, bare.digest, encode_guide(guide), output, began, scores)
            nearer = made.bare.psnr_db >= bare.bare.psnr_db
            if made.promising and nearer and len(spots(made.found, self.thresholds)) <= room:
                yield made

    def _hopes(self, bare: Trial) -> list[bool]:
        """Which of the images that ``guiding.helped`` gives may be taken, by what they gain on a few tiles: half of
        them about the 5th percentile of tile FSIM, half from all over. All, where the image has not many more."""
        from node.codec.forecast import FEW, Sample, spread_over

        if len(self.reference.tiles) < 4 * FEW:
            return [True, True]
        assert bare.raising is not None
        assert self.thresholds is not None
        tiles = [(int(row), int(column)) for row, column in bare.found.corners[bare.found.breast]]
        scores = bare.found.fsim[bare.found.breast]
        rank = max(len(tiles) // 20 - FEW // 2, 0)
        weak = [tiles[number] for number in np.argsort(scores)[rank : rank + FEW]]
        spread = spread_over(tiles, FEW)
        gains: list[list[Gain]] = []
        hopes: list[bool] = []
        for half in range(2):  # the other half is asked where the first says yes: the network on the image costs more
            chosen = (*weak[half::2], *spread[half::2])
            sample = Sample(self.original, self.reference, equalised=True, tiles=chosen, guided=True)
            gains.append(
                sample.gains(_typical(bare.base), self.upscaler, seed=seed_of(bare.digest), by=bare.raising.by)
            )
            hopes = [self._hope(bare, several, len(weak[half::2])) for several in zip(*gains, strict=True)]
            if not any(hopes):
                break
        return hopes

    def _hope(self, bare: Trial, gains: Sequence[Gain], weak: int) -> bool:
        """Whether an image may pass that has ``gains`` on samples of tiles, the first ``weak`` of each about the 5th
        percentile, and is no farther from the original."""
        from node.codec.balancing import SAFE

        assert self.thresholds is not None
        mean = _at_least(np.concatenate([gain.fsim for gain in gains]))
        p5 = _at_least(np.concatenate([gain.fsim[:weak] for gain in gains]))
        return bool(
            bare.bare.fsim_mean + mean >= self.thresholds.fsim_mean + SAFE
            and bare.bare.fsim_p5 + p5 >= self.thresholds.fsim_p5 + SAFE
            and np.mean([gain.psnr_db for gain in gains]) >= 0
        )

    def _measured(
        self,
        base: Base,
        data: bytes,
        digest: str,
        guide: bytes,
        output: Pixels,
        began: float,
        scores: Floats | None = None,
    ) -> Trial:
        """``scores``: FSIM of each of ``reference.tiles``, where it has been measured."""
        from node.fidelity.gate import judge, passes_as_a_whole, survey

        found = survey(self.reference, output, scores)
        promising = self.thresholds is None or passes_as_a_whole(found, self.thresholds)
        bare = judge(found, self.thresholds)
        seconds = time.monotonic() - began
        return Trial(base.rung, base, data, digest, guide, output, found, bare, promising, seconds)

    def mended(self, trial: Trial) -> Attempt:
        """A trial with what misses the gate in single places mended."""
        from node.codec.mending import mended
        from node.codec.patches import encode_patches
        from node.codec.points import encode_points
        from node.fidelity.gate import Box

        began = time.monotonic() - trial.seconds
        regions = [Box(*region) for region in self.regions]
        made = mended(self.reference, trial.base, trial.output, trial.found, self.thresholds, self.patch_share, regions)
        points = b"" if made.points is None else encode_points(made.points)
        patches = b"" if made.patches is None else encode_patches(made.patches)
        verdict = _with_figures(made, trial.output, trial.base, patches)
        return Attempt(trial, points, patches, made.pixels, verdict, time.monotonic() - began)


def _at_least(gains: Floats) -> float:
    """The median of all tiles, less its standard error, by what that of some is; single ones may be far off."""
    middle = float(np.median(gains))
    return middle - 1.86 * float(np.median(np.abs(gains - middle))) / math.sqrt(len(gains))


def _typical(base: Base) -> Rung:
    """The rung that is as coarse as most of a balanced base."""
    if base.coarseness is None:
        return base.rung
    return replace(base.rung, distance=base.rung.distance * 2**base.coarseness.typical_octaves)


def _dearer(outcome: RungOutcome, when: str = "") -> RungOutcome:
    why = f"passes with {outcome.payload_bytes} bytes{when}, more than the one taken"
    return replace(outcome, verdict=replace(outcome.verdict, failures=(why,)))


def _with_figures(made: Mended, output: Pixels, base: Base, patches: bytes) -> Verdict:
    """What the gate says, and how consistent the output, before it was patched, is with its base."""
    from node.codec.engine import consistency

    away = consistency(output, base)
    figures = {
        **made.verdict.figures,
        "consistency_max": away.maximum,
        "consistency_rms": away.rms,
        "quantisation_rms": base.quantisation_rms,
        "patch_bytes": float(len(patches)),
    }
    return replace(made.verdict, figures=figures)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
