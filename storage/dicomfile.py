"""DICOM bytes: where the pixel data lies, the header around it, and how files are written.

The archive keeps a peer's data set verbatim, so it needs byte offsets, which pydicom does not report, and it must
notice a data set that ends in the middle of an element, which pydicom accepts. ``scan`` walks the encoding
(PS3.5 sections 7.1 and A.4) without interpreting values; pydicom interprets them.
"""

from __future__ import annotations

import io
import mmap
import struct
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from pydicom import Dataset, config
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataset import FileMetaDataset
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_file_meta_info
from pydicom.tag import BaseTag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from storage.elements import values_of
from storage.errors import Unparseable
from storage.inflating import inflated
from storage.writing import ALL, written

IMPLEMENTATION_CLASS_UID = UID("2.25.317062983047129458210447590126385540251")
IMPLEMENTATION_VERSION_NAME = "LATENTPACS_1"

PIXEL_TAGS = {(0x7FE0, 0x0008), (0x7FE0, 0x0009), (0x7FE0, 0x0010)}
_LONG_VRS = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
_PIXEL_DATA = 0x7FE00010
_UNDEFINED = 0xFFFFFFFF
_MAX_DEPTH = 64
_MAX_META = 1 << 20
_BULK = 1 << 20
"""Bytes of a value beyond which ``outline`` leaves it out."""

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
        syntax = UID(self.transfer_syntax_uid, validation_mode=config.IGNORE)
        return parse(self.before + self.after, syntax)


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

    def outline(self) -> Dataset:
        """The header without values of more than a megabyte that are no sequence: those are bytes or text in bulk, and
        reading them costs memory several times their size."""
        kept = kept_ranges(self.data, self.transfer_syntax, self.layout, _BULK)
        return parse(b"".join(bytes(self.data[start:end]) for start, end in kept), self.transfer_syntax)

    def native_value(self) -> memoryview:
        return self.data[self.layout.value_start : self.layout.value_end]


@contextmanager
def opened(path: Path) -> Iterator[DataSetFile]:
    """Open a Part 10 file. Raises Unparseable where PS3.10 or PS3.5 is broken outside the pixel data."""
    with path.open("rb") as file, ExitStack() as stack:
        start, syntax = _data_set_start(file)
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        view = memoryview(mapped)
        data = view[start:]
        try:
            if syntax == DeflatedExplicitVRLittleEndian:
                data = memoryview(stack.enter_context(inflated(data, path.parent)))
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


# --- the walk -------------------------------------------------------------------------------------------------


def scan(data: Bytes, syntax: UID) -> Layout:
    """Walk the top level of an encoded data set. Raises Unparseable; a short pixel element is not an error."""
    end = len(data)
    explicit = not syntax.is_implicit_VR and not looks_implicit(data)
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


def kept_ranges(data: Bytes, syntax: UID, layout: Layout, most: int) -> list[tuple[int, int]]:
    """Where the elements of the top level lie, without pixel data and without long values that are no sequence."""
    explicit = not syntax.is_implicit_VR and not looks_implicit(data)
    walk = _Walk(data, explicit=explicit, little=syntax.is_little_endian)
    kept: list[tuple[int, int]] = []
    for start, end in ((0, layout.pixel_start), (layout.pixel_end, layout.end)):
        at = since = start
        while at < end and any(data[at : at + 8]):
            tag, vr, value, length = walk.element(at)
            after = walk.skip(tag, vr, value, length, 0)
            if after - at > most and not walk.is_sequence(tag, vr, length):
                kept.append((since, at))
                since = after
            at = after
        kept.append((since, end))
    return kept


def check_order(data: Bytes, syntax: UID) -> None:
    """Raises Unparseable where tags do not ascend, or one is there twice (PS3.5 7.1), in the data set or in an item."""
    explicit = not syntax.is_implicit_VR and not looks_implicit(data)
    _Walk(data, explicit=explicit, little=syntax.is_little_endian).check_order(0, len(data), 0)


def looks_implicit(data: Bytes) -> bool:
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

    def check_order(self, at: int, end: int, depth: int) -> None:
        last = (-1, -1)
        while at < end:
            tag, vr, value, length = self.element(at)
            if tag == (0xFFFE, 0xE00D):
                return
            if tag <= last:
                raise Unparseable(f"({tag[0]:04X},{tag[1]:04X}) comes behind ({last[0]:04X},{last[1]:04X})")
            last, encapsulated = tag, tag in PIXEL_TAGS and length == _UNDEFINED
            at = self.pixels(at, vr, value, length).pixel_end if encapsulated else self.skip(tag, vr, value, length, 0)
            if not encapsulated and self.is_sequence(tag, vr, length):
                inner = _Walk(self.data, explicit=False, little=True) if vr == b"UN" else self
                inner.check_items(value, at, depth + 1)

    def check_items(self, at: int, end: int, depth: int) -> None:
        if depth > _MAX_DEPTH:
            raise Unparseable(f"sequences nested more than {_MAX_DEPTH} deep")
        while at < end:
            tag, _, value, length = self.element(at)
            if tag == (0xFFFE, 0xE0DD):
                return
            if tag != (0xFFFE, 0xE000):
                raise Unparseable(f"no sequence item at byte {at}")
            stop = value + length if length != _UNDEFINED else self._end_of_item(value)
            self.check_order(value, stop, depth)
            at = stop

    def _end_of_item(self, at: int) -> int:
        while True:
            tag, vr, value, length = self.element(at)
            if tag == (0xFFFE, 0xE00D):
                return value
            at = self.skip(tag, vr, value, length, 0)

    def is_sequence(self, tag: tuple[int, int], vr: bytes, length: int) -> bool:
        if length == _UNDEFINED or vr == b"SQ":
            return True
        number = tag[0] << 16 | tag[1]
        return not self.explicit and dictionary_has_tag(number) and dictionary_VR(number) == "SQ"

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
    """Tell pydicom, for this process, neither to warn of nor to refuse a peer's odd values, and of JPEG XL.

    Called once per process at its start: warning filters are not safe between threads, and what pydicom would print
    is patient data.
    """
    from pydicom import config

    from storage.encapsulate import know_jpeg_xl

    know_jpeg_xl()
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


def write_header_for_pixels(out: IO[bytes], header: Dataset, value_bytes: int) -> bytes:
    """A Part 10 file in explicit VR little endian, up to and including the pixel data element's length.

    The caller appends ``value_bytes`` bytes (an even number), and then what comes back: the elements behind the pixels,
    since tags ascend (PS3.5 7.1). ``header`` has no element of group 7FE0.
    """
    write_preamble(out, file_meta(header.SOPClassUID, header.SOPInstanceUID, ExplicitVRLittleEndian))
    out.write(encode(header, ExplicitVRLittleEndian, within=range(_PIXEL_DATA)))
    out.write(struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OW", 0, value_bytes))
    return encode(header, ExplicitVRLittleEndian, within=range(_PIXEL_DATA, ALL.stop))


def encode(dataset: Dataset, syntax: UID, *, verbatim: bool = False, within: range = ALL) -> bytes:
    """A data set as bytes in a native transfer syntax; ``verbatim`` and ``within`` as of ``written``."""
    with quiet():
        return written(dataset, syntax, verbatim=verbatim, within=within)
