"""Proves storage.dicom.dicomfile: the walk over encoded bytes, damage at every byte, integer pixels, transcoding.

The expected offsets in pydicom's files are those of pydicom's own reader. For damage, a data set is built here element
by element, so that every boundary is known.
"""

from __future__ import annotations

import hashlib
import io
import random
import shutil
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom.data
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.dataelem import RawDataElement
from pydicom.encaps import encapsulate
from pydicom.uid import (
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPIPHTJ2KReferencedDeflate,
    RLELossless,
)

from storage.dicom.dicomfile import (
    HeaderBytes,
    Layout,
    file_meta,
    opened,
    parse,
    scan,
    write_header_for_pixels,
    write_preamble,
)
from storage.dicom.inflating import JPIP_REFERENCED_DEFLATE
from storage.dicom.pixels import PixelShape, decode_frame, integer_pixels, native_pixel_warning, pixel_digest, transcode
from storage.dicom.writing import encode
from storage.errors import LatentPacsError, PixelError, Unparseable
from tests.support.encoded_elements import element, item, sequence
from tests.support.samples import MAMMOGRAPHY, breast, mammogram, write, write_body

FILES = Path(pydicom.data.__file__).parent / "test_files"
NATIVE = [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian]

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")


def named(parameter: Any) -> str | None:
    return parameter.name if isinstance(parameter, UID) else None


def read(path: Path) -> Dataset:
    """Read a file with pydicom, without its warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = dcmread(path)
        list(dataset.iterall())
    return dataset


def values(dataset: Dataset) -> dict[int, Any]:
    """Every value by tag, except pixel data and group lengths."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            int(element.tag): [values(item) for item in element.value] if element.VR == "SQ" else element.value
            for element in dataset
            if element.tag.element != 0 and element.tag != 0x7FE00010
        }


def body_of(path: Path) -> bytes:
    """The bytes of the data set, inflated if they are deflated."""
    data = path.read_bytes()
    body = data[144 + struct.unpack("<I", data[140:144])[0] :]
    deflated = read(path).file_meta.TransferSyntaxUID == DeflatedExplicitVRLittleEndian
    return zlib.decompress(body, -zlib.MAX_WBITS) if deflated else body


# --- pydicom's files ------------------------------------------------------------------------------------------

SOUND = {  # the pixel data element: VR, encapsulated, bytes after it; None: no pixel data
    "MR_small.dcm": ("OW", False, 138),
    "MR_small_implicit.dcm": ("", False, 0),
    "MR_small_expb.dcm": ("OW", False, 138),
    "ExplVR_BigEnd.dcm": ("OB", False, 0),
    "image_dfl.dcm": ("OB", False, 0),
    "examples_rgb_color.dcm": ("OB", False, 150),
    "MR_small_RLE.dcm": ("OB", True, 138),
    "JPEG2000.dcm": ("OB", True, 0),
    "SC_rgb_jpeg.dcm": ("", True, 0),  # implicit VR under an explicit transfer syntax
    "SC_rgb_rle_16bit_2frame.dcm": ("OW", True, 0),
    "nested_priv_SQ.dcm": ("", False, 0),
    "UN_sequence.dcm": None,
    "test-SR.dcm": None,
    "rtplan.dcm": None,
    "waveform_ecg.dcm": None,
}


@pytest.mark.parametrize("name", SOUND)
def test_header_pixels_and_trailer_add_up_to_the_data_set(name: str) -> None:
    expected, dataset = read(FILES / name), body_of(FILES / name)
    with opened(FILES / name) as file:
        layout, header = file.layout, file.header_bytes()
        pixels = bytes(file.data[layout.pixel_start : layout.pixel_end])
        value = bytes(file.native_value())
        assert bytes(file.data) == dataset
        assert file.transfer_syntax == expected.file_meta.TransferSyntaxUID
    assert header.before + pixels + header.after == dataset
    assert not layout.truncated
    assert layout.has_pixels == ("PixelData" in expected) == (SOUND[name] is not None)
    assert values(header.dataset()) == values(expected)
    if SOUND[name] is None:
        assert (pixels, value, header.after) == (b"", b"", b"")
        return
    assert (layout.pixel_vr, layout.encapsulated, len(header.after)) == SOUND[name]
    group = ">H" if file.transfer_syntax == ExplicitVRBigEndian else "<H"
    assert struct.unpack(group, pixels[:2]) == (0x7FE0,)
    assert hashlib.sha256(value).digest() == hashlib.sha256(expected.PixelData).digest()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("no_meta.dcm", "no DICOM file meta information"),
        ("no_meta_group_length.dcm", "no DICOM file meta information"),
        ("ExplVR_LitEndNoMeta.dcm", "no DICOM file meta information"),
        ("meta_missing_tsyntax.dcm", "unknown transfer syntax"),
        ("rtplan_truncated.dcm", r"ends inside \(300A,00B0\): length 976, 711 bytes left"),
    ],
)
def test_a_file_outside_the_standard_is_refused_with_the_reason(name: str, why: str) -> None:
    with pytest.raises(Unparseable, match=why), opened(FILES / name):
        pass


def test_truncated_pixels_are_marked_and_not_refused() -> None:
    with opened(FILES / "MR_truncated.dcm") as file:
        assert file.layout.truncated
        assert file.layout.pixel_end == file.layout.end == len(file.data)
        assert native_pixel_warning(file, PixelShape.of(file.header())) == "pixel data ends before its announced length"
    with pytest.raises(PixelError, match="ends before"):
        integer_pixels(FILES / "MR_truncated.dcm")


def test_every_file_of_pydicom_is_split_losslessly_or_refused() -> None:
    taken = 0
    for path in sorted(FILES.glob("*.dcm")):
        try:
            with opened(path) as file:
                layout, header = file.layout, file.header_bytes()
                middle = bytes(file.data[layout.pixel_start : layout.pixel_end])
                assert header.before + middle + header.after == bytes(file.data), path.name
                header.dataset()
        except Unparseable:
            continue
        taken += 1
    assert taken >= 60  # of 72 with pydicom 3.0


# --- a data set of known boundaries ---------------------------------------------------------------------------


def number(value: int, syntax: UID) -> bytes:
    return struct.pack("<H" if syntax.is_little_endian else ">H", value)


def parts_of(syntax: UID, *, encapsulated: bool = False) -> list[tuple[int, bytes]]:
    """A small data set as (tag, encoded element): nested sequences of both kinds, UN, pixels, and a trailer."""
    code = element(0x00080100, "SH", b"76752008", syntax) + element(0x00080104, "LO", b"Breast", syntax)
    deep = sequence(0x00082228, item(code, syntax, undefined=True) + item(code, syntax), syntax)
    flat = element(0x00082228, "SQ", item(b"", syntax) + item(code, syntax, undefined=True), syntax)
    unknown_items = item(element(0x00090010, "", b"US", ImplicitVRLittleEndian), ImplicitVRLittleEndian, undefined=True)
    unknown = sequence(0x00091002, unknown_items, syntax, vr="UN", inner=ImplicitVRLittleEndian)
    pixels = struct.pack("<8H" if syntax.is_little_endian else ">8H", *range(8))
    parts = [
        (0x00080016, element(0x00080016, "UI", MAMMOGRAPHY.encode() + b"\0", syntax)),
        (0x00080018, element(0x00080018, "UI", b"1.2.3\0", syntax)),
        (0x00082218, sequence(0x00082218, item(deep, syntax, undefined=True), syntax)),
        (0x00082220, element(0x00082220, "SQ", item(flat, syntax), syntax)),
        (0x00090010, element(0x00090010, "LO", b"LATENT", syntax)),
        (0x00091001, element(0x00091001, "UN", bytes(range(1, 9)), syntax)),
        (0x00091002, unknown),
        *((tag, element(tag, "US", number(value, syntax), syntax)) for tag, value in SHAPE.items()),
        (0x7FE00010, element(0x7FE00010, "OW", pixels, syntax)),
        (0xFFFCFFFC, element(0xFFFCFFFC, "OB", b"padded\0\0", syntax)),
    ]
    if encapsulated:
        fragments = item(b"", syntax) + item(b"\x01\x02\x03\x04", syntax) + item(b"\x05\x06", syntax)
        parts[-2] = (0x7FE00010, sequence(0x7FE00010, fragments, syntax, vr="OB"))
    return parts


SHAPE = {0x00280002: 1, 0x00280010: 2, 0x00280011: 4, 0x00280100: 16, 0x00280101: 12, 0x00280102: 11, 0x00280103: 0}
CRAFTED = [(syntax, False) for syntax in NATIVE] + [(RLELossless, True)]


@pytest.mark.parametrize(("syntax", "encapsulated"), CRAFTED, ids=named)
def test_the_walk_finds_the_pixels_among_nested_sequences(syntax: UID, encapsulated: bool) -> None:
    parts = parts_of(syntax, encapsulated=encapsulated)
    body = b"".join(data for _, data in parts)
    layout = scan(body, syntax)
    pixels = parts[-2][1]
    assert layout.pixel_start == body.index(pixels)
    assert layout.pixel_end == layout.pixel_start + len(pixels) == len(body) - len(parts[-1][1])
    assert layout.end == len(body)
    header_length = 8 if syntax.is_implicit_VR else 12
    assert layout.value_start == layout.pixel_start + header_length
    assert layout.value_end == layout.pixel_end - (8 if encapsulated else 0)  # without the sequence delimiter
    assert (layout.encapsulated, layout.truncated) == (encapsulated, False)
    header = HeaderBytes(str(syntax), body[: layout.pixel_start], body[layout.pixel_end :]).dataset()
    assert [int(each.tag) for each in header] == [tag for tag, _ in parts if tag != 0x7FE00010]


@pytest.mark.parametrize(("syntax", "encapsulated"), CRAFTED, ids=named)
def test_a_data_set_truncated_anywhere_is_refused_or_marked(syntax: UID, encapsulated: bool) -> None:
    parts = parts_of(syntax, encapsulated=encapsulated)
    tags, lengths = [tag for tag, _ in parts], [len(data) for _, data in parts]
    body = b"".join(data for _, data in parts)
    boundaries = dict(zip([0, *accumulate(lengths)], range(len(parts) + 1), strict=True))
    pixel_start = sum(lengths[:-2])
    value_start = pixel_start + (8 if syntax.is_implicit_VR else 12)
    pixel_end = sum(lengths[:-1])
    outcomes = {"whole": 0, "truncated": 0, "refused": 0}
    for cut in range(len(body)):
        data = body[:cut]
        if value_start <= cut < pixel_end:
            layout = scan(data, syntax)
            assert layout.truncated, cut
            assert (layout.pixel_start, layout.value_end, layout.pixel_end) == (pixel_start, cut, cut)
            outcomes["truncated"] += 1
            continue
        # a few zero bytes are padding: the first byte of a big endian tag looks like that
        complete = max(at for at in boundaries if at <= cut)
        if any(data[complete:]):
            with pytest.raises(Unparseable):
                scan(data, syntax)
            outcomes["refused"] += 1
            continue
        layout = scan(data, syntax)
        assert not layout.truncated
        assert layout.has_pixels == (cut >= pixel_end)
        header = HeaderBytes(str(syntax), data[: layout.pixel_start], data[layout.pixel_end : complete]).dataset()
        found = [int(each.tag) for each in header]
        assert found == [tag for tag in tags[: boundaries[complete]] if tag != 0x7FE00010], cut
        outcomes["whole"] += 1
    assert outcomes["whole"] >= len(parts)
    assert outcomes["truncated"] == pixel_end - value_start
    assert outcomes["refused"] > 250


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian], ids=named)
def test_a_file_truncated_anywhere_is_refused_or_marked(syntax: UID, tmp_path: Path) -> None:
    deflated = syntax == DeflatedExplicitVRLittleEndian
    parts = parts_of(ExplicitVRLittleEndian)
    body = b"".join(data for _, data in parts)
    if deflated:
        squeezer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
        body = squeezer.compress(body) + squeezer.flush()
    path = write_body(body, tmp_path / "cut.dcm", sop_class=MAMMOGRAPHY, sop_instance="1.2.3", syntax=syntax)
    whole = path.read_bytes()
    start = len(whole) - len(body)
    boundaries = {0, *accumulate(len(data) for _, data in parts)}
    for cut in range(len(whole) - 1, -1, -1):
        with path.open("r+b") as file:
            file.truncate(cut)
        try:
            with opened(path) as opening:
                layout, shape = opening.layout, PixelShape.of(opening.header())
                warning = native_pixel_warning(opening, shape)
        except Unparseable:
            continue
        assert cut >= start, "a file that ends in its file meta information"
        assert not deflated, "a deflated stream that ends early"
        if cut - start in boundaries:
            assert not layout.truncated
        else:
            assert layout.truncated, cut
            assert warning == "pixel data ends before its announced length"


def test_nothing_but_padding_may_follow_the_last_element() -> None:
    syntax = ExplicitVRLittleEndian
    body = element(0x00080018, "UI", b"1.2.3\0", syntax)
    for count in (1, 7, 8, 9, 512, 3_000_000):
        assert not scan(body + bytes(count), syntax).has_pixels
    with pytest.raises(Unparseable, match="no value representation"):
        scan(body + bytes(512) + b"\1", syntax)
    with pytest.raises(Unparseable, match="inside an element header"):
        scan(body + b"\0\0\0\1", syntax)


def test_only_the_first_pixel_element_at_the_top_level_counts() -> None:
    syntax = ExplicitVRLittleEndian
    icon = sequence(0x00880200, item(element(0x7FE00010, "OW", b"\1\0", syntax), syntax, undefined=True), syntax)
    pixels = element(0x7FE00010, "OW", b"\2\0\3\0", syntax)
    another = element(0x7FE00010, "OW", b"\4\0", syntax)
    for body in (icon + pixels, icon + pixels + another):
        layout = scan(body, syntax)
        assert (layout.pixel_start, layout.value_end - layout.value_start) == (len(icon), 4)


def test_deeply_nested_sequences_are_refused_and_do_not_exhaust_the_stack() -> None:
    syntax = ImplicitVRLittleEndian
    opening = struct.pack("<HHI", 0x0008, 0x2218, 0xFFFFFFFF) + struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    with pytest.raises(Unparseable, match="nested more than 64 deep"):
        scan(opening * 20_000, syntax)


def test_implicit_encoding_under_an_explicit_transfer_syntax_is_read() -> None:
    body = b"".join(data for _, data in parts_of(ImplicitVRLittleEndian))
    assert scan(body, ExplicitVRLittleEndian) == scan(body, ImplicitVRLittleEndian)


def _with(path: Path, tag: int, encoded: bytes, syntax: UID) -> Path:
    """A file that holds an encoded element with that tag, among other elements."""
    others = {
        0x00080016: element(0x00080016, "UI", b"1.2\0", syntax),
        0x00100020: element(0x00100020, "LO", b"P1", syntax),
    }
    body = b"".join(one for _, one in sorted((others | {tag: encoded}).items()))
    return write_body(body, path, sop_class=MAMMOGRAPHY, sop_instance="1.2.3", syntax=syntax)


@pytest.mark.parametrize("odd", ["", "ZZ"], ids=["sound", "unknown VR"])
@pytest.mark.parametrize("syntax", NATIVE)
def test_an_outline_leaves_items_unread(syntax: UID, odd: str, tmp_path: Path) -> None:
    """An item has 8 bytes, and takes over a kilobyte once pydicom has read it."""
    inner = element(0x00081155, "UI", b"1.2.3.4\0", syntax)
    if odd and not syntax.is_implicit_VR:
        inner = element(0x00080008, odd, b"AB", syntax) + inner
    items = item(inner, syntax, undefined=True) + item(inner, syntax)
    with opened(_with(tmp_path / "x.dcm", 0x00081140, sequence(0x00081140, items, syntax), syntax)) as file:
        outline, header = file.outline(), file.header()
    assert isinstance(outline.get_item(0x00081140, keep_deferred=True), RawDataElement)
    assert [one.ReferencedSOPInstanceUID for one in outline.ReferencedImageSequence] == ["1.2.3.4", "1.2.3.4"]
    assert outline == header


@pytest.mark.slow
@pytest.mark.parametrize(("vr", "count"), [("SQ", 600_000), ("UN", 140_000), ("SQ", 20_001), ("UN", 20_001)])
def test_an_outline_has_no_large_sequences(vr: str, count: int, tmp_path: Path) -> None:
    """Sequences of VR UN are in implicit VR, and pydicom would read their items."""
    explicit, implicit = ExplicitVRLittleEndian, ImplicitVRLittleEndian
    large = sequence(0x00400275, item(b"", implicit) * count, explicit, vr=vr)
    with opened(_with(tmp_path / "x.dcm", 0x00400275, large, explicit)) as file:
        assert list(file.outline().keys()) == [0x00080016, 0x00100020]


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("syntax", NATIVE)
@pytest.mark.parametrize(
    ("vr", "value", "kept"),
    [("US", b"ISO_IR 100", "ISO_IR 100"), ("OB", b"ISO_IR 100\0\0", "ISO_IR 100"), ("PN", b"ISO_IR 192", "ISO_IR 192"),
     ("CS", b"\1\0\2\0", ""), ("FD", b"\1\0\2\0", ""), ("SQ", None, ""), ("UN", None, "")],
)  # fmt: skip
def test_a_character_set_that_is_no_code_string(
    vr: str, value: bytes | None, kept: str, syntax: UID, nested: bool, tmp_path: Path
) -> None:
    """pydicom reads Specific Character Set before all other elements. Formerly, it refused the data set."""
    if value is None:
        inner = ImplicitVRLittleEndian if vr == "UN" else syntax
        odd = sequence(0x00080005, item(b"", inner), syntax, vr=vr, inner=inner)
    else:
        odd = element(0x00080005, vr, value, syntax)
    if nested:
        odd = sequence(0x00081140, item(odd + element(0x00081155, "UI", b"1.2\0", syntax), syntax), syntax)
    with opened(_with(tmp_path / "x.dcm", 0x00081140 if nested else 0x00080005, odd, syntax)) as file:
        for header in (file.outline(), file.header()):
            for target in (ImplicitVRLittleEndian, ExplicitVRLittleEndian):
                written = parse(encode(header, target), target)
                holder = written.ReferencedImageSequence[0] if nested else written
                assert (holder.get("SpecificCharacterSet") or "") == kept
                assert written.PatientID == "P1"


@pytest.mark.slow
@pytest.mark.parametrize("vr", ["SQ", "UN"])
@pytest.mark.parametrize("content", [b"", element(0x00081155, "UT", bytes(500_000), ExplicitVRLittleEndian)])
def test_an_outline_has_a_limited_number_of_items_and_bytes_in_all(vr: str, content: bytes, tmp_path: Path) -> None:
    """Formerly, a report of 4 MB took 17 seconds of the node's main process and a gigabyte of memory."""
    explicit, implicit = ExplicitVRLittleEndian, ImplicitVRLittleEndian
    if vr == "UN":
        content = content and element(0x00081155, "UT", bytes(500_000), implicit)
    tags = [0x0040A730 + 2 * number for number in range(5)]
    items = item(content, implicit) * (1 if content else 6000)
    many = b"".join(sequence(tag, items, explicit, vr=vr) for tag in tags)
    with opened(_with(tmp_path / "x.dcm", tags[0], many, explicit)) as file:
        kept = [tag for tag in tags if tag in file.outline()]
        assert kept == tags[: 4 if content else 3]
        assert len(file.header()) == len(file.outline()) + len(tags) - len(kept)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
def test_a_data_set_has_a_limited_number_of_elements(
    syntax: UID, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Formerly, three million elements took a minute of the node's main process and two gigabytes of memory. Deflated,
    they have 5 MB."""
    monkeypatch.setattr("storage.dicom.element_walk._MOST_ELEMENTS", 100)
    for count in (100, 101):
        body = b"".join(element(0x00090000 + at, "UN", b"", ExplicitVRLittleEndian) for at in range(count))
        if syntax == DeflatedExplicitVRLittleEndian:
            engine = zlib.compressobj(wbits=-zlib.MAX_WBITS)
            body = engine.compress(body) + engine.flush()
        path = write_body(body, tmp_path / "x.dcm", sop_class=MAMMOGRAPHY, sop_instance="1.2.3", syntax=syntax)
        if count == 100:
            with opened(path) as file:
                assert len(file.header()) == 100
        else:
            with pytest.raises(Unparseable, match="more than 100 elements"), opened(path):
                pass


@pytest.mark.parametrize("syntax", [JPIP_REFERENCED_DEFLATE, JPIPHTJ2KReferencedDeflate])
def test_references_in_a_deflated_data_set_are_read(tmp_path: Path, syntax: UID) -> None:
    """JPIP Referenced Deflate, which peers may propose, deflates its data set too (PS3.5 A.7, A.14)."""
    body = element(0x00287FE0, "UT", b"http://example.org/1", ExplicitVRLittleEndian)
    engine = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    deflated = engine.compress(body) + engine.flush()
    path = write_body(deflated, tmp_path / "x.dcm", sop_class=MAMMOGRAPHY, sop_instance="1.2.3", syntax=syntax)
    with opened(path) as file:
        assert bytes(file.data) == body
        assert file.header().PixelDataProviderURL == "http://example.org/1"


def test_an_invalid_deflated_stream_is_refused(tmp_path: Path) -> None:
    syntax = DeflatedExplicitVRLittleEndian
    path = write_body(b"\xff" * 40, tmp_path / "x.dcm", sop_class=MAMMOGRAPHY, sop_instance="1.2.3", syntax=syntax)
    with pytest.raises(Unparseable, match="cannot be inflated"), opened(path):
        pass


@pytest.mark.parametrize("value", [b"", b"1.2.3.4\0", b"1.2.840.10008.1.1\0", b"\xff\xfe\\\0", b"1.2.840.10008.1.2\\1"])
def test_an_unknown_transfer_syntax_is_refused(value: bytes, tmp_path: Path) -> None:
    meta = element(0x00020010, "UI", value, ExplicitVRLittleEndian)
    path = tmp_path / "x.dcm"
    path.write_bytes(bytes(128) + b"DICM" + element(0x00020000, "UL", struct.pack("<I", len(meta)), NATIVE[0]) + meta)
    if value.endswith(b"\\1"):
        with opened(path) as file:
            assert file.transfer_syntax == ImplicitVRLittleEndian  # the first of two values
        return
    with pytest.raises(Unparseable, match="unknown transfer syntax"), opened(path):
        pass


@pytest.mark.parametrize("length", [0, 2])
def test_a_transfer_syntax_of_no_vr_is_unparseable(tmp_path: Path, length: int) -> None:
    """Mutations found this: pydicom raises NotImplementedError on an empty value of an unknown VR."""
    element = struct.pack("<HH2sH", 2, 0x10, b"U\0", length) + b"1\0"[:length]
    start = struct.pack("<HH2sHI", 2, 0, b"UL", 4, len(element))
    path = tmp_path / "no_vr.dcm"
    path.write_bytes(bytes(128) + b"DICM" + start + element)
    with pytest.raises(Unparseable, match="transfer syntax"), opened(path):
        pass


def test_a_view_of_the_pixels_outlives_the_opened_file(tmp_path: Path) -> None:
    pixels = breast(32, 24)
    with opened(write(mammogram(pixels), tmp_path / "x.dcm")) as file:
        kept = np.frombuffer(file.native_value(), "<u2")
    assert np.array_equal(kept.reshape(32, 24), pixels)


# --- hostile bytes --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


def examine(path: Path, scratch: Path) -> None:
    """Run every operation on a received file. All decoders used here are in Python and cannot end the process."""
    steps: list[Callable[[], Any]] = [
        lambda: open_and_check(path),
        lambda: integer_pixels(path),
        lambda: transcode(path, scratch / "out.dcm", ExplicitVRLittleEndian),
        lambda: transcode(path, scratch / "out.dcm", ImplicitVRLittleEndian),
    ]
    for step in steps:
        try:
            step()
        except LatentPacsError as error:
            assert str(error)


def open_and_check(path: Path) -> None:
    with opened(path) as file:
        layout = file.layout
        order = (0, layout.pixel_start, layout.value_start, layout.value_end, layout.pixel_end, layout.end)
        assert list(order) == sorted(order)
        assert layout.end == len(file.data)
        native_pixel_warning(file, PixelShape.of(file.header()))


DECODED_BY_PYTHON = {*NATIVE, DeflatedExplicitVRLittleEndian, RLELossless}
VICTIMS = [
    *("MR_small.dcm", "MR_small_expb.dcm", "MR_small_implicit.dcm", "MR_small_RLE.dcm", "rtdose_expb_1frame.dcm"),
    *("nested_priv_SQ.dcm", "reportsi.dcm", "rtplan.dcm", "test-SR.dcm", "SC_rgb_rle_2frame.dcm"),
]


@settings(max_examples=150, deadline=None)
@given(body=st.binary(max_size=200), syntax=st.sampled_from(sorted(DECODED_BY_PYTHON)))
@example(body=b"\x28\x00\x10\x00US\x03\x00\x01\x02\x03\xe0\x7f\x10\x00OW\0\0\0\0\0\0", syntax=ExplicitVRLittleEndian)
def test_random_bytes_raise_only_our_errors(scratch: Path, body: bytes, syntax: str) -> None:
    path = write_body(body, scratch / "in.dcm", sop_class=MAMMOGRAPHY, sop_instance="1.2.3", syntax=UID(syntax))
    examine(path, scratch)
    path.write_bytes(body)
    examine(path, scratch)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(data=st.binary(min_size=0, max_size=200), syntax=st.sampled_from(NATIVE))
def test_random_values_of_valid_tags_raise_only_our_errors(scratch: Path, data: bytes, syntax: UID) -> None:
    """For example Rows of three bytes, or text in place of a number."""
    random_bytes = random.Random(data)
    vrs = ["US", "SS", "IS", "DS", "CS", "FD", "AT", "PN", "LO", "UI", "SQ", "OB", "XX"]
    tags = [0x00080005, 0x00280002, 0x00280004, 0x00280008, *sorted(SHAPE)[1:], 0x00281052]
    body = b"".join(
        element(tag, random_bytes.choice(vrs), data[random_bytes.randrange(len(data) + 1) :][:9], syntax)
        for tag in tags
    )
    body += element(0x7FE00010, "OW", data, syntax)
    examine(
        write_body(body, scratch / "in.dcm", sop_class=MAMMOGRAPHY, sop_instance="1.2.3", syntax=syntax),
        scratch,
    )


@pytest.mark.slow
@settings(max_examples=250, deadline=None)
@given(
    name=st.sampled_from(VICTIMS),
    edits=st.lists(
        st.tuples(st.integers(128, 3000), st.sampled_from("=-+"), st.binary(min_size=1, max_size=6)), max_size=6
    ),
)
def test_a_mutated_file_raises_only_our_errors(scratch: Path, name: str, edits: list[tuple[int, str, bytes]]) -> None:
    data = bytearray((FILES / name).read_bytes())
    for at, what, piece in edits:
        start = at % len(data)
        stop = start if what == "+" else start + len(piece)
        data[start:stop] = b"" if what == "-" else piece
    path = scratch / "in.dcm"
    path.write_bytes(data)
    try:
        with opened(path) as file:
            safe = not file.layout.encapsulated or str(file.transfer_syntax) in DECODED_BY_PYTHON
    except LatentPacsError:
        return
    if safe:
        examine(path, scratch)


@pytest.mark.parametrize("at", range(140, 145))
def test_a_file_that_ends_in_its_first_element_is_refused(at: int, tmp_path: Path) -> None:
    path = tmp_path / "x.dcm"
    path.write_bytes((FILES / "MR_small.dcm").read_bytes()[:at])
    with pytest.raises(Unparseable), opened(path):
        pass


# --- pixels ---------------------------------------------------------------------------------------------------


def compressed(pixels: NDArray[np.uint16], syntax: UID, path: Path, **changes: Any) -> Path:
    """A mammogram in an encapsulated transfer syntax, encoded by pydicom if it can, else by imagecodecs."""
    ds = mammogram(pixels, **changes)
    if syntax in (RLELossless, JPEG2000Lossless):
        ds.file_meta = file_meta(ds.SOPClassUID, ds.SOPInstanceUID, ExplicitVRLittleEndian)
        ds.compress(syntax, generate_instance_uid=False)
    else:
        coders: dict[str, Callable[[], bytes]] = {
            JPEGLSLossless: lambda: imagecodecs.jpegls_encode(pixels),
            JPEGLosslessSV1: lambda: imagecodecs.jpeg_encode(pixels, lossless=True, bitspersample=ds.BitsStored),
            JPEGExtended12Bit: lambda: imagecodecs.jpeg_encode(pixels, level=100, bitspersample=12),
            HTJ2KLossless: lambda: imagecodecs.htj2k_encode(pixels, reversible=True),
        }
        encapsulate_in(ds, bytes(coders[syntax]()))
    return write(ds, path, syntax)


def encapsulate_in(ds: Dataset, codestream: bytes) -> None:
    ds.PixelData = encapsulate([codestream])
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True


LOSSLESS = [RLELossless, JPEG2000Lossless, JPEGLSLossless, JPEGLosslessSV1, HTJ2KLossless]


@pytest.mark.parametrize("bits", [12, 16])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, *LOSSLESS], ids=named)
def test_integer_pixels_equal_the_encoded_ones(syntax: UID, bits: int, tmp_path: Path) -> None:
    pixels = breast(75, 52, bits=bits)
    pixels[0, :2] = 0, (1 << bits) - 1
    path = tmp_path / "x.dcm"
    if syntax in LOSSLESS:
        compressed(pixels, syntax, path, bits=bits)
    else:
        write(mammogram(pixels, bits=bits), path, syntax)
    got = integer_pixels(path)
    assert got.dtype == np.uint16
    assert got.flags.c_contiguous
    assert np.array_equal(got, pixels)


def test_integer_pixels_of_twelve_bit_jpeg_are_close(tmp_path: Path) -> None:
    pixels = breast(75, 52)
    got = integer_pixels(compressed(pixels, JPEGExtended12Bit, tmp_path / "x.dcm"))
    assert got.dtype == np.uint16
    assert 0 < np.abs(got.astype(int) - pixels).max() <= 16  # the error of JPEG at level 100


@pytest.mark.parametrize("name", ["MR_small_expb.dcm", "MR_small_implicit.dcm", "MR_small_RLE.dcm"])
def test_the_same_picture_in_every_encoding_has_the_same_integers(name: str) -> None:
    assert np.array_equal(integer_pixels(FILES / name), integer_pixels(FILES / "MR_small.dcm"))
    assert np.array_equal(integer_pixels(FILES / name).view(np.int16), read(FILES / "MR_small.dcm").pixel_array)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("test-SR.dcm", "no pixel data"),
        ("examples_palette.dcm", "1 x 8 bits"),  # rows x columns bytes: half of what uint16 would need
        ("liver_1frame.dcm", "1 x 1 bits"),
        ("SC_rgb_rle_16bit.dcm", "3 x 16 bits"),
        ("MR_small_padded.dcm", "too long: 8320 bytes for 8192"),
    ],
)
def test_pixels_of_another_kind_are_refused(name: str, why: str) -> None:
    with pytest.raises(PixelError, match=why):
        integer_pixels(FILES / name)


def test_pixel_digest_is_of_little_endian_samples_in_row_order() -> None:
    pixels = np.array([[1, 2], [256, 65535]], np.uint16)
    assert pixel_digest(pixels) == hashlib.sha256(b"\x01\x00\x02\x00\x00\x01\xff\xff").hexdigest()
    assert pixel_digest(pixels.astype(">u2")) == pixel_digest(pixels)
    assert pixel_digest(np.asfortranarray(pixels)) == pixel_digest(pixels)
    assert pixel_digest(pixels.T) != pixel_digest(pixels)


def warning_of(path: Path) -> str:
    with opened(path) as file:
        return native_pixel_warning(file, PixelShape.of(file.header()))


@pytest.mark.parametrize("syntax", NATIVE, ids=named)
@pytest.mark.parametrize(("high_bit", "top"), [(11, 4095), (11, 4096), (11, 65535), (13, 4096), (15, 65535)])
def test_bits_above_high_bit_are_no_fault(syntax: UID, high_bit: int, top: int, tmp_path: Path) -> None:
    """They may be overlays (PS3.5-2004 8.1.2)."""
    pixels = np.zeros((5, 3), np.uint16)
    pixels[3, 1] = top
    ds = mammogram(pixels, HighBit=high_bit)
    if not syntax.is_little_endian:
        ds.PixelData = pixels.astype(">u2").tobytes()
    path = write(ds, tmp_path / "x.dcm", syntax)
    assert warning_of(path) == ""
    assert np.array_equal(integer_pixels(path), pixels)


def test_signed_pixels_may_have_their_high_bits_set(tmp_path: Path) -> None:
    pixels = np.full((4, 4), 65535, np.uint16)  # minus one
    assert warning_of(write(mammogram(pixels, PixelRepresentation=1), tmp_path / "x.dcm")) == ""


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        (-2, "pixel data is short: 28 bytes for 30"),
        (-30, "pixel data is short: 0 bytes for 30"),
        (0, ""),
        (2, "pixel data is too long: 32 bytes for 30"),
    ],
)
def test_pixels_of_another_length_are_detected(change: int, warning: str, tmp_path: Path) -> None:
    value = (bytes(30) + bytes(2))[: 30 + change]
    path = write(mammogram(np.zeros((5, 3), np.uint16), PixelData=value), tmp_path / "x.dcm")
    assert warning_of(path) == warning
    if warning:
        with pytest.raises(PixelError, match=warning):
            integer_pixels(path)


def test_one_byte_may_pad_pixels_to_an_even_length(tmp_path: Path) -> None:
    shape: dict[str, Any] = {"Rows": 3, "Columns": 3, "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    pixels = np.zeros((3, 3), np.uint16)
    assert warning_of(write(mammogram(pixels, **shape, PixelData=bytes(10)), tmp_path / "x.dcm")) == ""
    assert "too long" in warning_of(write(mammogram(pixels, **shape, PixelData=bytes(12)), tmp_path / "x.dcm"))


@pytest.mark.parametrize("keyword", ["Rows", "Columns", "BitsAllocated"])
def test_pixels_without_a_shape_are_detected(keyword: str, tmp_path: Path) -> None:
    path = write(mammogram(np.zeros((5, 3), np.uint16), **{keyword: None}), tmp_path / "x.dcm")
    assert warning_of(path) == "pixel data without rows, columns or bits allocated"


def test_native_pixels_in_a_compressed_transfer_syntax_are_detected(tmp_path: Path) -> None:
    path = write(mammogram(np.zeros((5, 3), np.uint16)), tmp_path / "x.dcm", JPEG2000Lossless)
    assert "transfer syntax for encapsulated" in warning_of(path)


def test_pixel_shape_ignores_unreadable_values() -> None:
    header = Dataset()
    assert PixelShape.of(header) == PixelShape(0, 0, 1, 1, 0, 0, 0, False, "")
    ds = mammogram(np.zeros((5, 3), np.uint16), NumberOfFrames=4, PixelRepresentation=1)
    shape = PixelShape.of(ds)
    assert shape == PixelShape(5, 3, 1, 4, 16, 12, 11, True, "MONOCHROME2")
    assert shape.native_bytes == 5 * 3 * 4 * 2
    assert PixelShape(3, 3, 1, 1, 1, 1, 0, False, "").native_bytes == 2  # nine single bits
    assert PixelShape(2, 2, 3, 1, 8, 8, 7, False, "YBR_FULL_422").native_bytes == 8


# --- codestreams ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", LOSSLESS, ids=named)
def test_a_damaged_codestream_is_a_pixel_error(syntax: UID, tmp_path: Path) -> None:
    path = compressed(breast(75, 52), syntax, tmp_path / "x.dcm")
    with opened(path) as file:
        start, end = file.layout.value_start, file.layout.value_end
        body = bytes(file.data)
    value = bytearray(body[start:end])
    first = 8 + struct.unpack("<I", value[4:8])[0]  # after the basic offset table: the codestream's item
    value[first + 8 : first + 40] = bytes(32)
    damaged = body[:start] + bytes(value) + body[end:]
    write_body(damaged, path, sop_class=MAMMOGRAPHY, sop_instance="1.2.3", syntax=syntax)
    for use in (decode_frame, integer_pixels, lambda each: transcode(each, tmp_path / "y.dcm", ExplicitVRLittleEndian)):
        with pytest.raises(PixelError, match=r"codestream (cannot be decoded|holds)"):
            use(path)


def test_a_codestream_of_another_size_than_the_header_says_is_a_pixel_error(tmp_path: Path) -> None:
    ds = mammogram(breast(24, 30))
    encapsulate_in(ds, bytes(imagecodecs.jpeg_encode(breast(30, 24), level=100, bitspersample=12)))
    with pytest.raises(PixelError, match="codestream"):
        integer_pixels(write(ds, tmp_path / "x.dcm", JPEGExtended12Bit))


@pytest.mark.slow
def test_a_jpeg_ls_codestream_of_another_size_does_not_end_the_process(tmp_path: Path) -> None:
    ds = mammogram(breast(48, 30))
    encapsulate_in(ds, bytes(imagecodecs.jpegls_encode(breast(24, 30))))
    path = write(ds, tmp_path / "x.dcm", JPEGLSLossless)
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n"
        "from pathlib import Path; from storage.dicom.pixels import decode_frame\n"
        "from storage.errors import PixelError\n"
        "try: decode_frame(Path(sys.argv[1]))\n"
        "except PixelError: pass\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-300:]


# --- transcoding ----------------------------------------------------------------------------------------------


def test_decode_frame_takes_the_first_of_several(tmp_path: Path) -> None:
    frames = read(FILES / "SC_rgb_rle_2frame.dcm").pixel_array
    assert np.array_equal(decode_frame(FILES / "SC_rgb_rle_2frame.dcm"), frames[0])
    assert not np.array_equal(frames[0], frames[1])


@pytest.mark.parametrize("target", [ExplicitVRLittleEndian, ImplicitVRLittleEndian], ids=named)
@pytest.mark.parametrize("source", [*NATIVE, *LOSSLESS], ids=named)
def test_transcoding_keeps_every_element_and_pixel(source: UID, target: UID, tmp_path: Path) -> None:
    pixels = breast(75, 52)
    if source in LOSSLESS:
        path = compressed(pixels, source, tmp_path / "in.dcm")
    else:
        ds = mammogram(pixels)
        if not source.is_little_endian:
            ds.PixelData = pixels.astype(">u2").tobytes()
        path = write(ds, tmp_path / "in.dcm", source)
    transcode(path, tmp_path / "out.dcm", target)
    before, after = read(path), read(tmp_path / "out.dcm")
    assert after.file_meta.TransferSyntaxUID == target
    assert after.file_meta.MediaStorageSOPInstanceUID == before.SOPInstanceUID
    assert values(after) == values(before)
    assert after.PixelData == pixels.astype("<u2").tobytes()
    if not target.is_implicit_VR:
        assert after["PixelData"].VR == "OW"


@pytest.mark.parametrize(
    "name",
    [
        "MR_small_RLE.dcm",
        "MR_small_bigendian.dcm",
        "SC_rgb_small_odd_big_endian.dcm",  # 8-bit pixels in words
        "ExplVR_BigEnd.dcm",
        "rtdose_rle.dcm",  # 32-bit pixels in several frames
        "SC_rgb_rle_16bit_2frame.dcm",
        "J2K_pixelrep_mismatch.dcm",
        "MR_small_jp2klossless.dcm",
        "image_dfl.dcm",
    ],
)
def test_transcoding_keeps_the_images_of_pydicom(name: str, tmp_path: Path) -> None:
    before = read(FILES / name)
    for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian):
        transcode(FILES / name, tmp_path / "out.dcm", syntax)
        after = read(tmp_path / "out.dcm")
        assert np.array_equal(after.pixel_array, before.pixel_array)
        changed = {tag for tag, value in values(before).items() if values(after).get(tag) != value}
        assert changed <= {0x00280006}, name  # Planar Configuration of what was compressed
        assert set(values(after)) == set(values(before))


def test_transcoding_keeps_twelve_bit_jpeg(tmp_path: Path) -> None:
    path = compressed(breast(75, 52), JPEGExtended12Bit, tmp_path / "in.dcm")
    transcode(path, tmp_path / "out.dcm", ExplicitVRLittleEndian)
    assert np.array_equal(integer_pixels(tmp_path / "out.dcm"), integer_pixels(path))
    lossy = {0x00282110: "01"}
    assert values(read(tmp_path / "out.dcm")) == values(read(path)) | lossy


@pytest.mark.parametrize(
    ("syntax", "stated", "then"),
    [
        (JPEGExtended12Bit, None, "01"),
        (JPEGExtended12Bit, "00", "01"),  # impossible
        (JPEG2000, None, "01"),
        (JPEG2000, "01", "01"),
        (JPEG2000, "00", "00"),  # its codestreams may be lossless
        (JPEG2000Lossless, None, None),
    ],
)
def test_decompressed_pixels_say_that_they_were_lossy(
    syntax: UID, stated: str | None, then: str | None, tmp_path: Path
) -> None:
    """PS3.3 C.7.6.1.1.5: the value remains 01 if an image is decompressed."""
    path = compressed(breast(75, 52), JPEGExtended12Bit if "4.51" in syntax else JPEG2000Lossless, tmp_path / "in.dcm")
    received = dcmread(path)
    received.file_meta.TransferSyntaxUID = syntax
    received.pop("LossyImageCompression", None)
    if stated:
        received.LossyImageCompression = stated
    received.save_as(path)
    transcode(path, tmp_path / "out.dcm", ExplicitVRLittleEndian)
    assert dcmread(tmp_path / "out.dcm").get("LossyImageCompression") == then


def test_an_icon_in_another_transfer_syntax_is_left_out(tmp_path: Path) -> None:
    path = compressed(breast(75, 52), RLELossless, tmp_path / "in.dcm")
    received = dcmread(path)
    icon = Dataset()
    icon.Rows = icon.Columns = 8
    icon.add_new("PixelData", "OB", encapsulate([b"\0" * 64]))
    icon["PixelData"].is_undefined_length = True
    received.IconImageSequence = [icon]
    received.save_as(path)
    transcode(path, tmp_path / "out.dcm", ExplicitVRLittleEndian)
    assert "IconImageSequence" not in dcmread(tmp_path / "out.dcm")


@pytest.mark.parametrize(
    ("keyword", "vr", "width"), [("OF", "OF", 4), ("OL", "OL", 4), ("OD", "OD", 8), ("OV", "OV", 8)]
)
def test_transcoding_swaps_words_of_every_width(keyword: str, vr: str, width: int, tmp_path: Path) -> None:
    numbers = np.arange(1, 5, dtype=f"<u{width}")
    inner = Dataset()
    inner.add_new(0x00091001, vr, numbers.byteswap().tobytes())
    ds = mammogram(np.zeros((2, 2), np.uint16))
    ds.add_new(0x00091001, vr, numbers.byteswap().tobytes())
    ds.add_new(0x00091002, "SQ", [inner])
    ds.add_new(0x00091003, "OB", b"\x01\x02\x03\x04")
    transcode(write(ds, tmp_path / "in.dcm", ExplicitVRBigEndian), tmp_path / "out.dcm", ExplicitVRLittleEndian)
    after = read(tmp_path / "out.dcm")
    assert after[0x00091001].value == numbers.tobytes()
    assert after[0x00091002].value[0][0x00091001].value == numbers.tobytes()
    assert after[0x00091003].value == b"\x01\x02\x03\x04"


def test_a_data_set_that_cannot_be_reencoded_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyError

    monkeypatch.setattr("storage.dicom.pixels.encode", fail)
    path = write(mammogram(np.zeros((2, 2), np.uint16)), tmp_path / "x.dcm")
    with pytest.raises(Unparseable):
        transcode(path, tmp_path / "y.dcm", ImplicitVRLittleEndian)
    assert not (tmp_path / "y.dcm").exists()


# --- writing --------------------------------------------------------------------------------------------------


def test_a_file_written_around_its_pixels_is_read_back(tmp_path: Path) -> None:
    pixels = breast(30, 24)
    ds = mammogram(pixels)
    del ds.PixelData
    with (tmp_path / "x.dcm").open("wb") as out:
        write_header_for_pixels(out, ds, pixels.nbytes)
        out.write(pixels.astype("<u2").tobytes())
    assert np.array_equal(integer_pixels(tmp_path / "x.dcm"), pixels)
    assert values(read(tmp_path / "x.dcm")) == values(ds)
    assert read(tmp_path / "x.dcm").file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID


def test_the_preamble_is_that_of_part_10() -> None:
    out = io.BytesIO()
    write_preamble(out, file_meta(MAMMOGRAPHY, "1.2.3", ImplicitVRLittleEndian))
    data = out.getvalue()
    assert data[:132] == bytes(128) + b"DICM"
    assert 144 + struct.unpack("<I", data[140:144])[0] == len(data)


def test_encoding_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    ds = mammogram(breast(30, 24))
    for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian):
        path = write(ds, tmp_path / "x.dcm", syntax)
        with opened(path) as file:
            again = encode(file.header(), syntax)
            assert again == file.header_bytes().before


def test_layout_without_pixels_is_at_the_end() -> None:
    layout = scan(b"", ExplicitVRLittleEndian)
    assert layout == Layout(0, 0, 0, 0, 0, "", False, False)
    assert not layout.has_pixels


def test_a_copy_of_a_file_has_the_same_layout(tmp_path: Path) -> None:
    shutil.copy(FILES / "MR_small.dcm", tmp_path / "x.dcm")
    with opened(FILES / "MR_small.dcm") as one, opened(tmp_path / "x.dcm") as other:
        assert one.layout == other.layout


# --- warnings -------------------------------------------------------------------------------------------------

_READS_A_HEADER = """
import struct, warnings
from pydicom.uid import ExplicitVRLittleEndian
from storage.dicom.dicomfile import parse
from storage.dicom.pixels import PixelShape

warnings.catch_warnings = None
PixelShape.of(parse(struct.pack("<HH2sH", 8, 5, b"CS", 10) + b"ISO_IR 999", ExplicitVRLittleEndian))
"""


def test_warnings_of_pydicom_are_not_shown_whatever_other_threads_do() -> None:
    """They quote values. Formerly, a filter for one block suppressed them, which another thread could remove."""
    ran = subprocess.run([sys.executable, "-W", "always", "-c", _READS_A_HEADER], capture_output=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, b"")
