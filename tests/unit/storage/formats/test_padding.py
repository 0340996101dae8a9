"""Proves that pixel padding in a payload is restored exactly and takes few bytes, and that damage is detected."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes
from numpy.typing import NDArray

from storage.dicom.codestreams import codestream_header
from storage.errors import PayloadError
from storage.formats import padding
from storage.formats.padding import pack_mask, pack_padding, unpack_mask, unpack_padding
from tests.support.samples import breast

Pixels = NDArray[np.uint16]
Mask = NDArray[np.bool_]


def comes_back(pixels: Pixels, mask: Mask) -> bytes:
    """Pack padding, and verify that it unpacks to the same."""
    before = pixels.copy(), mask.copy()
    packed = pack_padding(pixels, mask)
    assert np.array_equal(pixels, before[0])
    assert np.array_equal(mask, before[1])
    found, values = unpack_padding(packed, *mask.shape)
    assert (found.dtype, values.dtype, values.ndim) == (np.bool_, np.uint16, 1)
    assert np.array_equal(found, mask)
    assert np.array_equal(values, pixels[mask])
    return packed


@st.composite
def images(draw: st.DrawFn) -> tuple[Pixels, Mask]:
    """Small images of few or many values, padded nowhere, rarely, often or everywhere."""
    shape = draw(array_shapes(min_dims=2, max_dims=2, max_side=60))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    low = draw(st.integers(0, 65535))
    high = draw(st.integers(low, min(low + draw(st.sampled_from([0, 1, 30, 255, 256, 65535])), 65535)))
    pixels = random.integers(low, high + 1, shape).astype(np.uint16)
    common = random.random(shape) < draw(st.sampled_from([0.0, 0.5, 0.95]))
    pixels[common] = low
    return pixels, random.random(shape) < draw(st.sampled_from([0.0, 0.02, 0.5, 0.98, 1.0]))


@settings(max_examples=150, deadline=None)
@given(image=images())
def test_padding_is_restored(image: tuple[Pixels, Mask]) -> None:
    comes_back(*image)


@settings(max_examples=50, deadline=None)
@given(image=images(), more=st.tuples(st.integers(0, 9), st.integers(0, 9)).filter(any))
def test_padding_of_another_size_is_detected_or_has_that_size(
    image: tuple[Pixels, Mask], more: tuple[int, int]
) -> None:
    pixels, mask = image
    rows, columns = mask.shape[0] + more[0], mask.shape[1] + more[1]
    try:
        found, values = unpack_padding(pack_padding(pixels, mask), rows, columns)
    except PayloadError:
        return
    assert found.shape == (rows, columns)
    assert values.size == np.count_nonzero(found)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(image=images(), data=st.data())
def test_damage_is_a_payload_error_or_padding_of_that_size(image: tuple[Pixels, Mask], data: st.DataObject) -> None:
    pixels, mask = image
    damaged = bytearray(pack_padding(pixels, mask))
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(damaged)))
    for what in (bytes(damaged), bytes(damaged[:cut])):
        try:
            found, values = unpack_padding(what, *mask.shape)
        except PayloadError:
            continue
        assert found.shape == mask.shape
        assert values.size == np.count_nonzero(found)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "has 0 bytes"),
        (bytes(7), "format 0"),
        (struct.pack("<BBBI", 1, 0, 2, 90), "its mask alone has 90"),
        (struct.pack("<BBBI", 1, 7, 2, 0), "coding 7"),
        (struct.pack("<BBBI", 1, 0, 2, 8) + zlib.compress(b""), "value has 0 bytes"),
        (struct.pack("<BBBI", 1, 0, 9, 8) + zlib.compress(b""), "coding 9"),
        (struct.pack("<BBBI", 1, 0, 1, 8) + zlib.compress(b"") + b"\0\0\1", "the mask is empty"),
        (struct.pack("<BBBI", 1, 0, 0, 8) + zlib.compress(b""), "header alone"),
        (struct.pack("<BBBI", 1, 0, 2, 8) + b"no zlib!", "cannot be inflated"),
        (struct.pack("<BBBI", 1, 0, 2, 15) + zlib.compress(bytes(10**5), 9)[:15], "not a complete stream"),
        (struct.pack("<BBBI", 1, 0, 2, 10) + zlib.compress(bytes([255, 200])) + b"\0", "beyond 63 pixels"),
        (struct.pack("<BBBI", 1, 1, 2, 9) + b"\xff\x0a\xff\xff\xff\xff\xff\xff\xff", "is an image of"),
        (struct.pack("<BBBI", 1, 1, 2, 0), "not a JPEG XL codestream"),
    ],
)
def test_malformed_padding(data: bytes, says: str) -> None:
    with pytest.raises(PayloadError, match=says):
        unpack_padding(data, 7, 9)


@pytest.mark.slow
def test_a_bomb_is_not_inflated() -> None:
    """Ten megabytes of zeros in ten kilobytes, for an image that needs at most 64 bytes, and a huge JPEG XL image."""
    bomb = zlib.compress(bytes(10**7), 9)
    with pytest.raises(PayloadError, match="not a complete stream of at most 64 bytes"):
        unpack_padding(struct.pack("<BBBI", 1, 0, 2, len(bomb)) + bomb + b"\0\0", 7, 9)
    picture = padding._packed_image(np.zeros((5000, 6000), np.uint8))
    with pytest.raises(PayloadError, match="5000 x 6000, not 7 x 9"):
        unpack_padding(struct.pack("<BBBI", 1, 1, 2, len(picture)) + picture + b"\0\0", 7, 9)


@pytest.mark.parametrize("shape", [(8, 8), (256, 256), (7, 9), (257, 512), (300, 400), (640, 512), (1, 1000), (900, 8)])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_sizes_are_read_from_codestreams(shape: tuple[int, int], kind: type[np.unsignedinteger[object]]) -> None:
    assert codestream_header(padding._packed_image(np.zeros(shape, kind)))[:2] == shape


# --- what it takes --------------------------------------------------------------------------------------------


def air_of(values: str) -> tuple[Pixels, Mask]:
    """A breast whose air is padding from 0 to 30: one value, 3% other values, a smooth slope, or a slope with noise."""
    random = np.random.default_rng(1)
    pixels = breast(1000, 800)
    air = pixels == 0
    pixels = np.maximum(pixels, 31).astype(np.uint16)
    slope = np.broadcast_to(np.linspace(0, 30, 800), pixels.shape)
    noisy = np.clip(slope + random.standard_normal(pixels.shape), 0, 30)
    rare = np.where(random.random(pixels.shape) < 0.97, 0, random.integers(1, 31, pixels.shape))
    chosen = {"one value": 0 * slope, "rare": rare, "slope": slope, "noise": noisy}[values]
    pixels[air] = np.rint(chosen[air])
    return pixels, air


@pytest.mark.slow
@pytest.mark.parametrize(
    ("values", "bits_per_pixel"),
    [
        ("one value", 0.015),
        ("rare", 0.36),  # their entropy is 0.34
        ("slope", 0.07),
        ("noise", 2.35),  # that of the noise is 2.1
    ],
)
def test_padding_takes_few_bytes(values: str, bits_per_pixel: float) -> None:
    pixels, air = air_of(values)
    assert 8 * len(comes_back(pixels, air)) / air.sum() < bits_per_pixel


def test_single_pixels_take_little_more_than_their_entropy() -> None:
    """One tissue pixel in a thousand with a value in the padding range: the entropy is 0.0114 bits per pixel."""
    pixels, air = air_of("one value")
    mask = air | (np.random.default_rng(2).random(air.shape) < 0.001)
    pixels[mask] = 0
    assert len(comes_back(pixels, mask)) < len(pack_mask(mask))
    assert 8 * len(comes_back(pixels, mask)) / mask.size < 0.03


def test_a_mask_alone() -> None:
    mask = breast(300, 201) == 0
    assert np.array_equal(unpack_mask(pack_mask(mask), *mask.shape), mask)
    assert pack_mask(mask)[0] != padding.FORMAT, "bases of both kinds have to be told apart"
