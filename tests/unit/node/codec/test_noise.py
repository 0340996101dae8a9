"""Proves the noise model (node/codec/noise.py): its bytes, what is drawn from it, and its estimate of known noise."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.special import ndtri

from node.codec.encode.noise_fitting import measure_deviation, missing_energy, with_band_energies, with_spectrum
from node.codec.noise import (
    LEVELS,
    PLACE,
    SPECTRUM,
    NoiseModel,
    decode_noise,
    encode_noise,
    unit_noise,
    white_noise,
)
from node.fidelity.bands import BANDS, band_energies
from storage.errors import PayloadError
from storage.formats.geometry import CELL
from tests.support.encoder_samples import FULL, level_code, model, soft

Float = NDArray[np.float32]
Image = NDArray[np.floating[Any]]


NAMES = [each.name for each in fields(NoiseModel)]


def in_bands(model: NoiseModel, structure: Float, inside: NDArray[np.bool_], wanted: NDArray[np.float64]) -> NoiseModel:
    return with_band_energies(model, missing_energy(model.deviation(structure), inside), wanted)


def spectral_of(plain: NoiseModel, original: Float, structure: Float, inside: NDArray[np.bool_]) -> NoiseModel:
    return with_spectrum(plain, original, structure, inside, plain.deviation(structure))


def white(rows: int, columns: int, seed: int) -> Float:
    return white_noise(slice(0, rows), slice(0, columns), seed)


def unit(rows: int, columns: int, spectrum: NDArray[np.uint8], seed: int) -> Float:
    return unit_noise(slice(0, rows), slice(0, columns), spectrum, seed)


def same(one: NoiseModel, other: NoiseModel) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in NAMES)


# --- bytes ----------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 700),
    columns=st.integers(1, 700),
    ends=st.tuples(*[st.floats(0, 65535, width=32)] * 2),
    gain=st.floats(0.5, 100, width=32),
    seed=st.integers(0, 2**32 - 1),
)
def test_bytes_and_back(rows: int, columns: int, ends: tuple[float, float], gain: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    shapes = {"curve": (LEVELS,), "place": (-(-rows // PLACE), -(-columns // PLACE)), "spectrum": SPECTRUM}
    codes = {name: random.integers(0, 256, shape).astype(np.uint8) for name, shape in shapes.items()}
    made = NoiseModel(rows, columns, *ends, **codes, gain=gain)
    quiet = random.random((-(-rows // CELL), -(-columns // CELL))) < 0.5
    for wanted in (made, replace(made, quiet=quiet)):
        told = decode_noise(encode_noise(wanted))
        assert same(replace(told, spectrum=wanted.spectrum), wanted)
        error = np.abs(told.spectrum.astype(int) - wanted.spectrum.astype(int))
        assert error.max() <= 1, "the spectrum alone is coded with a loss, of one step"


def test_a_smooth_model_takes_some_hundred_bytes() -> None:
    assert len(encode_noise(model(4000, 3000))) < 1000


WHOLE = encode_noise(model(300, 280, quiet=np.eye(19, 18, dtype=bool)))


@pytest.mark.parametrize("end", range(0, len(WHOLE), 7))
def test_every_truncation_is_an_error(end: int) -> None:
    with pytest.raises(PayloadError):
        decode_noise(WHOLE[:end])


def test_a_byte_too_many_is_an_error() -> None:
    with pytest.raises(PayloadError, match="length"):
        decode_noise(WHOLE + b"\0")


@settings(max_examples=60, deadline=None)
@given(at=st.integers(0, len(WHOLE) - 1), piece=st.binary(min_size=1, max_size=6))
def test_damage_is_an_error_or_a_model_that_can_be_drawn(at: int, piece: bytes) -> None:
    damaged = bytearray(WHOLE)
    damaged[at : at + len(piece)] = piece
    try:
        found = decode_noise(bytes(damaged[: len(WHOLE)]))
    except PayloadError:
        return
    shapes = (-(-found.rows // PLACE), -(-found.columns // PLACE)), SPECTRUM, (LEVELS,)
    assert (found.place.shape, found.spectrum.shape, found.curve.shape) == shapes
    assert np.isfinite([found.low, found.high, found.gain]).all()


@given(st.binary(max_size=80))
def test_hostile_bytes(data: bytes) -> None:
    with pytest.raises(PayloadError):
        decode_noise(data)


def test_another_format_is_refused() -> None:
    with pytest.raises(PayloadError, match="format 2 with 32 levels; this release reads 1"):
        decode_noise(b"\x02" + WHOLE[1:])


# --- drawing --------------------------------------------------------------------------------------------------


def test_white_noise_is_philox_of_key_and_block() -> None:
    """The expected values follow docs/FORMATS.md literally, for a pixel in the second row and third column of
    blocks."""
    key = (7 | 1 << 32 | 2 << 48, 0x6C617465)
    raw = np.random.Philox(key=list(key)).random_raw(256 * 64).view("<u2").reshape(256, 256)
    quantiles = ndtri((np.arange(65536) + 0.5) / 65536)
    expected = quantiles[raw[:44, :38]] / quantiles.std()
    np.testing.assert_allclose(white(300, 550, 7)[256:, 512:], expected, rtol=1e-6)


def test_white_noise_is_normal_and_independent() -> None:
    noise = white(1000, 1000, 3)
    assert abs(noise.mean()) < 0.004
    assert noise.std() == pytest.approx(1, abs=0.003)
    assert np.mean(noise**4) == pytest.approx(3, abs=0.03)
    assert np.abs(noise).max() < 4.5
    around = np.fft.irfft2(np.square(np.abs(np.fft.rfft2(noise)))) / noise.size
    around[0, 0] = 0
    assert np.abs(around).max() < 6 / 1000


@pytest.mark.parametrize("shape", [(100, 100), (300, 520), (257, 511)])
def test_a_crop_of_a_larger_canvas_is_the_same(shape: tuple[int, int]) -> None:
    """White noise is the same to the bit. Filtering adds in another order where a row of squares is longer."""
    rows, columns = shape
    assert np.array_equal(white(900, 1000, 5)[:rows, :columns], white(rows, columns, 5))
    large, small = unit(900, 1000, soft(), 5), unit(rows, columns, soft(), 5)
    np.testing.assert_allclose(large[:rows, :columns], small, atol=1e-5)


def test_a_part_of_the_plane_is_the_same() -> None:
    whole = white(700, 800, 5)
    for rows, columns in ((slice(64, 320), slice(192, 700)), (slice(300, 301), slice(511, 514))):
        assert np.array_equal(white_noise(rows, columns, 5), whole[rows, columns])
    part = slice(64, 320), slice(192, 700)
    np.testing.assert_allclose(unit_noise(*part, soft(), 5), unit(700, 800, soft(), 5)[part], atol=1e-5)


def test_noise_is_drawn_around_the_breast_only_and_the_same_there() -> None:
    """Cells without noise at the rim are not computed, and the noise beside them does not depend on that."""
    structure = np.full((600, 700), 2000, dtype=np.float32)
    place = np.full((10, 11), FULL, dtype=np.uint8)
    place[:2] = place[:, 8:] = 0
    some = model(place=place)
    assert some.part == (slice(128, 600), slice(0, 512))
    drawn, everywhere = some.draw(structure, 3), model().draw(structure, 3)
    assert not drawn[:128].any()
    assert not drawn[:, 512:].any()
    np.testing.assert_allclose(drawn[192:, :448], everywhere[192:, :448], atol=1e-3)
    nothing = model(place=np.zeros((10, 11), dtype=np.uint8))
    assert not nothing.draw(structure, 3).any()
    assert not nothing.deviation(structure).any()


def test_there_are_no_seams_between_squares() -> None:
    """The reference is one convolution of the whole plane with the same kernel."""
    noise = unit(1000, 950, soft(), 9)
    whole = white(1064, 1014, 9)
    impulse = np.zeros((1064, 1014))
    impulse[300:365, 300:365] = unit_impulse()
    spectrum = np.fft.rfft2(whole) * np.fft.rfft2(np.roll(impulse, (-332, -332), axis=(0, 1)))
    np.testing.assert_allclose(noise, np.fft.irfft2(spectrum, s=whole.shape)[32:-32, 32:-32], atol=2e-5)


def unit_impulse() -> Image:
    """The drawing filter of ``soft``, from its definition: the root of the spectrum, cut off after 32 pixels."""
    power = 2.0 ** ((soft().astype(float) - 255) / 4)
    fine = np.zeros((129, 65))
    grid = np.meshgrid(np.arange(129) / 2, np.arange(65) / 2, indexing="ij")
    corner = [np.minimum(axis.astype(int), limit) for axis, limit in zip(grid, (63, 31), strict=True)]
    share = [axis - low for axis, low in zip(grid, corner, strict=True)]
    for down in (0, 1):
        for across in (0, 1):
            weight = np.abs(1 - down - share[0]) * np.abs(1 - across - share[1])
            fine += weight * power[corner[0] + down, corner[1] + across]
    kernel = np.fft.fftshift(np.fft.irfft2(np.sqrt(np.fft.ifftshift(fine[:-1], axes=0)), s=(128, 128)))[32:97, 32:97]
    taper = np.hanning(67)[1:-1]
    kernel = kernel * np.sqrt(np.outer(taper, taper))
    return np.asarray(kernel / np.sqrt(np.square(kernel).sum()))


def test_drawn_noise_has_the_spectrum_of_its_model() -> None:
    """The periodogram over rings of frequencies is within half a decibel wherever the model has much power."""
    noise = unit(1536, 1536, soft(), 11)
    assert noise.std() == pytest.approx(1, abs=0.01)
    side = 128
    squares = noise.reshape(12, side, 12, side).transpose(0, 2, 1, 3).reshape(-1, side, side)
    found = np.square(np.abs(np.fft.fft2(squares * np.outer(np.hanning(side), np.hanning(side))))).mean(axis=0)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None])
    wanted = np.exp(-(frequency**2) / (2 * 0.18**2))
    found, wanted = found / found.mean(), wanted / wanted.mean()
    for low in np.arange(0.02, 0.42, 0.05):
        ring = (frequency >= low) & (frequency < low + 0.05)
        assert 10 * np.log10(found[ring].mean() / wanted[ring].mean()) == pytest.approx(0, abs=0.5), low


def test_a_spectrum_has_a_direction() -> None:
    across = soft()
    across[:, 12:] = 0
    noise = unit(512, 512, across, 3)
    shifted = np.mean(noise[:, 1:] * noise[:, :-1]), np.mean(noise[1:] * noise[:-1])
    assert shifted[0] > shifted[1] + 0.15


def test_drawn_noise_is_gaussian() -> None:
    noise = unit(1024, 1024, soft(), 1).astype(np.float64)
    assert np.mean(noise**3) == pytest.approx(0, abs=0.02)
    assert np.mean(noise**4) / np.mean(noise**2) ** 2 == pytest.approx(3, abs=0.05)


def test_drawn_noise_does_not_repeat() -> None:
    """There is no autocorrelation beyond 48 pixels above that of chance, and no correlation between seeds."""
    noise, other = unit(1024, 1024, soft(), 1), unit(1024, 1024, soft(), 2)
    transform = np.fft.rfft2(noise)
    own = np.fft.fftshift(np.fft.irfft2(np.square(np.abs(transform)))) / noise.size
    own[512 - 48 : 512 + 49, 512 - 48 : 512 + 49] = 0
    assert np.abs(own).max() < 0.02
    between = np.fft.irfft2(transform * np.conj(np.fft.rfft2(other))) / noise.size
    assert np.abs(between).max() < 0.02


def test_noise_follows_curve_place_and_gain() -> None:
    curve = np.full(LEVELS, level_code(8.0), dtype=np.uint8)
    curve[LEVELS // 2 :] = level_code(32.0)
    place = np.full((10, 11), FULL, dtype=np.uint8)
    place[:, 6:] += 8  # one octave
    told = model(curve=curve, place=place, gain=1.5)
    structure = np.full((600, 700), 100, dtype=np.float32)
    structure[300:] = 3995
    noise = told.draw(structure, 1)
    parts = {"dark": noise[:250, :320], "dark, more": noise[:250, 450:], "bright": noise[350:, :320]}
    found = {name: float(part.std()) for name, part in parts.items()}
    assert found == pytest.approx({"dark": 12, "dark, more": 24, "bright": 48}, rel=0.04)


def test_noise_has_no_room_beside_the_extreme_values() -> None:
    """Air and white are clipped. At 3 grey levels from there, the deviation is 12 and not 32."""
    told = model(curve=np.full(LEVELS, level_code(32.0), dtype=np.uint8))
    structure = np.full((600, 700), 2000, dtype=np.float32)
    structure[:200], structure[200:400] = 3, 4092
    noise = told.draw(structure, 1)
    found = [float(noise[first : first + 150].std()) for first in (20, 220, 420)]
    assert found == pytest.approx([12, 12, 32], rel=0.04)
    structure[:] = 0
    assert not told.draw(structure, 1).any()


def test_no_noise_where_place_or_curve_is_zero() -> None:
    place = np.full((10, 11), FULL, dtype=np.uint8)
    place[3, 4] = 0
    curve = np.full(LEVELS, level_code(20.0), dtype=np.uint8)
    curve[:2] = 0
    structure = np.full((600, 700), 2000, dtype=np.float32)
    structure[:40] = 0  # air
    noise = model(place=place, curve=curve).draw(structure, 1)
    assert not noise[:40].any()
    assert not noise[192:256, 256:320].any()
    assert noise[64:192].all()
    assert not model(spectrum=np.zeros(SPECTRUM, dtype=np.uint8)).draw(structure, 1).any()


def test_no_noise_in_quiet_cells() -> None:
    quiet = np.zeros((38, 44), dtype=bool)
    quiet[5, 7] = True
    structure = np.full((600, 700), 2000, dtype=np.float32)
    noise, loud = (model(quiet=cells).draw(structure, 1) for cells in (quiet, None))
    assert not noise[80:96, 112:128].any()
    noise[80:96, 112:128] = loud[80:96, 112:128]
    assert np.array_equal(noise, loud)


def test_cells_of_one_value_are_quiet() -> None:
    """The tissue has a burnt-in square. The noise around the square is not drawn over it."""
    original, structure, _ = known()
    original[128:192, 256:320] = structure[128:192, 256:320] = 3000
    everywhere = np.ones(original.shape, dtype=bool)
    own, made = (band_energies(image, everywhere)[:BANDS].sum(axis=(1, 2)) for image in (original, structure))
    plain = measure_deviation(original, structure, everywhere, everywhere)
    told = in_bands(spectral_of(plain, original, structure, everywhere), structure, everywhere, own - made)
    drawn = told.draw(structure, 1)
    assert not drawn[128:192, 256:320].any()
    assert drawn[128:192, 192:256].all()


def test_the_same_seed_is_the_same_noise() -> None:
    structure = np.full((600, 700), 2000, dtype=np.float32)
    first = model().draw(structure, 41)
    assert np.array_equal(model().draw(structure, 41), first)
    assert not np.array_equal(model().draw(structure, 42), first)


# --- measuring ------------------------------------------------------------------------------------------------


def known(rows: int = 768, columns: int = 896, seed: int = 0) -> tuple[Float, Float, Image]:
    """A structure from dark to bright, the original: the same with noise of known deviation, and that deviation."""
    random = np.random.default_rng(seed)
    structure = np.broadcast_to(np.linspace(500, 3500, columns, dtype=np.float32), (rows, columns)).copy()
    noise = gaussian_filter(random.standard_normal((rows, columns)), 0.6)
    deviation = 4 + 0.008 * structure
    deviation[rows // 2 :] *= 1.6
    original = structure + deviation * noise / noise.std()
    return original.astype(np.float32), structure, deviation


def test_curve_and_place_of_known_noise_are_measured() -> None:
    original, structure, deviation = known()
    everywhere = np.ones(original.shape, dtype=bool)
    found = measure_deviation(original, structure, everywhere, everywhere).deviation(structure)
    inner = np.s_[64 : 384 - 64, 64:-64], np.s_[384 + 64 : -64, 64:-64]
    for part in inner:
        np.testing.assert_allclose(blocks(found[part]), blocks(deviation[part]), rtol=0.1)


def blocks(image: Image) -> Image:
    """Means over blocks of 64 pixels."""
    rows, columns = (length // 64 * 64 for length in image.shape)
    return np.asarray(image[:rows, :columns].reshape(rows // 64, 64, columns // 64, 64).mean(axis=(1, 3)))


def test_what_is_drawn_has_the_energy_that_was_missing_in_every_band() -> None:
    original, structure, _ = known()
    everywhere = np.ones(original.shape, dtype=bool)
    own, made = (band_energies(image, everywhere)[:BANDS].sum(axis=(1, 2)) for image in (original, structure))
    plain = measure_deviation(original, structure, everywhere, everywhere)
    spectral = spectral_of(plain, original, structure, everywhere)
    told = decode_noise(encode_noise(in_bands(spectral, structure, everywhere, own - made)))
    drawn = band_energies(structure + told.draw(structure, 9), everywhere)[:BANDS].sum(axis=(1, 2))
    np.testing.assert_allclose(10 * np.log10((drawn - made) / (own - made)), 0, atol=0.4)
    again = unit(512, 512, told.spectrum, 1)
    assert np.mean(again[:, 1:] * again[:, :-1]) == pytest.approx(correlation(original - structure), abs=0.05)


def test_the_spectrum_is_measured_beside_patches_that_leave_no_tile_whole() -> None:
    """Patches in the middle of a small breast leave no whole tile. Formerly, no noise was drawn at all."""
    original, structure, _ = known()
    original, structure = original[:256, :256], structure[:256, :256]
    inside = np.ones(original.shape, dtype=bool)
    inside[96:112, 96:160] = inside[144:160, 96:160] = inside[112:144, 96:112] = inside[112:144, 144:160] = False
    plain = measure_deviation(original, structure, inside, inside)
    spectral = spectral_of(plain, original, structure, inside)
    again = unit(512, 512, spectral.spectrum, 1)
    assert np.mean(again[:, 1:] * again[:, :-1]) == pytest.approx(correlation(original - structure), abs=0.1)


def test_less_contrast_is_no_noise() -> None:
    """Large shapes with 2% less contrast lack more energy than that of the lost noise. Formerly, it was drawn as false
    clouds."""
    noise, shapes = gaussian_filter(white(768, 768, 1), 0.6), gaussian_filter(white(768, 768, 2), 10.0)
    noise, shapes = noise * (15.0 / noise.std()), shapes * (150.0 / shapes.std())
    original, structure = 2000 + shapes + noise, 2000 + np.float32(0.98) * shapes
    everywhere, lost = np.ones(original.shape, dtype=bool), original - structure
    plain = measure_deviation(original, structure, everywhere, everywhere)
    drawn = unit(768, 768, spectral_of(plain, original, structure, everywhere).spectrum, 3)
    clouds, wanted = (float(gaussian_filter(each, 5.0).std() / each.std()) for each in (drawn, lost))
    assert clouds == pytest.approx(wanted, rel=0.25)


def correlation(noise: Image) -> float:
    return float(np.mean(noise[:, 1:] * noise[:, :-1]) / np.mean(np.square(noise)))


def test_lost_edges_are_no_noise() -> None:
    """A line of 15 to 45 standard deviations crosses the image. Measured as noise, it would multiply the deviation by 3
    to 8 in its cells."""
    original, structure, _ = known()
    everywhere = np.ones(original.shape, dtype=bool)
    plain = measure_deviation(original, structure, everywhere, everywhere).deviation(structure)
    lined = original.copy()
    lined[200:202] += 400
    found = measure_deviation(lined, structure, everywhere, everywhere).deviation(structure)
    np.testing.assert_allclose(blocks(found), blocks(plain), rtol=0.3)


def test_blurred_letters_of_a_marker_are_hardly_noise() -> None:
    """The base has blurred edges in a part without noise. Formerly, the loss was drawn as grain of the same
    strength."""
    original, structure, _ = known()
    everywhere = np.ones(original.shape, dtype=bool)
    row, column = np.mgrid[:128, :256]
    letters = 1500 + 400 * ((row // 24 + column // 24) % 2).astype(np.float32)
    marker = np.s_[128:256, 64:320]
    original[marker], structure[marker] = gaussian_filter(letters, 1.5), gaussian_filter(letters, 1.8)
    found = measure_deviation(original, structure, everywhere, everywhere).deviation(structure)
    lost = float(np.square(original[marker] - structure[marker]).mean()) ** 0.5
    assert lost > 10
    assert float(np.square(found[192 - 20 : 192 + 20, 128:256]).mean()) ** 0.5 < 0.55 * lost


def test_what_residuals_hold_is_not_measured() -> None:
    """The border of a film has such a wide line. Formerly, its cells got twice the noise that was lost beside it."""
    original, structure, _ = known()
    everywhere = np.ones(original.shape, dtype=bool)
    plain = measure_deviation(original, structure, everywhere, everywhere).deviation(structure)
    original[192:208] += 1000
    held = np.zeros(original.shape, dtype=bool)
    held[192:208] = True
    found = measure_deviation(original, structure, everywhere, everywhere, held).deviation(structure)
    np.testing.assert_allclose(blocks(found), blocks(plain), rtol=0.15)
    nothing = measure_deviation(original, structure, everywhere, everywhere, everywhere)
    assert nothing.high == original.max() and not nothing.deviation(structure).any()


def test_a_lost_line_is_not_drawn_as_streaks() -> None:
    """A dead line of the detector has many times the power of the noise in its tiles."""
    original, structure, _ = known()
    everywhere = np.ones(original.shape, dtype=bool)
    lined = original.copy()
    lined[200:202] += 400

    def streaks(image: Float) -> float:
        plain = measure_deviation(image, structure, everywhere, everywhere)
        spectral = spectral_of(plain, image, structure, everywhere)
        return float(unit(512, 512, spectral.spectrum, 1).mean(axis=1).std())

    assert streaks(lined) < 1.3 * streaks(original)


def test_padding_is_not_measured() -> None:
    original, structure, deviation = known()
    counted = np.ones(original.shape, dtype=bool)
    counted[:, :128] = False
    original[:, :128] = 60000
    found = measure_deviation(original, structure, counted, counted)
    assert found.high < 4000
    part = np.s_[64:320, 320:-64]
    np.testing.assert_allclose(blocks(found.deviation(structure)[part]), blocks(deviation[part]), rtol=0.1)


def test_nothing_is_missing_in_the_original_itself() -> None:
    original, _, _ = known(256, 256)
    everywhere = np.ones(original.shape, dtype=bool)
    found = measure_deviation(original, original, everywhere, everywhere)
    told = in_bands(spectral_of(found, original, original, everywhere), original, everywhere, np.zeros(BANDS))
    assert not told.draw(original, 1).any()


def test_a_breast_smaller_than_a_periodogram_gets_its_own_noise() -> None:
    original, structure, _ = known(256, 256)
    small = np.zeros(original.shape, dtype=bool)
    small[:100, :100] = True
    plain = measure_deviation(original, structure, small, np.ones_like(small))
    spectral = spectral_of(plain, original, structure, small)
    again = unit(512, 512, spectral.spectrum, 1)
    missing = (original - structure)[small].reshape(100, 100)
    assert np.mean(again[:, 1:] * again[:, :-1]) == pytest.approx(correlation(missing), abs=0.1)
