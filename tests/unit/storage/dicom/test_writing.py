"""Proves that a rewritten data set preserves the bytes of every value in each native transfer syntax."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from storage.dicom.dicomfile import file_meta, parse, write_preamble
from storage.dicom.element_walk import check_order
from storage.dicom.writing import encode
from storage.errors import Unparseable
from tests.support.encoded_elements import element, item, sequence
from tests.support.peers import data_set_bytes, run
from tests.support.samples import MAMMOGRAPHY

EXPLICIT, IMPLICIT = ExplicitVRLittleEndian, ImplicitVRLittleEndian


def anew(data: bytes, source: UID, target: UID) -> bytes:
    written = encode(parse(data, source), target)
    check_order(written, target)
    return written


SAME_VALUE: list[Any] = [
    pytest.param(0x00180060, "DS", b"28.00000000000000001", id="DS of 20 characters"),
    pytest.param(0x00282112, "DS", b"10:1", id="DS that is no number"),
    pytest.param(0x00200013, "IS", b"one ", id="IS with letters"),
    pytest.param(0x00080020, "DA", b"yesterday ", id="DA that is no date"),
    pytest.param(0x00100020, "LO", b"\xff\xfe\xfd\x80", id="bytes of no character set"),
    pytest.param(0x00100040, "CS", b"", id="no value"),
    pytest.param(0x00280010, "US", b"", id="no number"),
    pytest.param(0x00280010, "US", b"\1\0\2\0", id="two numbers for one"),
    pytest.param(0x00080070, "LO", b"x" * 5000, id="LO of 5000 characters"),
    pytest.param(0x00280106, "US", b"\xff\xff", id="US or SS of unsigned pixels"),
    pytest.param(0x50000005, "US", b"\2\0", id="curve dimensions"),
    pytest.param(0x50023000, "OB", b"\1\0\2\0", id="curve data"),
    pytest.param(0x60003000, "OW", b"\1\0", id="overlay data"),
    pytest.param(0x00283006, "OW", b"\1\0\2\0", id="LUT data"),
    pytest.param(0x00091001, "UN", b"\1\2\3\4", id="private element of an unknown creator"),
    pytest.param(0x00086FFF, "UN", b"\1\2", id="element that the dictionary does not know"),
    pytest.param(0x00020010, "UI", b"1.2\0", id="element of file meta information"),
]


@pytest.mark.parametrize(("tag", "vr", "value"), SAME_VALUE)
def test_a_value_keeps_its_bytes(tag: int, vr: str, value: bytes) -> None:
    before, after = element(0x00080016, "UI", b"1.2\0", IMPLICIT), element(0x7FE10010, "LO", b"LATER ", IMPLICIT)
    explicit = element(0x00080016, "UI", b"1.2\0", EXPLICIT), element(0x7FE10010, "LO", b"LATER ", EXPLICIT)
    in_implicit = b"".join([*sorted((before, element(tag, vr, value, IMPLICIT)), key=_tag), after])
    in_explicit = b"".join([*sorted((explicit[0], element(tag, vr, value, EXPLICIT)), key=_tag), explicit[1]])
    assert anew(in_implicit, IMPLICIT, EXPLICIT) == in_explicit
    assert anew(in_explicit, EXPLICIT, IMPLICIT) == in_implicit
    assert anew(in_explicit, EXPLICIT, EXPLICIT) == in_explicit
    assert anew(in_implicit, IMPLICIT, IMPLICIT) == in_implicit


def _tag(data: bytes) -> tuple[int, int]:
    group, number = struct.unpack_from("<HH", data)
    return group, number


CHANGED: list[Any] = [
    # tag, VR and value as received in explicit VR; VR and value as written
    pytest.param(0x00180060, "DS", b"2.5", "DS", b"2.5 ", id="odd length of text"),
    pytest.param(0x00100020, "LO", b"7\0\0", "LO", b"7\0\0\0", id="odd length of text with NUL behind it"),
    pytest.param(0x00091001, "OB", b"\1\2\3", "OB", b"\1\2\3\0", id="odd length of bytes"),
    pytest.param(0x0020000D, "UI", b"1.2.3", "UI", b"1.2.3\0", id="odd length of a UID"),
    pytest.param(0x00280106, "US", b"\1\2\3", "UN", b"\1\2\3\0", id="US of 3 bytes"),
    pytest.param(0x00181411, "FD", b"\1\2\3\4", "UN", b"\1\2\3\4", id="FD of 4 bytes"),
    pytest.param(0x00100010, "ZZ", b"AB", "UN", b"AB", id="unknown VR"),
]


@pytest.mark.parametrize(("tag", "vr", "value", "written_vr", "written"), CHANGED)
def test_a_value_that_does_not_fit_its_vr_becomes_un(
    tag: int, vr: str, value: bytes, written_vr: str, written: bytes
) -> None:
    received = element(0x00080005, "CS", b"ISO_IR 100", EXPLICIT) + element(tag, vr, value, EXPLICIT)
    expected = element(0x00080005, "CS", b"ISO_IR 100", EXPLICIT) + element(tag, written_vr, written, EXPLICIT)
    assert anew(received, EXPLICIT, EXPLICIT) == expected
    kept = encode(parse(received, EXPLICIT), EXPLICIT, verbatim=True)
    assert kept == received


def test_a_value_too_long_for_its_vr_becomes_un() -> None:
    """In explicit VR, the header of such a VR has a length of two bytes."""
    short, long = b"7" * 65534, b"7" * 65536
    received = element(0x00180060, "DS", short, IMPLICIT) + element(0x00181030, "LO", long, IMPLICIT)
    expected = element(0x00180060, "DS", short, EXPLICIT) + element(0x00181030, "UN", long, EXPLICIT)
    assert anew(received, IMPLICIT, EXPLICIT) == expected
    assert anew(expected, EXPLICIT, IMPLICIT) == received


def test_an_undefined_length_is_written_with_a_vr_that_may_have_it() -> None:
    """In explicit VR, the header of the element's own VR has a length of two bytes."""
    assert anew(sequence(0x60000010, b"", IMPLICIT), IMPLICIT, EXPLICIT) == sequence(0x60000010, b"", EXPLICIT, vr="UN")


def test_an_element_without_a_value_is_not_interpreted() -> None:
    """pydicom fails on waveform data without Waveform Bits Allocated, even if both have no value."""
    data = element(0x54000110, "UN", b"", EXPLICIT)
    assert anew(data, EXPLICIT, EXPLICIT) == data
    assert anew(data, EXPLICIT, IMPLICIT) == element(0x54000110, "", b"", IMPLICIT)


def test_us_or_ss_follows_pixel_representation() -> None:
    inner = element(0x00280106, "SS", b"\xfe\xff", IMPLICIT)
    data = element(0x00082218, "SQ", item(inner, IMPLICIT), IMPLICIT)
    data += element(0x00280103, "US", b"\1\0", IMPLICIT) + element(0x00280107, "SS", b"\xff\xff", IMPLICIT)
    written = anew(data, IMPLICIT, EXPLICIT)
    assert element(0x00280107, "SS", b"\xff\xff", EXPLICIT) in written
    assert element(0x00280106, "SS", b"\xfe\xff", EXPLICIT) in written


def test_pixel_representation_of_the_data_set_counts_if_that_of_the_item_is_unreadable() -> None:
    unreadable = element(0x00280103, "US", b"\1", IMPLICIT)
    inner = unreadable + element(0x00280106, "SS", b"\xfe\xff", IMPLICIT)
    data = element(0x00082218, "SQ", item(inner, IMPLICIT), IMPLICIT) + element(0x00280103, "US", b"\1\0", IMPLICIT)
    written = encode(parse(data, IMPLICIT), EXPLICIT)
    assert element(0x00280106, "SS", b"\xfe\xff", EXPLICIT) in written


def test_text_in_an_unreadable_character_set_keeps_its_bytes() -> None:
    charset, name = b"\xff\xff\\ISO_IR 999 ", b"\xc4\xd6^X"
    data = element(0x00080005, "CS", charset, EXPLICIT) + element(0x00100010, "PN", name, EXPLICIT)
    assert anew(data, EXPLICIT, EXPLICIT) == data
    assert element(0x00100010, "PN", name, IMPLICIT) in anew(data, EXPLICIT, IMPLICIT)


@pytest.mark.parametrize(("depth", "sound"), [(64, True), (65, False)])
def test_sequences_of_defined_length_nested_without_end_are_refused(depth: int, sound: bool) -> None:
    """The walk over a hostile header must end before the stack overflows."""
    data = b""
    for _ in range(depth):
        data = element(0x00081140, "SQ", item(data, EXPLICIT), EXPLICIT)
    if sound:
        check_order(data, EXPLICIT)
        return
    with pytest.raises(Unparseable, match="sequences nested more than 64 deep"):
        check_order(data, EXPLICIT)


def test_what_is_no_item_in_a_sequence_is_refused() -> None:
    data = element(0x00081140, "SQ", element(0x00081155, "UI", b"1.2\0", EXPLICIT), EXPLICIT)
    with pytest.raises(Unparseable, match="no sequence item at byte 12"):
        check_order(data, EXPLICIT)


def test_sequences_are_ordered_inside_and_keep_their_kind() -> None:
    """A private sequence of undefined length, unordered tags, group lengths and invalid values, converted between all
    syntaxes."""

    def items(syntax: UID) -> tuple[bytes, bytes]:
        low, high = element(0x00091001, "UN", b"\1\2", syntax), element(0x50003000, "OB", b"\3\4", syntax)
        length = element(0x00090000, "UL", b"\x0a\0\0\0", syntax)
        return item(high + length + low, syntax, undefined=True), item(low + high, syntax, undefined=True)

    for source, target in ((IMPLICIT, EXPLICIT), (EXPLICIT, IMPLICIT), (EXPLICIT, EXPLICIT), (IMPLICIT, IMPLICIT)):
        wanted = element(0x00080005, "CS", b"ISO_IR 100", target) + sequence(0x00091002, items(target)[1], target)
        received = sequence(0x00091002, items(source)[0], source) + element(0x00080005, "CS", b"ISO_IR 100", source)
        with pytest.raises(Unparseable, match="follows"):
            check_order(received, source)
        assert anew(received, source, target) == wanted


def test_text_after_the_pixels_keeps_its_bytes() -> None:
    """The character set precedes the pixels, and applies to elements after them."""
    name = "Müller".encode()
    data = element(0x00080005, "CS", b"ISO_IR 192", IMPLICIT) + element(0x7FE10010, "LO", name + b" ", IMPLICIT)
    written = encode(parse(data, IMPLICIT), EXPLICIT, within=range(0x7FE00010, 0xFFFFFFFF))
    assert written == element(0x7FE10010, "LO", name + b" ", EXPLICIT)


@pytest.mark.parametrize("verbatim", [False, True])
def test_length_to_end_is_not_written_again(verbatim: bool) -> None:
    """Length to End is retired, and counts the bytes that follow. Some readers stop there (dicom3tools)."""
    data, rest = element(0x00080001, "UL", b"\x0a\0\0\0", IMPLICIT), element(0x00080016, "UI", b"1.2\0", IMPLICIT)
    assert encode(parse(data + rest, IMPLICIT), IMPLICIT, verbatim=verbatim) == rest


def test_big_endian_is_reversed_word_by_word() -> None:
    data = element(0x00280010, "US", b"\1\2", ExplicitVRBigEndian)
    data += element(0x00283010, "UN", b"\1\2\3\4", ExplicitVRBigEndian)
    data += element(0x50003000, "OW", b"\1\2\3\4", ExplicitVRBigEndian)
    written = anew(data, ExplicitVRBigEndian, EXPLICIT)
    assert element(0x00280010, "US", b"\2\1", EXPLICIT) in written
    assert element(0x00283010, "UN", b"\1\2\3\4", EXPLICIT) in written
    assert element(0x50003000, "OW", b"\2\1\4\3", EXPLICIT) in written


def test_duplicate_tags_are_detected() -> None:
    one = element(0x00080016, "UI", b"1.2\0", EXPLICIT)
    with pytest.raises(Unparseable, match=r"\(0008,0016\) follows \(0008,0016\)"):
        check_order(one + one, EXPLICIT)


def test_curve_data_is_written_as_dcmconv_does(tmp_path: Path) -> None:
    """The reference is DCMTK's conversion of the same implicit data set."""
    data = b"".join(
        element(tag, "", value, IMPLICIT)
        for tag, value in (
            (0x00080016, MAMMOGRAPHY.encode() + b"\0"),
            (0x00080018, b"1.2.3\0"),
            (0x00282112, b"10:1"),
            (0x50000005, b"\1\0"),
            (0x50000010, b"\2\0"),
            (0x50000020, b"TAC "),
            (0x5000200C, b"\5\0"),
            (0x50003000, b"\1\0\2\0"),
            (0x60003000, b"\1\0"),
        )
    )
    source, target = tmp_path / "implicit.dcm", tmp_path / "explicit.dcm"
    with source.open("wb") as out:
        write_preamble(out, file_meta(MAMMOGRAPHY, "1.2.3", IMPLICIT))
        out.write(data)
    ran = run("dcmconv", "+te", source, target)
    assert ran.code == 0, ran.output
    assert anew(data, IMPLICIT, EXPLICIT) == data_set_bytes(target)


def test_new_elements_are_written_beside_received_ones() -> None:
    received = element(0x00080005, "CS", b"ISO_IR 100", EXPLICIT) + element(0x00282112, "DS", b"10:1", EXPLICIT)
    header = parse(received, EXPLICIT)
    header.PatientName = "Müller"
    header.add_new(0x50003000, "OB or OW", b"\1\2")
    assert encode(header, EXPLICIT) == (
        element(0x00080005, "CS", b"ISO_IR 100", EXPLICIT)
        + element(0x00100010, "PN", "Müller".encode("latin-1"), EXPLICIT)
        + element(0x00282112, "DS", b"10:1", EXPLICIT)
        + element(0x50003000, "OB", b"\1\2", EXPLICIT)
    )
    assert parse(encode(header, IMPLICIT), IMPLICIT).PatientName == "Müller"
