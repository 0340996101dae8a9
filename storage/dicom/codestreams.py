"""Reads the image size in the header of a codestream, without a decoder.

A decoder allocates the size that the codestream's header states, so a kilobyte can request gigabytes.
``codestream_header`` reads every format that this archive decodes: JPEG and JPEG-LS (ITU-T T.81 B.2.2, T.87 C.2.2),
JPEG 2000 and HTJ2K (T.800 A.5.1), JPEG XL (ISO/IEC 18181-1 D.2) and PNG. RLE Lossless has no size in its codestream;
by PS3.5 Annex G the size is that of the data set.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from itertools import takewhile
from typing import NamedTuple

from pydicom.encaps import generate_fragments
from pydicom.uid import RLELossless

from storage.dicom.decode_limits import decode_limits
from storage.errors import PixelError, TooManyPixels

_JPEG, _J2K, _PNG, _JXL = b"\xff\xd8", b"\xff\x4f\xff\x51", b"\x89PNG\r\n\x1a\n", b"\xff\x0a"
_JP2_BOX = b"\x00\x00\x00\x0cjP  \r\n\x87\n"
_JXL_BOX = b"\x00\x00\x00\x0cJXL \r\n\x87\n"
_STARTS = (_JPEG, _J2K, _JP2_BOX, _JXL, _JXL_BOX)
_FRAME_HEADERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
"""Markers of frame headers: SOF of JPEG, and SOF55 of JPEG-LS."""
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD9)}
"""JPEG markers that no length follows (T.81 B.1.1.3)."""
_COD, _SOT = 0x52, 0x90
"""JPEG 2000 markers of the coding style, and of the first tile, which ends the main header (T.800 A.2)."""

Bytes = bytes | memoryview


class CodestreamHeader(NamedTuple):
    """Rows, columns and samples per pixel that a codestream states; 0 samples if its first bytes do not state them."""

    rows: int
    columns: int
    samples: int

    @property
    def pixels(self) -> int:
        return self.rows * self.columns * max(self.samples, 1)


def codestream_header(data: bytes) -> CodestreamHeader:
    """The size in a codestream's header. Raises PixelError if the format is unknown or the header is truncated."""
    try:
        if data[:4] == _J2K:
            return _jpeg_2000(data)
        if data[:12] == _JP2_BOX:
            return _jpeg_2000(_box(data, {b"jp2c": 0}))
        if data[:2] == _JXL:
            return _jpeg_xl(data)
        if data[:12] == _JXL_BOX:
            return _jpeg_xl(_box(data, {b"jxlc": 0, b"jxlp": 4}))
        if data[:8] == _PNG:
            return _png(data)
        if data[:2] == _JPEG:
            return _jpeg(data)
    except (struct.error, IndexError) as error:
        raise PixelError("codestream cannot be decoded: it ends inside its header") from error
    raise PixelError("codestream cannot be decoded: its format is unknown")


def check_pixels(what: str, rows: int, columns: int, samples: int) -> None:
    """Raises TooManyPixels if a frame has more samples than limits.pixels. ``what``: the beginning of the message."""
    limit = decode_limits().pixels
    if rows * columns * max(samples, 1) > limit:
        size = f"{rows} x {columns}" + (f" x {samples}" if samples > 1 else "")
        raise TooManyPixels(f"{what} {size} pixels, more than the {limit} that are decoded here (limits.pixels)")


def check_codestream(data: bytes) -> CodestreamHeader:
    """The header of a codestream.

    Raises TooManyPixels if it states more than limits.pixels, PixelError if it states no size.
    """
    header = codestream_header(data)
    check_pixels("codestream announces", *header)
    return header


def is_transformed_rgb(data: bytes) -> bool:
    """Whether a codestream is JPEG 2000 with its colour transform, from which decoders return RGB (T.800 A.6.1, G)."""
    try:
        codestream = _box(data, {b"jp2c": 0}) if data[:12] == _JP2_BOX else data
        if codestream[:4] != _J2K:
            return False
        main_header = takewhile(lambda segment: segment[0] != _SOT, _segments(codestream))
        return any(marker == _COD and segment[4] == 1 for marker, segment in main_header)
    except (PixelError, struct.error, IndexError):
        return False


def _jpeg(data: bytes) -> CodestreamHeader:
    """The largest frame header before the first scan."""
    found: list[CodestreamHeader] = []
    for marker, segment in _segments(data):
        if marker in _FRAME_HEADERS:
            rows, columns, samples = struct.unpack_from(">xHHB", segment)
            found.append(CodestreamHeader(rows, columns, samples))
    if not found:
        raise PixelError("codestream cannot be decoded: it has no frame header before its first scan")
    return max(found, key=lambda header: header.pixels)


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Markers and the segments that follow them, up to the first scan (T.81 B.1.1)."""
    at = 2
    while True:
        while data[at] != 0xFF:  # decoders skip such bytes too
            at += 1
        while data[at] == 0xFF:  # fill bytes
            at += 1
        marker = data[at]
        at += 1
        if marker in (0xDA, 0xD9):
            return
        if marker in _WITHOUT_LENGTH or marker == 0:
            continue
        length = struct.unpack_from(">H", data, at)[0]
        yield marker, data[at + 2 : at + length]
        at += max(length, 2)


def _jpeg_2000(data: bytes) -> CodestreamHeader:
    if data[:4] != _J2K:
        raise PixelError("codestream cannot be decoded: it does not begin with a SIZ segment")
    width, height, left, top = struct.unpack_from(">4I", data, 8)
    samples = struct.unpack_from(">H", data, 40)[0]
    return CodestreamHeader(max(height - top, 0), max(width - left, 0), samples)


def _png(data: bytes) -> CodestreamHeader:
    columns, rows, _, kind = struct.unpack_from(">IIBB", data, 16)
    return CodestreamHeader(rows, columns, {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}.get(kind, 4))


_RATIOS = ((1, 1), (1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
"""Columns to rows by the ratio code of SizeHeader; code 0 means that the columns are stored."""


def _jpeg_xl(data: bytes) -> CodestreamHeader:
    """SizeHeader: rows, and columns as a number or as a ratio to the rows. The number of samples follows too late."""
    if data[:2] != _JXL:
        raise PixelError("codestream cannot be decoded: it is not JPEG XL")
    bits, at = int.from_bytes(data[2:14], "little"), 0

    def read(count: int) -> int:
        nonlocal at
        at += count
        return (bits >> (at - count)) & ((1 << count) - 1)

    def side(small: int) -> int:
        return 8 * (1 + read(5)) if small else 1 + read((9, 13, 18, 30)[read(2)])

    small = read(1)
    rows = side(small)
    ratio = read(3)
    numerator, denominator = _RATIOS[ratio]
    return CodestreamHeader(rows, rows * numerator // denominator if ratio else side(small), 0)


def _box(data: bytes, starts: Mapping[bytes, int]) -> bytes:
    """The content of the first box of one of these types, from the start given for the type.

    The first of several boxes with parts of a JPEG XL codestream begins with a 4-byte index.
    """
    for kind, content in _boxes(data):
        if kind in starts:
            return content[starts[kind] :]
    raise PixelError("codestream cannot be decoded: its container holds none")


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Type and content of the top-level boxes of a container (ISO/IEC 14496-12)."""
    at = 0
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        head = 8
        if length == 1:
            length, head = struct.unpack_from(">Q", data, at + 8)[0], 16
        if length == 0:
            length = len(data) - at
        yield kind, data[at + head : at + length]
        at += max(length, 8)


# --- the fragments of an encapsulated value ---


def fragments_of(value: Bytes) -> list[bytes]:
    """The fragments of an encapsulated value (PS3.5 A.4), without the offset table; none if they cannot be found."""
    try:
        return list(generate_fragments(bytes(value)))[1:]
    except ValueError:
        return []


def codestreams_begun(value: Bytes, syntax: str) -> int:
    """The number of fragments that begin a codestream.

    Decoders ignore codestreams beyond Number of Frames. Without an offset table, they may take all fragments for one
    frame.
    """
    one_each = syntax == RLELossless  # PS3.5 A.4.2
    return sum(one_each or fragment.startswith(_STARTS) for fragment in fragments_of(value))
