"""Proves that the search of the encoder (node/codec/encode/search.py) finds a coarse operating point that passes, and
that the decoder returns what was verified.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, maximum_filter, minimum_filter

from node.codec.decode import SideInformation
from node.codec.encode.base_coding import make_base
from node.codec.encode.encode_request import rendition_of
from node.codec.encode.forecasts import SampleForecast
from node.codec.encode.repairs import Repaired
from node.codec.encode.search import Encoded, Encoder
from node.codec.encode.source_image import Source
from node.codec.rendering import Rendering
from node.fidelity.gate import burden, measure_structure
from node.fidelity.reference import Reference
from node.upscalers.bicubic import Bicubic
from node.upscalers.protocol import Upscaler, UpscaleTask
from storage.dicom.pixels import pixel_digest
from storage.errors import NotReconstructable, PayloadError
from storage.formats.geometry import cell_pixels
from storage.formats.payload import decode_base, decode_rendition, encode_base, encode_rendition
from storage.formats.resample import Operator
from storage.records import OperatingPoint, Thresholds, Trial
from tests.support.encoder_samples import Pixels, phantom, source_of, with_implant
from tests.support.samples import breast

Float = NDArray[np.float32]

BALANCED = Thresholds()
STRICT = replace(BALANCED, lines=(3.0, 1.2, 0.5))
PLACES = replace(BALANCED, lines=(43.0, 18.0, 10.0), lines_most=0.18, spectrum_tile_db=9.0)
"""The limits of single places alone: of a small image, a place with an edge takes a large share."""
POINT = OperatingPoint(2, "jpegxl", distance=0.2, effort=5)


def encoder(pixels: Pixels, limits: Thresholds | None, bits: int = 12, **changes: Any) -> Encoder:
    of_header = {name: changes.pop(name) for name in list(changes) if name[0].isupper()}
    upscalers = changes.pop("upscalers", [Bicubic()])
    shared = shared_source(pixels.tobytes(), pixels.shape, bits, tuple(of_header.items()))
    made = Encoder(*shared, upscalers, limits, scales=(2,), effort=5)
    return replace(made, **changes)


@cache
def shared_source(
    pixels: bytes, shape: tuple[int, ...], bits: int, header: tuple[tuple[str, Any], ...]
) -> tuple[Source, Reference]:
    """An image, and what encoders have measured of it. Measuring takes a third of the time of an encoding."""
    return source_of(np.frombuffer(pixels, np.uint16).reshape(shape), bits, **dict(header))


def forecast(point: OperatingPoint) -> SampleForecast:
    return SampleForecast(point, 12345, 0.6, Trial(str(point), "bicubic", 12345, (), 0.0, sample=True))


@cache
def at_point() -> Encoded:
    """The phantom at ``POINT``."""
    made = encoder(phantom(), BALANCED).encode_at(POINT)
    assert made is not None
    return made


@cache
def searched(limits: Thresholds = BALANCED) -> Encoded:
    made = encoder(phantom(), limits).search()
    assert made is not None
    return made


def decoded(made: Encoded, *, draw: bool = True) -> Pixels:
    """The pixels that the decoder makes of the bytes of base and rendition."""
    rendition = decode_rendition(encode_rendition(rendition_of(made, "1.2.3")))
    base, side = decode_base(made.data), SideInformation.of(rendition)
    return Rendering(base, made.upscaler, side, seed=rendition.seed, steps=rendition.steps).pixels(draw=draw)


class Blurred(Bicubic):
    """A worse upscaler, which needs a finer base."""

    name = "blurred"

    def structure(self, task: UpscaleTask) -> Float:
        return np.asarray(gaussian_filter(task.upsampled, 1.5), dtype=np.float32)


class Nearer(Bicubic):
    """A better upscaler, which knows a tenth of the missing detail."""

    name = "nearer"

    def structure(self, task: UpscaleTask) -> Float:
        return task.upsampled + np.float32(0.1) * (phantom() - task.upsampled)


class Sampling(Bicubic):
    """Draws content by seed and steps, as a generative model does."""

    name, generative, steps = "sampling", True, 3

    def structure(self, task: UpscaleTask) -> Float:
        assert task.steps == 3
        return task.upsampled + np.random.default_rng(task.seed).standard_normal(1, dtype=np.float32)[0]


# --- the search -----------------------------------------------------------------------------------------------


def test_a_search_finds_what_passes() -> None:
    made = searched()
    assert made.verdict.passed
    assert made.base.point.scale == 2
    assert made.payload_bytes < 0.12 * phantom().nbytes
    assert made.verdict.figures["specks_lost"] == 0


def test_it_is_near_the_coarsest_that_passes() -> None:
    """At 1.6 times the distance the structure itself fails, and at the chosen distance it is not far from failing."""
    made = searched()
    assert 0.75 < burden(made.figures, BALANCED) <= 1
    coarser = replace(made.base.point, distance=round(made.base.point.distance * 1.6, 4))
    assert encoder(phantom(), BALANCED).encode_at(coarser) is None


def test_strict_takes_more_bytes() -> None:
    strict, balanced = searched(STRICT), searched()
    assert strict.base.point.distance < balanced.base.point.distance
    assert strict.payload_bytes > 1.1 * balanced.payload_bytes


@pytest.mark.slow
def test_the_same_bytes_twice() -> None:
    source, reference = source_of(phantom())
    again = replace(encoder(phantom(), BALANCED), source=source, reference=reference).search()
    assert again is not None
    assert (again.data, again.parts) == (searched().data, searched().parts)
    assert np.array_equal(again.served, searched().served)


@pytest.mark.slow
def test_another_upscaler_is_taken_only_if_it_saves_bytes() -> None:
    """The last upscaler is the baseline. The other is compared with it on the same base.

    Side information is not compared, because the smallest difference of a base decides whether a place needs an exact
    patch.
    """
    worse = encoder(phantom(), BALANCED, upscalers=[Blurred(), Bicubic()])
    alike = encoder(phantom(), BALANCED, upscalers=[Bicubic(), Bicubic()])
    for unneeded in (worse, alike):
        made = unneeded.search()
        assert made is not None
        assert made.upscaler is unneeded.upscalers[-1]
        assert made.data == searched().data
    better = encoder(phantom(), BALANCED, upscalers=[Nearer(), Bicubic()]).search()
    assert better is not None
    assert better.upscaler.name == "nearer"
    assert len(better.data) < 0.95 * len(searched().data)


def test_an_upscaler_that_keeps_too_little_more_is_reported() -> None:
    """``instance show`` lists the upscaler, with the share that it loses."""

    class Better(Bicubic):
        name = "better"

        def structure(self, task: UpscaleTask) -> Float:
            return task.upsampled + np.float32(0.004) * (phantom() - task.upsampled)

    searching = encoder(phantom(), BALANCED, upscalers=[Better(), Bicubic()])
    assert searching._upscaler_for(forecast(POINT)).name == "bicubic"
    (trial,) = searching.tried
    assert (trial.upscaler, trial.payload_bytes, trial.sample) == ("better", 12345, True)
    (failure,) = trial.failures
    found = re.fullmatch(
        r"it loses (0\.\d+) of octave band 2, where bicubic loses (0\.\d+); their burdens are [\d.]+ and [\d.]+",
        failure,
    )
    assert found
    assert float(found[1]) == pytest.approx(0.996 * float(found[2]), rel=0.001)


@pytest.mark.parametrize(("share", "taken"), [(0.004, "bicubic"), (0.02, "nearer")])
def test_an_upscaler_is_chosen_on_the_sample(share: float, taken: str) -> None:
    """A network takes seconds for a whole image, and its loss on the sample tells whether that is worth it."""
    pixels = np.tile(phantom(), (2, 2))

    class Nearer(Bicubic):
        name = "nearer"

        def structure(self, task: UpscaleTask) -> Float:
            sample = searching._encoder_of_sample.source.pixels
            assert sample.shape == task.upsampled.shape < pixels.shape
            return task.upsampled + np.float32(share) * (sample - task.upsampled)

    searching = encoder(pixels, BALANCED, upscalers=[Nearer(), Bicubic()])
    assert searching._upscaler_for(forecast(POINT)).name == taken


@pytest.mark.parametrize(("height", "taken"), [(0, "striped"), (40, "bicubic")])
def test_an_upscaler_that_draws_a_line_is_not_chosen(height: float, taken: str) -> None:
    """It loses less detail, and needs a finer base until its line passes the gate."""

    class Striped(Bicubic):
        name = "striped"

        def structure(self, task: UpscaleTask) -> Float:
            made = task.upsampled + np.float32(0.5) * (phantom() - task.upsampled)
            made[100:102] += np.float32(height)
            return made

    searching = encoder(phantom(), BALANCED, upscalers=[Striped(), Bicubic()])
    assert searching._upscaler_for(forecast(POINT)).name == taken
    if height:
        (failure,) = searching.tried[0].failures
        lost, usual, heavy, light = (float(each) for each in re.findall(r"[\d.]*\d", failure.replace("band 2", "")))
        assert lost < 0.99 * usual
        assert heavy > 1.05 * light


@pytest.mark.parametrize("step", [0, 4])
def test_a_test_pattern_without_noise_is_no_error(step: int) -> None:
    """No row has noise from which a curve for companding could be made."""
    pixels = np.tile(np.arange(256, dtype=np.uint16) * np.uint16(step), (256, 1)) + np.uint16(500)
    searching = encoder(pixels, BALANCED)
    made = searching.search()
    if step == 0:
        assert made is not None
        np.testing.assert_array_equal(made.served, pixels)
    else:
        assert made is None, "it is kept as it is"
        assert all(trial.failures for trial in searching.tried if not trial.sample)


def test_no_more_is_coded_after_the_last_try(monkeypatch: pytest.MonkeyPatch) -> None:
    """A structure that no repair corrects is tried at three distances. No distance is coded in vain."""
    searching = encoder(phantom(), BALANCED)
    coded, repaired = [], []
    measured_attempt = Encoder._measured_attempt

    def counted(self: Encoder, base: Any, data: bytes, *others: Any) -> Any:
        coded.append(base.point.distance)
        return measured_attempt(self, base, data, *others)

    def failing(self: Encoder, attempt: Any) -> Any:
        repaired.append(attempt.base.point.distance)
        figures = replace(attempt.figures, shift=1.0)
        return Repaired(SideInformation(), attempt.structure, attempt.plain, figures)

    monkeypatch.setattr(Encoder, "_measured_attempt", counted)
    monkeypatch.setattr(Encoder, "_repair", failing)
    assert searching.search() is None
    assert len(repaired) == 3
    assert coded[-1] == repaired[-1], "the last one that was coded was tried"
    assert repaired == sorted(repaired, reverse=True)


def test_the_whole_image_is_first_coded_as_the_forecast_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search that begins elsewhere ends at another quantiser, or after more tries."""

    class Coded(Exception):
        pass

    def coded(_: Encoder, point: OperatingPoint, upscaler: Upscaler) -> Any:
        raise Coded(point, upscaler.name)

    monkeypatch.setattr(Encoder, "_attempt", coded)
    with pytest.raises(Coded) as first:
        encoder(phantom(), BALANCED)._refined(forecast(POINT), Bicubic())
    assert first.value.args == (POINT, "bicubic")


def test_companded_bases_get_the_baseline() -> None:
    """The networks were trained on bases without companding."""

    class Untouched(Bicubic):
        name = "untouched"

        def structure(self, task: UpscaleTask) -> Float:
            raise AssertionError("it must not be asked")

    searching = encoder(phantom(), BALANCED, upscalers=[Untouched(), Bicubic()])
    assert searching._upscaler_for(forecast(replace(POINT, companded=True))).name == "bicubic"
    with pytest.raises(AssertionError, match="must not be asked"):
        searching._upscaler_for(forecast(POINT))


@pytest.mark.slow
def test_the_cheapest_scale_is_taken() -> None:
    several = encoder(phantom(), BALANCED, scales=(1, 2))
    made = several.search()
    assert made is not None
    assert made.payload_bytes <= 1.05 * searched().payload_bytes
    assert {trial.point[:2] for trial in several.tried if trial.sample} == {"x1", "x2"}
    assert all(trial.seconds >= 0 for trial in several.tried)


def test_what_cannot_pass_is_none() -> None:
    hopeless = replace(BALANCED, lost=(1e-4, 1e-4, 1e-4, 1e-4))
    trying = encoder(phantom(), hopeless)
    assert trying.search() is None
    assert trying.tried
    assert all("lost share" in trial.failures[0] for trial in trying.tried)
    assert trying.encode_at(POINT) is None
    assert any("lost share" in sentence for sentence in trying.tried[-1].failures)


def test_without_limits_it_measures_only() -> None:
    made = encoder(phantom(), None).encode_at(replace(POINT, distance=6.0))
    assert made is not None
    assert (made.verdict.gated, made.verdict.passed, made.verdict.failures) == (False, False, ())
    assert made.side.repairs is made.side.points is made.side.patches is None
    assert burden(made.figures, BALANCED) > 1


@pytest.mark.slow
def test_an_existing_base_is_verified_as_it_is() -> None:
    made = searched()
    again = encoder(phantom(), BALANCED).encode_from_base(decode_base(made.data), made.data)
    assert again is not None
    assert again.data is made.data
    assert np.array_equal(again.served, made.served)
    assert encoder(phantom(), STRICT).encode_from_base(decode_base(made.data), made.data) is None


# --- single places --------------------------------------------------------------------------------------------


def marked() -> Pixels:
    """Lead letters in the air: strokes of some pixels, with the edges that a focal spot gives them."""
    strokes = np.zeros(phantom().shape)
    strokes[24:56, 476:524:12] = strokes[24:29, 476:524] = strokes[51:56, 476:524] = 1
    strokes[:, 2:] = np.maximum(strokes[:, 2:], np.maximum(strokes[:, 1:-1], strokes[:, :-2]))
    return np.maximum(phantom(), np.rint(3500 * gaussian_filter(strokes, 0.8))).astype(np.uint16)


def on_film() -> Pixels:
    """The image of ``marked`` with grain in the air. Exact patches would take many more bytes for it than residuals
    do."""
    grain = gaussian_filter(np.random.default_rng(3).standard_normal(phantom().shape), 0.8)
    return np.clip(np.rint(marked() + 150 + 60 * grain / grain.std()), 0, 4095).astype(np.uint16)


@pytest.mark.slow
def test_a_marker_in_clean_air_comes_back_exactly() -> None:
    made = encoder(marked(), BALANCED).encode_at(POINT)
    assert made is not None
    assert made.side.repairs is None
    off = made.served.astype(int) - marked()
    assert np.abs(made.plain.astype(int) - marked())[20:60, 470:530].max() <= 0.1 * 4096
    assert made.side.patches is not None
    inside = cell_pixels(made.side.patches.cells, *off.shape)
    assert inside[20:60, 470:530].any()
    assert not off[inside].any()
    assert np.array_equal(decoded(made), made.served)


@pytest.mark.slow
def test_a_marker_on_film_is_repaired() -> None:
    made = encoder(on_film(), BALANCED).encode_at(POINT)
    assert made is not None
    assert made.side.repairs is not None
    off = np.abs(made.plain.astype(int) - on_film())[20:60, 470:530]
    assert off.max() <= 0.1 * 4096 + 0.5  # it is rounded
    assert np.sqrt(np.mean(np.square(off))) < 100
    assert np.array_equal(decoded(made), made.served)


@pytest.mark.slow
def test_no_more_than_its_share_is_repaired() -> None:
    trying = encoder(marked(), BALANCED, share=0.001)
    assert trying.encode_at(POINT) is None
    assert any("error out of the breast" in sentence for sentence in trying.tried[-1].failures)


def test_a_region_that_was_asked_for_is_exact() -> None:
    made = encoder(phantom(), BALANCED, regions=((200, 130, 40, 50),)).encode_at(POINT)
    assert made is not None
    inside = np.s_[200:240, 130:180]
    for pixels in (made.served, made.plain, decoded(made), decoded(made, draw=False)):
        assert np.array_equal(pixels[inside], phantom()[inside])
    assert not np.array_equal(made.served, phantom())


@pytest.mark.slow
@pytest.mark.parametrize(("noise", "distance"), [(0.0, 0.5), (180.0, 1.0)])
def test_a_clipped_implant_passes(noise: float, distance: float) -> None:
    """The implant has no noise of its own, and inside it, long filters still see the noise of the tissue beside it."""
    made = encoder(with_implant(noise), PLACES).encode_at(replace(POINT, distance=distance))
    assert made is not None
    assert made.base.point.distance == distance


def with_needle() -> Pixels:
    """A needle across the breast, clipped, a dozen pixels wide."""
    row, column = np.mgrid[: phantom().shape[0], : phantom().shape[1]]
    needle = gaussian_filter(((np.abs(row - 300 - 0.15 * column) < 5) & (column < 250)).astype(float), 0.8)
    return np.clip(np.rint(phantom() * (1 - needle) + 4700 * needle), 0, 4095).astype(np.uint16)


@pytest.mark.slow
def test_no_noise_shows_in_a_clipped_needle() -> None:
    """The needle fills no cell of 16 pixels, so that no cell is free of noise."""
    made = encoder(with_needle(), PLACES, WindowCenter=512, WindowWidth=1024).encode_at(replace(POINT, distance=0.5))
    assert made is not None
    even = maximum_filter(with_needle(), 5) == minimum_filter(with_needle(), 5)
    inside = even & (with_needle() == 4095)
    assert inside.sum() > 500
    assert np.abs(made.served.astype(int) - with_needle())[inside].max() <= 0.03 * 1024
    assert np.array_equal(decoded(made), made.served)
    assert np.array_equal(decoded(made, draw=False), made.plain)


@pytest.mark.slow
def test_marked_regions_do_not_count_into_the_share() -> None:
    search = encoder(with_needle(), PLACES, WindowCenter=512, WindowWidth=1024, share=0.08)
    point = replace(POINT, distance=0.5)
    assert search.encode_at(point) is not None
    assert replace(search, regions=((448, 0, 192, 544),)).encode_at(point) is not None


def test_an_encoding_fails_if_too_much_noise_shows_to_be_patched() -> None:
    search = encoder(with_needle(), PLACES, WindowCenter=512, WindowWidth=1024, share=0.01)
    assert search.encode_at(replace(POINT, distance=0.5)) is None
    assert any("show where the original has one value" in failure for failure in search.tried[-1].failures)


# --- decoding -------------------------------------------------------------------------------------------------


def test_what_is_decoded_is_what_was_verified() -> None:
    made = searched()
    assert np.array_equal(decoded(made), made.served)
    assert np.array_equal(decoded(made, draw=False), made.plain)
    rendition = rendition_of(made, "1.2.3")
    assert rendition.output_digest == pixel_digest(made.served)
    assert rendition.structure_digest == pixel_digest(made.plain)
    assert rendition.output_digest != rendition.structure_digest
    assert rendition.base_digest == hashlib.sha256(made.data).hexdigest()
    extremes = [[int(image.min()), int(image.max())] for image in (made.served, made.plain)]
    smallest, greatest = (list(pair) for pair in zip(*extremes, strict=True))
    assert rendition.extra == {"minimum": smallest, "maximum": greatest}


def test_a_model_that_samples_is_decoded_with_its_seed_and_steps() -> None:
    made = encoder(phantom(), None, upscalers=[Sampling()]).encode_at(POINT)
    assert made is not None
    assert np.array_equal(decoded(made), made.served)


@pytest.mark.parametrize("scale", [1, 2, 4])
@pytest.mark.parametrize("shape", [(400, 360), (401, 363)])
def test_a_structure_is_consistent_with_its_base(scale: int, shape: tuple[int, int]) -> None:
    """If the plain bicubic structure of a base is downsampled, it is the base, except for the effect of
    quantisation."""
    pixels = phantom()[: shape[0], : shape[1]]
    base = make_base(source_of(pixels)[0], replace(POINT, scale=scale))
    operator = Operator(*shape, scale)
    structure = Rendering(base, Bicubic(), SideInformation(), seed=0, steps=0).pixels(draw=True)
    away = operator.down(structure) - base.samples()
    assert np.sqrt(np.mean(np.square(away))) < 1.5 * max(base.quantisation_rms, 0.5)
    ideal = operator.down(pixels)
    assert base.quantisation_rms == pytest.approx(float(np.sqrt(np.mean(np.square(base.samples() - ideal)))), rel=1e-3)


def test_lossless_at_scale_1_is_the_original() -> None:
    base = make_base(source_of(phantom())[0], OperatingPoint(1, "jpegxl"))
    assert (base.offset, base.gain, base.quantisation_rms) == (0.0, 1.0, 0.0)
    assert np.array_equal(Rendering(base, Bicubic(), SideInformation(), seed=0, steps=0).pixels(draw=True), phantom())


@pytest.mark.slow
@pytest.mark.parametrize(
    "header",
    [{"PhotometricInterpretation": "MONOCHROME1"}, {"RescaleSlope": -1, "RescaleIntercept": 4095}],
    ids=["MONOCHROME1", "falling rescale"],
)
def test_an_image_whose_dense_tissue_is_dark_is_coded_as_it_is_displayed(header: dict[str, Any]) -> None:
    inverted = (4095 - phantom()).astype(np.uint16)
    made = encoder(inverted, BALANCED, **header).encode_at(POINT)
    plain = at_point()
    assert made is not None
    assert made.base.gain < 0 < plain.base.gain
    assert len(made.base.coded) == pytest.approx(len(plain.base.coded), rel=0.02)
    assert np.abs(made.structure - (4095 - plain.structure)).mean() < 1
    assert np.array_equal(decoded(made), made.served)


def test_sixteen_bits() -> None:
    pixels = phantom(bits=16)
    made = encoder(pixels, BALANCED, bits=16).encode_at(POINT)
    assert made is not None
    assert made.served.max() > 30000
    assert made.served.max() <= pixels.max()
    assert np.array_equal(decoded(made), made.served)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("values", "header"),
    [
        ((0, 0), {"PixelPaddingValue": 0}),
        ((0, 9), {"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 9}),
        ((4095, 4095), {"PixelPaddingValue": 4095}),
    ],
)
def test_padding_keeps_exactly_its_values(values: tuple[int, int], header: dict[str, int]) -> None:
    """PS3.3 C.7.5.1.1.2: padding pixels keep their values, and no other pixel becomes padding."""
    low, high = values
    pixels = np.clip(phantom(), 20, 4000)
    noise = np.random.default_rng(0).integers(low, high + 1, pixels.shape).astype(np.uint16)
    mask = phantom() == 0
    mask[300:303, 100:104] = True
    pixels[mask] = noise[mask]
    made = encoder(pixels, BALANCED, **header).encode_at(POINT)
    assert made is not None
    for image in (made.served, made.plain, decoded(made)):
        assert np.array_equal(image[mask], pixels[mask])
        assert not ((image >= low) & (image <= high))[~mask].any()
    assert made.base.minimum >= 20
    assert made.verdict.passed


def test_what_the_pixels_rule_out() -> None:
    with pytest.raises(NotReconstructable, match="all pixels are padding"):
        source_of(phantom(), PixelPaddingValue=0, PixelPaddingRangeLimit=4095)
    with pytest.raises(NotReconstructable, match="Bits Stored"):
        source_of(phantom() + np.uint16(4096))


def test_side_information_of_another_image_is_refused() -> None:
    side = searched().side
    base = make_base(source_of(phantom()[:400])[0], POINT)
    with pytest.raises(PayloadError, match="NoiseModel is of 640 x 544 pixels, the image of 400 x 544"):
        Rendering(base, Bicubic(), side, seed=0, steps=0).pixels(draw=True)


@pytest.mark.slow
def test_repairs_are_added_to_what_is_within_range() -> None:
    """Beside a marker, the upsampled base overshoots the greatest value. Repairs are measured after it was clipped."""
    pixels = np.minimum(on_film(), 2600)
    made = encoder(pixels, BALANCED).encode_at(POINT)
    assert made is not None
    assert made.side.repairs is not None
    structure = measure_structure(encoder(pixels, BALANCED).reference, made.structure)
    assert structure.outside.max() <= BALANCED.outside
    assert made.structure.max() <= pixels.max()


# --- coded regions --------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("air", [0, 1000, 4095])
@pytest.mark.parametrize("scale", [1, 2, 4])
def test_air_of_one_value_is_not_coded_and_comes_back_exactly(scale: int, air: int) -> None:
    pixels = np.full((900, 1100), air, dtype=np.uint16)
    pixels[130:750, :480] = breast(620, 480)
    source, _ = source_of(pixels)
    point = replace(POINT, scale=scale)
    base = decode_base(encode_base(make_base(source, point)))
    region = base.region
    assert region is not None
    assert region.beyond == air
    assert region.rows * region.columns < 0.45 * base.operator.low_rows * base.operator.low_columns
    without_region = replace(source)
    without_region._regions[scale] = None
    uncoded = make_base(without_region, point)
    assert uncoded.region is None
    made, whole = (
        Rendering(each, Bicubic(), SideInformation(), seed=0, steps=0).pixels(draw=True) for each in (base, uncoded)
    )
    far = np.ones(pixels.shape, dtype=bool)
    far[130 - 48 : 750 + 48, : 480 + 48] = False  # what the operator reaches
    assert (made[far] == air).all()
    error = [np.square(image.astype(float) - pixels)[~far].mean() for image in (made, whole)]
    assert error[0] < 1.1 * error[1] + 1


def test_where_nearly_all_is_worth_coding_all_is_coded() -> None:
    full = phantom()[100:500, :300]
    assert make_base(source_of(full)[0], POINT).region is None
    assert make_base(source_of(np.full((300, 280), 700, np.uint16))[0], POINT).region is None
    assert make_base(source_of(breast(400, 300))[0], OperatingPoint(2, "png16")).region is None
