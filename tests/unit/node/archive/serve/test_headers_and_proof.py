"""Proves which elements a reconstruction cannot carry, which edits are refused, and which proofs fail for good."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset, dcmread, filereader
from pydicom.dataelem import RawDataElement
from pydicom.tag import BaseTag
from pydicom.uid import ImplicitVRLittleEndian

from node.archive.encode.rendition_writer import RenditionWriter
from node.archive.serve.amended_header import write_amended, write_edited
from node.archive.serve.carried_header import removal_note, remove_uncarriable
from node.archive.serve.derived_object import safe_text
from node.workers import requests
from node.workers.requests import ProofRequest
from storage.errors import NotReconstructable, Unparseable, WorkerDied
from storage.records import Applied, ReasonCode
from tests.support.archive_parts import ArchiveParts
from tests.support.coded_images import InlinePool, hold_image, small
from tests.support.encoded_elements import element, item, sequence
from tests.support.samples import MAMMOGRAPHY, write, write_body

UID, DERIVED = "1.2.3.1", "2.25.7"


def raw(tag: int, vr: str | None, value: bytes) -> RawDataElement:
    return RawDataElement(BaseTag(tag), vr, len(value), value, 0, is_implicit_VR=vr is None, is_little_endian=True)


# --- elements that are not carried ---


@pytest.mark.parametrize(
    "tag",
    [0x00000002, 0x00020010, 0x00010010, 0x00071000, 0xFFFE0001, 0xFFFF0010],
    ids=["command", "file meta", "group 1", "group 7", "delimiter", "last group"],
)
def test_elements_of_no_data_set_are_left_out_and_listed(tag: int) -> None:
    header = Dataset()
    header._dict[BaseTag(tag)] = raw(tag, "UI", b"1.2\0")
    header[0x00100020] = raw(0x00100020, "LO", b"P1")
    listed = remove_uncarriable(header)
    assert listed == [f"({tag >> 16:04X},{tag & 0xFFFF:04X})"]
    assert list(header.keys()) == [0x00100020]
    assert removal_note(listed) == f"elements that cannot be read were left out: {listed[0]}"


def test_more_than_eight_elements_are_counted() -> None:
    listed = [f"(0009,10{number:02})" for number in range(10)]
    note = removal_note(listed)
    assert note.endswith("(0009,1007) and 2 more")
    assert removal_note([]) == ""


# --- edited headers ---


def test_a_header_that_cannot_be_edited_is_an_error_without_its_values(tmp_path: Path) -> None:
    source = write(small(UID), tmp_path / "x.dcm")

    def edit(header: Dataset) -> None:
        raise ValueError("Muster^Anna is no date")

    with pytest.raises(Unparseable, match=r"^the header cannot be edited: ValueError$"):
        write_edited(source, tmp_path / "y.dcm", edit)


def test_text_in_undeclared_latin_1_is_declared_and_not_written_anew(tmp_path: Path) -> None:
    """An amendment adds an umlaut to a header that has other umlauts, and that declares no character set."""
    ds = small(UID)
    del ds.SpecificCharacterSet
    ds[0x00080080] = raw(0x00080080, "LO", "Kreiskrankenhaus Süd".encode("latin-1"))
    name = {"00100010": {"vr": "PN", "Value": [{"Alphabetic": "Müller^Änne"}]}}

    applied = Applied(1, "2026-01-02T03:04:05+00:00", name)
    write_amended(write(ds, tmp_path / "x.dcm"), tmp_path / "y.dcm", [applied])
    read = dcmread(tmp_path / "y.dcm")
    assert (read.SpecificCharacterSet, str(read.PatientName)) == ("ISO_IR 100", "Müller^Änne")
    assert read.InstitutionName == "Kreiskrankenhaus Süd"


@pytest.mark.parametrize("characters", ["ISO_IR 13", "ISO 2022 IR 87"])
def test_a_name_that_the_character_set_lacks_is_written_in_utf_8(characters: str, tmp_path: Path) -> None:
    """Python's codec shift_jis has kanji, but ISO_IR 13 (JIS X 0201) has none."""
    source = write(small(UID, SpecificCharacterSet=characters, PatientName="YAMADA^TAROU"), tmp_path / "x.dcm")
    name = {"00100010": {"vr": "PN", "Value": [{"Alphabetic": "Yamada^Tarou", "Ideographic": "山田^太郎"}]}}
    write_amended(source, tmp_path / "y.dcm", [Applied(1, "2026-01-02T03:04:05+00:00", name)])
    read = dcmread(tmp_path / "y.dcm")
    assert (read.SpecificCharacterSet, str(read.PatientName)) == ("ISO_IR 192", "Yamada^Tarou=山田^太郎")


def test_an_amendment_that_removes_a_number_keeps_the_former_one(tmp_path: Path) -> None:
    source = write(small(UID, KVP="28"), tmp_path / "x.dcm")
    applied = Applied(1, "2026-01-02T03:04:05+00:00", {"00180060": {"vr": "DS"}, "00180050": {"vr": "DS"}})
    write_amended(source, tmp_path / "y.dcm", [applied])
    read = dcmread(tmp_path / "y.dcm")
    assert (read.KVP, "SliceThickness" in read) == (None, False)
    (item,) = read.OriginalAttributesSequence
    assert [float(one.value) for one in item.ModifiedAttributesSequence[0]] == [28.0]


@pytest.mark.parametrize("undefined", [False, True])
def test_large_sequences_that_are_not_amended_are_not_read(
    undefined: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """15 MB of empty items would take the node a minute and 1.7 GB whenever the image is sent."""
    monkeypatch.setattr("storage.dicom.element_walk._SEQUENCE_ITEMS", 3)
    described, code = Dataset(), Dataset()
    code.CodeValue, described.AnatomicRegionModifierSequence = "T-04020", [code]
    ds = small(UID, AnatomicRegionSequence=[described, described])
    ds["AnatomicRegionSequence"].is_undefined_length = undefined
    source, read = write(ds, tmp_path / "x.dcm"), list[int]()
    read_item = filereader.read_sequence_item

    def noted(*arguments: Any, **options: Any) -> Any:
        read.append(1)
        return read_item(*arguments, **options)

    monkeypatch.setattr(filereader, "read_sequence_item", noted)
    name = {"00100010": {"vr": "PN", "Value": [{"Alphabetic": "Muster^Anna"}]}}
    write_amended(source, tmp_path / "y.dcm", [Applied(1, "2026-01-02T03:04:05+00:00", name)])
    assert not read
    amended = dcmread(tmp_path / "y.dcm")
    assert amended.PatientName == "Muster^Anna"
    assert amended.AnatomicRegionSequence == dcmread(source).AnatomicRegionSequence


def test_private_sequences_without_vr_are_converted_to_utf_8_too(tmp_path: Path) -> None:
    """Only their undefined length shows that they are sequences, so it must not be lost before they are read."""
    inside = element(0x00080080, "LO", "Süd ".encode("latin-1"), ImplicitVRLittleEndian)
    block = element(0x00090010, "LO", b"ACME", ImplicitVRLittleEndian)
    items = sequence(0x00091001, item(inside, ImplicitVRLittleEndian), ImplicitVRLittleEndian)
    head = element(0x00080005, "CS", b"ISO_IR 100", ImplicitVRLittleEndian)
    head += element(0x00080016, "UI", f"{MAMMOGRAPHY}\0".encode(), ImplicitVRLittleEndian)
    head += element(0x00080018, "UI", b"1.2.3\0", ImplicitVRLittleEndian)
    about = {"sop_class": MAMMOGRAPHY, "sop_instance": "1.2.3", "syntax": ImplicitVRLittleEndian}
    path = write_body(head + block + items, tmp_path / "x.dcm", **about)
    name = {"00100010": {"vr": "PN", "Value": [{"Alphabetic": "Новак^Анна"}]}}
    write_amended(path, tmp_path / "y.dcm", [Applied(1, "2026-01-02T03:04:05+00:00", name)])
    amended = dcmread(tmp_path / "y.dcm")
    assert amended.SpecificCharacterSet == "ISO_IR 192"
    assert amended[0x00091001][0].InstitutionName == "Süd"


# --- the proof of a reconstruction ---


class Proof:
    """The proof of an image's reconstruction. A test can change something before the objects are read back."""

    def __init__(self, folder: Path, image: Dataset | None = None) -> None:
        self.bench = ArchiveParts(folder / "archive", coder="none")
        hold_image(self.bench, image or small(UID), DERIVED)

    def run(self, pool: InlinePool) -> None:
        index = self.bench.index
        row, instance = index.rendition(DERIVED), index.by_uid(UID)
        assert row is not None
        assert instance is not None
        writer = RenditionWriter(index, self.bench.hot)
        writer.prove(instance.key, row, lambda request: pool.submit(request, 0).result())

    def left(self) -> list[str]:
        return [path.name for path in self.bench.hot.spool.iterdir()]


@pytest.fixture
def proof(tmp_path: Path) -> Proof:
    return Proof(tmp_path)


def test_a_sound_reconstruction_is_proved_with_and_without_noise(proof: Proof, monkeypatch: pytest.MonkeyPatch) -> None:
    read_back: list[str] = []
    original = requests.fault_of_object

    def noted(path: Path, pixel_digest: str, sop_instance_uid: str) -> str:
        read_back.append(sop_instance_uid)
        return original(path, pixel_digest, sop_instance_uid)

    monkeypatch.setattr(requests, "fault_of_object", noted)
    proof.run(InlinePool())
    assert len(set(read_back)) == 2
    assert read_back[0] == DERIVED
    assert proof.left() == []


def test_an_image_without_a_free_private_block_says_so(tmp_path: Path) -> None:
    image = small(UID)
    for block in range(0x10, 0x100):
        image.add_new(0x00990000 | block, "LO", f"VENDOR {block}")
    with pytest.raises(NotReconstructable, match="all private blocks of group 0099 are taken") as error:
        Proof(tmp_path, image).run(InlinePool())
    assert error.value.code is ReasonCode.NOT_SENDABLE


def test_an_error_of_the_system_says_what_it_is_and_no_other_quotes_its_text() -> None:
    """The text of an error about a full disk holds no patient data; the text of an error about a value may."""
    assert safe_text(OSError(errno.ENOSPC, "No space left on device", "/x")) == "OSError: No space left on device"
    assert safe_text(OSError("Muster^Anna is no date")) == "OSError"
    assert safe_text(Unparseable("Muster^Anna is no date")) == "Unparseable"


@pytest.mark.parametrize("which", ["drawn", "plain"])
def test_a_reconstruction_that_does_not_read_back_cannot_be_sent(proof: Proof, which: str) -> None:
    def spoil(request: object) -> None:
        if isinstance(request, ProofRequest):
            with getattr(request, which).path.open("ab") as file:
                file.write(bytes(8))

    with pytest.raises(NotReconstructable, match="its reconstruction cannot be sent: ") as error:
        proof.run(InlinePool(spoil))
    assert error.value.code is ReasonCode.NOT_SENDABLE
    assert proof.left() == []


@pytest.mark.parametrize(
    "error",
    [WorkerDied("killed"), OSError(28, "No space left on device"), MemoryError()],
    ids=lambda error: type(error).__name__,
)
def test_an_error_that_the_image_did_not_cause_judges_nothing(proof: Proof, error: Exception) -> None:
    def fail(request: object) -> None:
        raise error

    with pytest.raises(type(error)):
        proof.run(InlinePool(fail))
    assert proof.left() == []
