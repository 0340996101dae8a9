"""Reads and writes DICOM files: the data set, and the header around its pixel data.

storage/dicom/element_walk.py finds the byte offsets of elements; pydicom interprets their values.
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
from pydicom.dataset import FileMetaDataset
from pydicom.filebase import DicomIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_file_meta_info
from pydicom.tag import BaseTag
from pydicom.uid import UID, ExplicitVRLittleEndian

from storage.dicom.element_walk import Layout, kept_ranges, normalised, scan
from storage.dicom.elements import values_of
from storage.dicom.inflating import DEFLATED, inflated
from storage.dicom.writing import ALL, encode
from storage.errors import Unparseable

# pydicom's warnings quote values, which are patient data; a filter for one block is not thread-safe
warnings.filterwarnings("ignore", module="pydicom")

IMPLEMENTATION_CLASS_UID = UID("2.25.317062983047129458210447590126385540251")
IMPLEMENTATION_VERSION_NAME = "LATENTPACS_1"

_PIXEL_DATA = 0x7FE00010
_META_START = 132
"""Offset of the file meta information in a Part 10 file, after the preamble and its prefix (PS3.10 7.1)."""
_MAX_META = 1 << 20
"""Maximum bytes of file meta information that are parsed."""
_BULK = 1 << 20
"""Size in bytes above which ``outline`` leaves a value out. Chosen, not measured."""


@dataclass(frozen=True)
class HeaderBytes:
    """The verbatim bytes of a data set before and after its pixel data element."""

    transfer_syntax_uid: str
    before: bytes
    after: bytes

    def dataset(self, *, deferred: bool = False) -> Dataset:
        """The header as a pydicom data set without pixel data. ``deferred``: see ``normalised``. Raises Unparseable."""
        syntax = UID(self.transfer_syntax_uid, validation_mode=config.IGNORE)
        if not syntax.is_transfer_syntax:
            raise Unparseable(f"header has an unknown transfer syntax: {syntax!r}")
        return parse(normalised(self.before + self.after, syntax, deferred=deferred), syntax)


@dataclass(frozen=True)
class DataSetFile:
    """An open Part 10 file: the bytes of its data set (inflated if they were deflated), and their layout."""

    transfer_syntax: UID
    data: memoryview
    layout: Layout

    def header_bytes(self) -> HeaderBytes:
        before = bytes(self.data[: self.layout.pixel_start])
        after = bytes(self.data[self.layout.pixel_end :])
        return HeaderBytes(str(self.transfer_syntax), before, after)

    def header(self, *, deferred: bool = False) -> Dataset:
        return self.header_bytes().dataset(deferred=deferred)

    def outline(self) -> Dataset:
        """The header without values above ``_BULK`` bytes, and without large sequences (``kept_ranges``). Parsing them
        takes several times their size in memory. Raises Unparseable."""
        kept = kept_ranges(self.data, self.transfer_syntax, self.layout, _BULK)
        small = b"".join(bytes(self.data[start:end]) for start, end in kept)
        return parse(normalised(small, self.transfer_syntax, deferred=True), self.transfer_syntax)

    def has_large_sequences(self) -> bool:
        """Whether ``outline`` leaves out sequences because of their bytes or items."""
        kept = kept_ranges(self.data, self.transfer_syntax, self.layout, len(self.data))
        return len(kept) > 2  # the ranges before and after the pixels

    def native_value(self) -> memoryview:
        """The bytes of the pixel data element's value, also if it is encapsulated; empty without pixel data."""
        return self.data[self.layout.value_start : self.layout.value_end]


@contextmanager
def opened(path: Path) -> Iterator[DataSetFile]:
    """Open a Part 10 file. Raises Unparseable if it violates PS3.10, or PS3.5 outside the pixel data."""
    with path.open("rb") as file, ExitStack() as stack:
        start, syntax = data_set_start(file)
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        view = memoryview(mapped)
        data = view[start:]
        try:
            if syntax in DEFLATED:
                data = memoryview(stack.enter_context(inflated(data, path.parent)))
            yield DataSetFile(syntax, data, scan(data, syntax))
        finally:
            data.release()
            view.release()
            # numpy views of native_value may outlive this block; the mapping is closed when they are freed
            with suppress(BufferError):
                mapped.close()


def read_file_meta(file: IO[bytes]) -> tuple[int, Dataset]:
    """The byte offset of a Part 10 file's data set, and its file meta information. Raises Unparseable."""
    prefix = file.read(144)
    if len(prefix) < 144 or prefix[128:132] != b"DICM" or prefix[132:140] != b"\x02\x00\x00\x00UL\x04\x00":
        raise Unparseable("no DICOM file meta information at the start of the file (PS3.10 section 7.1)")
    start = 144 + int(struct.unpack("<I", prefix[140:144])[0])
    if start > file.seek(0, io.SEEK_END):
        raise Unparseable("file ends inside its file meta information")
    file.seek(_META_START)
    return start, parse(file.read(min(start - _META_START, _MAX_META)), ExplicitVRLittleEndian)


def data_set_start(file: IO[bytes]) -> tuple[int, UID]:
    """The byte offset of a Part 10 file's data set, and its transfer syntax. Raises Unparseable."""
    start, meta = read_file_meta(file)
    try:
        named = values_of(meta, BaseTag(0x00020010), "UI", ("ascii",))
    except Exception as error:
        raise Unparseable("file meta information has an unreadable transfer syntax") from error
    syntax = UID(named[0] if named else "", validation_mode=config.IGNORE)
    if not syntax.is_transfer_syntax:
        raise Unparseable(f"file meta information has an unknown transfer syntax: {syntax!r}")
    return start, syntax


# --- values ---------------------------------------------------------------------------------------------------


def accept_odd_values() -> None:
    """Configure pydicom, for this process, to accept invalid values, and to know JPEG XL. Called once at its start."""
    from storage.dicom.encapsulate import register_newer_syntaxes

    register_newer_syntaxes()
    config.settings.reading_validation_mode = config.IGNORE
    config.settings.writing_validation_mode = config.IGNORE


def parse(data: bytes, syntax: UID) -> Dataset:
    """Parse an encoded data set that is not deflated. Raises Unparseable."""
    try:
        return read_dataset(io.BytesIO(data), syntax.is_implicit_VR, syntax.is_little_endian)
    except Exception as error:
        raise Unparseable(f"data set cannot be parsed: {error}") from error


# --- writing --------------------------------------------------------------------------------------------------


def file_meta(sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str) -> FileMetaDataset:
    """File meta information (PS3.10 section 7.1) for a file that this archive writes."""
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = UID(sop_class_uid)
    meta.MediaStorageSOPInstanceUID = UID(sop_instance_uid)
    meta.TransferSyntaxUID = UID(transfer_syntax_uid)
    meta.ImplementationClassUID = IMPLEMENTATION_CLASS_UID
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    return meta


def write_preamble(out: IO[bytes], meta: FileMetaDataset) -> None:
    """Write preamble, prefix and file meta information (PS3.10 section 7.1)."""
    out.write(b"\x00" * 128 + b"DICM")
    write_file_meta_info(cast(DicomIO, out), meta)


def write_header_for_pixels(out: IO[bytes], header: Dataset, value_bytes: int) -> bytes:
    """Write a Part 10 file in explicit VR little endian, up to and including the length of the pixel data element.

    Returns the elements that follow the pixels, since tags ascend (PS3.5 7.1). The caller writes ``value_bytes`` bytes
    (an even number) and then these elements. ``header`` has no element of group 7FE0.
    """
    write_preamble(out, file_meta(header.SOPClassUID, header.SOPInstanceUID, ExplicitVRLittleEndian))
    out.write(encode(header, ExplicitVRLittleEndian, within=range(_PIXEL_DATA)))
    out.write(struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OW", 0, value_bytes))
    return encode(header, ExplicitVRLittleEndian, within=range(_PIXEL_DATA, ALL.stop))
