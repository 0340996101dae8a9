"""Proves which pixels of an original count as padding, whatever its header holds."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from storage.dicom.dicomfile import accept_odd_values, parse
from storage.dicom.padding_range import padding_mask, padding_range

VALUE, LIMIT = 0x0120, 0x0121


def element(number: int, vr: bytes, value: bytes) -> bytes:
    head = struct.pack("<HH2s", 0x0028, number, vr)
    return head + (struct.pack("<HI", 0, len(value)) if vr in (b"OW", b"UN") else struct.pack("<H", len(value))) + value


@pytest.mark.parametrize(
    ("elements", "padding"),
    [
        ([(VALUE, b"US", b"\x05\0")], (5, 5)),
        ([(VALUE, b"US", b"\x1e\0"), (LIMIT, b"US", b"\0\0")], (0, 30)),
        ([(VALUE, b"US", b"")], None),
        ([(LIMIT, b"US", b"\x05\0")], None),
        ([(VALUE, b"SS", b"\xff\xff")], (65535, 65535)),
        ([(VALUE, b"SS", b"\xf0\xff"), (LIMIT, b"SS", b"\xff\xff")], (65520, 65535)),
        ([(VALUE, b"SS", b"\xf0\xff"), (LIMIT, b"SS", b"\x05\0")], (0, 5)),
        ([(VALUE, b"UL", b"\0\0\0\0"), (LIMIT, b"UL", b"\0\0\1\0")], (0, 65535)),
        ([(VALUE, b"UL", b"\0\0\1\0")], None),
        ([(VALUE, b"US", b"\x05\0\x07\0")], (5, 7)),
        ([(VALUE, b"OW", b"\x05\0")], (5, 5)),
        ([(VALUE, b"UN", b"\x05\0")], (5, 5)),
        ([(VALUE, b"IS", b"5 ")], (5, 5)),
        ([(VALUE, b"LO", b"5 ")], (5, 5)),
        ([(VALUE, b"LO", b"air ")], None),
        ([(VALUE, b"US", b"\0\0\0")], None),  # not a whole number of values: pydicom raises
        ([(VALUE, b"US", b"\x05\0"), (LIMIT, b"US", b"\0\0\0")], (5, 5)),
    ],
)
def test_padding_range(elements: list[tuple[int, bytes, bytes]], padding: tuple[int, int] | None) -> None:
    accept_odd_values()
    header = parse(b"".join(element(*one) for one in elements), ExplicitVRLittleEndian)
    assert padding_range(header) == padding


def test_padding_mask() -> None:
    header = Dataset()
    pixels = np.array([[0, 4, 5], [6, 7, 8]], dtype=np.uint16)
    assert padding_mask(pixels, header) is None
    header.PixelPaddingValue = 5
    header.PixelPaddingRangeLimit = 7
    found = padding_mask(pixels, header)
    assert found is not None
    assert found.tolist() == [[False, False, True], [True, True, False]]
    header.PixelPaddingValue = header.PixelPaddingRangeLimit = 3
    assert padding_mask(pixels, header) is None
