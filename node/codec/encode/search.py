"""Searches for the smallest payload whose structure differs from the original by noise only.

The search has five steps; docs/ENCODER.md has the diagram, the terms and the constants:

1. A search on a sample finds, for each scale, the coarsest quantiser that passes the gate (forecasts.py).
2. For each scale that is tried, cheapest first, the upscaler is chosen on the sample, at the operating point of the
   forecast. Then the whole image is coded, and the distance is changed until the image passes. The search follows the
   burden: the figure of the whole image that is nearest to its limit, divided by that limit.
3. Single places that fail are repaired by residuals, points and exact patches.
4. The missing noise is measured, modelled and drawn.
5. The gate measures the structure and the served image against the original.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from node.codec.decode import Decoded, SideInformation
from node.codec.encode.base_coding import make_base
from node.codec.encode.forecasts import SampleForecast, SampleSearch
from node.codec.encode.noise_fitting import measure_deviation, missing_energy, with_band_energies, with_spectrum
from node.codec.encode.quantiser_walk import AIM, FINEST, NEAR, SLOPE, Walk
from node.codec.encode.repairs import Repaired, Repairer
from node.codec.encode.search_sample import sample_of
from node.codec.encode.source_image import Source
from node.codec.noise import NoiseModel, decode_noise, encode_noise
from node.codec.patches import encode_patches
from node.codec.points import encode_points
from node.codec.residuals import encode_residuals
from node.fidelity.bands import band_energies, totals
from node.fidelity.gate import (
    StructureFigures,
    as_shown,
    burden,
    cell_any,
    decibels,
    failures,
    failures_of_whole,
    judge,
    measure_noise,
    measure_structure,
)
from node.fidelity.reference import Reference
from node.upscalers.protocol import Upscaler, UpscaleTask
from storage.formats.payload import (
    Base,
    encode_base,
    seed_of,
)
from storage.records import OperatingPoint, Thresholds, Trial, Verdict

Float = NDArray[np.float32]
Pixels = NDArray[np.uint16]
Box = tuple[int, int, int, int]

_LOOKS = 4
"""Most times that the whole image is coded in step 2, per scale. Chosen, not measured."""
_TAKEN = 0.99
"""An upscaler other than the baseline is chosen if, on the sample, it loses less than this share of what the baseline
loses of one octave band. The loss is a mean, which a sample predicts better than the burden, a maximum."""
_TELLING = 1
"""Index of the octave band that ``_TAKEN`` compares: details of about 4 pixels, where networks add most."""
_HARMLESS = 1.05
"""Largest burden on the sample, over the baseline's, with which such an upscaler is chosen. A greater one costs more
bytes than the detail saves."""
_FINISHES = 3
"""Most times that steps 3 to 5 are tried per scale, each time with a finer quantiser. Chosen, not measured."""
_FINER = 0.85
"""Smallest ratio of the JPEG XL distance of such a try to that of the one before. Chosen, not measured."""
_DRAWS = 2
"""Most times that noise is drawn. A second draw corrects the energies that rounding of the codes has changed."""
_EVEN = 0.1
"""Error of an octave band's energy, in dB, up to which noise is not drawn again."""
_WORTH = 0.95
"""Another scale is tried on the whole image only if its forecast, plus the side information found so far without
patches, is at most this share of the payload found so far. Trying a scale takes seconds."""


@dataclass(frozen=True)
class Encoded:
    """A finished encoding.

    ``data``: the base as bytes. ``structure``: float32, grey levels. ``served`` and ``plain``: uint16, with and without
    drawn noise. ``parts``: the encoded side information by name.
    """

    base: Base
    data: bytes
    upscaler: Upscaler
    side: SideInformation
    parts: dict[str, bytes]
    structure: Float
    figures: StructureFigures
    served: Pixels
    plain: Pixels
    verdict: Verdict
    seed: int

    @property
    def payload_bytes(self) -> int:
        """Bytes of the base and of the side information, without the other fields of the rendition."""
        return len(self.data) + sum(map(len, self.parts.values()))

    @property
    def side_bytes(self) -> int:
        """Bytes of the side information without exact patches."""
        return sum(len(part) for name, part in self.parts.items() if name != "patches")


@dataclass
class Encoder:
    """The search for one image.

    ``upscalers``: the configured one first, the baseline last; the encoder chooses one of them for each image.
    ``limits``: those of the gate; with None, results are measured but not gated. ``share``: largest share of the image
    that residuals may cover, and that patches may cover. ``regions``: boxes (row, column, height, width) that are
    stored exactly. ``tried``: the trials so far; of those that passed, only the ones on the sample and the final ones.
    ``last``: the last attempt, kept for reuse.
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
        """The smallest encoding that passes the gate, or None. It needs ``limits``."""
        assert self.limits is not None, "a search needs limits"
        best: Encoded | None = None
        dearer = 1.0
        for forecast in sorted(self._forecasts(), key=lambda each: each.base_bytes):
            if best is not None and forecast.base_bytes * dearer + best.side_bytes > _WORTH * best.payload_bytes:
                break
            upscaler = self._upscaler_for(forecast)
            if best is None:  # the image needs bytes for what the sample lacks, such as labels
                dearer = self._attempt(forecast.point, upscaler).base_bytes / forecast.base_bytes
            made = self._refined(forecast, upscaler)
            if made is not None and (best is None or made.payload_bytes < best.payload_bytes):
                best = made
        return best

    def encode_at(self, point: OperatingPoint) -> Encoded | None:
        """The smallest encoding at one operating point that passes the gate, or None. Without limits any passes."""
        return self._smallest(self._attempt(point, upscaler) for upscaler in self._comparable)

    def encode_from_base(self, base: Base, data: bytes) -> Encoded | None:
        """The smallest encoding of an existing base that passes the gate, or None. ``data``: the base as bytes."""
        decoded = Decoded.of(base)
        return self._smallest(self._measured_attempt(base, data, decoded, upscaler) for upscaler in self._comparable)

    @property
    def _comparable(self) -> Sequence[Upscaler]:
        """The upscalers to compare: all of them, or without limits, by which to compare them, the configured one."""
        return self.upscalers if self.limits is not None else self.upscalers[:1]

    def _smallest(self, attempts: Iterable[Attempt]) -> Encoded | None:
        made = [self._with_noise(attempt, self._repair(attempt)) for attempt in attempts]
        passed = [each for each in made if self.limits is None or each.verdict.passed]
        return min(passed, key=lambda each: each.payload_bytes) if passed else None

    @property
    def _baseline(self) -> Upscaler:
        return self.upscalers[-1]

    # --- on the sample ---

    @cached_property
    def _encoder_of_sample(self) -> Encoder:
        """An encoder for a sample, which shares ``tried``; ``self`` if the image is too small for a sample."""
        source, reference = sample_of(self.source, self.reference)
        return self if source is self.source else replace(self, source=source, reference=reference)

    def _forecasts(self) -> list[SampleForecast]:
        """Forecasts of the scales that can pass the gate, from searches on the sample. Every search adds a trial."""
        sampler = self._encoder_of_sample
        area = 1.0 if sampler is self else self.reference.core.sum() / sampler.source.pixels.size
        # the search calls _code_and_measure for each operating point that it tries
        search = SampleSearch(sampler._code_and_measure, self.effort, self._baseline.name)
        found = search.forecasts(self.scales, area)
        self.tried.extend(forecast.trial for forecast in found)
        return [forecast for forecast in found if not forecast.trial.failures]

    def _code_and_measure(self, point: OperatingPoint) -> tuple[int, float, tuple[str, ...]]:
        """Bytes of the base, burden of the baseline's structure, and a sentence per limit of the whole it misses."""
        assert self.limits is not None
        attempt = self._attempt(point, self._baseline)
        wrong = tuple(failures_of_whole(attempt.figures, self.limits))
        return attempt.base_bytes, burden(attempt.figures, self.limits), wrong

    # --- on the whole image ---

    def _upscaler_for(self, forecast: SampleForecast) -> Upscaler:
        """The first upscaler that loses clearly less detail of the sample than the baseline from the same base.

        Its burden may not be much greater. It is the baseline if there is none, or if the base is companded: no network
        was trained on companded bases.
        """
        assert self.limits is not None
        point, sampler = forecast.point, self._encoder_of_sample
        for other in () if point.companded else self.upscalers[:-1]:
            began = time.monotonic()
            plain = sampler.last  # usually the baseline's, at nearly this distance
            if (
                plain is None
                or sampler is self
                or plain.upscaler is not self._baseline
                or replace(plain.base.point, distance=point.distance) != point
            ):
                plain = sampler._attempt(point, self._baseline)
            made = sampler._measured_attempt(plain.base, plain.data, plain.decoded, other)
            lost, usual = (each.figures.lost[_TELLING] for each in (made, plain))
            heavy, light = (burden(each.figures, self.limits) for each in (made, plain))
            if lost < _TAKEN * usual and heavy <= _HARMLESS * light:
                sampler.last = made
                return other
            wrong = (
                f"it loses {lost:.4g} of octave band {_TELLING + 1}, where {self._baseline.name} loses {usual:.4g}; "
                f"their burdens are {heavy:.3g} and {light:.3g}"
            )
            self._note(point, other, forecast.base_bytes, (wrong,), began, sample=True)
        return self._baseline

    def _refined(self, forecast: SampleForecast, upscaler: Upscaler) -> Encoded | None:
        """An encoding of one scale that passes the gate, or None. The search starts at the forecast's distance."""
        assert self.limits is not None
        point, best = forecast.point, None
        walk = Walk(point.distance, forecast.slope)
        for _ in range(_LOOKS):
            began = time.monotonic()
            point = replace(point, distance=round(walk.distance, 4))
            attempt = self._attempt(point, upscaler)
            burden_now = burden(attempt.figures, self.limits)
            if burden_now > 1:
                wrong = tuple(failures_of_whole(attempt.figures, self.limits))
                self._note(point, upscaler, attempt.base_bytes, wrong, began)
            elif best is None or attempt.base_bytes < best.base_bytes:
                best = attempt
            if NEAR <= burden_now <= 1 or not walk.set_next_distance(burden_now):
                break
        if best is None:
            return None
        for left in reversed(range(_FINISHES)):
            began, repaired = time.monotonic(), self._repair(best)
            wrong = tuple(failures(repaired.figures, {}, self.limits))
            if wrong:
                self._note(best.base.point, upscaler, best.base_bytes, wrong, began)
            elif (made := self._with_noise(best, repaired)).verdict.passed:
                return made
            burden_now = burden(repaired.figures, self.limits)  # this burden includes places that repairs left
            finer = float(np.clip((AIM / burden_now) ** (1 / SLOPE), _FINER, 0.98)) if burden_now > 1 else _FINER
            distance = round(best.base.point.distance * finer, 4)
            if not left or distance < FINEST:
                break
            best = self._attempt(replace(point, distance=distance), upscaler)
        return None

    def _attempt(self, point: OperatingPoint, upscaler: Upscaler) -> Attempt:
        last = self.last
        if last is None or last.base.point != point or last.upscaler is not upscaler:
            base = make_base(self.source, point)
            last = self.last = self._measured_attempt(base, encode_base(base), Decoded.of(base), upscaler)
        return last

    def _measured_attempt(self, base: Base, data: bytes, decoded: Decoded, upscaler: Upscaler) -> Attempt:
        """The structure that an upscaler makes of a base, measured without specks. ``data``: the base as bytes."""
        seed = seed_of(hashlib.sha256(data).hexdigest())
        noise = self._fitted_noise(decoded.upsampled) if upscaler.needs_deviation else None
        task = decoded.task(noise, seed, upscaler.steps)
        structure = decoded.structure(upscaler, task, SideInformation())
        plain = decoded.rounded_structure(structure, SideInformation())
        found = measure_structure(self.reference, plain, specks=False, limits=self.limits)
        return Attempt(base, data, decoded, upscaler, noise, task, structure, plain, found)

    def _fitted_noise(self, structure: Float, held: NDArray[np.bool_] | None = None) -> NoiseModel:
        reference = self.reference
        found = measure_deviation(reference.image, structure, reference.core, reference.counted, held)
        return decode_noise(encode_noise(found))

    @cached_property
    def _repairer(self) -> Repairer:
        return Repairer(self.source.pixels, self.reference, self.limits, self.share, self.regions)

    def _repair(self, attempt: Attempt) -> Repaired:
        return self._repairer.repaired(attempt.decoded, attempt.structure, attempt.plain, attempt.figures)

    def _with_noise(self, attempt: Attempt, repaired: Repaired) -> Encoded:
        """The encoding with drawn noise and its verdict."""
        began = time.monotonic()
        reference, limits, decoded = self.reference, self.limits, attempt.decoded
        side, structure, plain, found = repaired.side, repaired.structure, repaired.plain, repaired.figures
        held = side.held_pixels(structure.shape)
        inside = reference.core & ~held
        missing, lost = _missing_band_energies(reference, structure, inside), totals(found.bands)
        lacking = np.minimum(missing, lost)  # a structure with 1% less contrast lacks energy, but no noise
        wanted = totals(reference.bands) - (missing - lacking)
        noise = attempt.noise or self._fitted_noise(structure, held)
        deviation = noise.deviation(structure)
        spectral = with_spectrum(noise, reference.image, structure, inside, deviation)
        energy = missing_energy(deviation, inside)
        for _ in range(_DRAWS):
            coded_noise = encode_noise(with_band_energies(spectral, energy, lacking))
            side = replace(side, noise=decode_noise(coded_noise))
            grain = decoded.drawn_noise(attempt.upscaler, attempt.task, structure, side, deviation)
            served = decoded.pixels(structure + grain, side)
            bands = band_energies(served.astype(np.float32), reference.core)
            have = totals(bands)
            if np.abs(decibels(have, wanted)).max() <= _EVEN:
                break
            lacking = lacking + wanted - have
        wrong: tuple[str, ...] = ()
        if limits is not None:
            smooth, wrong = self._repairer.with_even_places_patched(decoded, replace(repaired, side=side), served)
            if smooth is not None:
                side, plain, found = smooth.side, smooth.plain, smooth.figures
                before, served = served, decoded.pixels(structure + grain, side)
                bands = band_energies(served.astype(np.float32), reference.core, bands, cell_any(served != before))
        figures = measure_noise(reference, plain, served, bands)
        verdict = judge(reference, plain, found, served, figures, limits)
        verdict = replace(verdict, failures=(*verdict.failures, *wrong))
        parts = {
            "noise": coded_noise,
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

    def _note(
        self,
        point: OperatingPoint,
        upscaler: Upscaler,
        size: int,
        failures: tuple[str, ...],
        began: float,
        *,
        sample: bool = False,
    ) -> None:
        seconds = round(time.monotonic() - began, 2)
        self.tried.append(Trial(str(point), upscaler.name, size, failures, seconds, sample=sample))


@dataclass(frozen=True)
class Attempt:
    """A base, the structure that an upscaler made of it, and the structure's figures. ``data``: the base as bytes.
    ``plain``: the structure in whole grey levels, float32."""

    base: Base
    data: bytes
    decoded: Decoded
    upscaler: Upscaler
    noise: NoiseModel | None
    task: UpscaleTask
    structure: Float
    plain: Float
    figures: StructureFigures

    @property
    def base_bytes(self) -> int:
        return len(self.base.coded)


def _missing_band_energies(reference: Reference, structure: Float, inside: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Energy per octave band of the original less that of the structure, summed over ``inside``."""
    left_out = ~inside & reference.core
    own = band_energies(reference.image, inside, reference.bands, cell_any(left_out))
    made = band_energies(as_shown(reference, structure), inside)
    return totals(own - made)
