"""Proves that a value which contradicts its file is refused with a reason or left out, and costs nothing else."""

from __future__ import annotations

import struct
from io import BytesIO
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate
from pydicom.filereader import read_dataset
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from storage.dicom import encapsulate as encapsulate_module
from storage.dicom.codestreams import codestream_header
from storage.dicom.dicomfile import accept_odd_values, parse
from storage.dicom.elements import BadValueError, checked
from storage.dicom.encapsulate import JPEG_XL_LOSSLESS, decoded_jpeg_xl, register_newer_syntaxes
from storage.dicom.levels import levels_of
from storage.dicom.pixels import check_frames, integer_pixels, pixel_digest, transcode
from storage.dicom.recoding import to_utf8, undeclared_latin_1
from storage.dicom.self_check import fault_of_object
from storage.dicom.writing import encode
from storage.errors import PixelError
from tests.support.encoded_elements import element, item
from tests.support.largest_file import largest_file
from tests.support.samples import MAMMOGRAPHY, breast, mammogram, write, write_body

EXPLICIT, IMPLICIT = ExplicitVRLittleEndian, ImplicitVRLittleEndian
PIXELS = breast(40, 32)


# --- sizes in codestreams -----------------------------------------------------------------------------------------


def box(kind: bytes, content: bytes, *, long: bool = False) -> bytes:
    if long:
        return struct.pack(">I4sQ", 1, kind, 16 + len(content)) + content
    return struct.pack(">I4s", 8 + len(content), kind) + content


def test_the_size_is_found_in_a_container_with_a_long_box() -> None:
    """Otherwise a huge image would be decoded, because its size was read at the wrong place."""
    codestream = bytes(imagecodecs.jpeg2k_encode(PIXELS, reversible=True, codecformat="j2k"))
    start = b"\x00\x00\x00\x0cjP  \r\n\x87\n" + box(b"ftyp", b"jp2 " + bytes(4))
    for long in (False, True):
        before = box(b"free", bytes(30), long=long)
        data = start + before + box(b"jp2c", codestream, long=long)
        assert codestream_header(data) == codestream_header(codestream)
        assert codestream_header(data)[:2] == (40, 32)
    with pytest.raises(PixelError, match="its container holds none"):
        codestream_header(start + before)
    with pytest.raises(PixelError, match="does not begin with a SIZ segment"):
        codestream_header(start + box(b"jp2c", b"\xff\x4f\xff\x90" + codestream[4:]))


# --- pixels -------------------------------------------------------------------------------------------------------


def stored(ds: Dataset, path: Path, syntax: UID, *codestreams: bytes, table: bool = False) -> Path:
    ds.PixelData = encapsulate(list(codestreams))
    ds["PixelData"].is_undefined_length = True
    ds["PixelData"].VR = "OB"
    if table:
        offsets = np.cumsum([0, *(8 + len(one) + len(one) % 2 for one in codestreams[:-1])])
        ds.ExtendedOffsetTable = offsets.astype("<u8").tobytes()
        ds.ExtendedOffsetTableLengths = np.array([len(one) for one in codestreams], "<u8").tobytes()
    return write(ds, path, syntax)


@pytest.mark.parametrize("kind", ["jpeg2000", "jpegls", "jpegxl"])
def test_a_codestream_of_another_size_than_the_header_is_never_reshaped(tmp_path: Path, kind: str) -> None:
    """The codestream has as many pixels as the header says, but in rows of another length."""
    register_newer_syntaxes()
    turned = breast(32, 40)
    syntax, codestream = {
        "jpeg2000": (JPEG2000Lossless, imagecodecs.jpeg2k_encode(turned, reversible=True, codecformat="j2k")),
        "jpegls": (JPEGLSLossless, imagecodecs.jpegls_encode(turned)),
        "jpegxl": (UID(JPEG_XL_LOSSLESS), imagecodecs.jpegxl_encode(turned, lossless=True, usecontainer=False)),
    }[kind]
    path = stored(mammogram(PIXELS), tmp_path / "x.dcm", syntax, bytes(codestream))
    said = r"codestream (holds|cannot be decoded: codestream holds) \(32, 40\), the header says \(40, 32\)"
    for use in (integer_pixels, lambda path: transcode(path, tmp_path / "y.dcm", EXPLICIT)):
        with pytest.raises(PixelError, match=said):
            use(path)
    assert not (tmp_path / "y.dcm").exists()


def test_colour_under_a_header_of_one_sample_is_refused(tmp_path: Path) -> None:
    colour = np.repeat(PIXELS[..., None], 3, axis=2)
    path = stored(mammogram(PIXELS), tmp_path / "x.dcm", JPEGLSLossless, bytes(imagecodecs.jpegls_encode(colour)))
    with pytest.raises(PixelError, match=r"codestream holds \(40, 32, 3\), the header says \(40, 32\)"):
        integer_pixels(path)


def test_frames_that_cannot_be_found_are_a_pixel_error(tmp_path: Path) -> None:
    codestream = bytes(imagecodecs.jpegls_encode(PIXELS))
    path = stored(mammogram(PIXELS), tmp_path / "x.dcm", JPEGLSLossless, codestream, table=True)
    check_frames(path)
    ds = dcmread(path)
    ds.ExtendedOffsetTable = bytes(10)
    with pytest.raises(PixelError, match="frames cannot be found: "):
        check_frames(write(ds, path, JPEGLSLossless))


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, JPEG2000Lossless, RLELossless])
@pytest.mark.parametrize("source", [JPEGLSLossless, UID(JPEG_XL_LOSSLESS)])
def test_an_offset_table_of_the_received_frames_is_not_sent_with_others(
    tmp_path: Path, source: UID, syntax: UID
) -> None:
    """The table would lead a reader to wrong bytes (PS3.3 C.7.6.3.1.8)."""
    register_newer_syntaxes()
    frames = [breast(40, 32, seed=seed) for seed in range(2)]
    encode = imagecodecs.jpegls_encode if source == JPEGLSLossless else imagecodecs.jpegxl_encode
    codestreams = [
        bytes(encode(frame, level=0) if source == JPEGLSLossless else encode(frame, lossless=True)) for frame in frames
    ]
    ds = mammogram(PIXELS, NumberOfFrames=2)
    path = stored(ds, tmp_path / "x.dcm", source, *codestreams, table=True)
    transcode(path, tmp_path / "y.dcm", syntax)
    made = dcmread(tmp_path / "y.dcm")
    assert "ExtendedOffsetTable" not in made
    assert "ExtendedOffsetTableLengths" not in made
    assert np.array_equal(made.pixel_array, np.stack(frames))


def test_a_frame_that_does_not_decode_to_its_values_is_not_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lossy(frame: np.ndarray, bits: int) -> bytes:
        return bytes(imagecodecs.jpegls_encode(frame, level=5))

    path = write(mammogram(breast(64, 60)), tmp_path / "x.dcm")
    monkeypatch.setitem(encapsulate_module._ENCODE, str(JPEGLSLossless), lossy)
    with pytest.raises(PixelError, match=r"frame 1 in .* does not decode to its original values"):
        transcode(path, tmp_path / "y.dcm", JPEGLSLossless)
    assert not (tmp_path / "y.dcm").exists()


def test_damaged_jpeg_xl_is_a_pixel_error() -> None:
    codestream = bytes(imagecodecs.jpegxl_encode(PIXELS, lossless=True, usecontainer=False))
    (frame,) = decoded_jpeg_xl(encapsulate([codestream]), 1)
    assert np.array_equal(frame, PIXELS)
    with pytest.raises(PixelError, match="codestream cannot be decoded: "):
        decoded_jpeg_xl(encapsulate([codestream[: len(codestream) // 2]]), 1)
    with pytest.raises(PixelError, match="codestream cannot be decoded: its format is unknown"):
        decoded_jpeg_xl(encapsulate([b"no picture"]), 1)


# --- values for the index -----------------------------------------------------------------------------------------


def test_a_number_that_is_none_is_left_out_of_the_index() -> None:
    """JSON has no NaN, and no query would find it."""
    assert checked(1.5, "FD") == 1.5
    for value in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(BadValueError):
            checked(value, "FD")


def test_a_sequence_of_a_hundred_items_is_indexed_and_a_longer_one_left_out() -> None:
    for count in (100, 101):
        ds = mammogram(PIXELS)
        ds.RequestAttributesSequence = [Dataset() for _ in range(count)]
        for number, one in enumerate(ds.RequestAttributesSequence):
            one.ScheduledProcedureStepID = f"S{number}"
        levels = levels_of(ds)
        assert len(levels.series.get("00400275", {}).get("Value", [])) == (100 if count == 100 else 0)
        assert "00080060" in levels.series, "one hostile element must not lose the others"


@pytest.mark.parametrize(("filler", "indexed"), [(1000, True), (1 << 18, False)])
def test_a_sequence_of_many_bytes_is_left_out(filler: int, indexed: bool) -> None:
    """All items of the sequence would be read before they are counted."""
    step = element(0x00400009, "SH", b"S1", EXPLICIT) + element(0x00409999, "UN", bytes(filler), EXPLICIT)
    data = element(0x00080060, "CS", b"MG", EXPLICIT) + element(0x00400275, "SQ", item(step, EXPLICIT), EXPLICIT)
    assert ("00400275" in levels_of(parse(data, EXPLICIT)).series) is indexed


# --- text as UTF-8 ------------------------------------------------------------------------------------------------


def test_the_text_of_items_is_recoded_with_their_own_character_set() -> None:
    own = element(0x00080005, "CS", b"ISO_IR 144", EXPLICIT) + element(
        0x00100010, "PN", "Ж".encode("iso8859-5") + b" ", EXPLICIT
    )
    none = element(0x00100010, "PN", b"\xc4 ", EXPLICIT)
    data = element(0x00080005, "CS", b"ISO_IR 100", EXPLICIT)
    data += element(0x00081140, "SQ", item(own, EXPLICIT) + item(none, EXPLICIT), EXPLICIT)
    ds = parse(data, EXPLICIT)
    to_utf8(ds)
    first, second = ds[0x00081140].value
    assert (str(first.PatientName), first.SpecificCharacterSet) == ("Ж", "ISO_IR 192")
    assert (str(second.PatientName), "SpecificCharacterSet" in second) == ("Ä", False)
    assert ds.SpecificCharacterSet == "ISO_IR 192"


def test_a_sequence_that_is_none_has_no_text() -> None:
    broken = element(0x00081140, "SQ", b"\xfe\xff\x00\xe0\xff\xff", EXPLICIT)
    name = element(0x00100010, "PN", b"\xc4^X ", EXPLICIT)
    accept_odd_values()
    ds = read_dataset(BytesIO(broken + name), is_implicit_VR=False, is_little_endian=True)
    assert undeclared_latin_1(ds)
    to_utf8(ds)
    assert str(ds.PatientName) == "Ä^X"


# --- the check of an object that was made here --------------------------------------------------------------------


def fault(tmp_path: Path, *, before: bytes = b"", behind: bytes = b"") -> str:
    """The fault of a sound object to which these elements are added, before and after the others."""
    ds = mammogram(PIXELS)
    uid, body = str(ds.SOPInstanceUID), encode(ds, EXPLICIT)
    path = write_body(
        before + body + behind, tmp_path / "x.dcm", sop_class=MAMMOGRAPHY, sop_instance=uid, syntax=EXPLICIT
    )
    return fault_of_object(path, pixel_digest(PIXELS), uid)


def test_an_element_that_pydicom_cannot_read_is_a_fault_without_its_value(tmp_path: Path) -> None:
    """Such an element stops a viewer, and its value may be patient data."""
    assert fault(tmp_path) == ""
    said = fault(tmp_path, behind=element(0x7FE11001, "FD", b"SECRET", EXPLICIT))
    assert said == "in explicit VR little endian (7FE1,1001) cannot be read: BytesLengthException"


def test_an_element_that_is_in_one_encoding_only_is_a_fault(tmp_path: Path) -> None:
    """The other encoding is written without group lengths."""
    said = fault(tmp_path, before=element(0x00080000, "UL", b"\1\0\0\0", EXPLICIT))
    assert said == "it has other elements in implicit VR little endian than in explicit VR"


def test_a_full_disk_is_no_fault_of_the_object(tmp_path: Path) -> None:
    """Otherwise the image would stay without a reconstruction for good."""
    path = write(mammogram(PIXELS), tmp_path / "x.dcm")
    uid = str(dcmread(path).SOPInstanceUID)
    with largest_file(500), pytest.raises(OSError, match="File too large"):
        fault_of_object(path, pixel_digest(PIXELS), uid)
    assert fault_of_object(path, pixel_digest(PIXELS), uid) == ""
    assert list(tmp_path.iterdir()) == [path]
