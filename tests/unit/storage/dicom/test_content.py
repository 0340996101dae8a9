"""Proves that storage.dicom.content finds the same study in another encoding equal, and one changed element or pixel
different.

If equal data sets count as different, a copy is quarantined; if different ones count as equal, an image is lost. So
data sets count as different in case of doubt.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom.data
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydicom import DataElement, Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from storage.dicom.content import content_digest, same_content
from storage.dicom.dicomfile import file_meta, opened
from storage.dicom.encapsulate import _rle
from storage.dicom.pixels import transcode
from storage.dicom.writing import encode
from storage.errors import LatentPacsError, PixelError, Unparseable
from tests.support.samples import MAMMOGRAPHY, breast, mammogram, write, write_body

FILES = Path(pydicom.data.__file__).parent / "test_files"
PIXELS = breast(75, 52)
UIDS = {"SOPInstanceUID": "1.2.3", "StudyInstanceUID": "1.2.4", "SeriesInstanceUID": "1.2.5"}


def rich(**changes: Any) -> Dataset:
    """A mammogram with elements that differ between encodings: ambiguous VRs, private elements, sequences."""
    ds = mammogram(PIXELS, **UIDS, PixelPaddingValue=7, SmallestImagePixelValue=0, LargestImagePixelValue=4095)
    lut = Dataset()
    lut.LUTDescriptor = [2, 0, 16]
    lut.LUTData = b"\x01\x00\x02\x00"
    ds.VOILUTSequence = Sequence([lut])
    block = ds.private_block(0x0019, "LATENT TESTS", create=True)
    block.add_new(0x01, "LO", "private text")
    block.add_new(0x02, "US", 515)
    block.add_new(0x03, "DS", ["1.5", "2.50"])
    block.add_new(0x04, "CS", "")
    for keyword, value in changes.items():
        setattr(ds, keyword, value)
    return ds


def stored(ds: Dataset, path: Path, syntax: UID) -> Path:
    """Write the data set in a transfer syntax. Pixels are compressed if it is an encapsulated one."""
    if syntax in (RLELossless, JPEG2000Lossless):
        ds.file_meta = file_meta(ds.SOPClassUID, ds.SOPInstanceUID, ExplicitVRLittleEndian)
        ds.compress(syntax, generate_instance_uid=False)
    elif syntax == JPEGLSLossless:
        pixels = np.frombuffer(ds.PixelData, "<u2").reshape(ds.Rows, ds.Columns)
        encapsulate_in(ds, bytes(imagecodecs.jpegls_encode(pixels)))
    return write(ds, path, syntax)


def encapsulate_in(ds: Dataset, codestream: bytes) -> None:
    ds.PixelData = encapsulate([codestream])
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True


SYNTAXES = [ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless, JPEG2000Lossless, JPEGLSLossless]


@pytest.fixture
def one(tmp_path: Path) -> Path:
    return stored(rich(), tmp_path / "one.dcm", ExplicitVRLittleEndian)


# --- the same -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: syntax.name)
def test_the_same_content_in_another_transfer_syntax_is_the_same(syntax: UID, one: Path, tmp_path: Path) -> None:
    other = stored(rich(), tmp_path / "other.dcm", syntax)
    if syntax != ExplicitVRLittleEndian:
        assert other.read_bytes() != one.read_bytes()
    assert same_content(one, other)
    assert same_content(other, one)
    assert content_digest(one) == content_digest(other)


def test_big_endian_is_compared_by_its_values_and_not_by_its_bytes(tmp_path: Path) -> None:
    ds = rich(RedPaletteColorLookupTableData=b"\1\0\2\0")
    one = stored(ds, tmp_path / "one.dcm", ExplicitVRLittleEndian)
    with opened(one) as file:
        header, bytes_of_one = file.header(), bytes(file.native_value())
    same_values = np.frombuffer(bytes_of_one, "<u2").astype(">u2").tobytes()
    for pixels, same in ((same_values, True), (bytes_of_one, False)):
        header.add_new(0x7FE00010, "OW", pixels)
        body, path = encode(header, ExplicitVRBigEndian), tmp_path / "big.dcm"
        write_body(body, path, sop_class=MAMMOGRAPHY, sop_instance="1.2.3", syntax=ExplicitVRBigEndian)
        assert same_content(one, path) is same


@pytest.mark.parametrize("name", ["implicit", "RLE", "jp2klossless", "jpeg_ls_lossless"])
def test_pydicoms_copies_of_one_picture_are_the_same(name: str) -> None:
    """Other programs than ours made these files from the same image."""
    assert same_content(FILES / "MR_small.dcm", FILES / f"MR_small_{name}.dcm")
    assert not same_content(FILES / "CT_small.dcm", FILES / f"MR_small_{name}.dcm")


def test_several_frames_and_documents_are_the_same_as_themselves() -> None:
    names = ["SC_rgb_rle_16bit_2frame.dcm", "SC_rgb_rle_2frame.dcm", "test-SR.dcm", "reportsi.dcm"]
    digests = [content_digest(FILES / name) for name in names]
    assert digests == [content_digest(FILES / name) for name in names]
    assert len(set(digests)) == len(names)


def test_the_name_the_meta_information_and_the_preamble_do_not_matter(one: Path, tmp_path: Path) -> None:
    data = bytearray(one.read_bytes())
    data[:128] = b"P" * 128
    at = data.index(b"LATENTPACS_")
    data[at : at + 6] = b"OTHERS"
    (tmp_path / "other.dcm").write_bytes(data)
    assert same_content(one, tmp_path / "other.dcm")


def test_group_lengths_and_trailing_padding_do_not_matter(one: Path, tmp_path: Path) -> None:
    ds = rich()
    body = encode(ds, ExplicitVRLittleEndian)
    group_length = struct.pack("<HH2sHI", 0x0008, 0x0000, b"UL", 4, 1234)
    group_length += struct.pack("<HH2sHI", 0x0008, 0x0001, b"UL", 4, 4321)  # Length to End
    padding = struct.pack("<HH2sHI", 0xFFFC, 0xFFFC, b"OB", 0, 6) + bytes(6)
    other = write_body(
        group_length + body + padding,
        tmp_path / "other.dcm",
        sop_class=MAMMOGRAPHY,
        sop_instance="1.2.3",
        syntax=ExplicitVRLittleEndian,
    )
    assert same_content(one, other)


def test_the_form_of_sequence_lengths_does_not_matter(one: Path, tmp_path: Path) -> None:
    ds = rich()
    for element in ds:
        if element.VR == "SQ":
            element.is_undefined_length = True
            for item in element.value:
                item.is_undefined_length_sequence_item = True
    other = stored(ds, tmp_path / "other.dcm", ExplicitVRLittleEndian)
    assert other.stat().st_size > one.stat().st_size
    assert same_content(one, other)


def test_the_padding_of_odd_pixels_does_not_matter(tmp_path: Path) -> None:
    shape: dict[str, Any] = {"Rows": 3, "Columns": 3, "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    files = []
    for number, last in enumerate((b"\0", b"\xff")):
        ds = mammogram(np.zeros((3, 3), np.uint16), **UIDS, **shape, PixelData=bytes(range(9)) + last)
        files.append(write(ds, tmp_path / f"{number}.dcm"))
    assert same_content(*files)


@pytest.mark.parametrize(
    ("tag", "vr", "odd", "even", "others"),
    [
        (0x00191001, b"OB", b"\1\2\3", b"\1\2\3\0", (b"\1\2\3\1", b"\1\2\0\0", b"\1\2")),
        (0x00191001, b"LO", b"abc", b"abc ", (b"abcd", b"ab")),
        (0x00191001, b"LO", b"ab\0", b"ab\0\0", (b"abc ",)),
        (0x00209999, b"DS", b"1.5", b"1.5 ", (b"1.55",)),
    ],
)
def test_odd_lengths_that_another_system_made_even_do_not_matter(
    tag: int, vr: bytes, odd: bytes, even: bytes, others: tuple[bytes, ...], tmp_path: Path
) -> None:
    """Private elements, and those that the dictionary does not know, are compared as bytes."""

    def file(value: bytes) -> Path:
        creator = (0x00190010, b"LO", b"LATENT TESTS")
        if vr == b"OB":  # two reserved bytes and a length of 32 bits
            body = struct.pack("<HH2sHI", tag >> 16, tag & 0xFFFF, vr, 0, len(value)) + value
            identity: Any = {"sop_class": MAMMOGRAPHY, "sop_instance": "1.2.3", "syntax": ExplicitVRLittleEndian}
            return write_body(body, tmp_path / value.hex(), **identity)
        return raw_file(tmp_path / value.hex(), *sorted([creator, (tag, vr, value)]))

    assert same_content(file(odd), file(even))
    assert not any(same_content(file(odd), file(other)) for other in others)


@pytest.mark.parametrize(
    ("tag", "vr", "value", "other"),
    [
        (0x00080020, b"LO", b"20260102", b"20260103"),
        (0x00281050, b"LO", b"2048", b"2049"),
        (0x00080008, b"LO", b"ORIGINAL\\PRIMARY", b"ORIGINAL\\SECOND."),
        (0x00181114, b"FD", struct.pack("<d", 1.8), struct.pack("<d", 1.9)),
        (0x00280010, b"SS", b"\x01\x00", b"\x02\x00"),
        (0x00080020, b"ZZ", b"20260102", b"20260103"),
    ],
)
def test_a_wrong_vr_does_not_matter(tag: int, vr: bytes, value: bytes, other: bytes, tmp_path: Path) -> None:
    """A copy in implicit VR does not state the VR."""
    files = [raw_file(tmp_path / f"{number}.dcm", (tag, vr, one)) for number, one in enumerate((value, other))]
    body = struct.pack("<HHI", tag >> 16, tag & 0xFFFF, len(value)) + value
    identity: Any = {"sop_class": MAMMOGRAPHY, "sop_instance": "1.2.3", "syntax": ImplicitVRLittleEndian}
    implicit = write_body(body, tmp_path / "implicit.dcm", **identity)
    assert same_content(files[0], implicit)
    assert not same_content(files[1], implicit)


@pytest.mark.parametrize(("tag", "vr", "value"), [(0x00280010, b"IS", b"512"), (0x00200013, b"US", b"\x31\x32")])
def test_a_wrong_vr_of_an_odd_length_or_in_big_endian_does_not_matter(
    tag: int, vr: bytes, value: bytes, tmp_path: Path
) -> None:
    uids = ((0x00080016, b"UI", MAMMOGRAPHY.encode() + b"\0"), (0x00080018, b"UI", b"1.2.3\0"))
    received = raw_file(tmp_path / "received.dcm", *uids, (tag, vr, value))
    for syntax in (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian):
        transcode(received, tmp_path / "other.dcm", syntax)
        assert same_content(received, tmp_path / "other.dcm"), syntax.name


# --- not the same ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: syntax.name)
@pytest.mark.parametrize("at", [(0, 0), (40, 20), (74, 51)])
def test_one_pixel_that_differs_by_one_is_another_image(
    syntax: UID, at: tuple[int, int], one: Path, tmp_path: Path
) -> None:
    pixels = PIXELS.copy()
    pixels[at] ^= 1
    other = stored(rich(PixelData=pixels.tobytes()), tmp_path / "other.dcm", syntax)
    assert not same_content(one, other)


def in_item(ds: Dataset) -> None:
    ds.VOILUTSequence[0].LUTData = b"\x01\x00\x03\x00"


def in_private_block(ds: Dataset) -> None:
    ds.private_block(0x0019, "LATENT TESTS")[0x02].value = 516


CHANGES: dict[str, Callable[[Dataset], Any]] = {
    "another value": lambda ds: setattr(ds, "KVP", "29"),
    "another name": lambda ds: setattr(ds, "PatientName", "Müller^Anne"),
    "a value more": lambda ds: setattr(ds, "ImageType", ["ORIGINAL", "PRIMARY", ""]),
    "the values in another order": lambda ds: setattr(ds, "ImageType", ["PRIMARY", "ORIGINAL"]),
    "no value": lambda ds: setattr(ds, "AccessionNumber", ""),
    "an element less": lambda ds: delattr(ds, "AccessionNumber"),
    "an element more": lambda ds: setattr(ds, "ImageComments", ""),
    "an ambiguous VR": lambda ds: setattr(ds, "PixelPaddingValue", 8),
    "deep inside": in_item,
    "a private element": in_private_block,
    "an item more": lambda ds: ds.VOILUTSequence.append(Dataset()),
    "an empty item in an empty sequence": lambda ds: ds.AcquisitionContextSequence.append(Dataset()),
    "the UID": lambda ds: setattr(ds, "SOPInstanceUID", "1.2.30"),
}


@pytest.mark.slow
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian], ids=lambda syntax: syntax.name)
@pytest.mark.parametrize("change", CHANGES)
def test_one_element_that_differs_is_another_instance(change: str, syntax: UID, one: Path, tmp_path: Path) -> None:
    ds = rich()
    CHANGES[change](ds)
    assert not same_content(one, stored(ds, tmp_path / "other.dcm", syntax))


def raw_file(path: Path, *elements: tuple[int, bytes, bytes]) -> Path:
    """Write a file with these raw elements, in explicit VR little endian."""
    body = b"".join(
        struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr, len(value)) + value for tag, vr, value in elements
    )
    syntax = ExplicitVRLittleEndian
    return write_body(body, path, sop_class=MAMMOGRAPHY, sop_instance="1.2.3", syntax=syntax)


@pytest.mark.parametrize(
    ("tag", "vr", "values"),
    [
        (0x00180060, b"DS", (b"1.2.3 ", b"9.9.9 ")),  # no decimal strings
        (0x00200013, b"IS", (b"one ", b"two ")),
        (0x00280010, b"US", (b"\x01\x02\x03", b"\x01\x02\x04")),  # one and a half values
        (0x00280009, b"AT", (b"\x18\x00", b"\x20\x00")),  # half a tag
        (0x00080060, b"ZZ", (b"MG", b"CR")),  # no such VR
        (0x00100010, b"PN", (b"M\xfcller", b"M\xf6ller")),  # Latin-1, although UTF-8 is declared
        (0x00190001, b"FD", (bytes(8), bytes(7) + b"\x80")),  # zero and minus zero, unknown private element
        (0x00209999, b"LO", (b"ab", b"ac")),  # not in the dictionary
    ],
)
def test_values_that_pydicom_cannot_read_are_compared_as_bytes(
    tag: int, vr: bytes, values: tuple[bytes, bytes], tmp_path: Path
) -> None:
    files = [
        raw_file(tmp_path / f"{number}.dcm", *sorted([(0x00080005, b"CS", b"ISO_IR 192"), (tag, vr, value)]))
        for number, value in enumerate([*values, values[0]])
    ]
    assert not same_content(files[0], files[1])
    assert same_content(files[0], files[2])


def test_pixels_are_compared_even_where_the_header_does_not_describe_them(tmp_path: Path) -> None:
    for keyword in ("Rows", "BitsAllocated"):
        files = []
        for number in (1, 2):
            ds = mammogram(np.full((4, 4), number, np.uint16), **UIDS, **{keyword: None})
            files.append(write(ds, tmp_path / f"{number}.dcm"))
        assert not same_content(*files)


def test_pixels_after_those_in_the_header_are_compared(tmp_path: Path) -> None:
    files = [
        write(mammogram(np.zeros((4, 4), np.uint16), **UIDS, PixelData=bytes(32) + more), tmp_path / f"{more[0]}.dcm")
        for more in (b"\1\0\0\0", b"\2\0\0\0")
    ]
    assert not same_content(*files)


def test_truncated_pixels_differ_from_complete_ones(one: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.dcm"
    cut.write_bytes(one.read_bytes()[:-2])
    with opened(cut) as file:
        assert file.layout.truncated
    assert not same_content(one, cut)


def test_an_image_differs_from_its_header(one: Path, tmp_path: Path) -> None:
    ds = rich()
    del ds.PixelData
    assert not same_content(one, write(ds, tmp_path / "other.dcm"))


# --- what cannot be told --------------------------------------------------------------------------------------


def damaged(path: Path) -> Path:
    """An RLE codestream that cannot be decoded. pydicom decodes RLE in Python, so the process cannot crash."""
    ds = rich()
    encapsulate_in(ds, b"\xff" * 70)
    return write(ds, path, RLELossless)


def test_pixels_that_cannot_be_decoded_are_never_equal(one: Path, tmp_path: Path) -> None:
    bad = damaged(tmp_path / "bad.dcm")
    with pytest.raises(PixelError, match="cannot be decoded"):
        content_digest(bad)
    assert not same_content(one, bad)
    assert not same_content(bad, one)
    assert not same_content(bad, bad)


def test_several_frames_that_cannot_be_decoded_are_never_equal(tmp_path: Path) -> None:
    data = bytearray((FILES / "SC_rgb_rle_16bit_2frame.dcm").read_bytes())
    with opened(FILES / "SC_rgb_rle_16bit_2frame.dcm") as file:
        start = len(data) - file.layout.end + file.layout.value_end - 200
    data[start : start + 200] = b"\xff" * 200
    (tmp_path / "bad.dcm").write_bytes(data)
    assert not same_content(tmp_path / "bad.dcm", tmp_path / "bad.dcm")


def test_a_file_that_cannot_be_read_is_never_equal(one: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.dcm").write_bytes(one.read_bytes()[:700])
    with pytest.raises(Unparseable):
        content_digest(tmp_path / "cut.dcm")
    assert not same_content(one, tmp_path / "cut.dcm")
    assert not same_content(tmp_path / "cut.dcm", one)


def test_twelve_bit_jpeg_is_compared_by_its_pixels(tmp_path: Path) -> None:
    """pydicom's plug-ins do not decode this codestream. A study that is sent twice must not be quarantined because of
    it."""
    files = []
    for number, pixels in enumerate((PIXELS, PIXELS, PIXELS[::-1].copy())):
        ds = rich()
        encapsulate_in(ds, bytes(imagecodecs.jpeg_encode(pixels, level=95, bitspersample=12)))
        files.append(write(ds, tmp_path / f"{number}.dcm", JPEGExtended12Bit))
    assert same_content(files[0], files[1])
    assert not same_content(files[0], files[2])


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(["MR_small.dcm", "MR_small_implicit.dcm", "MR_small_expb.dcm", "test-SR.dcm", "rtplan.dcm"]),
    at=st.integers(132, 1500),
    piece=st.binary(min_size=1, max_size=4),
)
@example(name="test-SR.dcm", at=1499, piece=b"\x005")  # the last element of an item is said to be longer than the item
def test_any_changed_bytes_are_detected_or_raise_our_errors(scratch: Path, name: str, at: int, piece: bytes) -> None:
    original = (FILES / name).read_bytes()
    path = scratch / "in.dcm"
    path.write_bytes(original[:at] + piece + original[at + len(piece) :])
    try:
        same = same_content(FILES / name, path)
        with opened(FILES / name) as one, opened(path) as other:
            if one.header_bytes() == other.header_bytes() and one.native_value() == other.native_value():
                assert same
            elif values(one.header()) != values(other.header()):
                assert not same
    except LatentPacsError:
        pass


def values(header: Dataset) -> Any:
    """Every value that pydicom reads; an unreadable value never compares equal."""
    try:
        return [(int(element.tag), value_of(element)) for element in header if element.tag.element]
    except Exception:
        return object()


def value_of(element: DataElement) -> Any:
    """A number in text counts as that number, even if pydicom returns its text because of an odd character."""
    if element.VR == "SQ":
        return [values(item) for item in element.value]
    if element.VR in ("DS", "IS") and element.VM:
        return [float(value) for value in (element.value if element.VM > 1 else [element.value])]
    return element.value


def codestreams(path: Path, frames: list[bytes], syntax: UID, *, stated: str | None, table: bool) -> Path:
    ds = rich()
    if stated is not None:
        ds.NumberOfFrames = stated
    ds.PixelData = encapsulate(frames, has_bot=table)
    ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    body = encode(ds, ExplicitVRLittleEndian)
    return write_body(body, path, sop_class=MAMMOGRAPHY, sop_instance="1.2.3", syntax=syntax)


@pytest.mark.slow
@pytest.mark.parametrize("table", [True, False])
@pytest.mark.parametrize(("stated", "more"), [(None, 1), ("1", 1), ("2", 1), ("2", 2)])
@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless, JPEGLosslessSV1, RLELossless])
def test_frames_beyond_the_stated_number_are_compared(
    tmp_path: Path, syntax: UID, stated: str | None, more: int, table: bool
) -> None:
    """A decoder ignores these frames, and the second of two images would be discarded with success."""
    encoders: dict[str, Callable[[Any], bytes]] = {
        JPEGLSLossless: imagecodecs.jpegls_encode,
        JPEG2000Lossless: lambda pixels: imagecodecs.jpeg2k_encode(pixels, reversible=True, codecformat="j2k"),
        JPEGLosslessSV1: lambda pixels: imagecodecs.ljpeg_encode(pixels, bitspersample=16),
        RLELossless: lambda pixels: _rle(pixels, 16),
    }
    first, other = (bytes(encoders[syntax](pixels)) for pixels in (PIXELS, PIXELS + np.uint16(1)))
    frames = [first] * (int(stated or 1) + more)
    one, same, longer, changed = (
        codestreams(tmp_path / name, found, syntax, stated=stated, table=table)
        for name, found in (
            ("one", frames),
            ("same", frames),
            ("longer", [*frames, first]),
            ("changed", [*frames[:-1], other]),
        )
    )
    assert not same_content(one, longer)
    assert not same_content(one, changed)
    assert same_content(one, same)
