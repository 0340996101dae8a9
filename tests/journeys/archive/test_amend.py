"""Proves that an amendment shows in the index and in what is sent, applies to later images, can be undone, and survives
a rebuild of the index.
"""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydicom import Dataset, dcmread
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    generate_uid,
)

from benchmarks.ingest import free_port
from node.app import Node
from node.archive.audit_trail import AuditTrail
from node.archive.serve.amended_header import write_amended
from node.dimse import client
from node.dimse.client import Receiver
from storage.dicom.dicomfile import file_meta, opened, write_preamble
from storage.dicom.header_amendments import Amendment, AmendmentKind, changes_of, folded, patient_identity
from storage.dicom.levels import levels_of
from storage.dicom.writing import encode
from storage.errors import ChangeRefused, InputInvalid, LatentPacsError, UnknownUid
from storage.index import Index
from storage.index.connection import now
from storage.index.journal_writer import TrailFollower
from storage.objects.trail_journal import TrailJournal
from storage.records import Applied, HoldKind, InstanceState, NewInstance
from tests.conftest import SECONDARY_CAPTURE, Archive, need, settings_for
from tests.support.commands import invoke
from tests.support.dciodvfy import error_lines
from tests.support.index_rows import new_instance
from tests.support.peers import findscu, getscu, movescu, storescp, storescu
from tests.support.samples import breast, mammogram, rle_file, write

STUDY, PATIENT = AmendmentKind.STUDY, AmendmentKind.PATIENT
WHY = {"reason": "wrong worklist item", "who": "user:test"}


# --- over real associations, by DCMTK ---


def small(**changes: Any) -> Dataset:
    return mammogram(breast(64, 48), **changes)


def send(archive: Archive, ds: Dataset, path: Path) -> Path:
    ran = storescu([write(ds, path)], archive.address)
    assert (ran.code, ran.statuses) == (0, [0]), ran.said
    return path


def one_found(archive: Archive, folder: Path, level: str, *keys: str, calling: str = "EXACTVIEW") -> Dataset:
    wanted = ("PatientName", "PatientID", "PatientBirthDate", "AccessionNumber", "SeriesInstanceUID", "SOPInstanceUID")
    asked = {key.split("=")[0] for key in keys}
    _, (answer,) = findscu(
        archive.address, folder, "-S", level, *keys, *(key for key in wanted if key not in asked), calling=calling
    )
    return answer


def pixel_element(path: Path) -> bytes:
    with opened(path) as file:
        return bytes(file.data[file.layout.pixel_start : file.layout.pixel_end])


@pytest.mark.slow
def test_what_dcmtk_finds_and_gets_of_an_amended_study(tmp_path: Path) -> None:
    """A study has the wrong patient. It is moved, found, retrieved as original and as reconstruction, and the amendment
    is undone."""
    port = free_port()
    (tmp_path / "unused").mkdir()
    with Receiver(tmp_path / "unused") as receiver, Node(settings_for(tmp_path / "archive", port)) as node:
        archive = Archive(node, receiver)
        ds, right = mammogram(breast(320, 288)), small(PatientID="P0002", PatientName="Roe^Jane", PatientSex="O")
        sent = send(archive, ds, tmp_path / "a.dcm")
        send(archive, right, tmp_path / "b.dcm")
        assert archive.settled(ds.SOPInstanceUID).state is InstanceState.VERIFIED
        study = f"StudyInstanceUID={ds.StudyInstanceUID}"
        keys = [study, f"SeriesInstanceUID={ds.SeriesInstanceUID}"]

        def retrieved(title: str, folder: str) -> tuple[Path, Dataset]:
            ran = getscu(archive.address, tmp_path / folder, "-S", "STUDY", study, calling=title)
            assert ran.counts == (1, 0, 0), ran.said
            (path,) = (tmp_path / folder).iterdir()
            return path, dcmread(path)

        _, before = retrieved("VIEWER", "before")  # renders the image, and puts it into the cache
        assert before.PatientID == "P0001"
        amendments = node.index.amendments
        amendments.make(STUDY, ds.StudyInstanceUID, changes_of({"AccessionNumber": "ACC9"}), **WHY)
        moved = amendments.make(STUDY, ds.StudyInstanceUID, changes_of({"PatientID": "P0002"}), **WHY)
        assert moved.studies[0].before == {"PatientID": "P0001", "PatientName": "Müller^Anna", "PatientSex": "F"}
        assert moved.studies[0].after == {"PatientID": "P0002", "PatientName": "Roe^Jane", "PatientSex": "O"}

        for level, more in (("STUDY", keys[:1]), ("SERIES", keys), ("IMAGE", keys)):
            answer = one_found(archive, tmp_path / "found", level, *more)
            assert (answer.PatientID, answer.PatientName, answer.AccessionNumber) == ("P0002", "Roe^Jane", "ACC9")
        ran, answers = findscu(
            archive.address, tmp_path / "found", "-P", "PATIENT", "PatientID=P0001", calling="EXACTVIEW"
        )
        assert (ran.status, answers) == (0, [])

        # movescu gets the original with corrected values, and nothing else has changed
        with storescp(tmp_path / "moved", port) as scp:
            ran = movescu(archive.address, "-S", "STUDY", study, calling="EXACTVIEW")
            assert ran.counts == (1, 0, 0), ran.said
            amended = scp.only()
        assert pixel_element(amended) == pixel_element(sent)
        copy = dcmread(amended)
        corrected = {"PatientID": "P0002", "PatientName": "Roe^Jane", "PatientSex": "O", "AccessionNumber": "ACC9"}
        assert {keyword: str(copy[keyword].value) for keyword in corrected} == corrected
        first, second = copy.OriginalAttributesSequence
        assert first.ModifiedAttributesSequence[0].AccessionNumber == ds.AccessionNumber
        assert (first.ReasonForTheAttributeModification, first.ModifyingSystem) == ("CORRECT", "Latent PACS")
        former = second.ModifiedAttributesSequence[0]
        assert (former.PatientID, former.PatientName, former.PatientSex) == ("P0001", "Müller^Anna", "F")
        del copy.OriginalAttributesSequence
        for keyword in corrected:
            copy[keyword].value = ds[keyword].value
        assert copy == ds
        assert copy.SOPInstanceUID == ds.SOPInstanceUID

        # the reconstruction is corrected too, though it was in the cache with its former header
        _, derived = retrieved("VIEWER", "after")
        assert (derived.PatientID, derived.PatientName, derived.AccessionNumber) == ("P0002", "Roe^Jane", "ACC9")
        assert (derived.PixelData, derived.SOPInstanceUID) == (before.PixelData, before.SOPInstanceUID)
        assert len(derived.OriginalAttributesSequence) == 2

        # sent again with the former and with the corrected header, it is recognised
        for path in (sent, amended):
            assert storescu([path], archive.address).statuses == [0]
        assert node.index.quarantine.all() == []

        # an image that arrives later with the same wrong values is corrected; undoing restores all values
        late = small(StudyInstanceUID=ds.StudyInstanceUID, SeriesInstanceUID=ds.SeriesInstanceUID)
        send(archive, late, tmp_path / "late.dcm")
        ran = getscu(
            archive.address,
            tmp_path / "late",
            "-S",
            "IMAGE",
            *keys,
            f"SOPInstanceUID={late.SOPInstanceUID}",
            calling="EXACTVIEW",
        )
        (path,) = (tmp_path / "late").iterdir()
        assert (dcmread(path).PatientID, pixel_element(path)) == ("P0002", pixel_element(tmp_path / "late.dcm"))
        assert one_found(archive, tmp_path / "found", "STUDY", study).PatientID == "P0002"
        amendments.undo(moved.amendment.number, **WHY)
        answer = one_found(archive, tmp_path / "found", "STUDY", study)
        assert (answer.PatientID, answer.PatientName, answer.AccessionNumber) == ("P0001", "Müller^Anna", "ACC9")
        assert node.trail.broken() == ""


# --- the header of one file ---


def written(ds: Dataset, path: Path, syntax: UID) -> Path:
    """A Part 10 file in one of the transfer syntaxes of these tests."""
    if syntax != DeflatedExplicitVRLittleEndian:
        return write(ds, path, syntax)
    engine = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    with path.open("wb") as out:
        write_preamble(out, file_meta(ds.SOPClassUID, ds.SOPInstanceUID, syntax))
        out.write(engine.compress(encode(ds, ExplicitVRLittleEndian)) + engine.flush())
    return path


def applied(**values: str) -> list[Applied]:
    return [Applied(1, "2026-01-02T03:04:05.000006+00:00", changes_of(values))]


@pytest.mark.parametrize(
    "syntax",
    [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian],
    ids=["explicit", "implicit", "big endian", "deflated"],
)
@pytest.mark.parametrize("name", ["Grün^Eva", "Yamada^Tarou=山田^太郎"], ids=["latin", "utf-8"])
def test_an_amended_file_differs_in_what_was_amended(tmp_path: Path, syntax: UID, name: str) -> None:
    ds = small(PatientComments="schön", DataSetTrailingPadding=b"\0" * 4)
    ds.RequestAttributesSequence = Sequence([Dataset()])
    ds.RequestAttributesSequence[0].RequestedProcedureDescription = "Überweisung"
    if syntax == ExplicitVRBigEndian:
        ds.PixelData = breast(64, 48).astype(">u2").tobytes()
    source, target = written(ds, tmp_path / "a.dcm", syntax), tmp_path / "b.dcm"
    write_amended(source, target, applied(PatientName=name, AccessionNumber="", PatientAge="050Y"))
    copy, before = dcmread(target), dcmread(source)
    assert copy.file_meta.TransferSyntaxUID == syntax
    assert pixel_element(target) == pixel_element(source)
    assert (copy.PatientName, copy.AccessionNumber, copy.PatientAge) == (name, "", "050Y")
    assert copy.SpecificCharacterSet == ("ISO_IR 100" if name.startswith("G") else "ISO_IR 192")
    (item,) = copy.OriginalAttributesSequence
    assert item.AttributeModificationDateTime == "20260102030405.000006+0000"
    (former,) = item.ModifiedAttributesSequence
    assert {element.keyword: str(element.value) for element in former} == {
        "PatientName": "Müller^Anna",
        "AccessionNumber": "ACC0001",
    }
    for keyword in ("OriginalAttributesSequence", "PatientAge"):
        del copy[keyword]
    for keyword in ("PatientName", "AccessionNumber", "SpecificCharacterSet"):
        copy[keyword].value = before[keyword].value
    del before.DataSetTrailingPadding
    assert copy == before


def test_dciodvfy_finds_no_error_in_an_amended_file(tmp_path: Path) -> None:
    need("dciodvfy")
    ds = mammogram(breast(300, 280))
    source, target = write(ds, tmp_path / "a.dcm"), tmp_path / "b.dcm"
    write_amended(source, target, applied(PatientID="X", PatientName="Yamada=山田", AccessionNumber="", StudyID="9"))
    assert error_lines(target) == error_lines(source)


def test_encapsulated_pixels_stay_as_they_are(tmp_path: Path) -> None:
    ds = small()
    source, target = rle_file(ds, tmp_path / "a.dcm", [b"\x01ab", b"\x01cd"]), tmp_path / "b.dcm"
    write_amended(source, target, applied(PatientID="X"))
    assert pixel_element(target) == pixel_element(source)
    assert (dcmread(target).PatientID, dcmread(target).file_meta.TransferSyntaxUID) == ("X", "1.2.840.10008.1.2.5")


def test_what_has_no_pixels_is_amended_too(tmp_path: Path) -> None:
    ds = small(PixelData=None)
    source, target = write(ds, tmp_path / "a.dcm"), tmp_path / "b.dcm"
    write_amended(source, target, applied(PatientID="X"))
    assert dcmread(target).PatientID == "X"
    assert dcmread(target).KVP == ds.KVP


# --- values and versions ---


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"StudyInstanceUID": "1.2"}, "cannot be amended"),
        ({"Rows": "1"}, "cannot be amended"),
        ({"PatientBirthDate": "1.1.1960"}, "not a valid value"),
        ({"PatientSize": "tall"}, "not a valid value"),
        ({"PatientID": "x" * 65}, "not a valid value"),
    ],
)
def test_what_cannot_be_amended(values: dict[str, str], why: str) -> None:
    with pytest.raises(InputInvalid, match=why):
        changes_of(values)


def test_amendments_are_laid_over_in_their_order() -> None:
    """A merge applies to the patient that has this ID at that point, and the next merge to the patient with the next
    ID."""
    levels = levels_of(small(StudyInstanceUID="1.2", PatientID="A"))

    def made(number: int, kind: AmendmentKind, target: str, **values: str) -> Amendment:
        return Amendment(number, kind, target, changes_of(values), "", "", now())

    a, b = (patient_identity(name) for name in "AB")
    chain = [
        made(1, PATIENT, b, PatientSex="M"),
        made(2, PATIENT, a, PatientID="B"),
        made(3, PATIENT, b, PatientID="C"),
    ]
    result = folded(levels.patient, levels.study, [*chain, made(4, STUDY, "1.2", StudyID="")])
    assert [one.number for one in result.applied] == [2, 3, 4]
    assert result.patient_ids == ("A", "B", "C")
    columns = result.columns()
    assert (columns["patient"]["patient_id"], columns["patient"]["sex"], columns["study"]["study_id"]) == ("C", "F", "")


# --- in the index ---


@pytest.fixture
def index(tmp_path: Path) -> Index:
    return Index.open(f"sqlite:///{tmp_path / 'index.sqlite'}")


def named(index: Index) -> dict[str, tuple[str, int]]:
    """Patient ID and number of amendments per image."""
    keys = list(range(1, 10))
    return {one.sop_instance_uid: (one.patient_id, len(one.amended)) for one in index.by_keys(keys)}


def add(index: Index, uid: str, **changes: Any) -> NewInstance:
    new = new_instance(uid, **changes)
    index.add(new)
    return new


def test_a_merge_is_kept_for_all_that_comes_later(index: Index) -> None:
    add(index, "1.2.3.1", patient_id="A", study_uid="1.1")
    add(index, "1.2.3.2", patient_id="B", study_uid="1.2")
    made = index.amendments.make(PATIENT, patient_identity("A"), changes_of({"PatientID": "B"}), **WHY)
    add(index, "1.2.3.3", patient_id="A", study_uid="1.3")
    add(index, "1.2.3.4", patient_id="A", study_uid="1.1")
    assert named(index) == {"1.2.3.1": ("B", 1), "1.2.3.2": ("B", 0), "1.2.3.3": ("B", 1), "1.2.3.4": ("B", 1)}
    assert index.amendments.studies(1) == ["1.1", "1.3"]
    renamed = index.amendments.make(PATIENT, patient_identity("B"), changes_of({"PatientName": "New"}), **WHY)
    assert [one.study_instance_uid for one in renamed.studies] == ["1.1", "1.2", "1.3"]
    index.amendments.undo(made.amendment.number, **WHY)
    assert named(index) == {"1.2.3.1": ("A", 0), "1.2.3.2": ("B", 1), "1.2.3.3": ("A", 0), "1.2.3.4": ("A", 0)}
    index.amendments.undo(renamed.amendment.number, **WHY)
    assert {amended for _, amended in named(index).values()} == {0}
    with pytest.raises(ChangeRefused, match="undone already"):
        index.amendments.undo(1, **WHY)
    with pytest.raises(ChangeRefused, match="undoes another"):
        index.amendments.undo(3, **WHY)


def test_a_dry_run_tells_and_changes_nothing(index: Index) -> None:
    add(index, "1.2.3.1", patient_id="A", study_uid="1.1")
    changes = changes_of({"AccessionNumber": "9"})
    planned = index.amendments.make(STUDY, "1.1", changes, dry_run=True, **WHY)
    assert (planned.studies[0].before, planned.studies[0].after) == (
        {"AccessionNumber": "ACC0001"},
        {"AccessionNumber": "9"},
    )
    assert (index.amendments.all(), named(index), index.trail.last()[0]) == ([], {"1.2.3.1": ("A", 0)}, 0)
    assert index.amendments.make(STUDY, "1.1", changes, **WHY).studies == planned.studies


def test_what_is_refused(index: Index) -> None:
    add(index, "1.2.3.1", patient_id="A", study_uid="1.1")
    add(index, "1.2.3.2", patient_id="B", study_uid="1.2")
    for kind, target, values, why in (
        (STUDY, "1.1", {}, "at least one attribute"),
        (STUDY, "1.1", {"PatientName": "X"}, "amend patient"),
        (STUDY, "1.1", {"PatientID": ""}, "cannot be empty"),
        (STUDY, "1.1", {"PatientID": "B", "PatientSex": "M"}, "is known here"),
        (PATIENT, patient_identity("A"), {"StudyID": "1"}, "attributes of a study"),
    ):
        with pytest.raises(ChangeRefused, match=why):
            index.amendments.make(kind, target, changes_of(values), **WHY)
    with pytest.raises(UnknownUid, match="no patient A x"):
        index.amendments.make(PATIENT, patient_identity("A", "x"), changes_of({"PatientID": "C"}), **WHY)
    with pytest.raises(UnknownUid, match="no amendment 7"):
        index.amendments.undo(7, **WHY)
    assert index.amendments.all() == []


@pytest.mark.parametrize("undone", [False, True])
def test_a_hold_on_either_patient_holds_after_a_merge(index: Index, undone: bool) -> None:
    add(index, "1.2.3.1", patient_id="A", study_uid="1.1")
    before = index.holds.add(HoldKind.PATIENT, "A", **WHY)
    made = index.amendments.make(PATIENT, patient_identity("A"), changes_of({"PatientID": "B"}), **WHY)
    after = index.holds.add(HoldKind.PATIENT, "B", **WHY)
    add(index, "1.2.3.2", patient_id="A", study_uid="1.2")
    assert [index.holds.covered(hold) for hold in (before, after)] == [2, 2]
    index.holds.release(after.key, **WHY)
    assert [one.kept_because for one in index.tombstones.plan("study", "1.1")] == ["is on hold"]
    after = index.holds.add(HoldKind.PATIENT, "B", **WHY)
    if undone:
        index.amendments.undo(made.amendment.number, **WHY)
        assert [index.holds.covered(hold) for hold in (before, after)] == [2, 2]


def test_amendments_outlive_the_index(tmp_path: Path) -> None:
    """From the journal and the instances as received, in either order, a new index gets the content of the old one."""

    def archive(name: str) -> tuple[Index, AuditTrail]:
        index = Index.open(f"sqlite:///{tmp_path / name}.sqlite")
        return index, AuditTrail(index, journal)

    journal = TrailJournal(tmp_path / "journal")
    old, _ = archive("old")
    received = [
        add(old, f"1.2.3.{n}", patient_id=name, study_uid=f"1.{n}") for n, name in ((1, "A"), (2, "B"), (3, "C"))
    ]
    amendments = old.amendments
    amendments.make(PATIENT, patient_identity("A"), changes_of({"PatientID": "B"}), **WHY)
    amendments.make(PATIENT, patient_identity("B"), changes_of({"PatientName": "Neu^Änne"}), **WHY)
    gone = amendments.make(STUDY, "1.3", changes_of({"PatientID": "D", "StudyID": "7"}), **WHY)
    amendments.undo(gone.amendment.number, **WHY)
    amendments.make(STUDY, "1.3", changes_of({"StudyDescription": "x"}), **WHY)
    TrailFollower(old.trail, journal)()
    for order in ("journal first", "instances first"):
        new, again = archive(order)
        if order == "journal first":
            again.recover()
        for one in received:
            new.add(one)
        if order == "instances first":
            again.recover()
        assert new.amendments.all() == old.amendments.all()
        assert named(new) == named(old) == {"1.2.3.1": ("B", 2), "1.2.3.2": ("B", 1), "1.2.3.3": ("C", 1)}
        assert [one.amended for one in new.by_keys([1, 2, 3])] == [one.amended for one in old.by_keys([1, 2, 3])]


# --- the commands ---


@pytest.mark.slow
def test_the_commands(tmp_path: Path, receiver: Receiver) -> None:
    config, ds = tmp_path / "config.yaml", small(StudyInstanceUID=generate_uid())
    settings = settings_for(tmp_path / "archive", receiver.port)
    config.write_text(yaml.safe_dump(settings.model_dump(mode="json", by_alias=True) | {"originals": {}}))
    with Node(settings) as node:
        client.store(
            [write(ds, tmp_path / "x.dcm")], Archive(node, receiver).address, calling="MODALITY", each=lambda *_: None
        )

    def told(*arguments: str) -> Any:
        done = invoke("amend", *arguments, "-c", str(config), "--json")
        assert done.exit_code == 0, done.exception
        return json.loads(done.stdout)

    change = ("study", ds.StudyInstanceUID, "--set", "AccessionNumber=A=9", "--reason", "typing error")
    assert told(*change, "--dry-run")["dry_run"] is True
    assert told("list") == []
    made = told(*change)
    assert made["changes"] == {"AccessionNumber": "A=9"}
    assert made["studies"][0]["after"] == {"AccessionNumber": "A=9"}
    assert made["made_by"].startswith("user:")
    assert told("show", "1")["studies"] == [ds.StudyInstanceUID]
    assert "{" not in invoke("amend", "show", "1", "-c", str(config)).stdout
    merged = invoke("amend", "patient", "P0001", "--set", "PatientID=P9", "--reason", "merge", "-c", str(config))
    assert "PatientID: 'P0001' -> 'P9'" in merged.stdout
    told("undo", "1", "--reason", "it was right")
    assert [(one["number"], one["undone"], one["undoes"]) for one in told("list")] == [
        (1, True, None),
        (2, False, None),
        (3, False, 1),
    ]
    for wrong in (("study", "1.2", "--set", "StudyID=1"), ("patient", "P9", "--set", "PatientID")):
        done = invoke("amend", *wrong, "--reason", "x", "-c", str(config))
        assert isinstance(done.exception, LatentPacsError)
    records = json.loads(invoke("trail", "--study", ds.StudyInstanceUID, "-c", str(config), "--json").stdout)
    assert [record["entry"]["action"] for record in records] == ["store", "amend", "amend", "amend"]


# --- character sets ---


def raw(tag: int, vr: str, value: bytes) -> bytes:
    value += b" " * (len(value) % 2)
    return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr.encode(), len(value)) + value


def amended(folder: Path, declared: bytes | None, institution: bytes, **changes: str) -> Dataset:
    """An amended data set, read by pydicom. Its Institution Name, also in an item, and Study Description had the given
    bytes."""
    inner = raw(0x00080080, "LO", institution)
    items = struct.pack("<HHI", 0xFFFE, 0xE000, len(inner)) + inner
    body = b"" if declared is None else raw(0x00080005, "CS", declared)
    body += raw(0x00080016, "UI", SECONDARY_CAPTURE.encode() + b"\0") + raw(0x00080018, "UI", b"1.2.3\0")
    body += raw(0x00080080, "LO", institution) + raw(0x00081030, "LO", institution)
    body += struct.pack("<HH2sHI", 0x0008, 0x1250, b"SQ", 0, len(items)) + items + raw(0x00100020, "LO", b"P1")
    path, target = folder / "in.dcm", folder / "out.dcm"
    with path.open("wb") as out:
        write_preamble(out, file_meta(SECONDARY_CAPTURE, "1.2.3", ExplicitVRLittleEndian))
        out.write(body)
    write_amended(path, target, applied(**changes))
    return dcmread(target)


GB = b"\x1b$)A\xd5\xc5"


@pytest.mark.parametrize(
    ("declared", "institution", "text", "news", "becomes"),
    [
        (None, "Köln".encode(), "Köln", "Größe", "ISO_IR 192"),
        (None, "Köln".encode(), "Köln", "山田", "ISO_IR 192"),
        (None, "Köln".encode("latin-1"), "Köln", "Größe", "ISO_IR 100"),
        (None, "Köln".encode("latin-1"), "Köln", "山田", "ISO_IR 192"),
        (None, b"Koeln", "Koeln", "Größe", "ISO_IR 192"),
        (b"ISO_IR 100", "Köln".encode("latin-1"), "Köln", "山田", "ISO_IR 192"),
        (b"ISO_IR 192", "Köln".encode(), "Köln", "山田", "ISO_IR 192"),
        (b"ISO_IR 144", "Иван".encode("iso8859-5"), "Иван", "Größe", "ISO_IR 192"),
        (b"GB18030", "张".encode("gb18030"), "张", "ö山", "GB18030"),
        (b"\\ISO 2022 IR 58", GB, "张", "Größe", "ISO_IR 192"),
        (b"\\ISO 2022 IR 87", b"\x1b$B;3ED\x1b(B", "山田", "Größe", "ISO_IR 192"),
    ],
)
def test_other_text_keeps_its_characters(
    tmp_path: Path, declared: bytes | None, institution: bytes, text: str, news: str, becomes: str
) -> None:
    """If the character set cannot write an amendment, the set is changed, and no other attribute."""
    ds = amended(tmp_path, declared, institution, StudyDescription=news)
    assert (ds.SpecificCharacterSet, ds.StudyDescription) == (becomes, news)
    assert (ds.InstitutionName, ds[0x00081250].value[0].InstitutionName) == (text, text)
    former = ds.OriginalAttributesSequence[0].ModifiedAttributesSequence[0]
    assert former.StudyDescription == text


@pytest.mark.parametrize("institution", ["Köln".encode(), "Köln".encode("latin-1"), b"\xff\xfe\x80", GB])
@pytest.mark.parametrize("declared", [None, b"ISO_IR 100", b"ISO_IR 192", b"\\ISO 2022 IR 58"])
def test_text_is_not_touched_where_it_need_not_be(tmp_path: Path, declared: bytes | None, institution: bytes) -> None:
    """Former values are not converted either."""
    ds = amended(tmp_path, declared, institution, StudyDescription="Clinic", PatientID="P2")
    held = institution + b" " * (len(institution) % 2)
    assert ds[0x00081250].value[0].get_item(0x00080080).value == held
    former = ds.OriginalAttributesSequence[0].ModifiedAttributesSequence[0]
    assert former.get_item(0x00081030).value == held
    assert ds.get("SpecificCharacterSet") == dcmread(tmp_path / "in.dcm").get("SpecificCharacterSet")


# --- headers that cannot be read ---

UNREADABLE: list[Any] = [
    pytest.param(b"\x28\0\x03\1US\3\0\1\0\2", id="pixel representation"),
    pytest.param(raw(0x04000561, "FL", b"\0\0\x80\x3f"), id="original attributes that are a number"),
    pytest.param(raw(0x04000561, "SH", b"none"), id="original attributes that are text"),
    pytest.param(raw(0x00080005, "US", b""), id="character set of another VR"),
]


@pytest.mark.parametrize("name", ["Gruen^Eva", "Yamada^Tarou=山田^太郎"], ids=["ascii", "utf-8"])
@pytest.mark.parametrize("odd", UNREADABLE)
def test_a_header_that_cannot_be_read_is_amended_too(tmp_path: Path, odd: bytes, name: str) -> None:
    """Otherwise an image could no longer be retrieved after its study was amended."""
    item = struct.pack("<HHI", 0xFFFE, 0xE000, 0)
    body = raw(0x00080016, "UI", SECONDARY_CAPTURE.encode() + b"\0") + raw(0x00080018, "UI", b"1.2.3\0")
    body += struct.pack("<HH2sHI", 0x0008, 0x1250, b"SQ", 0, len(item)) + item + raw(0x00100020, "LO", b"P1")
    body = odd + body if odd[0] == 8 else body + odd
    path, target = tmp_path / "in.dcm", tmp_path / "out.dcm"
    with path.open("wb") as out:
        write_preamble(out, file_meta(SECONDARY_CAPTURE, "1.2.3", ExplicitVRLittleEndian))
        out.write(body)
    write_amended(path, target, applied(PatientName=name, PatientID="P2"))
    copy = dcmread(target)
    copy.pop(0x00280103, None)  # pydicom reads no sequence beside it
    assert (copy.PatientName, copy.PatientID) == (name, "P2")
    assert copy.OriginalAttributesSequence[0].ModifiedAttributesSequence[0].PatientID == "P1"
