"""Proves that unusual but valid data sets are kept verbatim, counted correctly and converted on request."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate
from pydicom.pixels.utils import pixel_array
from pydicom.uid import (
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)
from pynetdicom import AE, build_role, evt
from pynetdicom.presentation import build_context

from node.app import Node
from node.archive.intake.ingest import check_uid
from node.archive.serve.amended_header import write_amended
from node.archive.serve.retrieve import Retrieve
from node.dimse import client
from node.dimse.client import Address
from storage.dicom.dicomfile import file_meta, opened, parse, write_preamble
from storage.dicom.encapsulate import JPEG_XL_LOSSLESS
from storage.dicom.pixels import PixelShape, counted_bytes, native_pixel_warning, transcode
from storage.dicom.writing import encode
from storage.errors import InvalidUid, PixelError
from storage.records import Applied
from tests.conftest import SECONDARY_CAPTURE, settings_for
from tests.support.encoded_elements import element
from tests.support.samples import MAMMOGRAPHY

FIND, GET = "1.2.840.10008.5.1.4.1.2.2.1", "1.2.840.10008.5.1.4.1.2.2.3"
NATIVE = [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    peers = [
        {"ae_title": "MODALITY", "allow": ["store"]},
        {"ae_title": "VIEWER", "allow": ["find", "get"], "rendition": "original"},
    ]
    settings = settings_for(tmp_path_factory.mktemp("node"), peers=peers, archivist={"enabled": False})
    with Node(settings) as running:
        yield running


def capture(**more: Any) -> Dataset:
    """A Secondary Capture of 8 x 8 pixels of 8 bits."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = SECONDARY_CAPTURE, generate_uid()
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.Modality = generate_uid(), generate_uid(), "OT"
    ds.PatientID, ds.PatientName, ds.StudyDate = "O1", "Odd^Content", "20240102"
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.Rows, ds.Columns = 1, "MONOCHROME2", 8, 8
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
    for keyword, value in more.items():
        setattr(ds, keyword, value)
    ds.add_new(0x7FE00010, "OB", bytes(range(64)))
    return ds


def with_inside(ds: Dataset, tag: int, raw: bytes, syntax: UID) -> bytes:
    """The data set with raw bytes at the place of a tag."""
    return encode(ds, syntax, within=range(tag)) + raw + encode(ds, syntax, within=range(tag, 1 << 32))


def file_of(path: Path, ds: Dataset, body: bytes, syntax: UID = ExplicitVRLittleEndian) -> Path:
    with path.open("wb") as out:
        write_preamble(out, file_meta(ds.SOPClassUID, ds.SOPInstanceUID, syntax))
        out.write(body)
    return path


def stored(node: Node, path: Path, syntax: UID = ExplicitVRLittleEndian) -> int:
    statuses: list[int] = []
    to = Address("127.0.0.1", node.server.port, "LATENTPACS")
    client.store([path], to, calling="MODALITY", each=lambda _, status, __: statuses.append(status))
    return statuses[0]


def got(node: Node, ds: Dataset, syntax: UID, *more: tuple[Any, Any], pdu: int = 16384) -> bytes:
    """The data set as it is retrieved in that transfer syntax. ``more``: handlers of events."""
    came: list[bytes] = []

    def keep(event: Any) -> int:
        came.append(event.encoded_dataset(include_meta=False))
        return 0

    entity = AE("VIEWER")
    contexts = [build_context(GET), build_context(SECONDARY_CAPTURE, syntax)]
    roles: list[Any] = [build_role(UID(SECONDARY_CAPTURE), scp_role=True)]
    handlers: list[Any] = [(evt.EVT_C_STORE, keep), *more]
    options: dict[str, Any] = {"ext_neg": roles, "evt_handlers": handlers, "max_pdu": pdu}
    assoc = entity.associate("127.0.0.1", node.server.port, contexts=contexts, **options)
    list(assoc.send_c_get(client.image_identifier(ds.StudyInstanceUID), GET))
    assoc.release()
    assert len(came) == 1
    return came[0]


# --- behind the last element ---


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 8, 10, 512])
@pytest.mark.parametrize("syntax", NATIVE)
def test_zero_bytes_behind_the_last_element_are_kept(node: Node, tmp_path: Path, syntax: UID, count: int) -> None:
    ds = capture()
    body = encode(ds, syntax) + bytes(count)
    assert stored(node, file_of(tmp_path / "x.dcm", ds, body, syntax)) == 0
    assert got(node, ds, syntax) == body
    if syntax != ImplicitVRLittleEndian:
        assert got(node, ds, ImplicitVRLittleEndian) == encode(ds, ImplicitVRLittleEndian)


def native(ds: Dataset, length: int) -> bytes:
    """The data set with pixels of that many bytes."""
    return encode(ds, ExplicitVRLittleEndian, within=range(0x7FE00010)) + element(
        0x7FE00010, "OB", bytes(length), ExplicitVRLittleEndian
    )


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, JPEGLSLossless, ExplicitVRBigEndian])
def test_an_element_of_an_odd_length_is_sent_with_an_even_one(node: Node, tmp_path: Path, syntax: UID) -> None:
    """Data set fragments have an even number of bytes (PS3.8 E.1), and DCMTK aborts on others."""
    ds = capture()
    if syntax == JPEGLSLossless:
        ds.PixelData = encapsulate([bytes(imagecodecs.jpegls_encode(np.arange(64, dtype=np.uint8).reshape(8, 8)))])
        ds[0x7FE00010].is_undefined_length = True
    body, even = (with_inside(ds, 0x00081030, element(0x00081030, "LO", one, syntax), syntax) for one in (b"x", b"x "))
    assert stored(node, file_of(tmp_path / "x.dcm", ds, body, syntax)) == 0
    assert got(node, ds, syntax) == even


def test_an_odd_data_set_that_cannot_be_encoded_is_sent_as_it_is(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise PixelError("no memory")

    monkeypatch.setattr(Retrieve, "as_syntax", fail)
    ds = capture()
    odd = element(0x00081030, "LO", b"x", ExplicitVRLittleEndian)
    body = with_inside(ds, 0x00081030, odd, ExplicitVRLittleEndian)
    assert stored(node, file_of(tmp_path / "x.dcm", ds, body)) == 0
    assert got(node, ds, ExplicitVRLittleEndian) == body


@pytest.mark.parametrize(("rows", "status"), [(7, 0), (8, 0xB007)])
def test_pixels_of_an_odd_length_are_sent_with_an_even_one(node: Node, tmp_path: Path, rows: int, status: int) -> None:
    ds = capture(Rows=rows, Columns=1)
    assert stored(node, file_of(tmp_path / "x.dcm", ds, native(ds, 7))) == status
    assert got(node, ds, ExplicitVRLittleEndian) == native(ds, 7).replace(b"OB\0\0\7", b"OB\0\0\10") + b"\0"


def test_an_odd_zero_byte_behind_the_last_element_is_not_sent(node: Node, tmp_path: Path) -> None:
    ds = capture()
    body = encode(ds, ExplicitVRLittleEndian)
    assert stored(node, file_of(tmp_path / "x.dcm", ds, body + b"\0")) == 0
    assert got(node, ds, ExplicitVRLittleEndian) == body


def test_a_deflated_data_set_of_an_odd_length_is_sent_with_an_even_one(node: Node, tmp_path: Path) -> None:
    """Some senders leave out the padding byte that PS3.5 A.5 requires."""
    bodies = (encode(ds := capture(StudyDescription="x" * more), ExplicitVRLittleEndian) for more in range(100))
    streams = ((body, zlib.compress(body, wbits=-zlib.MAX_WBITS)) for body in bodies)
    body, stream = next((body, stream) for body, stream in streams if len(stream) % 2)
    assert stored(node, file_of(tmp_path / "x.dcm", ds, stream, DeflatedExplicitVRLittleEndian)) == 0
    sent = got(node, ds, DeflatedExplicitVRLittleEndian)
    assert (len(sent) % 2, zlib.decompressobj(-zlib.MAX_WBITS).decompress(sent)) == (0, body)


def test_fragments_are_even_if_the_receiver_names_an_odd_size(node: Node, tmp_path: Path) -> None:
    ds = capture(ImageComments="x" * 9000)
    body = encode(ds, ExplicitVRLittleEndian)
    assert stored(node, file_of(tmp_path / "x.dcm", ds, body)) == 0
    sizes: list[int] = []

    def measure(event: Any) -> None:
        for one in getattr(event.pdu, "presentation_data_value_items", ()):
            sizes.append(len(one.presentation_data_value) - 1)  # less the message control header

    assert got(node, ds, ExplicitVRLittleEndian, (evt.EVT_PDU_RECV, measure), pdu=4097) == body
    assert max(sizes) == 4090
    assert not any(size % 2 for size in sizes)


def test_zero_bytes_behind_no_pixels(tmp_path: Path) -> None:
    ds = capture()
    del ds.PixelData
    with opened(file_of(tmp_path / "x.dcm", ds, encode(ds, ExplicitVRLittleEndian) + bytes(512))) as file:
        assert file.header() == ds


# --- VRs ---


def odd(vr: bytes, kind: str, order: str = "<") -> bytes:
    """An element Pixel Padding Value (0028,0120) of 7, with a length of 16 or 32 bits."""
    head = struct.pack(order + "HH", 0x0028, 0x0120) + vr
    value = struct.pack(order + "H", 7)
    return head + (struct.pack(order + "H", 2) if kind == "short" else struct.pack(order + "HI", 0, 2)) + value


@pytest.mark.slow
@pytest.mark.parametrize("vr", [b"  ", b"??", b"--", b"\0\0", b"zz", b"ZZ", b"\xff\xfe", b"us", b"OX"])
@pytest.mark.parametrize("kind", ["short", "long"])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_an_element_of_no_vr_is_kept_and_converted_as_un(
    node: Node, tmp_path: Path, vr: bytes, kind: str, syntax: UID
) -> None:
    ds = capture()
    body = with_inside(ds, 0x00280120, odd(vr, kind, "<" if syntax.is_little_endian else ">"), syntax)
    path = file_of(tmp_path / "x.dcm", ds, body, syntax)
    assert stored(node, path) == 0
    assert got(node, ds, syntax) == body
    transcode(path, tmp_path / "y.dcm", ExplicitVRLittleEndian)
    back = dcmread(tmp_path / "y.dcm")
    assert back.get_item(0x00280120).VR == "UN"
    assert back.get_item(0x00280120).value == struct.pack("<H" if syntax.is_little_endian else ">H", 7)
    assert back.PixelData == ds.PixelData
    assert back.PatientID == "O1"


def test_several_elements_of_no_vr_and_one_at_the_end(tmp_path: Path) -> None:
    ds = capture()
    del ds.PixelData
    many = b"".join(struct.pack("<HH2sH", 0x0029, 0x1000 + number, b"??", 4) + b"abcd" for number in range(300))
    last = struct.pack("<HH2sH", 0x5400, 0x0100, b"??", 4) + b"wxyz"
    path = file_of(tmp_path / "x.dcm", ds, with_inside(ds, 0x00290000, many, ExplicitVRLittleEndian) + last)
    with opened(path) as file:
        header = file.header()
    assert header.get_item(0x0029112B).value == b"abcd"
    assert header.get_item(0x54000100).value == b"wxyz"


def tagged(tag: int, vr: bytes, value: bytes) -> bytes:
    return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr, len(value)) + value


def sequence_of(tag: int, content: bytes, *, item_end: bool, end: bool) -> bytes:
    """A sequence of one item. ``end``: whether it has an undefined length, and ends with a delimiter."""
    length = 0xFFFFFFFF if item_end else len(content)
    item = struct.pack("<HHI", 0xFFFE, 0xE000, length) + content + (delimiter(0xE00D) if item_end else b"")
    head = struct.pack("<HH2sHI", tag >> 16, tag & 0xFFFF, b"SQ", 0, 0xFFFFFFFF if end else len(item))
    return head + item + (delimiter(0xE0DD) if end else b"")


@pytest.mark.parametrize("item_end", [False, True])
@pytest.mark.parametrize("end", [False, True])
@pytest.mark.parametrize("outer", [False, True])
def test_an_element_of_no_vr_in_an_item(tmp_path: Path, item_end: bool, end: bool, outer: bool) -> None:
    ds = capture()
    code = tagged(0x00080100, b"SH", b"ABCD") + tagged(0x00080102, b"??", b"wxyz") + tagged(0x00080104, b"LO", b"EFGH")
    inner = sequence_of(0x00082228, code, item_end=item_end, end=end)
    raw = sequence_of(0x00082218, inner, item_end=not item_end, end=outer)
    path = file_of(tmp_path / "x.dcm", ds, with_inside(ds, 0x00082218, raw, ExplicitVRLittleEndian))
    for syntax in (ImplicitVRLittleEndian, ExplicitVRLittleEndian):
        transcode(path, tmp_path / "y.dcm", syntax)
        item = dcmread(tmp_path / "y.dcm").AnatomicRegionSequence[0][0x00082228].value[0]
        assert (item.CodeValue, item.CodeMeaning) == ("ABCD", "EFGH")
        assert item.get_item(0x00080102).value == b"wxyz"


def test_an_element_in_implicit_vr_among_explicit_ones(node: Node, tmp_path: Path) -> None:
    ds = capture()
    raw = struct.pack("<HHI", 0x0028, 0x0120, 2) + b"\7\0"
    path = file_of(tmp_path / "x.dcm", ds, with_inside(ds, 0x00280120, raw, ExplicitVRLittleEndian))
    assert stored(node, path) == 0
    with opened(path) as file:
        assert file.header().PixelPaddingValue == 7


# --- file meta information in the data set ---


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_file_meta_information_in_a_data_set(node: Node, tmp_path: Path, syntax: UID) -> None:
    """It is returned byte for byte, or converted like other elements, and is not taken for that of the file."""
    ds = capture()
    explicit = struct.pack("<HH2sH", 2, 0x10, b"UI", len(JPEGBaseline8Bit)) + JPEGBaseline8Bit.encode()
    implicitly = struct.pack("<HHI", 2, 0x10, len(JPEGBaseline8Bit)) + JPEGBaseline8Bit.encode()
    body = (implicitly if syntax.is_implicit_VR else explicit) + encode(ds, syntax)
    assert stored(node, file_of(tmp_path / "x.dcm", ds, body, syntax), syntax) == 0
    assert got(node, ds, syntax) == body
    for other in {ExplicitVRLittleEndian, ImplicitVRLittleEndian} - {syntax}:
        converted = parse(got(node, ds, other), other)
        assert converted.SOPInstanceUID == ds.SOPInstanceUID
        assert converted.PixelData == ds.PixelData
        assert converted[0x00020010].value == JPEGBaseline8Bit


# --- UN in big endian (PS3.5 6.2.2) ---


def implicit(tag: int, value: bytes) -> bytes:
    return struct.pack("<HHI", tag >> 16, tag & 0xFFFF, len(value)) + value


def delimiter(element: int) -> bytes:
    return struct.pack("<HHI", 0xFFFE, element, 0)


def unknown_sequence(length: int | None) -> tuple[bytes, bytes]:
    """An element of VR UN and undefined length in big endian. Its item has that length, or an undefined one."""
    content = implicit(0x00290010, b"FIELD TEST") + implicit(0x00291002, b"\1\2\3\4")
    if length is None:
        item = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF) + content + delimiter(0xE00D)
    else:
        item = struct.pack("<HHI", 0xFFFE, 0xE000, len(content)) + content
    head = struct.pack(">HH", 0x0029, 0x1001) + b"UN" + struct.pack(">HI", 0, 0xFFFFFFFF)
    return head + item + delimiter(0xE0DD), item


@pytest.mark.parametrize("length", [None, 0])
def test_un_of_undefined_length_in_big_endian(node: Node, tmp_path: Path, length: int | None) -> None:
    ds = capture()
    raw, item = unknown_sequence(length)
    body = with_inside(ds, 0x00291001, raw, ExplicitVRBigEndian)
    path = file_of(tmp_path / "x.dcm", ds, body, ExplicitVRBigEndian)
    assert stored(node, path) == 0
    assert got(node, ds, ExplicitVRBigEndian) == body
    transcode(path, tmp_path / "y.dcm", ExplicitVRLittleEndian)
    back = dcmread(tmp_path / "y.dcm")
    assert back.get_item(0x00291001).value == item
    assert back.PixelData == ds.PixelData
    write_amended(path, tmp_path / "z.dcm", [_changed(PatientID="O2")])
    with opened(tmp_path / "z.dcm") as file:
        header = file.header()
    assert (header.PatientID, header.get_item(0x00291001).value) == ("O2", item)


def test_un_of_undefined_length_in_an_item_in_big_endian(tmp_path: Path) -> None:
    ds = capture()
    raw, item = unknown_sequence(None)
    inside = struct.pack(">HHI", 0xFFFE, 0xE000, 0xFFFFFFFF) + raw + struct.pack(">HHI", 0xFFFE, 0xE00D, 0)
    head = struct.pack(">HH", 0x0008, 0x1140) + b"SQ" + struct.pack(">HI", 0, 0xFFFFFFFF)
    outer = head + inside + struct.pack(">HHI", 0xFFFE, 0xE0DD, 0)
    path = file_of(tmp_path / "x.dcm", ds, with_inside(ds, 0x00081140, outer, ExplicitVRBigEndian), ExplicitVRBigEndian)
    with opened(path) as file:
        assert file.header().ReferencedImageSequence[0].get_item(0x00291001).value == item


# --- pixels ---


@pytest.mark.parametrize("syntax", [*NATIVE[:2], DeflatedExplicitVRLittleEndian])
def test_encapsulated_pixels_under_a_native_syntax_are_not_sound(tmp_path: Path, syntax: UID) -> None:
    ds = capture()
    del ds.PixelData
    ds.PixelData = encapsulate([b"\xff\xd8\xff\xd9"])
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    native = ExplicitVRLittleEndian if syntax == DeflatedExplicitVRLittleEndian else syntax
    body = encode(ds, native)
    if syntax != native:
        body = zlib.compress(body, wbits=-15)
    with opened(file_of(tmp_path / "x.dcm", ds, body, syntax)) as file:
        warning = native_pixel_warning(file, PixelShape.of(file.header()))
    assert warning == "encapsulated pixel data in a transfer syntax for native pixel data"


def test_encapsulated_pixels_under_a_native_syntax_are_answered_so(node: Node, tmp_path: Path) -> None:
    ds = capture()
    ds.PixelData = encapsulate([b"\xff\xd8\xff\xd9"])
    ds["PixelData"].is_undefined_length = True
    path = file_of(tmp_path / "x.dcm", ds, encode(ds, ExplicitVRLittleEndian))
    assert stored(node, path) == 0xB007
    assert stored(node, path) == 0xB007


CLAIM = {"Rows": 65535, "Columns": 65535, "NumberOfFrames": 1000}


@pytest.mark.parametrize("syntax", NATIVE)
def test_what_a_header_claims_is_not_counted(node: Node, tmp_path: Path, syntax: UID) -> None:
    before = node.index.counts()
    ds = capture(**CLAIM)
    assert stored(node, file_of(tmp_path / "x.dcm", ds, encode(ds, syntax), syntax)) == 0xB007
    assert _pixel_bytes(node, ds) == 64
    assert node.index.counts() != before


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless, UID("1.2.840.10008.1.2.4.102")])
def test_what_the_header_of_encapsulated_pixels_claims_is_not_counted(node: Node, tmp_path: Path, syntax: UID) -> None:
    ds = capture(**CLAIM)
    ds.PixelData = encapsulate([b"no codestream."])
    ds["PixelData"].is_undefined_length = True
    assert stored(node, file_of(tmp_path / "x.dcm", ds, encode(ds, ExplicitVRLittleEndian), syntax)) in (0, 0xB007)
    assert _pixel_bytes(node, ds) <= len(ds.PixelData)


def test_frames_that_are_not_there_are_not_counted(tmp_path: Path) -> None:
    picture = np.arange(64, dtype=np.uint8).reshape(8, 8)
    frames = [bytes(imagecodecs.jpegls_encode(picture, level=0))] * 3
    for claimed, counted in ((3, 3), (100, 3), (1, 1)):
        ds = capture(NumberOfFrames=claimed)
        ds.PixelData = encapsulate(frames)
        ds["PixelData"].is_undefined_length = True
        path = file_of(tmp_path / "x.dcm", ds, encode(ds, ExplicitVRLittleEndian), JPEGLSLossless)
        with opened(path) as file:
            shape = PixelShape.of(file.header())
            assert counted_bytes(file, shape, "", decodable=True) == 64 * counted


def _pixel_bytes(node: Node, ds: Dataset) -> int:
    held = node.index.by_uid(ds.SOPInstanceUID)
    assert held is not None
    return held.pixel_bytes


def colour() -> np.ndarray[Any, Any]:
    y, x = np.mgrid[0:16, 0:16]
    return np.stack([x * 15, y * 15, 255 - x * 15], -1).astype(np.uint8)


def jpeg(subsampling: str) -> bytes:
    return bytes(imagecodecs.jpeg8_encode(colour(), 100, subsampling=subsampling))


@pytest.mark.parametrize(
    ("syntax", "codestream", "said"),
    [
        (JPEGBaseline8Bit, jpeg("422"), "YBR_FULL_422"),
        (JPEGBaseline8Bit, jpeg("420"), "YBR_FULL_422"),
        (JPEGBaseline8Bit, jpeg("444"), "YBR_FULL_422"),
        (JPEGBaseline8Bit, jpeg("444"), "YBR_FULL"),
        (JPEG2000Lossless, bytes(imagecodecs.jpeg2k_encode(colour(), reversible=True, codecformat="j2k")), "YBR_RCT"),
        (JPEG2000, bytes(imagecodecs.jpeg2k_encode(colour(), level=60, codecformat="j2k")), "YBR_ICT"),
        (JPEG2000Lossless, bytes(imagecodecs.jpeg2k_encode(colour(), reversible=True, codecformat="j2k")), "YBR_FULL"),
        (JPEG2000, bytes(imagecodecs.jpeg2k_encode(colour(), level=60, codecformat="jp2")), "YBR_FULL_422"),
        (UID(JPEG_XL_LOSSLESS), bytes(imagecodecs.jpegxl_encode(colour(), lossless=True)), "RGB"),
        (UID(JPEG_XL_LOSSLESS), bytes(imagecodecs.jpegxl_encode(colour(), lossless=True)), "YBR_FULL_422"),
    ],
)
@pytest.mark.parametrize("target", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_colour_that_is_decompressed_says_what_it_is(
    tmp_path: Path, syntax: UID, codestream: bytes, said: str, target: UID
) -> None:
    """PS3.3 C.7.6.3.1.2: native YBR_FULL_422 has half the chroma, and no decoder returns that."""
    ds = capture(SamplesPerPixel=3, PhotometricInterpretation=said, PlanarConfiguration=0, Rows=16, Columns=16)
    ds.PixelData = encapsulate([codestream])
    ds["PixelData"].is_undefined_length = True
    path = file_of(tmp_path / "x.dcm", ds, encode(ds, ExplicitVRLittleEndian), syntax)
    transcode(path, tmp_path / "y.dcm", target)
    back = dcmread(tmp_path / "y.dcm")
    assert back.PhotometricInterpretation == ("YBR_FULL" if syntax == JPEGBaseline8Bit else "RGB")
    assert len(back.PixelData) == 16 * 16 * 3
    with opened(tmp_path / "y.dcm") as file:
        assert native_pixel_warning(file, PixelShape.of(file.header())) == ""
    assert np.abs(pixel_array(back).astype(int) - colour()).mean() < 12


def test_native_pixels_with_half_the_chroma_stay_as_they_are(tmp_path: Path) -> None:
    ds = capture(SamplesPerPixel=3, PhotometricInterpretation="YBR_FULL_422", PlanarConfiguration=0)
    ds.PixelData = bytes(range(128))
    path = file_of(tmp_path / "x.dcm", ds, encode(ds, ExplicitVRLittleEndian))
    transcode(path, tmp_path / "y.dcm", ImplicitVRLittleEndian)
    back = dcmread(tmp_path / "y.dcm")
    assert (back.PhotometricInterpretation, back.PixelData) == ("YBR_FULL_422", ds.PixelData)


# --- UIDs ---

LEADING = ["1.2.03", "01.2.3", "1.2.826.0.1.3680043.8.498.01.20240102", "1.00.3"]


@pytest.fixture(scope="module")
def choices(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Node]]:
    """Nodes by their value of storage.leading_zeros."""
    peers = [
        {"ae_title": "MODALITY", "allow": ["store"]},
        {"ae_title": "VIEWER", "allow": ["find", "get"], "rendition": "original"},
    ]
    with ExitStack() as running:
        nodes = {}
        for choice in ("default", "accept", "refuse"):
            storage: dict[str, Any] = {"root": str(tmp_path_factory.mktemp(choice)), "min_free": 0}
            if choice != "default":
                storage["leading_zeros"] = choice
            settings = settings_for(Path(storage["root"]), storage=storage, peers=peers, archivist={"enabled": False})
            nodes[choice] = running.enter_context(Node(settings))
        yield nodes


@pytest.mark.slow
@pytest.mark.parametrize("uid", LEADING)
@pytest.mark.parametrize("keyword", ["SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"])
def test_leading_zeros_in_uids_are_a_choice(choices: dict[str, Node], tmp_path: Path, uid: str, keyword: str) -> None:
    ds = capture(**{keyword: UID(uid)})
    path = file_of(tmp_path / "x.dcm", ds, encode(ds, ExplicitVRLittleEndian))
    for choice, status in ("default", 0), ("accept", 0), ("refuse", 0x0117):
        node = choices[choice]
        assert stored(node, path) == status
        if not status:
            assert got(node, ds, ExplicitVRLittleEndian) == encode(ds, ExplicitVRLittleEndian)
            found = client.find(
                client.image_identifier(ds.StudyInstanceUID),
                Address("127.0.0.1", node.server.port, "LATENTPACS"),
                calling="VIEWER",
            )
            assert [one.StudyInstanceUID for one in found] == [ds.StudyInstanceUID]


@pytest.mark.parametrize("uid", ["", ".1", "1.", "1..2", "1.a", "1.2 ", "1." + "0" * 63])
def test_what_is_no_uid_is_none_with_leading_zeros_either(uid: str) -> None:
    with pytest.raises(InvalidUid):
        check_uid("UID", uid)


def _changed(**values: str) -> Applied:
    news = Dataset()
    for keyword, value in values.items():
        setattr(news, keyword, value)
    return Applied(1, "2026-01-02T03:04:05.000006+00:00", news.to_json_dict())


# --- elements that occur twice ---


@pytest.mark.parametrize(
    ("keyword", "behind"),
    [
        ("SOPClassUID", False),  # behind the other, a sender would propose another presentation context
        *[(f"{level}InstanceUID", behind) for level in ("SOP", "Study", "Series") for behind in (False, True)],
    ],
)
def test_a_uid_that_occurs_twice_with_different_values_is_refused(
    node: Node, tmp_path: Path, keyword: str, behind: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """An element occurs at most once (PS3.5 7.1). Formerly, the last one counted: a SOP Instance UID before the right
    one was stored, and one after it was refused as differing from the command."""
    ds, other = capture(), Dataset()
    setattr(other, keyword, MAMMOGRAPHY if keyword == "SOPClassUID" else generate_uid())
    parts = [encode(ds, ExplicitVRLittleEndian), encode(other, ExplicitVRLittleEndian)]
    body = b"".join(parts if behind else reversed(parts))
    assert stored(node, file_of(tmp_path / "x.dcm", ds, body)) == 0xC005
    assert node.index.by_uid(str(ds.SOPInstanceUID)) is None
    [line] = [one.getMessage() for one in caplog.records if "refused store of" in one.getMessage()]
    assert line.endswith("C005, UID of the instance, its class, study or series twice, with different values")


def test_other_elements_that_occur_twice_are_kept(node: Node, tmp_path: Path) -> None:
    """A UID is repeated with the same value, and so is a Patient ID. The data set is stored byte for byte, and the last
    Patient ID is found."""
    ds, again = capture(), Dataset()
    again.SOPInstanceUID, again.PatientID = ds.SOPInstanceUID, "O2"
    body = encode(ds, ExplicitVRLittleEndian) + encode(again, ExplicitVRLittleEndian)
    assert stored(node, file_of(tmp_path / "x.dcm", ds, body)) == 0
    assert got(node, ds, ExplicitVRLittleEndian) == body
    assert encode(dcmread(tmp_path / "x.dcm"), ExplicitVRLittleEndian).count(b"O2") == 1
