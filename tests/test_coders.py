"""storage.coders: one contract for every coder, damage and disguise included."""

from __future__ import annotations

import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from storage import coders
from storage.coders import CODERS, Samples
from storage.errors import PayloadError
from storage.records import Rung
from tests.samples import breast

EVERY = sorted(CODERS)
LOSSLESS_ONLY = ["jpegls", "png16"]


def rung(coder: str, distance: float = 0.0) -> Rung:
    return Rung(2, coder, distance, effort=1)


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
    assert EVERY == ["jpegls", "jpegxl", "png16"]


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("coder", EVERY)
def test_at_distance_0_every_sample_comes_back(coder: str, name: str) -> None:
    samples = PICTURES[name]
    before = samples.copy()
    coded = coders.encode(samples, rung(coder))
    assert isinstance(coded, bytes)
    decoded = coders.decode(coded, rung(coder), samples.shape)
    assert decoded.dtype == np.uint16
    assert np.array_equal(decoded, samples)
    assert np.array_equal(samples, before)


@pytest.mark.parametrize("coder", EVERY)
@settings(max_examples=30, deadline=None)
@given(samples=arrays(np.uint16, array_shapes(min_dims=2, max_dims=2, max_side=40)))
def test_at_distance_0_any_samples_come_back(coder: str, samples: Samples) -> None:
    decoded = coders.decode(coders.encode(samples, rung(coder)), rung(coder), samples.shape)
    assert np.array_equal(decoded, samples)


@pytest.mark.parametrize("coder", EVERY)
def test_the_layout_in_memory_does_not_matter(coder: str) -> None:
    samples = noise(40, 30)
    expected = coders.encode(samples, rung(coder))
    for same in (np.asfortranarray(samples), np.repeat(samples, 2, axis=1)[:, ::2]):
        decoded = coders.decode(coders.encode(same, rung(coder)), rung(coder), samples.shape)
        assert np.array_equal(decoded, samples)
    assert coders.encode(samples.copy(), rung(coder)) == expected  # and coding is a function


@pytest.mark.parametrize("coder", EVERY)
def test_the_bytes_are_a_plain_file_of_the_format(coder: str) -> None:
    coded = coders.encode(noise(20, 20), rung(coder))
    magic = {"png16": [b"\x89PNG\r\n\x1a\n"], "jpegls": [b"\xff\xd8\xff"], "jpegxl": [b"\xff\x0a", b"\0\0\0\x0cJXL "]}
    assert any(coded.startswith(start) for start in magic[coder])


def test_png_is_16_bit_gray() -> None:
    header = coders.encode(noise(20, 30), rung("png16"))[8:33]
    assert header[4:8] == b"IHDR"
    assert header[8:16] == (30).to_bytes(4, "big") + (20).to_bytes(4, "big")
    assert header[16:18] == bytes([16, 0])  # bit depth, colour type


@pytest.mark.parametrize("coder", EVERY)
def test_coding_makes_a_picture_smaller(coder: str) -> None:
    samples = breast(240, 200)
    assert len(coders.encode(samples, rung(coder))) < samples.nbytes / 2


# --- lossy ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("distance", "worst", "rms"), [(0.1, 800, 80), (0.5, 2200, 300), (1.0, 6500, 450)])
def test_jpegxl_is_as_lossy_as_asked(distance: float, worst: int, rms: float) -> None:
    samples = (breast(240, 200) << 4).astype(np.uint16)  # 12 bits scaled to 16, as a base is
    step = Rung(2, "jpegxl", distance)
    coded = coders.encode(samples, step)
    decoded = coders.decode(coded, step, samples.shape)
    error = decoded.astype(float) - samples
    assert 0 < np.abs(error).max() <= worst
    assert np.sqrt(np.mean(error**2)) <= rms
    assert abs(error.mean()) < rms / 40
    assert len(coded) < len(coders.encode(samples, rung("jpegxl")))


def test_jpegxl_takes_fewer_bytes_and_errs_more_at_a_larger_distance() -> None:
    samples = (breast(240, 200) << 4).astype(np.uint16)
    sizes, errors = [], []
    for distance in (0.05, 0.3, 1.0, 3.0):
        coded = coders.encode(samples, rung("jpegxl", distance))
        decoded = coders.decode(coded, rung("jpegxl", distance), samples.shape).astype(float)
        sizes.append(len(coded))
        errors.append(np.square(decoded - samples).mean())
    assert sizes == sorted(sizes, reverse=True)
    assert errors == sorted(errors)


@pytest.mark.parametrize("coder", LOSSLESS_ONLY)
def test_a_lossless_coder_refuses_a_distance(coder: str) -> None:
    with pytest.raises(ValueError, match=rf"coder {coder} is lossless; distance must be 0, not 0\.5"):
        coders.encode(noise(8, 8), rung(coder, 0.5))


# --- damage ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coder", EVERY)
@pytest.mark.parametrize("damage", ["empty", "noise", "cut in the head", "cut in the middle", "another format"])
def test_bytes_that_are_no_codestream_are_a_payload_error(coder: str, damage: str) -> None:
    samples = noise(48, 40)
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
    coded = bytearray(coders.encode(noise(*shape), rung(coder)))
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
    coded = coders.encode(noise(24, 20), rung(coder))
    with pytest.raises(PayloadError, match=rf"{coder} codestream holds uint16 \(24, 20\), not uint16"):
        coders.decode(coded, rung(coder), shape)  # type: ignore[arg-type]


@pytest.mark.parametrize("coder", EVERY)
def test_samples_of_another_kind_are_a_payload_error(coder: str) -> None:
    encoders = {
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
