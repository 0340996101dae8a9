"""Proves that padding whose lists or images contradict the mask is refused, and that no value overflows."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from storage.errors import PayloadError
from storage.formats import padding
from storage.formats.padding import unpack_mask, unpack_padding

ROWS, COLUMNS = 7, 9
LIST, IMAGE = 0, 1
FIRST_THREE = zlib.compress(bytes([0, 0, 0]))
"""The positions 0, 1 and 2."""


def packed(values_coder: int, values: bytes, mask: bytes | None = None) -> bytes:
    """Padding for an image of which every pixel is padding, unless a mask is given as an image."""
    coded = zlib.compress(bytes(COLUMNS)) if mask is None else mask
    head = padding._HEADER.pack(padding.FORMAT, LIST if mask is None else IMAGE, values_coder, len(coded))
    return head + coded + values


def listed(common: int, lowest: int, width: int, count: int, where: bytes, raw: bytes) -> bytes:
    return padding._LISTED.pack(common, lowest, width, count, len(where)) + where + zlib.compress(raw)


def image(values: NDArray[Any]) -> bytes:
    return padding._packed_image(values)


def unpacked(data: bytes) -> NDArray[np.uint16]:
    mask, values = unpack_padding(data, ROWS, COLUMNS)
    assert mask.all()
    return values.reshape(ROWS, COLUMNS)


def test_a_list_that_agrees_is_read() -> None:
    values = unpacked(packed(LIST, listed(5, 10, 1, 3, FIRST_THREE, bytes([0, 1, 255]))))
    assert values[0, :4].tolist() == [10, 11, 265, 5]
    assert (values[1:] == 5).all()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (listed(5, 10, 1, 2, FIRST_THREE, bytes(2)), "3 positions and 2 bytes for 2 values"),
        (listed(5, 10, 1, 4, FIRST_THREE, bytes(4)), "3 positions and 4 bytes for 4 values"),
        (listed(5, 10, 2, 3, FIRST_THREE, bytes(3)), "3 positions and 3 bytes for 3 values"),
        (listed(5, 10, 3, 3, FIRST_THREE, bytes(9)), "malformed: 3 of 63 pixels in 3 bytes each"),
        (listed(5, 10, 1, 64, FIRST_THREE, bytes(64)), "malformed: 64 of 63 pixels"),
        (listed(5, 65535, 1, 3, FIRST_THREE, bytes([0, 0, 1])), "exceed 16 bits"),
        (listed(5, 10, 2, 3, FIRST_THREE, b"\xff" * 6), "exceed 16 bits"),
    ],
)
def test_a_list_that_contradicts_itself_is_refused(values: bytes, says: str) -> None:
    with pytest.raises(PayloadError, match=says):
        unpack_padding(packed(LIST, values), ROWS, COLUMNS)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_an_image_of_values_has_the_stated_width(kind: type[np.unsignedinteger[Any]]) -> None:
    values = np.arange(ROWS * COLUMNS, dtype=kind).reshape(ROWS, COLUMNS)
    width = values.dtype.itemsize
    head = padding._IMAGE_HEADER.pack(1000, width)
    assert np.array_equal(unpacked(packed(IMAGE, head + image(values))), values.astype(np.uint16) + 1000)
    other = padding._IMAGE_HEADER.pack(1000, 3 - width)
    with pytest.raises(PayloadError, match=rf"padding is an image of {values.dtype} \({ROWS}, {COLUMNS}\)"):
        unpack_padding(packed(IMAGE, other + image(values)), ROWS, COLUMNS)


def test_a_mask_is_true_or_false() -> None:
    mask = np.ones((ROWS, COLUMNS), np.uint8)
    constant, value = 2, b"\7\0"
    assert (unpacked(packed(constant, value, image(mask))) == 7).all()
    mask[3, 4] = 2
    with pytest.raises(PayloadError, match="padding mask has values other than 0 and 1"):
        unpack_padding(packed(constant, value, image(mask)), ROWS, COLUMNS)


@pytest.mark.parametrize(("data", "says"), [(b"no zlib", "cannot be inflated"), (zlib.compress(bytes(13)), "13 bytes")])
def test_a_mask_alone_of_another_size_is_refused(data: bytes, says: str) -> None:
    with pytest.raises(PayloadError, match=says):
        unpack_mask(data, ROWS, COLUMNS)
