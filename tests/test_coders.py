"""storage.coders: one contract for every coder, damage and disguise included."""

from __future__ import annotations

import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from storage import coders
from storage.coders import CODERS, Samples, quantiser, step_octaves, top_sample
from storage.errors import PayloadError
from storage.records import Rung
from tests.samples import breast

EVERY = sorted(CODERS)
LOSSLESS = ["jpegls", "jpegxl", "png16"]
LOSSLESS_ONLY = ["jpegls", "png16"]
LOSSY = ["avif", "jpegxl"]
LEAST = {"avif": 0.05}
"""The least distance of coders that are never lossless: their finest quantiser."""


def rung(coder: str, distance: float | None = None) -> Rung:
    """As good as the coder can be, unless a distance is given."""
    return Rung(2, coder, LEAST.get(coder, 0.0) if distance is None else distance, effort=1)


def fitting(samples: Samples, coder: str) -> Samples:
    """Samples of 16 bits in as many as the coder takes."""
    return (samples >> (16 - top_sample(coder).bit_length())).astype(np.uint16)


def round_trip(samples: Samples, step: Rung) -> Samples:
    return coders.decode(coders.encode(samples, step), step, samples.shape)


def error_of(samples: Samples, step: Rung) -> NDArray[np.float64]:
    return round_trip(samples, step).astype(float) - samples


def rms(error: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(error**2)))


def noise(rows: int, columns: int) -> Samples:
    return np.random.default_rng(rows * 1000 + columns).integers(0, 65536, (rows, columns), np.uint16)


def checkers(rows: int, columns: int) -> Samples:
    return np.where(np.indices((rows, columns)).sum(axis=0) % 2, np.uint16(65535), np.uint16(0))


PICTURES = {
    "noise": noise(48, 40),
    "odd": noise(31, 17),
    "zeros": np.zeros((33, 20), np.uint16),
    "ones all over": np.full((33, 20), 65535, np.uint16),
    "extremes": checkers(23, 19),
    "column": noise(37, 1),
    "row": noise(1, 37),
    "pixel": np.array([[40000]], np.uint16),
    "ramp": np.arange(65536, dtype=np.uint16).reshape(256, 256),
    "twelve bits": breast(120, 90),
}


def test_these_are_the_coders() -> None:
    assert EVERY == ["avif", "jpegls", "jpegxl", "png16"]
    assert {coder: top_sample(coder) for coder in EVERY} == {
        **{"avif": 4095, "jpegls": 65535, "jpegxl": 65535, "png16": 65535}
    }


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("coder", LOSSLESS)
def test_at_distance_0_every_sample_comes_back(coder: str, name: str) -> None:
    samples = PICTURES[name]
    before = samples.copy()
    coded = coders.encode(samples, rung(coder))
    assert isinstance(coded, bytes)
    decoded = coders.decode(coded, rung(coder), samples.shape)
    assert decoded.dtype == np.uint16
    assert np.array_equal(decoded, samples)
    assert np.array_equal(samples, before)


@pytest.mark.parametrize("coder", LOSSLESS)
@settings(max_examples=30, deadline=None)
@given(samples=arrays(np.uint16, array_shapes(min_dims=2, max_dims=2, max_side=40)))
def test_at_distance_0_any_samples_come_back(coder: str, samples: Samples) -> None:
    assert np.array_equal(round_trip(samples, rung(coder)), samples)


@pytest.mark.parametrize(
    ("name", "worst", "typical"),
    [
        *[("noise", 80, 16), ("odd", 80, 16), ("zeros", 2, 1), ("ones all over", 2, 1), ("extremes", 120, 35)],
        *[("column", 50, 12), ("row", 50, 12), ("pixel", 4, 4), ("ramp", 4, 1), ("twelve bits", 40, 5)],
    ],
)
def test_at_the_least_distance_avif_is_nearly_lossless(name: str, worst: int, typical: float) -> None:
    samples = PICTURES[name] if name == "twelve bits" else fitting(PICTURES[name], "avif")
    before = samples.copy()
    coded = coders.encode(samples, rung("avif"))
    assert isinstance(coded, bytes)
    decoded = coders.decode(coded, rung("avif"), samples.shape)
    assert decoded.dtype == np.uint16
    error = decoded.astype(float) - samples
    assert np.abs(error).max() <= worst
    assert rms(error) <= typical
    assert np.array_equal(samples, before)


@settings(max_examples=30, deadline=None)
@given(
    samples=arrays(np.uint16, array_shapes(min_dims=2, max_dims=2, max_side=40), elements=st.integers(0, 4095)),
    distance=st.floats(0.01, 100),
)
def test_at_any_distance_avif_gives_twelve_bits_of_the_same_shape(samples: Samples, distance: float) -> None:
    decoded = round_trip(samples, rung("avif", distance))
    assert (decoded.shape, decoded.dtype) == (samples.shape, np.uint16)
    assert decoded.max() <= 4095
    assert np.abs(error_of(samples, rung("avif"))).max() <= 300


@pytest.mark.parametrize("step", [*map(rung, EVERY), *(rung(coder, 1.0) for coder in LOSSY)], ids=str)
def test_the_layout_in_memory_does_not_matter(step: Rung) -> None:
    samples = fitting(noise(40, 30), step.coder)
    expected = coders.encode(samples, step)
    assert coders.encode(samples.copy(), step) == expected  # coding is a function
    for same in (np.asfortranarray(samples), np.repeat(samples, 2, axis=1)[:, ::2], samples[::-1].copy()[::-1]):
        assert coders.encode(same, step) == expected


@pytest.mark.parametrize("step", [*map(rung, EVERY), *(Rung(2, coder, 1.0) for coder in LOSSY)], ids=str)
def test_the_number_of_threads_does_not_matter(step: Rung, monkeypatch: pytest.MonkeyPatch) -> None:
    """A base that was lost is made again from its original, on whatever machine, and must be the same object."""
    samples = breast(300, 280)
    first = coders.encode(samples, step)
    coded, decoded = set(), set()
    for threads in ("1", "2", "5"):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        coded.add(coders.encode(samples, step))
        decoded.add(coders.decode(first, step, samples.shape).tobytes())
    assert len(decoded) == 1
    assert len(coded) == 1


@pytest.mark.parametrize("coder", EVERY)
def test_the_bytes_are_a_plain_file_of_the_format(coder: str) -> None:
    coded = coders.encode(fitting(noise(20, 20), coder), rung(coder))
    magic = {
        "avif": [b"\0\0\0\x1cftypavif", b"\0\0\0\x20ftypavif"],
        "png16": [b"\x89PNG\r\n\x1a\n"],
        "jpegls": [b"\xff\xd8\xff"],
        "jpegxl": [b"\xff\x0a", b"\0\0\0\x0cJXL "],
    }
    assert any(coded.startswith(start) for start in magic[coder])


def test_png_is_16_bit_gray() -> None:
    header = coders.encode(noise(20, 30), rung("png16"))[8:33]
    assert header[4:8] == b"IHDR"
    assert header[8:16] == (30).to_bytes(4, "big") + (20).to_bytes(4, "big")
    assert header[16:18] == bytes([16, 0])  # bit depth, colour type


@pytest.mark.parametrize("distance", [0.05, 1.0])
def test_avif_is_12_bit_monochrome(distance: float) -> None:
    coded = coders.encode(fitting(noise(20, 30), "avif"), rung("avif", distance))
    # AV1CodecConfigurationRecord: marker, version; profile, level; tier, high_bitdepth, twelve_bit, monochrome, ...
    record = coded[coded.index(b"av1C") + 4 :]
    assert record[0] == 0x81
    assert record[1] >> 5 == 2
    assert record[2] & 0b0111_0000 == 0b0111_0000


@pytest.mark.parametrize("coder", EVERY)
def test_coding_makes_a_picture_smaller(coder: str) -> None:
    samples = breast(240, 200)
    assert len(coders.encode(samples, rung(coder))) < samples.nbytes / 2


# --- lossy ----------------------------------------------------------------------------------------------------


def base_like(coder: str) -> Samples:
    """A picture of 12 bits, scaled to as many as the coder takes, as a base is."""
    return (breast(240, 200) << (top_sample(coder).bit_length() - 12)).astype(np.uint16)


@pytest.mark.parametrize(
    ("coder", "distance", "worst", "typical"),
    [
        *[("jpegxl", 0.1, 800, 80), ("jpegxl", 0.5, 2200, 300), ("jpegxl", 1.0, 6500, 450)],
        *[("avif", 0.1, 15, 3), ("avif", 0.5, 300, 25), ("avif", 1.0, 600, 40)],
    ],
)
def test_a_lossy_coder_is_as_lossy_as_asked(coder: str, distance: float, worst: int, typical: float) -> None:
    samples = base_like(coder)
    step = Rung(2, coder, distance)
    coded = coders.encode(samples, step)
    error = coders.decode(coded, step, samples.shape).astype(float) - samples
    assert 0 < np.abs(error).max() <= worst
    assert rms(error) <= typical
    assert abs(error.mean()) < typical / 20
    assert len(coded) < len(coders.encode(samples, rung("jpegxl")))


@pytest.mark.parametrize("coder", LOSSY)
def test_at_a_larger_distance_there_are_fewer_bytes_and_more_error(coder: str) -> None:
    samples = base_like(coder)
    sizes, errors = [], []
    for distance in (0.05, 0.3, 1.0, 3.0):
        step = rung(coder, distance)
        sizes.append(len(coders.encode(samples, step)))
        errors.append(rms(error_of(samples, step)))
    assert sizes == sorted(set(sizes), reverse=True)
    assert errors == sorted(set(errors))


@pytest.mark.parametrize("coder", LOSSLESS_ONLY)
def test_a_lossless_coder_refuses_a_distance(coder: str) -> None:
    with pytest.raises(ValueError, match=rf"coder {coder} is lossless; distance must be 0, not 0\.5"):
        coders.encode(noise(8, 8), rung(coder, 0.5))


@pytest.mark.parametrize("distance", [0.0, -0.5])
def test_avif_refuses_to_be_lossless(distance: float) -> None:
    with pytest.raises(ValueError, match="coder avif is lossy; distance must be above 0"):
        coders.encode(np.zeros((8, 8), np.uint16), rung("avif", distance))


@pytest.mark.parametrize("coder", EVERY)
def test_the_top_sample_is_taken(coder: str) -> None:
    samples = np.full((16, 16), top_sample(coder), np.uint16)
    samples[:8] = 0
    assert np.abs(error_of(samples, rung(coder))).max() <= (0 if coder in LOSSLESS else 20)


@pytest.mark.parametrize("value", [4096, 65535])
def test_avif_refuses_samples_above_its_top(value: int) -> None:
    samples = np.full((8, 8), 4095, np.uint16)
    coders.encode(samples, rung("avif"))
    samples[5, 3] = value
    with pytest.raises(ValueError, match=f"coder avif takes samples of 12 bits, not {value}"):
        coders.encode(samples, rung("avif"))


# --- how coarse -----------------------------------------------------------------------------------------------

distances = st.floats(1e-9, 1e9)


@given(one=distances, other=distances)
def test_the_quantiser_is_coarser_at_a_larger_distance(one: float, other: float) -> None:
    finer, coarser = (quantiser(distance) for distance in sorted((one, other)))
    assert isinstance(finer, int)
    assert 1 <= finer <= coarser <= 63


def test_the_quantiser_is_what_it_was() -> None:
    """Literal: the ladder's rungs are named by distances, and a lost base is made again from its rung's name."""
    named = {0.05: 1, 0.25: 9, 0.5: 18, 1.0: 27, 2.0: 36, 4.0: 45, 16.0: 63, 100.0: 63}
    assert {distance: quantiser(distance) for distance in named} == named


def test_quantisers_two_apart_code_differently() -> None:
    """libavif makes a quality of the number and a quantiser of that; from 1.4 on some neighbours become one."""
    samples = breast(120, 90)
    named = [2 ** ((number - 27) / 9) for number in range(1, 64)]
    assert [quantiser(distance) for distance in named] == [*range(1, 64)]
    coded = [coders.encode(samples, rung("avif", distance)) for distance in named]
    assert all(finer != coarser for finer, coarser in zip(coded, coded[2:], strict=False))


@pytest.mark.parametrize("coder", LOSSY)
@given(one=distances, other=distances)
def test_steps_are_larger_at_a_larger_distance(coder: str, one: float, other: float) -> None:
    finer, coarser = (step_octaves(rung(coder, distance)) for distance in sorted((one, other)))
    assert finer <= coarser


def test_steps_of_avif_have_no_gap() -> None:
    numbers = [step_octaves(rung("avif", 2 ** ((number - 27) / 9))) for number in range(1, 64)]
    assert numbers == sorted(set(numbers))
    assert max(np.diff(numbers)) < 0.4


@pytest.mark.parametrize("distance", [0.3, 0.5, 1.0, 2.0])
def test_an_octave_of_avif_is_what_halved_samples_come_to(distance: float) -> None:
    samples = breast(480, 400)
    halved = coders.encode(((samples + 1) // 2).astype(np.uint16), rung("avif", distance))
    wanted = step_octaves(rung("avif", distance)) + 1
    coarser = next(each for each in np.geomspace(distance, 16, 200) if step_octaves(rung("avif", each)) >= wanted)
    size = len(coders.encode(samples, rung("avif", float(coarser))))
    assert len(halved) / 1.4 < size < len(halved) * 1.4
    assert size < 0.75 * len(coders.encode(samples, rung("avif", distance)))


# --- damage ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coder", EVERY)
@pytest.mark.parametrize("damage", ["empty", "noise", "cut in the head", "cut in the middle", "another format"])
def test_bytes_that_are_no_codestream_are_a_payload_error(coder: str, damage: str) -> None:
    samples = fitting(noise(48, 40), "avif")
    coded = coders.encode(samples, rung(coder))
    other = next(name for name in EVERY if name != coder)
    damaged = {
        "empty": b"",
        "noise": np.random.default_rng(1).bytes(500),
        "cut in the head": coded[:10],
        "cut in the middle": coded[: len(coded) // 2],
        "another format": coders.encode(samples, rung(other)),
    }[damage]
    with pytest.raises(PayloadError, match=rf"^{coder} codestream cannot be decoded"):
        coders.decode(damaged, rung(coder), samples.shape)


@pytest.mark.parametrize("coder", EVERY)
@settings(max_examples=60, deadline=None)
@given(at=st.integers(0, 100_000), piece=st.binary(min_size=1, max_size=8))
def test_a_damaged_codestream_decodes_to_the_shape_or_is_a_payload_error(coder: str, at: int, piece: bytes) -> None:
    """Whether the samples are right is for the payload's checksum to say; here nothing else may come out."""
    shape = (24, 20)
    coded = bytearray(coders.encode(fitting(noise(*shape), coder), rung(coder)))
    start = at % len(coded)
    coded[start : start + len(piece)] = piece
    try:
        decoded = coders.decode(bytes(coded), rung(coder), shape)
    except PayloadError as error:
        assert coder in str(error)
    else:
        assert (decoded.shape, decoded.dtype) == (shape, np.uint16)


def test_a_png_with_one_bit_flipped_is_noticed_by_its_own_checksum() -> None:
    coded = bytearray(coders.encode(noise(24, 20), rung("png16")))
    coded[len(coded) // 2] ^= 1
    with pytest.raises(PayloadError, match="png16"):
        coders.decode(bytes(coded), rung("png16"), (24, 20))


@pytest.mark.parametrize("coder", EVERY)
@pytest.mark.parametrize("shape", [(20, 24), (24, 21), (23, 20), (480, 1), (24, 20, 1)])
def test_another_shape_than_announced_is_a_payload_error(coder: str, shape: tuple[int, ...]) -> None:
    coded = coders.encode(fitting(noise(24, 20), coder), rung(coder))
    with pytest.raises(PayloadError, match=rf"{coder} codestream holds uint16 \(24, 20\), not uint16"):
        coders.decode(coded, rung(coder), shape)  # type: ignore[arg-type]


@pytest.mark.parametrize("coder", EVERY)
def test_samples_of_another_kind_are_a_payload_error(coder: str) -> None:
    encoders = {
        "avif": lambda each: imagecodecs.avif_encode(each, bitspersample=8 if each.dtype == np.uint8 else 12),
        "png16": imagecodecs.png_encode,
        "jpegls": imagecodecs.jpegls_encode,
        "jpegxl": lambda each: imagecodecs.jpegxl_encode(each, lossless=True),
    }
    eight = bytes(encoders[coder](np.zeros((24, 20), np.uint8)))
    with pytest.raises(PayloadError, match=r"holds uint8 \(24, 20\)"):
        coders.decode(eight, rung(coder), (24, 20))
    colour = bytes(encoders[coder](np.zeros((24, 20, 3), np.uint16)))
    with pytest.raises(PayloadError, match=r"holds uint16 \(24, 20, 3\)"):
        coders.decode(colour, rung(coder), (24, 20))


def test_a_coder_that_this_release_does_not_have_is_a_payload_error() -> None:
    with pytest.raises(PayloadError, match="webp"):
        coders.decode(b"RIFF", rung("webp"), (1, 1))
