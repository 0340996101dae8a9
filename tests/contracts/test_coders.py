"""Proves one contract for every coder of storage.formats.coders, with damaged and mislabelled bytes."""

from __future__ import annotations

import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from storage.errors import PayloadError
from storage.formats import coders
from storage.formats.coders import CODERS, Samples
from storage.records import OperatingPoint
from tests.support.samples import breast

EVERY = sorted(CODERS)
PLAIN = ["jpegls", "png16"]


def point(coder: str, distance: float = 0.0) -> OperatingPoint:
    """A lossless operating point, unless a distance is given."""
    return OperatingPoint(2, coder, distance, effort=1)


def round_trip(samples: Samples, step: OperatingPoint) -> Samples:
    return coders.decode(coders.encode(samples, step), step, samples.shape)


def error_of(samples: Samples, step: OperatingPoint) -> NDArray[np.float64]:
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


def test_names_of_the_coders() -> None:
    assert EVERY == ["jpegls", "jpegxl", "png16"]


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("coder", EVERY)
def test_distance_0_is_lossless(coder: str, name: str) -> None:
    samples = PICTURES[name]
    before = samples.copy()
    coded = coders.encode(samples, point(coder))
    assert isinstance(coded, bytes)
    decoded = coders.decode(coded, point(coder), samples.shape)
    assert decoded.dtype == np.uint16
    assert np.array_equal(decoded, samples)
    assert np.array_equal(samples, before)


@pytest.mark.parametrize("coder", EVERY)
@settings(max_examples=30, deadline=None)
@given(samples=arrays(np.uint16, array_shapes(min_dims=2, max_dims=2, max_side=40)))
def test_distance_0_is_lossless_for_any_samples(coder: str, samples: Samples) -> None:
    assert np.array_equal(round_trip(samples, point(coder)), samples)


@pytest.mark.parametrize("step", [*map(point, EVERY), point("jpegxl", 1.0)], ids=str)
def test_the_layout_in_memory_does_not_matter(step: OperatingPoint) -> None:
    samples = noise(40, 30)
    expected = coders.encode(samples, step)
    assert coders.encode(samples.copy(), step) == expected  # encoding is deterministic
    for same in (np.asfortranarray(samples), np.repeat(samples, 2, axis=1)[:, ::2], samples[::-1].copy()[::-1]):
        assert coders.encode(same, step) == expected


@pytest.mark.parametrize("step", [*map(point, EVERY), OperatingPoint(2, "jpegxl", 1.0)], ids=str)
def test_the_number_of_threads_does_not_matter(step: OperatingPoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lost base is encoded again from its original on any machine, and must be the same object."""
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
    coded = coders.encode(noise(20, 20), point(coder))
    magic = {
        "png16": [b"\x89PNG\r\n\x1a\n"],
        "jpegls": [b"\xff\xd8\xff"],
        "jpegxl": [b"\xff\x0a", b"\0\0\0\x0cJXL "],
    }
    assert any(coded.startswith(start) for start in magic[coder])


def test_png_is_16_bit_gray() -> None:
    header = coders.encode(noise(20, 30), point("png16"))[8:33]
    assert header[4:8] == b"IHDR"
    assert header[8:16] == (30).to_bytes(4, "big") + (20).to_bytes(4, "big")
    assert header[16:18] == bytes([16, 0])  # bit depth, colour type


@pytest.mark.parametrize("coder", EVERY)
def test_encoding_makes_an_image_smaller(coder: str) -> None:
    samples = breast(240, 200)
    assert len(coders.encode(samples, point(coder))) < samples.nbytes / 2


# --- lossy ----------------------------------------------------------------------------------------------------


def base_like() -> Samples:
    """An image scaled to 16 bits, like a base."""
    return (breast(240, 200) << 4).astype(np.uint16)


@pytest.mark.parametrize(("distance", "worst", "typical"), [(0.1, 800, 80), (0.5, 2200, 300), (1.0, 6500, 450)])
def test_jpegxl_error_at_each_distance(distance: float, worst: int, typical: float) -> None:
    samples = base_like()
    step = OperatingPoint(2, "jpegxl", distance)
    coded = coders.encode(samples, step)
    error = coders.decode(coded, step, samples.shape).astype(float) - samples
    assert 0 < np.abs(error).max() <= worst
    assert rms(error) <= typical
    assert abs(error.mean()) < typical / 20
    assert len(coded) < len(coders.encode(samples, point("jpegxl")))


def test_a_larger_distance_gives_fewer_bytes_and_more_error() -> None:
    samples = base_like()
    steps = [point("jpegxl", distance) for distance in (0.05, 0.3, 1.0, 3.0)]
    sizes = [len(coders.encode(samples, step)) for step in steps]
    errors = [rms(error_of(samples, step)) for step in steps]
    assert sizes == sorted(set(sizes), reverse=True)
    assert errors == sorted(set(errors))


@pytest.mark.parametrize("coder", PLAIN)
def test_a_lossless_coder_refuses_a_distance(coder: str) -> None:
    with pytest.raises(ValueError, match=rf"coder {coder} is lossless; distance must be 0, not 0\.5"):
        coders.encode(noise(8, 8), point(coder, 0.5))


@pytest.mark.parametrize("coder", EVERY)
def test_the_largest_sample_is_encoded(coder: str) -> None:
    samples = np.full((16, 16), 65535, np.uint16)
    samples[:8] = 0
    assert not error_of(samples, point(coder)).any()


# --- damage ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coder", EVERY)
@pytest.mark.parametrize("damage", ["empty", "noise", "cut in the head", "cut in the middle", "another format"])
def test_an_invalid_codestream_is_a_payload_error(coder: str, damage: str) -> None:
    samples = noise(48, 40)
    coded = coders.encode(samples, point(coder))
    other = next(name for name in EVERY if name != coder)
    damaged = {
        "empty": b"",
        "noise": np.random.default_rng(1).bytes(500),
        "cut in the head": coded[:10],
        "cut in the middle": coded[: len(coded) // 2],
        "another format": coders.encode(samples, point(other)),
    }[damage]
    with pytest.raises(PayloadError, match=rf"^{coder} codestream cannot be decoded"):
        coders.decode(damaged, point(coder), samples.shape)


@pytest.mark.parametrize("coder", EVERY)
@settings(max_examples=60, deadline=None)
@given(at=st.integers(0, 100_000), piece=st.binary(min_size=1, max_size=8))
def test_a_damaged_codestream_decodes_to_its_shape_or_is_a_payload_error(coder: str, at: int, piece: bytes) -> None:
    """The payload's checksum detects wrong samples. A coder must only not raise another error."""
    shape = (24, 20)
    coded = bytearray(coders.encode(noise(*shape), point(coder)))
    start = at % len(coded)
    coded[start : start + len(piece)] = piece
    try:
        decoded = coders.decode(bytes(coded), point(coder), shape)
    except PayloadError as error:
        assert coder in str(error)
    else:
        assert (decoded.shape, decoded.dtype) == (shape, np.uint16)


def test_the_checksum_of_png_detects_a_flipped_bit() -> None:
    coded = bytearray(coders.encode(noise(24, 20), point("png16")))
    coded[len(coded) // 2] ^= 1
    with pytest.raises(PayloadError, match="png16"):
        coders.decode(bytes(coded), point("png16"), (24, 20))


@pytest.mark.parametrize("coder", EVERY)
@pytest.mark.parametrize("shape", [(20, 24), (24, 21), (23, 20), (480, 1), (24, 20, 1)])
def test_another_shape_is_a_payload_error(coder: str, shape: tuple[int, ...]) -> None:
    coded = coders.encode(noise(24, 20), point(coder))
    with pytest.raises(PayloadError, match=rf"{coder} codestream holds \(24, 20\), not uint16"):
        coders.decode(coded, point(coder), shape)  # type: ignore[arg-type]


@pytest.mark.parametrize("coder", EVERY)
def test_samples_of_another_type_are_a_payload_error(coder: str) -> None:
    encoders = {
        "png16": imagecodecs.png_encode,
        "jpegls": imagecodecs.jpegls_encode,
        "jpegxl": lambda each: imagecodecs.jpegxl_encode(each, lossless=True),
    }
    eight = bytes(encoders[coder](np.zeros((24, 20), np.uint8)))
    with pytest.raises(PayloadError, match=r"holds uint8 \(24, 20\)"):
        coders.decode(eight, point(coder), (24, 20))
    colour = bytes(encoders[coder](np.zeros((24, 20, 3), np.uint16)))
    with pytest.raises(PayloadError, match=r"holds (uint16 )?\(24, 20, 3\)"):
        coders.decode(colour, point(coder), (24, 20))


def test_an_unknown_coder_is_a_payload_error() -> None:
    with pytest.raises(PayloadError, match="webp"):
        coders.decode(b"RIFF", point("webp"), (1, 1))
