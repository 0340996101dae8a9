"""DICOM bytes: where the pixel data lies, the header around it, and the pixels as integers.

The archive keeps a peer's data set verbatim, so it needs byte offsets, which pydicom does not report, and it must
notice a data set that ends in the middle of an element, which pydicom accepts. ``scan`` walks the encoding
(PS3.5 sections 7.1 and A.4) without interpreting values; pydicom interprets them.
"""

from __future__ import annotations

import hashlib
import io
import mmap
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, config
from pydicom.dataset import FileMetaDataset
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset, write_file_meta_info
from pydicom.tag import BaseTag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from storage.elements import values_of
from storage.errors import PixelError, Unparseable

IMPLEMENTATION_CLASS_UID = UID("2.25.317062983047129458210447590126385540251")
IMPLEMENTATION_VERSION_NAME = "LATENTPACS_1"

PIXEL_TAGS = {(0x7FE0, 0x0008), (0x7FE0, 0x0009), (0x7FE0, 0x0010)}
_LONG_VRS = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
_UNDEFINED = 0xFFFFFFFF
_MAX_DEPTH = 64
_MAX_INFLATED = 1 << 30
_MAX_META = 1 << 20

Bytes = bytes | memoryview | mmap.mmap


@dataclass(frozen=True)
class Layout:
    """Byte offsets inside one encoded data set; the pixel fields are equal to ``end`` where there is none."""

    end: int
    pixel_start: int
    """Offset of the pixel data element's tag."""
    value_start: int
    value_end: int
    pixel_end: int
    """Offset after the element: its value, or its sequence delimiter when encapsulated."""
    pixel_vr: str
    """``OB``, ``OW`` ...; empty in implicit VR or without pixel data."""
    encapsulated: bool
    truncated: bool
    """The pixel data element announces more bytes than there are."""

    @property
    def has_pixels(self) -> bool:
        return self.pixel_start < self.end


@dataclass(frozen=True)
class HeaderBytes:
    """The verbatim bytes of a data set around its pixel data element, enough to parse or restore it."""

    transfer_syntax_uid: str
    before: bytes
    after: bytes

    def dataset(self) -> Dataset:
        """The header as a pydicom data set without pixel data."""
        return parse(self.before + self.after, UID(self.transfer_syntax_uid))


@dataclass(frozen=True)
class DataSetFile:
    """One stored Part 10 file, opened: its data set bytes (inflated where deflated), and their layout."""

    transfer_syntax: UID
    data: memoryview
    layout: Layout

    def header_bytes(self) -> HeaderBytes:
        before = bytes(self.data[: self.layout.pixel_start])
        after = bytes(self.data[self.layout.pixel_end :])
        return HeaderBytes(str(self.transfer_syntax), before, after)

    def header(self) -> Dataset:
        return self.header_bytes().dataset()

    def native_value(self) -> memoryview:
        return self.data[self.layout.value_start : self.layout.value_end]


@contextmanager
def opened(path: Path) -> Iterator[DataSetFile]:
    """Open a Part 10 file. Raises Unparseable where PS3.10 or PS3.5 is broken outside the pixel data."""
    with path.open("rb") as file:
        start, syntax = _data_set_start(file)
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        view = memoryview(mapped)
        data = view[start:]
        try:
            if syntax == DeflatedExplicitVRLittleEndian:
                data = memoryview(_inflate(data))
            yield DataSetFile(syntax, data, scan(data, syntax))
        finally:
            data.release()
            view.release()
            # numpy views handed out by native_value may outlive this block: then the mapping closes with them
            with suppress(BufferError):
                mapped.close()


def _data_set_start(file: IO[bytes]) -> tuple[int, UID]:
    prefix = file.read(144)
    if len(prefix) < 144 or prefix[128:132] != b"DICM" or prefix[132:140] != b"\x02\x00\x00\x00UL\x04\x00":
        raise Unparseable("no DICOM file meta information at the start of the file (PS3.10 section 7.1)")
    start = 144 + int(struct.unpack("<I", prefix[140:144])[0])
    if start > file.seek(0, io.SEEK_END):
        raise Unparseable("file ends inside its file meta information")
    file.seek(132)
    meta = parse(file.read(min(start - 132, _MAX_META)), ExplicitVRLittleEndian)
    named = values_of(meta, BaseTag(0x00020010), "UI", ("ascii",))
    syntax = UID(named[0] if named else "", validation_mode=config.IGNORE)
    if not syntax.is_transfer_syntax:
        raise Unparseable(f"file meta information names no known transfer syntax: {syntax!r}")
    return start, syntax


def _inflate(data: memoryview) -> bytes:
    engine = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        inflated = engine.decompress(data, _MAX_INFLATED)
    except zlib.error as error:
        raise Unparseable(f"deflated data set cannot be inflated: {error}") from error
    if not engine.eof:
        raise Unparseable("deflated data set is truncated or larger than 1 GiB")
    return inflated


# --- the walk -------------------------------------------------------------------------------------------------


def scan(data: Bytes, syntax: UID) -> Layout:
    """Walk the top level of an encoded data set. Raises Unparseable; a short pixel element is not an error."""
    end = len(data)
    explicit = not syntax.is_implicit_VR and not _looks_implicit(data)
    walk = _Walk(data, explicit=explicit, little=syntax.is_little_endian)
    position = 0
    layout = Layout(end, end, end, end, end, "", False, False)
    while position < end:
        if not any(data[position : position + 8]) and end - position < 8:
            break  # padding of a few zero bytes after the last element
        tag, vr, value, length = walk.element(position)
        if tag in PIXEL_TAGS and not layout.has_pixels:
            layout = walk.pixels(position, vr, value, length)
            position = layout.pixel_end
        else:
            position = walk.skip(tag, vr, value, length, 0)
    return layout


def _looks_implicit(data: Bytes) -> bool:
    """Some senders encode implicitly under an explicit transfer syntax; pydicom reads that too."""
    return len(data) >= 6 and not bytes(data[4:6]).isalpha()


class _Walk:
    def __init__(self, data: Bytes, *, explicit: bool, little: bool) -> None:
        self.data, self.explicit, self.end = data, explicit, len(data)
        self.order = "<" if little else ">"

    def element(self, at: int) -> tuple[tuple[int, int], bytes, int, int]:
        """(tag, VR, offset of the value, length) of the element at ``at``."""
        if at + 8 > self.end:
            raise Unparseable(f"data set ends inside an element header at byte {at}")
        tag = struct.unpack_from(self.order + "HH", self.data, at)
        if not self.explicit or tag[0] == 0xFFFE:
            return tag, b"", at + 8, struct.unpack_from(self.order + "I", self.data, at + 4)[0]
        vr = bytes(self.data[at + 4 : at + 6])
        if vr in _LONG_VRS:
            if at + 12 > self.end:
                raise Unparseable(f"data set ends inside an element header at byte {at}")
            return tag, vr, at + 12, struct.unpack_from(self.order + "I", self.data, at + 8)[0]
        if not (vr.isalpha() and vr.isupper()):
            raise Unparseable(f"no value representation at byte {at + 4}: {vr!r}")
        return tag, vr, at + 8, struct.unpack_from(self.order + "H", self.data, at + 6)[0]

    def skip(self, tag: tuple[int, int], vr: bytes, value: int, length: int, depth: int) -> int:
        """Offset after the element; descends only where the length is undefined."""
        if length != _UNDEFINED:
            if value + length > self.end:
                raise Unparseable(
                    f"data set ends inside ({tag[0]:04X},{tag[1]:04X}): {length} bytes announced, "
                    f"{self.end - value} there"
                )
            return value + length
        if depth > _MAX_DEPTH:
            raise Unparseable(f"sequences nested more than {_MAX_DEPTH} deep")
        # PS3.5 6.2.2 note: UN of undefined length holds an implicit VR little endian sequence
        inner = _Walk(self.data, explicit=False, little=True) if vr == b"UN" else self
        return inner.items(value, depth)

    def items(self, at: int, depth: int) -> int:
        while True:
            tag, _, value, length = self.element(at)
            if tag == (0xFFFE, 0xE0DD):
                return value
            if tag != (0xFFFE, 0xE000):
                raise Unparseable(f"no sequence item at byte {at}")
            if length != _UNDEFINED:
                at = self.skip(tag, b"", value, length, depth)
                continue
            at = value
            while True:
                tag, vr, value, length = self.element(at)
                if tag == (0xFFFE, 0xE00D):
                    at = value
                    break
                at = self.skip(tag, vr, value, length, depth + 1)

    def pixels(self, at: int, vr: bytes, value: int, length: int) -> Layout:
        name = vr.decode("ascii")
        if length != _UNDEFINED:
            stop = min(value + length, self.end)
            return Layout(self.end, at, value, stop, stop, name, False, value + length > self.end)
        position = value
        while position + 8 <= self.end:
            tag, _, inner, size = self.element(position)
            if tag == (0xFFFE, 0xE0DD):
                return Layout(self.end, at, value, position, inner, name, True, False)
            if tag != (0xFFFE, 0xE000) or inner + size > self.end:
                break
            position = inner + size
        return Layout(self.end, at, value, self.end, self.end, name, True, True)


# --- values ---------------------------------------------------------------------------------------------------


def accept_odd_values() -> None:
    """Tell pydicom, for this process, neither to warn of nor to refuse a peer's odd values.

    Called once per process at its start: warning filters are not safe between threads, and what pydicom would print
    is patient data.
    """
    from pydicom import config

    config.settings.reading_validation_mode = config.IGNORE
    config.settings.writing_validation_mode = config.IGNORE


@contextmanager
def quiet() -> Iterator[None]:
    """pydicom warns about odd values; a peer's odd values are not ours to print."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def parse(data: bytes, syntax: UID) -> Dataset:
    """Parse an encoded data set (already inflated). Raises Unparseable."""
    with quiet():
        try:
            return read_dataset(io.BytesIO(data), syntax.is_implicit_VR, syntax.is_little_endian)
        except Exception as error:
            raise Unparseable(f"data set cannot be parsed: {error}") from error


@dataclass(frozen=True)
class PixelShape:
    """The Image Pixel module's numbers (PS3.3 C.7.6.3), as far as they are there and readable."""

    rows: int
    columns: int
    samples: int
    frames: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    photometric: str

    @classmethod
    def of(cls, header: Dataset) -> PixelShape:
        def number(keyword: str, default: int = 0) -> int:
            try:
                value = header.get(keyword)
                return default if value in (None, "") else max(int(value), 0)
            except Exception:  # noqa: BLE001 - pydicom raises many kinds on hostile values
                return default

        def text(keyword: str) -> str:
            try:
                return str(header.get(keyword) or "")
            except Exception:  # noqa: BLE001
                return ""

        with quiet():
            return cls(
                rows=number("Rows"),
                columns=number("Columns"),
                samples=number("SamplesPerPixel", 1),
                frames=max(number("NumberOfFrames", 1), 1),
                bits_allocated=number("BitsAllocated"),
                bits_stored=number("BitsStored"),
                high_bit=number("HighBit"),
                signed=number("PixelRepresentation") == 1,
                photometric=text("PhotometricInterpretation"),
            )

    @property
    def native_bytes(self) -> int:
        """Bytes of the uncompressed value, before padding to an even length (PS3.5 section 8)."""
        bits = self.rows * self.columns * self.samples * self.frames * self.bits_allocated
        if self.photometric in ("YBR_FULL_422", "YBR_PARTIAL_422"):
            bits = bits * 2 // 3
        return (bits + 7) // 8


def native_pixel_warning(file: DataSetFile, shape: PixelShape) -> str:
    """Why the pixels cannot be trusted, as far as bytes and bits tell without a decoder; empty when sound."""
    layout = file.layout
    if not layout.has_pixels:
        return "an image with no pixel data" if _promises_pixels(file, shape) else ""
    if layout.truncated:
        return "pixel data ends before its announced length"
    if not (shape.rows and shape.columns and shape.bits_allocated):
        return "pixel data without rows, columns or bits allocated"
    if layout.encapsulated:
        return ""
    if file.transfer_syntax.is_compressed and file.transfer_syntax != DeflatedExplicitVRLittleEndian:
        return "native pixel data in a transfer syntax for encapsulated pixel data"
    have, need = layout.value_end - layout.value_start, shape.native_bytes
    if have < need:
        return f"pixel data is short: {have} bytes for {need}"
    if have > need + 1:
        return f"pixel data is too long: {have} bytes for {need}"
    if shape.bits_allocated == 16 and not shape.signed and shape.high_bit < 15:
        order = "<u2" if file.transfer_syntax.is_little_endian else ">u2"
        values = np.frombuffer(file.native_value()[: need // 2 * 2], dtype=order)
        used = int(np.bitwise_or.reduce(values)) if values.size else 0
        if used >> (shape.high_bit + 1):
            return f"pixels have bits set above High Bit {shape.high_bit}"
    return ""


def _promises_pixels(file: DataSetFile, shape: PixelShape) -> bool:
    """Rows, columns and bits without pixels, and no address to get them from (Pixel Data Provider URL)."""
    return bool(shape.rows and shape.columns and shape.bits_stored) and 0x00287FE0 not in file.header()


def integer_pixels(path: Path) -> NDArray[np.uint16]:
    """The stored values of a single-frame, 16-bit, monochrome image: uint16, shape (rows, columns), no rescale.

    Raises PixelError where there are none, or they are of another kind, short, odd or undecodable.
    """
    with opened(path) as file:
        shape = PixelShape.of(file.header())
        if not file.layout.has_pixels:
            raise PixelError("no pixel data")
        warning = native_pixel_warning(file, shape)
        if warning:
            raise PixelError(warning)
        if (shape.bits_allocated, shape.samples) != (16, 1):
            raise PixelError(f"pixels of {shape.samples} x {shape.bits_allocated} bits, not of 1 x 16")
        if not file.layout.encapsulated:
            order = "<u2" if file.transfer_syntax.is_little_endian else ">u2"
            count = shape.rows * shape.columns
            flat = np.frombuffer(file.native_value(), dtype=order, count=count)
            return flat.astype(np.uint16).reshape(shape.rows, shape.columns)
    frame = decode_frame(path)
    if frame.shape != (shape.rows, shape.columns):
        raise PixelError(f"codestream holds {frame.shape}, the header says {(shape.rows, shape.columns)}")
    return np.ascontiguousarray(frame, dtype=np.uint16)


_NOT_BY_GDCM = {"1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"}
"""JPEG-LS: pydicom would use GDCM, which aborts the process, or crops, where header and codestream differ in size."""

_SECOND_CHANCE = {"1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"}
"""JPEG of 12 bits, and in files of mixed encoding: pydicom's plug-ins leave these out."""


def decode_frame(path: Path) -> NDArray[Any]:
    """Decode the first frame of an encapsulated image, without colour conversion. Raises PixelError."""
    from pydicom.pixels.utils import pixel_array

    with opened(path) as file:
        syntax = str(file.transfer_syntax)
    with quiet():
        try:
            if syntax in _NOT_BY_GDCM:
                return _decode_with_imagecodecs(path)
            return pixel_array(path, index=0, raw=True)
        except Exception as error:  # noqa: BLE001 - decoders raise many kinds on hostile codestreams
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            failure = PixelError(f"codestream cannot be decoded: {reason}")
        if syntax not in _SECOND_CHANCE:
            raise failure
        try:
            return _decode_with_imagecodecs(path)
        except Exception as error:
            raise failure from error


def _decode_with_imagecodecs(path: Path) -> NDArray[Any]:
    import imagecodecs
    from pydicom.encaps import get_frame

    with opened(path) as file:
        shape = PixelShape.of(file.header())
        codestream = get_frame(bytes(file.native_value()), 0, number_of_frames=shape.frames)
        is_jpegls = str(file.transfer_syntax) in _NOT_BY_GDCM
    frame = np.asarray(imagecodecs.jpegls_decode(codestream) if is_jpegls else imagecodecs.jpeg_decode(codestream))
    if frame.shape[:2] != (shape.rows, shape.columns):
        raise PixelError(f"codestream holds {frame.shape[:2]}, the header says {(shape.rows, shape.columns)}")
    return frame


def pixel_digest(pixels: NDArray[np.uint16]) -> str:
    """SHA-256, hex, of the pixels as little-endian uint16 in row order."""
    return hashlib.sha256(np.ascontiguousarray(pixels, dtype="<u2").data).hexdigest()


# --- writing --------------------------------------------------------------------------------------------------


def file_meta(sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str) -> FileMetaDataset:
    """File meta information (PS3.10 section 7.1) for a file this archive writes."""
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = UID(sop_class_uid)
    meta.MediaStorageSOPInstanceUID = UID(sop_instance_uid)
    meta.TransferSyntaxUID = UID(transfer_syntax_uid)
    meta.ImplementationClassUID = IMPLEMENTATION_CLASS_UID
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    return meta


def write_preamble(out: IO[bytes], meta: FileMetaDataset) -> None:
    """Preamble, prefix and file meta information."""
    out.write(b"\x00" * 128 + b"DICM")
    from pydicom.filebase import DicomIO

    write_file_meta_info(cast(DicomIO, out), meta)


def write_header_for_pixels(out: IO[bytes], header: Dataset, value_bytes: int) -> None:
    """A Part 10 file in explicit VR little endian, up to and including the pixel data element's length.

    The caller appends ``value_bytes`` bytes (an even number). Elements beyond pixel data are not expected here.
    """
    write_preamble(out, file_meta(header.SOPClassUID, header.SOPInstanceUID, ExplicitVRLittleEndian))
    out.write(encode(header, ExplicitVRLittleEndian))
    out.write(struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OW", 0, value_bytes))


def encode(dataset: Dataset, syntax: UID) -> bytes:
    """A data set as bytes in a native transfer syntax."""
    from pydicom.filebase import DicomBytesIO

    out = DicomBytesIO()
    out.is_implicit_VR = syntax.is_implicit_VR
    out.is_little_endian = syntax.is_little_endian
    with quiet():
        write_dataset(out, dataset)
    return out.getvalue()


def transcode(source: Path, target: Path, syntax: UID) -> None:
    """Write ``source`` to ``target`` in a native little-endian transfer syntax, pixels decompressed.

    Raises PixelError where the pixels cannot be decoded, Unparseable where an element cannot be encoded anew.
    """
    from pydicom import dcmread

    with opened(source) as file:
        encapsulated, little = file.layout.encapsulated, file.transfer_syntax.is_little_endian
    with quiet():
        try:
            dataset = dcmread(source)
            if encapsulated:
                _decompress(dataset, source)
            elif not little:
                _swap_to_little_endian(dataset)
            body = encode(dataset, syntax)
            meta = file_meta(dataset.SOPClassUID, dataset.SOPInstanceUID, syntax)
        except PixelError:
            raise
        except Exception as error:
            raise Unparseable(f"data set cannot be encoded in {syntax.name}: {error}") from error
        with target.open("wb") as out:
            write_preamble(out, meta)
            out.write(body)


def _decompress(dataset: Dataset, source: Path) -> None:
    """Native pixels in place of encapsulated ones. Raises PixelError."""
    try:
        dataset.decompress(as_rgb=False, generate_instance_uid=False)
    except Exception as error:
        shape = PixelShape.of(dataset)
        if (shape.samples, shape.frames, shape.bits_allocated) != (1, 1, 16):
            raise PixelError(f"codestream cannot be decoded: {error}") from error
        pixels = integer_pixels(source)  # decodes what pydicom leaves out
        dataset.add_new(0x7FE00010, "OW", pixels.astype("<u2").tobytes())


def _swap_to_little_endian(dataset: Dataset) -> None:
    """The values of these VRs are words in the data set's byte order (PS3.5 section 7.3); pydicom keeps them."""
    widths = {"OW": 2, "OB or OW": 2, "OL": 4, "OF": 4, "OD": 8, "OV": 8}
    for element in dataset.iterall():
        width = widths.get(element.VR)
        if width and isinstance(element.value, bytes) and len(element.value) % width == 0:
            element.value = np.frombuffer(element.value, f">u{width}").astype(f"<u{width}").tobytes()
