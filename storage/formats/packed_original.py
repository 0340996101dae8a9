"""The object format ``packed original``: a received file, compressed losslessly, that unpacks to the received bytes.

It holds the bytes before and after the pixel value verbatim, and the pixels as integers in a lossless codestream;
docs/FORMATS.md describes it byte by byte. Pixels of 8 or 16 bits are packed if they are native, in either byte order,
or in RLE Lossless as most toolkits encode it (storage/dicom/packbits.py). Other files are deflated if that makes them
smaller. A packed form is used only if it unpacks to the same SHA-256; otherwise the file stays verbatim.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydicom.uid import RLELossless

from storage.dicom.dicomfile import DataSetFile, opened
from storage.dicom.inflating import DEFLATED
from storage.dicom.packbits import encode_plane
from storage.dicom.pixels import PixelShape, decode_frame
from storage.errors import KeptVerbatim, ObjectDamaged, PayloadError, ProofFailed
from storage.formats.coders import ORIGINAL_CODERS, decode_of_shape
from storage.formats.container import MAX_SECTION, malformed_is_payload_error, outline, pack, unpack
from storage.formats.metadata import Metadata, Side

KIND = b"O"
EFFORT = 5
"""Coder effort, used by JPEG XL only. With the table of ranks, 5 gives the smallest size at half the time of 7."""

_MAX_BYTES = MAX_SECTION
"""Maximum bytes of a file that is packed: packing holds the file and its pixels in memory."""
MAX_LIGHT_BYTES = 64 << 20
"""Maximum bytes of an object, or of a file, that is unpacked in the node's own process."""
_CHUNK = 1 << 15
"""Number of values that are looked up at a time, so that numpy's 8-byte indices stay in the processor's cache."""
_LEVELS = 1 << 16
"""Number of values of 16 bits."""
_MAX_RATIO = 0.95
"""Maximum size of a packed form over that of its file. Chosen, not measured."""
_SAMPLE = 1 << 20
"""Bytes from a file's middle that are deflated to predict its ratio."""
_RLE_HEADER = 64
"""Bytes of the header of an RLE frame (PS3.5 G.5)."""
_ITEM = 8
"""Bytes of the header of an item (PS3.5 7.5)."""

Values = NDArray[np.uint16]


@dataclass(frozen=True)
class PixelCoding:
    """How the pixel value is divided into planes of integers.

    There are ``frames`` x ``samples`` planes of shape (rows, columns). ``planar``: whether the samples of a frame are
    stored plane after plane. ``signed``: whether the sign bit is flipped, which keeps the order of values.
    ``rle_pads``: the bytes after each segment of the RLE frame, hex; empty for native pixels. ``lengths``: the bytes of
    each codestream.
    """

    coder: str
    rows: Side
    columns: Side
    samples: Side
    frames: Annotated[int, Field(ge=1, le=2**31)]
    sample_bytes: Annotated[int, Field(ge=1, le=2)]
    big_endian: bool
    planar: bool
    signed: bool
    rle_pads: tuple[str, ...]
    lengths: tuple[Annotated[int, Field(ge=0, le=MAX_SECTION)], ...]


_META = Metadata("packed original", PixelCoding)


# --- file to object -------------------------------------------------------------------------------------------


def pack_original(path: Path, coder: str, digest: str) -> bytes:
    """Pack a Part 10 file, and verify that the packed form unpacks to bytes with the SHA-256 ``digest``.

    Raises KeptVerbatim if there is no smaller form, ProofFailed if it unpacks to other bytes.
    """
    size = path.stat().st_size
    if size > _MAX_BYTES:
        raise KeptVerbatim(f"the file has {size} bytes; at most {_MAX_BYTES} are packed")
    with opened(path) as file:
        packed = _with_pixels(file, path, coder) if _has_integers(file) else _deflated(file, path)
    if len(packed) > _MAX_RATIO * size:
        raise KeptVerbatim(f"the packed form has {len(packed)} bytes, the file {size}")
    restored = hashlib.sha256()
    for piece in unpack_original(packed):
        restored.update(piece)
    if restored.hexdigest() != digest:
        raise ProofFailed(f"the packed form unpacks to digest {restored.hexdigest()}")
    return packed


def _has_integers(file: DataSetFile) -> bool:
    """Whether the pixels are complete, and of a kind that is packed as integers."""
    layout, syntax = file.layout, file.transfer_syntax
    if not layout.has_pixels or layout.truncated or syntax in DEFLATED:
        return False
    shape = PixelShape.of(file.outline())
    if shape.bits_allocated not in (8, 16) or not shape.rows or not shape.columns or not shape.samples:
        return False
    if layout.encapsulated:
        return syntax == RLELossless and (shape.frames, shape.samples) == (1, 1)
    pixels = shape.rows * shape.columns * shape.samples * shape.frames * shape.bits_allocated // 8
    return shape.native_bytes == pixels <= layout.value_end - layout.value_start


def _with_pixels(file: DataSetFile, path: Path, coder: str) -> bytes:
    shape, start = PixelShape.of(file.outline()), path.stat().st_size - file.layout.end
    if file.layout.encapsulated:
        planes = decode_frame(path).reshape(1, shape.rows, shape.columns)
        begin, end, pads = _rle_extent(file, planes)
        value_start, value_end = (start + file.layout.value_start + offset for offset in (begin, end))
    else:
        planes = _planes(file, shape)
        value_start = start + file.layout.value_start
        value_end, pads = value_start + shape.native_bytes, ()
    values = planes.astype(np.uint16, copy=False)
    if shape.signed and shape.bits_allocated == 16:
        values = values ^ np.uint16(0x8000)
    ranks, levels = _to_ranks(values)
    codestreams = [ORIGINAL_CODERS[coder].encode(plane, distance=0, effort=EFFORT) for plane in ranks]
    with path.open("rb") as whole:
        head = whole.read(value_start)
        whole.seek(value_end)
        tail = whole.read()
    coding = PixelCoding(
        coder=coder,
        rows=shape.rows,
        columns=shape.columns,
        samples=shape.samples,
        frames=shape.frames,
        sample_bytes=shape.bits_allocated // 8,
        big_endian=not file.transfer_syntax.is_little_endian,
        planar=_is_planar(file, shape),
        signed=shape.signed and shape.bits_allocated == 16,
        rle_pads=pads,
        lengths=tuple(map(len, codestreams)),
    )
    sections = {
        "meta": json.dumps(asdict(coding), sort_keys=True, separators=(",", ":")).encode(),
        "head": head,
        "tail": tail,
        "levels": levels,
        "pixels": b"".join(codestreams),
    }
    return pack(KIND, sections, stored={"pixels"})


def _deflated(file: DataSetFile, path: Path) -> bytes:
    """Deflate the whole file if a sample from its middle deflates. Raises KeptVerbatim if it does not."""
    data = path.read_bytes()
    start = max(0, len(data) // 2 - _SAMPLE // 2)
    sample = data[start : start + _SAMPLE]
    if len(zlib.compress(sample, 6)) > _MAX_RATIO * len(sample):
        what = f"pixels in {file.transfer_syntax.name}" if file.layout.has_pixels else "bytes that do not deflate"
        raise KeptVerbatim(f"{what} are stored as received")
    return pack(KIND, {"bytes": data}, stored=set())


# --- object to file -------------------------------------------------------------------------------------------


def unpack_original(packed: bytes) -> Iterator[bytes | memoryview]:
    """The received bytes of the file, in pieces. Raises PayloadError."""
    sections = unpack(packed, KIND)
    if "bytes" in sections:
        yield sections["bytes"]
        return
    with malformed_is_payload_error("packed original"):
        coding = coding_of(sections["meta"])
        planes = _decoded_planes(coding, sections["pixels"], sections.get("levels", b""))
        yield sections["head"]
        if coding.rle_pads:
            yield from _rle_segments(planes[0], coding)
        else:
            yield from _native_frames(planes, coding)
        yield sections.get("tail", b"")


def coding_of(section: bytes) -> PixelCoding:
    """The content of the section ``meta``. Raises PayloadError."""
    return PixelCoding(**_META.read(section))


def is_light(packed: Path) -> bool:
    """Whether the file can be unpacked in a fraction of a second and in little memory. Raises PayloadError.

    It has at most MAX_LIGHT_BYTES, and its pixels are not RLE, which takes ten times as long as native pixels.
    """
    with packed.open("rb") as file, malformed_is_payload_error("packed original"):
        lengths, meta = outline(file, KIND, "meta")
        size = sum(lengths.values())
        if not meta:
            return size <= MAX_LIGHT_BYTES
        coding = coding_of(meta)
        size += coding.rows * coding.columns * coding.samples * coding.frames * coding.sample_bytes
        return size <= MAX_LIGHT_BYTES and not coding.rle_pads


def restore_original(packed: Path, digest: str, target: Path) -> None:
    """Unpack a file to ``target``. Raises PayloadError, and ObjectDamaged if its bytes do not have that SHA-256."""
    restored = hashlib.sha256()
    with target.open("wb") as out:
        for piece in unpack_original(packed.read_bytes()):
            restored.update(piece)
            out.write(piece)
    if restored.hexdigest() != digest:
        raise ObjectDamaged(f"{packed.name} unpacks to {restored.hexdigest()}, not to {digest}")


def _decoded_planes(coding: PixelCoding, coded: bytes, levels: bytes) -> Values:
    """The stored values as unsigned integers, shape (planes, rows, columns)."""
    if len(coding.lengths) != coding.frames * coding.samples:
        raise PayloadError(f"packed original has {len(coding.lengths)} planes, not {coding.frames} x {coding.samples}")
    shape = (coding.rows, coding.columns)
    bounds = [0, *accumulate(coding.lengths)]
    decoded = (decode_of_shape(ORIGINAL_CODERS, coding.coder, coded[low:high], shape) for low, high in pairwise(bounds))
    if len(coding.lengths) == 1:
        planes = next(decoded).reshape(1, *shape).astype(np.uint16, copy=False)
    else:
        planes = np.empty((len(coding.lengths), *shape), np.uint16)
        for plane, decoded_plane in zip(planes, decoded, strict=True):
            plane[...] = decoded_plane
    values = _from_ranks(planes, levels)
    if coding.signed:
        values ^= np.uint16(0x8000)
    return values


# --- values and ranks: scanners and lookup tables leave gaps between values, which enlarge the codestream ------


def _to_ranks(values: Values) -> tuple[Values, bytes]:
    """Ranks of the values among those in use, and the differences between values in use. If there are few gaps, the
    values themselves, and no differences."""
    in_use = np.flatnonzero(np.bincount(values.ravel(), minlength=_LEVELS))
    if not in_use.size or int(in_use[-1]) < in_use.size * 5 // 4:
        return values, b""
    rank_of = np.zeros(_LEVELS, np.uint16)
    rank_of[in_use] = np.arange(in_use.size)
    return _looked_up(rank_of, values), np.diff(in_use, prepend=0).astype("<u2").tobytes()


def _looked_up(table: Values, values: Values) -> Values:
    """``table[values]``, computed in chunks (``_CHUNK``). Raises PayloadError if a value is beyond the table."""
    result = np.empty(values.shape, values.dtype)
    flat, into = np.ascontiguousarray(values).reshape(-1), result.reshape(-1)
    if flat.size and int(flat.max()) >= len(table):
        raise PayloadError(f"packed original has rank {int(flat.max())}, and {len(table)} levels")
    for at in range(0, flat.size, _CHUNK):
        chunk = slice(at, at + _CHUNK)
        np.take(table, flat[chunk], out=into[chunk], mode="clip")
    return result


def _from_ranks(ranks: Values, levels: bytes) -> Values:
    if not levels:
        return ranks
    table: Values = np.cumsum(np.frombuffer(levels, "<u2"), dtype=np.int64).astype(np.uint16)
    return _looked_up(table, ranks)


# --- native pixels --------------------------------------------------------------------------------------------


def _is_planar(file: DataSetFile, shape: PixelShape) -> bool:
    return shape.samples > 1 and file.outline().get("PlanarConfiguration") == 1


def _planes(file: DataSetFile, shape: PixelShape) -> NDArray[Any]:
    order = "<" if file.transfer_syntax.is_little_endian else ">"
    width = shape.bits_allocated // 8
    flat = np.frombuffer(file.native_value()[: shape.native_bytes], f"{order}u{width}")
    rows, columns = shape.rows, shape.columns
    if shape.samples > 1 and not _is_planar(file, shape):
        by_pixel = flat.reshape(shape.frames, rows, columns, shape.samples)
        return np.moveaxis(by_pixel, -1, 1).reshape(-1, rows, columns)
    return flat.reshape(-1, rows, columns)


def _native_frames(planes: Values, coding: PixelCoding) -> Iterator[memoryview]:
    dtype = np.dtype(f"{'>' if coding.big_endian else '<'}u{coding.sample_bytes}")
    for at in range(0, len(planes), coding.samples):
        frame = planes[at : at + coding.samples]
        if coding.samples > 1 and not coding.planar:
            frame = np.moveaxis(frame, 0, -1)
        yield np.ascontiguousarray(frame, dtype).data.cast("B")


# --- one frame of RLE Lossless (PS3.5 Annex G): a header, then a segment per byte of a sample, high byte first ---


def _rle_extent(file: DataSetFile, planes: NDArray[Any]) -> tuple[int, int, tuple[str, ...]]:
    """Offsets in the value at which the segments begin and end, and the bytes that follow each segment, hex.

    Raises KeptVerbatim if ``encode_plane`` does not reproduce the segments.
    """
    value = bytes(file.native_value())
    begin = end = 0
    for _ in range(2):  # Basic Offset Table, then the frame as one fragment
        (length,) = struct.unpack_from("<I", value, end + 4)
        begin, end = end + _ITEM, end + _ITEM + length
    frame = value[begin:end]
    count, *offsets = struct.unpack_from("<16I", frame)
    bounds = [*offsets[:count], len(frame)]
    if count != planes.dtype.itemsize or bounds[0] != _RLE_HEADER or end != len(value):
        raise KeptVerbatim("RLE of an unusual structure is stored as received")
    pads = []
    for (low, high), plane in zip(pairwise(bounds), _byte_planes(planes[0]), strict=True):
        rebuilt = encode_plane(plane)
        if frame[low : low + len(rebuilt)] != rebuilt:
            raise KeptVerbatim("RLE of another encoder is stored as received")
        pads.append(frame[low + len(rebuilt) : high].hex())
    return begin + _RLE_HEADER, end, tuple(pads)


def _rle_segments(plane: Values, coding: PixelCoding) -> Iterator[bytes]:
    samples = plane.astype(f"u{coding.sample_bytes}")
    for byte_plane, pad in zip(_byte_planes(samples), coding.rle_pads, strict=True):
        yield encode_plane(byte_plane) + bytes.fromhex(pad)


def _byte_planes(plane: NDArray[Any]) -> Iterator[NDArray[np.uint8]]:
    for shift in range(8 * (plane.dtype.itemsize - 1), -1, -8):
        yield (plane >> shift).astype(np.uint8)
