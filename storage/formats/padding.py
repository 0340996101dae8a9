"""Encodes pixel padding for a payload (PS3.3 C.7.5.1.1.2): the mask of padding pixels, and their values.

``pack_padding`` and ``unpack_padding`` are lossless; docs/FORMATS.md describes the bytes. In most images padding has
one value and a smooth border, which takes one or two kilobytes. If several values occur (GE writes 0 to 30 into air),
the pixels that differ from the most common value are listed if they are few, or encoded as a JPEG XL image.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.dicom.codestreams import codestream_header
from storage.errors import PayloadError
from storage.formats.coders import JpegXl

Mask = NDArray[np.bool_]
Pixels = NDArray[np.uint16]

FORMAT = 1
"""The first byte."""

_HEADER = struct.Struct("<BBBI")
"""Format, coding of the mask, coding of the values, bytes of the encoded mask; the encoded values follow."""
_LISTED = struct.Struct("<HHBII")
"""Most common value, smallest value, bytes per value (1 or 2), number of other values, bytes of their positions."""
_LIST, _IMAGE, _CONSTANT = 0, 1, 2
"""Codings: a list of positions, a JPEG XL image, one value."""
_IMAGE_HEADER = struct.Struct("<HB")
"""Smallest value, which is subtracted, and bytes per value (1 or 2); the codestream follows."""
_VALUE = struct.Struct("<H")

_MAX_LIST = 4096
"""Bytes of a list above which JPEG XL is tried too: it takes 0.07 s per megapixel, and its header some 100 bytes."""
_DENSE = 8
"""Minimum number of pixels per listed pixel. If more pixels are listed, JPEG XL always takes fewer bytes."""
_EFFORT = 7
"""JPEG XL effort. On smooth air 7 saves a third of the bytes of 5 in the same time; on noise both reach its entropy."""
_CODESTREAM = b"\xff\x0a"
"""Signature of a JPEG XL codestream without a container (ISO/IEC 18181-1)."""
_ESCAPE = 255
"""The byte in a list of positions that skips this many pixels without listing one."""


def pack_padding(pixels: Pixels, mask: Mask) -> bytes:
    """Encode the mask and the values of padding. The same arguments give the same bytes with the same libjxl.

    ``pixels``: uint16, shape (rows, columns), stored values; values outside the mask have no effect. ``mask``: bool,
    the same shape, true for padding.
    """
    mask_coder, coded_mask = _packed_mask(mask)
    values_coder, coded_values = _packed_values(pixels, mask)
    return _HEADER.pack(FORMAT, mask_coder, values_coder, len(coded_mask)) + coded_mask + coded_values


def unpack_padding(data: bytes, rows: int, columns: int) -> tuple[Mask, Pixels]:
    """The inverse of ``pack_padding``: the mask, bool (rows, columns), and the values of padding pixels, uint16, in
    raster order, so that ``pixels[mask] = values`` restores them.

    Raises PayloadError if the bytes are malformed, or encode an image of another size. At most as many bytes are
    inflated and decoded as an image of this size can need.
    """
    if len(data) < _HEADER.size:
        raise PayloadError(f"padding has {len(data)} bytes; its header alone has {_HEADER.size}")
    form, mask_coder, values_coder, size = _HEADER.unpack_from(data)
    if form != FORMAT:
        raise PayloadError(f"padding has format {form}; this release reads {FORMAT}")
    if len(data) < _HEADER.size + size:
        raise PayloadError(f"padding has {len(data)} bytes; its mask alone has {size}")
    mask = _unpacked_mask(mask_coder, data[_HEADER.size : _HEADER.size + size], rows, columns)
    return mask, _unpacked_values(values_coder, data[_HEADER.size + size :], mask)


# --- the mask -------------------------------------------------------------------------------------------------


def _packed_mask(mask: Mask) -> tuple[int, bytes]:
    """Encode the mask as a list of the pixels that differ from the pixel above, or as an image if that is smaller."""
    changes = mask.copy()
    changes[1:] ^= mask[:-1]
    positions = np.flatnonzero(changes)
    listed = _packed_positions(positions) if positions.size * _DENSE <= mask.size else None
    if listed is not None and len(listed) <= _MAX_LIST:
        return _LIST, listed
    encoded = _packed_image(mask.view(np.uint8))
    return (_IMAGE, encoded) if listed is None or len(encoded) < len(listed) else (_LIST, listed)


def _unpacked_mask(coder: int, data: bytes, rows: int, columns: int) -> Mask:
    if coder == _IMAGE:
        image = _unpacked_image(data, rows, columns, np.uint8)
        if image.max(initial=0) > 1:
            raise PayloadError("padding mask has values other than 0 and 1")
        return image.astype(np.bool_)
    if coder != _LIST:
        raise PayloadError(f"padding mask has coding {coder}, which this release does not know")
    changes = np.zeros(rows * columns, dtype=np.bool_)
    changes[_unpacked_positions(data, changes.size)] = True
    mask = changes.reshape(rows, columns)
    for row in range(1, rows):  # four times as fast as bitwise_xor.accumulate
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
    width = 1 if highest - lowest < 256 else 2
    listed = None
    if others.size * _DENSE <= values.size:
        where = _packed_positions(others)
        head = _LISTED.pack(common, lowest, width, others.size, len(where))
        listed = head + where + _deflated((values[others] - np.uint16(lowest)).astype(f"<u{width}").tobytes())
        if len(listed) <= _MAX_LIST:
            return _LIST, listed
    box = _box(mask)
    image = np.where(mask[box], pixels[box], np.uint16(common)) - np.uint16(lowest)
    encoded = _IMAGE_HEADER.pack(lowest, width) + _packed_image(image.astype(f"u{width}"))
    return (_IMAGE, encoded) if listed is None or len(encoded) < len(listed) else (_LIST, listed)


def _unpacked_values(coder: int, data: bytes, mask: Mask) -> Pixels:
    count = int(np.count_nonzero(mask))
    if coder == _CONSTANT:
        if len(data) != _VALUE.size:
            raise PayloadError(f"padding value has {len(data)} bytes, not {_VALUE.size}")
        return np.full(count, _VALUE.unpack(data)[0], dtype=np.uint16)
    if coder == _IMAGE:
        return _values_of_image(data, mask)
    if coder == _LIST:
        return _values_of_list(data, count)
    raise PayloadError(f"padding values have coding {coder}, which this release does not know")


def _values_of_image(data: bytes, mask: Mask) -> Pixels:
    if len(data) < _IMAGE_HEADER.size or not mask.any():
        raise PayloadError("padding values are truncated, or the mask is empty")
    box = _box(mask)
    lowest, width = _IMAGE_HEADER.unpack_from(data)
    kind = np.uint8 if width == 1 else np.uint16
    rows, columns = mask[box].shape
    image = _unpacked_image(data[_IMAGE_HEADER.size :], rows, columns, kind)
    return _plus(image[mask[box]], lowest)


def _values_of_list(data: bytes, count: int) -> Pixels:
    if len(data) < _LISTED.size:
        raise PayloadError(f"padding values have {len(data)} bytes; their header alone has {_LISTED.size}")
    common, lowest, width, others, size = _LISTED.unpack_from(data)
    if width not in (1, 2) or others > count or _LISTED.size + size > len(data):
        raise PayloadError(f"padding values are malformed: {others} of {count} pixels in {width} bytes each")
    positions = _unpacked_positions(data[_LISTED.size : _LISTED.size + size], count)
    raw = _inflated(data[_LISTED.size + size :], others * width)
    if positions.size != others or len(raw) != others * width:
        raise PayloadError(f"padding has {positions.size} positions and {len(raw)} bytes for {others} values")
    values = np.full(count, common, dtype=np.uint16)
    values[positions] = _plus(np.frombuffer(raw, f"<u{width}"), lowest)
    return values


def _plus(values: NDArray[Any], lowest: int) -> Pixels:
    """``values`` plus ``lowest``: uint16."""
    if int(values.max(initial=0)) + lowest > 65535:
        raise PayloadError("padding values exceed 16 bits")
    return values.astype(np.uint16) + np.uint16(lowest)


def _box(mask: Mask) -> tuple[slice, slice]:
    """The smallest rectangle that holds all padding. The mask must not be empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


# --- lists of positions ---------------------------------------------------------------------------------------


def _packed_positions(positions: NDArray[np.intp]) -> bytes:
    """Encode ascending positions, deflated. Each gap is a byte 255 for every 255 pixels, and then its remainder."""
    gaps = np.diff(positions, prepend=-1) - 1
    escapes = gaps // _ESCAPE
    coded = np.full(int(escapes.sum()) + gaps.size, _ESCAPE, dtype=np.uint8)
    coded[np.cumsum(escapes + 1) - 1] = gaps % _ESCAPE
    return _deflated(coded.tobytes())


def _unpacked_positions(data: bytes, size: int) -> NDArray[np.intp]:
    """Decode ascending positions below ``size``."""
    limit = size + size // _ESCAPE + 1  # one byte for each position, and one for each possible escape
    coded = np.frombuffer(_inflated(data, limit), dtype=np.uint8)
    listed = coded != _ESCAPE
    steps = coded.astype(np.int64)
    steps += listed
    positions: NDArray[np.intp] = np.cumsum(steps)[listed] - 1
    if positions.size and positions[-1] >= size:
        raise PayloadError(f"padding position {int(positions[-1])} lies beyond {size} pixels")
    return positions


def _deflated(data: bytes) -> bytes:
    """The smaller result of two zlib strategies. Huffman coding alone suits noise, which has no useful repetitions."""
    huffman = zlib.compressobj(9, zlib.DEFLATED, 15, 9, zlib.Z_HUFFMAN_ONLY)
    return min(zlib.compress(data, 9), huffman.compress(data) + huffman.flush(), key=len)


def _inflated(data: bytes, limit: int) -> bytes:
    """Inflate a complete zlib stream of at most ``limit`` bytes."""
    engine = zlib.decompressobj()
    try:
        raw = engine.decompress(data, limit + 1)
    except zlib.error as error:
        raise PayloadError(f"padding cannot be inflated: {error}") from error
    if len(raw) > limit or not engine.eof or engine.unused_data:
        raise PayloadError(f"padding is not a complete stream of at most {limit} bytes")
    return raw


# --- images ---------------------------------------------------------------------------------------------------


def _packed_image(image: NDArray[Any]) -> bytes:
    """Encode a uint8 or uint16 image as a JPEG XL codestream, without the container of 16-bit images."""
    coded = JpegXl().encode(np.ascontiguousarray(image), distance=0.0, effort=_EFFORT)
    return coded if coded[:2] == _CODESTREAM else coded.partition(b"jxlc")[2]


def _unpacked_image(data: bytes, rows: int, columns: int, kind: type[np.unsignedinteger[Any]]) -> NDArray[Any]:
    """Decode an image of that shape and type. Its size is checked before anything is decoded."""
    if data[:2] != _CODESTREAM:
        raise PayloadError("padding is not a JPEG XL codestream")
    found = codestream_header(data)
    if (found.rows, found.columns) != (rows, columns):
        raise PayloadError(f"padding is an image of {found.rows} x {found.columns}, not {rows} x {columns}")
    try:
        image: NDArray[Any] = JpegXl().decode(data)
    except Exception as error:
        raise PayloadError(f"padding cannot be decoded: {error}") from error
    if image.shape != (rows, columns) or image.dtype != kind:
        raise PayloadError(f"padding is an image of {image.dtype} {image.shape}, not {(rows, columns)}")
    return image


# --- a mask alone ---------------------------------------------------------------------------------------------


def pack_mask(mask: Mask) -> bytes:
    """Encode a mask as bits, deflated. Each row is combined with the row above by exclusive or."""
    bits = np.packbits(mask, axis=1)
    bits[1:] ^= bits[:-1].copy()
    return zlib.compress(bits.tobytes(), 9)


def unpack_mask(data: bytes, rows: int, columns: int) -> Mask:
    """The inverse of ``pack_mask``. Raises PayloadError."""
    width = (columns + 7) // 8
    raw = _inflated(data, rows * width)
    if len(raw) != rows * width:
        raise PayloadError(f"padding mask has {len(raw)} bytes, not {rows * width}")
    bits = np.bitwise_xor.accumulate(np.frombuffer(raw, np.uint8).reshape(rows, width), axis=0)
    return np.unpackbits(bits, axis=1, count=columns).astype(np.bool_)
