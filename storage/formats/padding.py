"""Pixel padding as a payload holds it (PS3.3 C.7.5.1.1.2): which pixels are padding, and what values they have.

``pack_padding`` and ``unpack_padding`` code both without loss; docs/FORMATS.md describes the bytes. Most images have
padding of one value with a smooth border, which takes one or two kilobytes. Where several values occur (GE writes 0 to
30 into air), few of them that differ from the commonest are listed, and many are coded as a picture by JPEG XL.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.dicom.codestreams import CodestreamHeader, codestream_header
from storage.errors import PayloadError
from storage.formats.coders import JpegXl

Mask = NDArray[np.bool_]
Pixels = NDArray[np.uint16]

FORMAT = 1
"""The first byte. A mask by ``pack_mask``, which older bases hold, begins with that of zlib, 0x78."""

_HEADER = struct.Struct("<BBBI")
"""Format, how the mask is coded, how the values are coded, bytes of the coded mask; the coded values follow."""
_LISTED = struct.Struct("<HHBII")
"""Commonest value, smallest value, bytes per value (1 or 2), number of others, bytes of their positions."""
_LIST, _PICTURE, _CONSTANT = 0, 1, 2
_PICTURED = struct.Struct("<HB")
"""Smallest value, which is subtracted, and bytes per value (1 or 2); the codestream follows."""
_VALUE = struct.Struct("<H")

_MUCH = 4096
"""Bytes beyond which JPEG XL is tried as well: it takes 0.07 s per megapixel, and its header alone some 100 bytes."""
_DENSE = 8
"""One pixel in as many at most is listed; where more are, JPEG XL always takes fewer bytes."""
_EFFORT = 7
"""Of JPEG XL. On smooth air 7 takes a third less than 5 and as long; on noise both come near to its entropy."""
_ESCAPE = 255
"""In a list of positions: that many pixels on, and nothing there."""


def pack_padding(pixels: Pixels, mask: Mask) -> bytes:
    """Code where padding is and what it holds.

    ``pixels``: uint16, shape (rows, columns), stored values. ``mask``: bool, the same shape, true where a pixel is
    padding; values elsewhere have no effect. The same arguments give the same bytes with the same libjxl.
    """
    mask_coder, coded_mask = _packed_mask(mask)
    values_coder, coded_values = _packed_values(pixels, mask)
    return _HEADER.pack(FORMAT, mask_coder, values_coder, len(coded_mask)) + coded_mask + coded_values


def unpack_padding(data: bytes, rows: int, columns: int) -> tuple[Mask, Pixels]:
    """The inverse of ``pack_padding``: the mask, bool (rows, columns), and the values of its pixels, uint16, one for
    each true pixel in raster order, so that ``pixels[mask] = values`` restores them.

    Raises PayloadError where the bytes are malformed or of an image of another size. No more is inflated or decoded
    than such an image can need, whatever the bytes say.
    """
    if len(data) < _HEADER.size:
        raise PayloadError(f"padding holds {len(data)} bytes; its header alone has {_HEADER.size}")
    form, mask_coder, values_coder, size = _HEADER.unpack_from(data)
    if form != FORMAT:
        raise PayloadError(f"padding has format {form}; this release reads {FORMAT}")
    if len(data) < _HEADER.size + size:
        raise PayloadError(f"padding holds {len(data)} bytes, and its mask alone {size}")
    mask = _unpacked_mask(mask_coder, data[_HEADER.size : _HEADER.size + size], rows, columns)
    return mask, _unpacked_values(values_coder, data[_HEADER.size + size :], mask)


# --- the mask -------------------------------------------------------------------------------------------------


def _packed_mask(mask: Mask) -> tuple[int, bytes]:
    """A list of the pixels that differ from the one above, or where the mask is noisy a picture of 0 and 1."""
    changes = mask.copy()
    changes[1:] ^= mask[:-1]
    positions = np.flatnonzero(changes)
    listed = _packed_positions(positions) if positions.size * _DENSE <= mask.size else None
    if listed is not None and len(listed) <= _MUCH:
        return _LIST, listed
    pictured = _packed_picture(mask.view(np.uint8))
    return (_PICTURE, pictured) if listed is None or len(pictured) < len(listed) else (_LIST, listed)


def _unpacked_mask(coder: int, data: bytes, rows: int, columns: int) -> Mask:
    if coder == _PICTURE:
        picture = _unpacked_picture(data, rows, columns, np.uint8)
        if picture.max(initial=0) > 1:
            raise PayloadError("padding mask has values other than 0 and 1")
        return picture.astype(np.bool_)
    if coder != _LIST:
        raise PayloadError(f"padding mask is coded in a way {coder} that this release does not know")
    changes = np.zeros(rows * columns, dtype=np.bool_)
    changes[_unpacked_positions(data, changes.size)] = True
    mask = changes.reshape(rows, columns)
    for row in range(1, rows):  # four times as fast as accumulate
        mask[row] ^= mask[row - 1]
    return mask


# --- the values -----------------------------------------------------------------------------------------------


def _packed_values(pixels: Pixels, mask: Mask) -> tuple[int, bytes]:
    values = pixels[mask]
    lowest, highest = (int(values.min()), int(values.max())) if values.size else (0, 0)
    if lowest == highest:
        return _CONSTANT, _VALUE.pack(lowest)
    common = lowest + int(np.bincount(values - np.uint16(lowest)).argmax())
    others = np.flatnonzero(values != common)
    listed = None
    if others.size * _DENSE <= values.size:
        width = 1 if highest - lowest < 256 else 2
        where = _packed_positions(others)
        head = _LISTED.pack(common, lowest, width, others.size, len(where))
        listed = head + where + _deflated((values[others] - np.uint16(lowest)).astype(f"<u{width}").tobytes())
        if len(listed) <= _MUCH:
            return _LIST, listed
    box = _box(mask)
    picture = np.where(mask[box], pixels[box], np.uint16(common)) - np.uint16(lowest)
    width = 1 if highest - lowest < 256 else 2
    pictured = _PICTURED.pack(lowest, width) + _packed_picture(picture.astype(f"u{width}"))
    return (_PICTURE, pictured) if listed is None or len(pictured) < len(listed) else (_LIST, listed)


def _unpacked_values(coder: int, data: bytes, mask: Mask) -> Pixels:
    count = int(np.count_nonzero(mask))
    if coder == _CONSTANT:
        if len(data) != _VALUE.size:
            raise PayloadError(f"padding value has {len(data)} bytes, not {_VALUE.size}")
        return np.full(count, _VALUE.unpack(data)[0], dtype=np.uint16)
    if coder == _PICTURE:
        return _values_of_picture(data, mask)
    if coder == _LIST:
        return _values_of_list(data, count)
    raise PayloadError(f"padding values are coded in a way {coder} that this release does not know")


def _values_of_picture(data: bytes, mask: Mask) -> Pixels:
    if len(data) < _PICTURED.size or not mask.any():
        raise PayloadError("padding values are cut short, or there is no padding to have them")
    box = _box(mask)
    lowest, width = _PICTURED.unpack_from(data)
    kind = np.uint8 if width == 1 else np.uint16
    rows, columns = mask[box].shape
    picture = _unpacked_picture(data[_PICTURED.size :], rows, columns, kind)
    return _raised(picture[mask[box]], lowest)


def _values_of_list(data: bytes, count: int) -> Pixels:
    if len(data) < _LISTED.size:
        raise PayloadError(f"padding values hold {len(data)} bytes; their header alone has {_LISTED.size}")
    common, lowest, width, others, size = _LISTED.unpack_from(data)
    if width not in (1, 2) or others > count or _LISTED.size + size > len(data):
        raise PayloadError(f"padding values are malformed: {others} of {count} pixels in {width} bytes each")
    positions = _unpacked_positions(data[_LISTED.size : _LISTED.size + size], count)
    raw = _inflated(data[_LISTED.size + size :], others * width)
    if positions.size != others or len(raw) != others * width:
        raise PayloadError(f"padding has {positions.size} positions and {len(raw)} bytes for {others} values")
    values = np.full(count, common, dtype=np.uint16)
    values[positions] = _raised(np.frombuffer(raw, f"<u{width}"), lowest)
    return values


def _raised(values: NDArray[Any], lowest: int) -> Pixels:
    """``values`` plus ``lowest``: uint16."""
    if int(values.max(initial=0)) + lowest > 65535:
        raise PayloadError("padding values exceed 16 bits")
    return values.astype(np.uint16) + np.uint16(lowest)


def _box(mask: Mask) -> tuple[slice, slice]:
    """The smallest rectangle with all of the padding, of which there must be some."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


# --- lists of positions ---------------------------------------------------------------------------------------


def _packed_positions(positions: NDArray[np.intp]) -> bytes:
    """Rising positions as one byte for each gap before one, after as many 255 as it has times 255, deflated."""
    gaps = np.diff(positions, prepend=-1) - 1
    escapes = gaps // _ESCAPE
    coded = np.full(int(escapes.sum()) + gaps.size, _ESCAPE, dtype=np.uint8)
    coded[np.cumsum(escapes + 1) - 1] = gaps % _ESCAPE
    return _deflated(coded.tobytes())


def _unpacked_positions(data: bytes, size: int) -> NDArray[np.intp]:
    """Positions below ``size``, rising."""
    most = size + size // _ESCAPE + 1  # one byte for each position, and what escapes fit
    coded = np.frombuffer(_inflated(data, most), dtype=np.uint8)
    there = coded != _ESCAPE
    steps = coded.astype(np.int64)
    steps += there
    positions: NDArray[np.intp] = np.cumsum(steps)[there] - 1
    if positions.size and positions[-1] >= size:
        raise PayloadError(f"padding position {int(positions[-1])} lies beyond {size} pixels")
    return positions


def _deflated(data: bytes) -> bytes:
    """The smaller of what two strategies of zlib give: noise has no repetitions worth looking for."""
    huffman = zlib.compressobj(9, zlib.DEFLATED, 15, 9, zlib.Z_HUFFMAN_ONLY)
    return min(zlib.compress(data, 9), huffman.compress(data) + huffman.flush(), key=len)


def _inflated(data: bytes, most: int) -> bytes:
    """What a whole zlib stream holds, no more than ``most`` bytes."""
    engine = zlib.decompressobj()
    try:
        raw = engine.decompress(data, most + 1)
    except zlib.error as error:
        raise PayloadError(f"padding cannot be inflated: {error}") from error
    if len(raw) > most or not engine.eof or engine.unused_data:
        raise PayloadError(f"padding holds no whole stream of at most {most} bytes")
    return raw


# --- pictures -------------------------------------------------------------------------------------------------


def _packed_picture(picture: NDArray[Any]) -> bytes:
    """A bare codestream of a uint8 or uint16 picture; libjxl puts one of 16 bits into a container."""
    coded = JpegXl().encode(np.ascontiguousarray(picture), distance=0.0, effort=_EFFORT)
    return coded if coded[:2] == _BARE else coded.partition(b"jxlc")[2]


def _unpacked_picture(data: bytes, rows: int, columns: int, kind: type[np.unsignedinteger[Any]]) -> NDArray[Any]:
    """A picture of that shape and type; its size is looked at before anything is decoded."""
    found = _jpeg_xl_size(data)
    if (found.rows, found.columns) != (rows, columns):
        raise PayloadError(f"padding is a picture of {found.rows} x {found.columns}, not {rows} x {columns}")
    try:
        picture: NDArray[Any] = JpegXl().decode(data)
    except Exception as error:
        raise PayloadError(f"padding cannot be decoded: {error}") from error
    if picture.shape != (rows, columns) or picture.dtype != kind:
        raise PayloadError(f"padding is a picture of {picture.dtype} {picture.shape}, not {(rows, columns)}")
    return picture


_BARE = b"\xff\x0a"


def _jpeg_xl_size(data: bytes) -> CodestreamHeader:
    """What a bare codestream announces. Raises PayloadError."""
    if data[:2] != _BARE:
        raise PayloadError("padding is no JPEG XL codestream")
    return codestream_header(data)


# --- a mask alone ---------------------------------------------------------------------------------------------


def pack_mask(mask: Mask) -> bytes:
    """A bool mask as bits, each row combined by exclusive or with the one above, deflated."""
    bits = np.packbits(mask, axis=1)
    bits[1:] ^= bits[:-1].copy()
    return zlib.compress(bits.tobytes(), 9)


def unpack_mask(data: bytes, rows: int, columns: int) -> Mask:
    """The inverse of ``pack_mask``. Raises PayloadError."""
    width = (columns + 7) // 8
    engine = zlib.decompressobj()
    try:
        raw = engine.decompress(data, rows * width + 1)
    except zlib.error as error:
        raise PayloadError(f"padding mask cannot be inflated: {error}") from error
    if len(raw) != rows * width:
        raise PayloadError(f"padding mask holds {len(raw)} bytes, not {rows * width}")
    bits = np.bitwise_xor.accumulate(np.frombuffer(raw, np.uint8).reshape(rows, width), axis=0)
    return np.unpackbits(bits, axis=1, count=columns).astype(np.bool_)
