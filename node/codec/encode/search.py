"""The search of one image: one short walk for the coarsest coding that leaves nothing but noise.

docs/ENCODER.md has the diagram, the terms and the constants. In short: for each scale the coarsest quantiser that
passes the gate is found on a sample of the image; the cheapest of them is tried on the whole image and moved until it
passes; single places that do not are repaired; the noise that is missing is measured and drawn; and what a viewer
would get is measured against the original once more.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from node.codec.decode import Decoded, SideInformation, uncounted
from node.codec.encode.base_coding import make_base
from node.codec.encode.point_fitting import points_for
from node.codec.encode.quantiser_walk import AIM, NEAR, SLOPE, Walk
from node.codec.encode.search_sample import sample_of
from node.codec.encode.source_image import Source
from node.codec.noise import (
    NoiseModel,
    decode_noise,
    encode_noise,
    matched,
    measure_deviation,
    missing_energy,
    with_spectrum,
)
from node.codec.patches import Patches, cells_under, cut, encode_patches
from node.codec.points import encode_points
from node.codec.residuals import CodedResiduals, encode_residuals
from node.fidelity.bands import BANDS, band_energies
from node.fidelity.gate import (
    Reference,
    Structure,
    as_shown,
    broken_cells,
    burden,
    cell_any,
    decibels,
    failures,
    judge,
    look,
    measure_noise,
    speck_lists,
    wrong_specks,
)
from node.upscalers.protocol import Upscaler, UpscaleTask
from storage.formats.geometry import CELL
from storage.formats.payload import (
    Base,
    encode_base,
    seed_of,
)
from storage.records import OperatingPoint, Thresholds, Trial, Verdict

Float = NDArray[np.float32]
Pixels = NDArray[np.uint16]
Box = tuple[int, int, int, int]

_START = {1: 2.0, 2: 0.9, 4: 0.5}
"""JPEG XL distance that a search begins with, per scale: the typical answer on 14 mammograms."""
_SAMPLE_LOOKS = 5
"""Most looks at the sample per scale."""
_CLOSE = 0.1
"""A search on the sample ends where its burden is this near to the aim, as a natural logarithm: the sample is no
better than that."""
_LOOKS = 4
"""Most looks at the whole image."""
_FINISHES = 3
"""Most times that an image is finished, each with a finer quantiser: noise or a stubborn place may miss its limit."""
_FINER = 0.85
"""JPEG XL distance of the next such try, over that of the last."""
_DRAWS = 2
"""Most times that noise is drawn: what is served has other energies than were asked for, since codes are rounded."""
_EVEN = 0.1
"""dB by which the energy of an octave band may be off without another draw."""
_PATCHES = 8
"""Most times that exact patches are added: a patch changes what filters find beside it."""
_REACHES = (5, 7, 11, 16)
"""Pixels around a speck that a patch for it holds, per filter that finds it: most of what the filter sees."""
_EXACT = 2.0
"""Exact patches are made instead of repairs where they take at most so much more: half of such repairs fail."""
_DEARER = 1.25
"""log2 increase of the bytes per halving of the gate's figures; typical. It tells which of two searches goes on."""
_WORTH = 0.95
"""Another promise is settled only where it is at most this share of the base that was found, since it takes seconds."""
_RESERVE = 0.98
"""A second upscaler is taken where its payload on the sample is at most this share of the first one's."""


@dataclass(frozen=True)
class Encoded:
    """A finished encoding. ``structure``: float32, grey levels; ``served`` and ``plain``: uint16, with and without
    drawn noise."""

    base: Base
    data: bytes
    upscaler: Upscaler
    side: SideInformation
    parts: dict[str, bytes]
    structure: Float
    found: Structure
    served: Pixels
    plain: Pixels
    verdict: Verdict
    seed: int

    @property
    def payload_bytes(self) -> int:
        """Base and side information; the rendition's own fields are not counted."""
        return len(self.data) + sum(map(len, self.parts.values()))


@dataclass
class Encoder:
    """The search for one image.

    ``upscalers``: the configured one first; a second one is the baseline that it may fall back to, image by image.
    ``limits``: of the gate; None measures only. ``tried``: every operating point that was looked at;
    ``last``: the last of them.
    """

    source: Source
    reference: Reference
    upscalers: Sequence[Upscaler]
    limits: Thresholds | None
    scales: tuple[int, ...] = (2, 1)
    effort: int = 5
    share: float = 0.15
    regions: tuple[Box, ...] = ()
    tried: list[Trial] = field(default_factory=list)
    last: Attempt | None = field(default=None, init=False, repr=False)

    def search(self) -> Encoded | None:
        """The cheapest encoding that passes; None where none does."""
        assert self.limits is not None, "a search needs limits"
        best: Encoded | None = None
        dearer = 1.0
        for promise in sorted(self._promises(), key=lambda each: each.payload_bytes):
            if best is None:  # what a sample does not hold costs bytes, too
                dearer = self._attempt(promise.point, promise.upscaler).base_bytes / promise.payload_bytes
            elif promise.payload_bytes * dearer > _WORTH * len(best.base.coded):
                break
            made = self._settled(promise)
            if made is not None and (best is None or made.payload_bytes < best.payload_bytes):
                best = made
        return best

    def at(self, point: OperatingPoint) -> Encoded | None:
        """The encoding at one operating point; None where it does not pass.

        Where nothing is gated there is nothing to compare upscalers by: the configured one makes it.
        """
        upscalers = self.upscalers if self.limits is not None else self.upscalers[:1]
        return self._kept([self._finished(self._attempt(point, upscaler)) for upscaler in upscalers])

    def of_base(self, base: Base, data: bytes) -> Encoded | None:
        """What the upscalers make of a base that is there already; None where it does not pass."""
        decoded = Decoded.of(base)
        return self._kept([self._finished(self._looked(base, data, decoded, upscaler)) for upscaler in self.upscalers])

    def _kept(self, made: Sequence[Encoded]) -> Encoded | None:
        passed = [each for each in made if self.limits is None or each.verdict.passed]
        return min(passed, key=lambda each: each.payload_bytes) if passed else None

    # --- on the sample ---

    def _promises(self) -> list[SampleForecast]:
        """What the scales may come to, each with its coarsest operating point: the one that may be cheapest is searched
        to its end on a sample, others as far as they could be cheaper.

        Whether samples are companded is decided at the first scale. The last upscaler, the baseline, makes all these
        looks; another one is tried where the baseline has ended, and must be worth its while.
        """
        source, reference = sample_of(self.source, self.reference)
        sampled = source is not self.source
        area = self.reference.core.sum() / source.pixels.size if sampled else 1.0
        sampler = replace(self, source=source, reference=reference) if sampled else self

        def candidate(scale: int, companded: bool, upscaler: Upscaler, distance: float) -> _Candidate:
            point = OperatingPoint(scale, "jpegxl", distance, self.effort, companded)
            one = _Candidate(point, upscaler, Walk(distance))
            one.see(sampler)
            return one

        def cheapest(found: Sequence[_Candidate]) -> _Candidate:
            while not (best := min(found, key=lambda each: each.forecast)).ended:
                best.see(sampler)
            return best

        *others, baseline = self.upscalers
        first, *more = self.scales
        best = cheapest([candidate(first, companded, baseline, _START[first]) for companded in (False, True)])
        found = [best, *(candidate(scale, best.point.companded, baseline, _START[scale]) for scale in more)]
        best = cheapest(found)
        for upscaler in others:
            other = candidate(best.point.scale, best.point.companded, upscaler, best.distance)
            while other.forecast <= _RESERVE * best.forecast and not other.ended:
                other.see(sampler)
            if other.forecast <= _RESERVE * best.forecast:
                found.append(other)
        promises = [each.promise(area) for each in found if each.forecast < math.inf]
        self.tried.extend(promise.trial for promise in promises)
        return promises

    # --- on the whole image ---

    def _settled(self, promise: SampleForecast) -> Encoded | None:
        """The coarsest encoding of one scale that passes as a whole, searched from what the sample promised."""
        assert self.limits is not None
        point, upscaler, best = promise.point, promise.upscaler, None
        walk = Walk(point.distance, promise.slope)
        for _ in range(_LOOKS):
            began = time.monotonic()
            point = replace(point, distance=round(walk.distance, 4))
            attempt = self._attempt(point, upscaler)
            heavy = burden(attempt.found, self.limits)
            if heavy > 1:
                self._note(point, upscaler, attempt.base_bytes, (f"burden {heavy:.3f} of the gate's limits",), began)
            elif best is None or attempt.base_bytes < best.base_bytes:
                best = attempt
            if NEAR <= heavy <= 1 or not walk.step(heavy):
                break
        if best is None:
            return None
        for _ in range(_FINISHES):
            began, mended = time.monotonic(), self._mended(best)
            wrong = tuple(failures(mended.found, {}, self.limits))
            if wrong:
                self._note(best.base.point, upscaler, best.base_bytes, wrong, began)
            elif (made := self._drawn(best, mended)).verdict.passed:
                return made
            heavy = burden(mended.found, self.limits)  # places that were left to repairs count here
            finer = float(np.clip((AIM / heavy) ** (1 / SLOPE), _FINER, 0.98)) if heavy > 1 else _FINER
            best = self._attempt(replace(point, distance=round(best.base.point.distance * finer, 4)), upscaler)
        return None

    def _attempt(self, point: OperatingPoint, upscaler: Upscaler) -> Attempt:
        last = self.last
        if last is None or last.base.point != point or last.upscaler is not upscaler:
            base = make_base(self.source, point)
            last = self.last = self._looked(base, b"", Decoded.of(base), upscaler)
        return last

    def _looked(self, base: Base, data: bytes, decoded: Decoded, upscaler: Upscaler) -> Attempt:
        """The structure that an upscaler makes of a base, measured as a whole."""
        reference, data = self.reference, data or encode_base(base)
        seed = seed_of(hashlib.sha256(data).hexdigest())
        noise = self._deviation(decoded) if upscaler.needs_deviation else None
        task = decoded.task(noise, seed, upscaler.steps)
        structure = decoded.structure(upscaler, task, SideInformation())
        plain = decoded.pixels(structure.copy(), SideInformation()).astype(np.float32)
        found = look(reference, plain, specks=False, limits=self.limits)
        return Attempt(base, data, decoded, upscaler, noise, task, structure, plain, found)

    def _deviation(self, decoded: Decoded) -> NoiseModel:
        reference = self.reference
        found = measure_deviation(reference.image, decoded.upsampled, reference.core, reference.counted)
        return decode_noise(encode_noise(found))

    def _finished(self, attempt: Attempt) -> Encoded:
        return self._drawn(attempt, self._mended(attempt))

    def _mended(self, attempt: Attempt) -> Repaired:
        """The structure with single places put right, as far as they can be."""
        reference, limits, decoded = self.reference, self.limits, attempt.decoded
        found = look(reference, attempt.plain, limits=limits, before=attempt.found)
        side = self._repaired(attempt, found)
        structure = decoded.with_side(attempt.structure.copy(), side)
        for _ in range(_PATCHES):
            plain = decoded.pixels(structure.copy(), side).astype(np.float32)
            found = look(reference, plain, before=found)
            patches = self._patched(side.patches, found)
            if patches is side.patches:
                break
            side = replace(side, patches=patches)
        return Repaired(side, structure, plain, found)

    def _drawn(self, attempt: Attempt, mended: Repaired) -> Encoded:
        """Noise, and the verdict on what a viewer gets."""
        began = time.monotonic()
        reference, limits, decoded = self.reference, self.limits, attempt.decoded
        side, structure, plain, found = mended.side, mended.structure, mended.plain, mended.found
        inside = reference.core & ~uncounted(side, structure.shape)
        lacking = _lacking(reference, structure, inside)
        spectral = with_spectrum(attempt.noise or self._deviation(decoded), reference.image, structure, inside)
        energy = missing_energy(spectral, structure, inside)
        for _ in range(_DRAWS):
            noise = decode_noise(encode_noise(matched(spectral, energy, lacking)))
            side = replace(side, noise=noise)
            grain = decoded.grain(attempt.upscaler, attempt.task, structure, side)
            served = decoded.pixels(structure + grain, side)
            bands = band_energies(served.astype(np.float32), reference.core)
            have, wanted = (each[:BANDS].sum(axis=(1, 2)) for each in (bands, reference.bands))
            if np.abs(decibels(have, wanted)).max() <= _EVEN:
                break
            lacking = lacking + wanted - have
        figures = measure_noise(reference, plain, served, bands)
        verdict = judge(reference, plain, found, served, figures, limits)
        parts = {
            "noise": encode_noise(noise),
            "repairs": encode_residuals(side.repairs) if side.repairs else b"",
            "points": encode_points(side.points) if side.points else b"",
            "patches": encode_patches(side.patches) if side.patches else b"",
        }
        made = Encoded(
            *(attempt.base, attempt.data, attempt.upscaler, side, parts, structure, found, served),
            *(plain.astype(np.uint16), verdict, attempt.task.seed),
        )
        self._note(attempt.base.point, attempt.upscaler, made.payload_bytes, verdict.failures, began)
        return made

    def _repaired(self, attempt: Attempt, found: Structure) -> SideInformation:
        """Coded residuals where lines are broken, and points for specks. Exact patches where regions ask for them, and
        where they take less than residuals do, as for letters in the air."""
        points = repairs = None
        cells = cells_under(self.regions, *self.source.pixels.shape)
        if self.limits is not None:
            broken, structure = broken_cells(found, self.limits), attempt.structure
            aside = found.outside > self.limits.outside
            if 0 < broken.mean() <= self.share:
                repairs = self._residual(structure, broken)
                within = self._residual(structure, broken & ~aside)
                exact = encode_patches(cut(self.source.pixels, aside)) if aside.any() else b""
                if _bytes_of(within) + len(exact) <= _EXACT * _bytes_of(repairs):
                    repairs, cells = within, cells | aside
                structure = structure if repairs is None else structure + repairs.field()
            points = points_for(self.reference, structure, found.specks, broken, cells, self.limits)
        patches = cut(self.source.pixels, cells) if cells.any() else None
        return SideInformation(repairs=repairs, points=points, patches=patches)

    def _residual(self, structure: Float, cells: NDArray[np.bool_]) -> CodedResiduals | None:
        reference = self.reference
        return CodedResiduals.of(reference.image - structure, cells, reference.grain) if cells.any() else None

    def _patched(self, patches: Patches | None, found: Structure) -> Patches | None:
        """Patches that hold what is still broken, too; the same object where nothing is, or too much."""
        if self.limits is None:
            return patches
        rows, columns = self.source.pixels.shape
        lost, new = wrong_specks(*speck_lists(found.specks), self.limits)
        boxes = [
            (row * CELL, column * CELL, CELL, CELL) for row, column in np.argwhere(broken_cells(found, self.limits))
        ]
        for speck in (*lost, *new):
            reach = _REACHES[speck.size]
            boxes.append((max(speck.row - reach, 0), max(speck.column - reach, 0), 2 * reach + 1, 2 * reach + 1))
        cells = cells_under(boxes, rows, columns)
        if patches is not None:
            cells |= patches.cells
        if not boxes or cells.mean() > self.share or (patches is not None and (cells == patches.cells).all()):
            return patches
        return cut(self.source.pixels, cells)

    def _note(
        self, point: OperatingPoint, upscaler: Upscaler, size: int, failures: tuple[str, ...], began: float
    ) -> None:
        self.tried.append(Trial(str(point), upscaler.name, size, failures, round(time.monotonic() - began, 2)))


@dataclass(frozen=True)
class SampleForecast:
    """What an operating point came to on the sample. ``payload_bytes``: what it may take of the whole image;
    ``slope``: as of Walk."""

    point: OperatingPoint
    upscaler: Upscaler
    payload_bytes: int
    slope: float
    trial: Trial


@dataclass(frozen=True)
class Attempt:
    """A base, what an upscaler made of it, and what the gate finds there. ``data``: the base as bytes; ``plain``: the
    structure in whole grey levels, float32."""

    base: Base
    data: bytes
    decoded: Decoded
    upscaler: Upscaler
    noise: NoiseModel | None
    task: UpscaleTask
    structure: Float
    plain: Float
    found: Structure

    @property
    def base_bytes(self) -> int:
        return len(self.base.coded)


@dataclass
class _Candidate:
    """A scale, with an upscaler, searched on the sample. ``forecast``: bytes of the sample that it may come to."""

    point: OperatingPoint
    upscaler: Upscaler
    walk: Walk
    forecast: float = math.inf
    distance: float = 0.0
    ended: bool = False
    looks: int = 0
    seconds: float = 0.0

    def see(self, sampler: Encoder) -> None:
        """One more look, by the secant method on the logarithms of distance and burden."""
        assert sampler.limits is not None
        began = time.monotonic()
        attempt = sampler._attempt(replace(self.point, distance=round(self.walk.distance, 4)), self.upscaler)
        heavy = burden(attempt.found, sampler.limits)
        self.forecast = attempt.base_bytes * (heavy / AIM) ** _DEARER
        self.looks += 1
        moves = self.walk.step(heavy)
        self.distance = self.walk.distance
        self.ended = abs(math.log(heavy / AIM)) <= _CLOSE or not moves or self.looks == _SAMPLE_LOOKS
        if heavy > 1 and not moves:
            self.forecast = math.inf
        self.seconds += time.monotonic() - began

    def promise(self, area: float) -> SampleForecast:
        """``area``: the breast's, over that of the sample's squares."""
        point, size = replace(self.point, distance=round(self.distance, 4)), round(self.forecast * area)
        trial = Trial(str(point), self.upscaler.name, size, (), round(self.seconds, 2), sample=True)
        return SampleForecast(point, self.upscaler, size, self.walk.slope, trial)


@dataclass(frozen=True)
class Repaired:
    """A structure with points, repairs and patches, as float32 grey levels and as it is served without noise."""

    side: SideInformation
    structure: Float
    plain: Float
    found: Structure


def _bytes_of(repairs: CodedResiduals | None) -> int:
    return 0 if repairs is None else len(repairs.coded)


def _lacking(reference: Reference, structure: Float, inside: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Energy per octave band of the original less that of the structure, summed over ``inside``."""
    left_out = ~inside & reference.core
    own = band_energies(reference.image, inside, reference.bands, cell_any(left_out))
    made = band_energies(as_shown(reference, structure), inside)
    return np.asarray((own - made)[:BANDS].sum(axis=(1, 2)))
