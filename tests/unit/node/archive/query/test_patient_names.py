"""Proves that a study is found by the patient attributes that it came with, and a patient by those of any study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset
from sqlalchemy import event, select

from node.archive.query.find import find
from node.archive.query.identifier import Root
from node.config import RenditionPolicy
from storage.dicom.header_amendments import AmendmentKind, changes_of, patient_identity
from storage.errors import ChangeRefused
from storage.index import query_candidates, query_pages
from storage.index.tables import patient
from storage.records import HoldKind
from tests.support.archive_parts import ArchiveParts
from tests.support.coded_images import receive, small
from tests.support.samples import write

WHY = {"reason": "changed", "who": "user:test"}


@pytest.fixture
def bench(tmp_path: Path) -> ArchiveParts:
    """A patient who married: the second of her studies has another name and other attributes."""
    made = ArchiveParts(tmp_path / "archive", coder="none")
    send(made, "1.1", PatientName="Doe^Jane", PatientBirthDate="19600101", PatientComments="first")
    send(made, "1.2", PatientName="Smith^Jane", PatientBirthDate="19600102", OtherPatientIDs="X2")
    return made


def send(bench: ArchiveParts, study: str, number: int = 1, **values: Any) -> None:
    ds = small(f"{study}.{number}.7", **{"StudyInstanceUID": study, "SeriesInstanceUID": f"{study}.7", **values})
    receive(bench, write(ds, bench.root / "sent.dcm").read_bytes(), ds)


def ask(bench: ArchiveParts, level: str, root: Root = Root.PATIENT, **keys: str) -> list[Dataset]:
    identifier = Dataset()
    identifier.QueryRetrieveLevel = level
    returned = ("PatientID", "PatientName", "PatientBirthDate", "PatientComments", "OtherPatientIDs")
    for keyword in (*returned, "StudyInstanceUID", "NumberOfPatientRelatedStudies"):
        setattr(identifier, keyword, keys.get(keyword))
    for keyword, value in keys.items():
        setattr(identifier, keyword, value)
    answers = find(bench.index, identifier, root, policy=RenditionPolicy.ORIGINAL, retrieve_ae_title="LATENTPACS")
    return list(answers)


def named(answers: list[Dataset]) -> dict[str, str]:
    """Patient's Name by Study Instance UID."""
    return {str(one.StudyInstanceUID): str(one.PatientName) for one in answers}


@pytest.mark.parametrize(
    "keys",
    [
        {"PatientName": "SMITH^JANE"},
        {"PatientName": "sm?th*"},
        {"PatientName": "*ith^*"},
        {"PatientBirthDate": "19600102"},
        {"PatientName": "Smith*", "PatientBirthDate": "19600102-19600103"},
        {"OtherPatientIDs": "X2"},
    ],
)
def test_a_study_is_found_by_what_it_came_with(bench: ArchiveParts, keys: dict[str, str]) -> None:
    assert named(ask(bench, "STUDY", Root.STUDY, **keys)) == {"1.2": "Smith^Jane"}
    below = {"PatientID": "P0001", "StudyInstanceUID": "1.2", "SeriesInstanceUID": "1.2.7", **keys}
    for level in ("SERIES", "IMAGE"):
        assert named(ask(bench, level, **below)) == {"1.2": "Smith^Jane"}
        assert ask(bench, level, **{**below, "PatientName": "Doe*"}) == []
    [answer] = ask(bench, "PATIENT", **keys)
    assert (answer.PatientName, answer.NumberOfPatientRelatedStudies) == ("Smith^Jane", 2)


def test_a_patient_is_found_once_by_any_name_and_shown_as_last_received(bench: ArchiveParts) -> None:
    for keys in ({"PatientName": "doe*"}, {"PatientName": "*JANE"}, {"PatientID": "P0001"}, {}):
        [answer] = ask(bench, "PATIENT", **keys)
        assert (answer.PatientName, answer.PatientBirthDate) == ("Smith^Jane", "19600102")
        assert (answer.PatientComments, answer.OtherPatientIDs) == ("first", "X2"), "those that only one study has"
    assert ask(bench, "PATIENT", PatientName="Doe*", PatientBirthDate="19600102") == [], "no study came with both"
    send(bench, "1.3", PatientName="Doe^Jane", PatientBirthDate="19600101", PatientComments="first")
    [answer] = ask(bench, "PATIENT", PatientName="Smith*")
    assert (answer.PatientName, answer.NumberOfPatientRelatedStudies) == ("Doe^Jane", 3)
    send(bench, "1.4", PatientName="Smith^Jane", IssuerOfPatientID="Elsewhere")
    assert len(ask(bench, "PATIENT", PatientName="Smith*")) == 2


def test_studies_that_came_with_the_same_attributes_share_a_row(bench: ArchiveParts) -> None:
    like_the_first = {"PatientName": "Doe^Jane", "PatientBirthDate": "19600101", "PatientComments": "first"}
    send(bench, "1.3", **{**like_the_first, "PatientSex": None})
    send(bench, "1.3", 2, **like_the_first)
    assert named(ask(bench, "STUDY", Root.STUDY, PatientComments="first")) == {"1.1": "Doe^Jane", "1.3": "Doe^Jane"}
    with bench.index.engine.connect() as connection:
        assert sorted(connection.execute(select(patient.c.name)).scalars()) == ["doe^jane", "smith^jane"]


@pytest.mark.slow
def test_an_amendment_of_a_patient_changes_all_names(bench: ArchiveParts) -> None:
    make, identity = bench.index.amendments.make, patient_identity("P0001")
    made = make(AmendmentKind.PATIENT, identity, changes_of({"PatientName": "Roe^Jane"}), **WHY)
    assert [one.before for one in made.studies] == [{"PatientName": "Doe^Jane"}, {"PatientName": "Smith^Jane"}]
    assert named(ask(bench, "STUDY", Root.STUDY)) == {"1.1": "Roe^Jane", "1.2": "Roe^Jane"}
    assert ask(bench, "PATIENT", PatientName="Smith*") == []
    bench.index.amendments.undo(made.amendment.number, **WHY)
    assert named(ask(bench, "STUDY", Root.STUDY)) == {"1.1": "Doe^Jane", "1.2": "Smith^Jane"}
    [answer] = ask(bench, "PATIENT")
    assert answer.PatientName == "Smith^Jane"


def test_a_study_that_moves_takes_the_last_name_and_gives_it_back(bench: ArchiveParts) -> None:
    send(bench, "1.3", PatientID="P2", PatientName="Other^One", PatientBirthDate="19700101")
    make = bench.index.amendments.make
    with pytest.raises(ChangeRefused, match="is known here"):
        make(AmendmentKind.STUDY, "1.3", changes_of({"PatientID": "P0001", "PatientSex": "M"}), **WHY)
    made = make(AmendmentKind.STUDY, "1.3", changes_of({"PatientID": "P0001"}), **WHY)
    assert named(ask(bench, "STUDY", Root.STUDY, PatientName="Smith*")) == {"1.2": "Smith^Jane", "1.3": "Smith^Jane"}
    [answer] = ask(bench, "PATIENT")
    assert (answer.PatientBirthDate, answer.NumberOfPatientRelatedStudies) == ("19600102", 3)
    bench.index.amendments.undo(made.amendment.number, **WHY)
    assert sorted(str(one.PatientName) for one in ask(bench, "PATIENT")) == ["Other^One", "Smith^Jane"]
    split = make(AmendmentKind.STUDY, "1.2", changes_of({"PatientID": "P3"}), **WHY)
    assert [str(one.PatientName) for one in ask(bench, "PATIENT", PatientID="P0001")] == ["Doe^Jane"]
    bench.index.amendments.undo(split.amendment.number, **WHY)
    assert [one.NumberOfPatientRelatedStudies for one in ask(bench, "PATIENT", PatientID="P0001")] == [2]


def test_a_hold_and_a_deletion_know_a_patient_of_two_names(bench: ArchiveParts) -> None:
    hold = bench.index.holds.add(HoldKind.PATIENT, "P0001", **WHY)
    assert bench.index.holds.covered(hold) == 2
    bench.index.holds.release(hold.key, **WHY)
    bench.index.tombstones.mark_deleted("study", "1.2", **WHY)
    bench.index.tombstones.delete_rows()
    [answer] = ask(bench, "PATIENT")
    assert (answer.PatientName, answer.NumberOfPatientRelatedStudies) == ("Doe^Jane", 1)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 7])
def test_pages_show_each_patient_once(bench: ArchiveParts, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """The rows of a patient may be on several pages, in the order of any column."""
    for number in range(4):
        for name in ("Zed^A", "Bee^A", "Mum^A"):
            send(bench, f"2.{number}.{ord(name[0])}", PatientID=f"Q{number}", PatientName=f"{name}^{number}")
    for module in (query_candidates, query_pages):
        monkeypatch.setattr(module, "PAGE_ROWS", rows)
    expected = [f"Q{number}" for number in range(4)]
    for key in ("PatientName=B*", "PatientName=*^A*", "PatientID=Q*", "PatientBirthDate=19000101-20000101"):
        found = [str(one.PatientID) for one in ask(bench, "PATIENT", **dict([key.split("=")]))]
        assert sorted(set(found) - {"P0001"}) == expected
        assert len(found) == len(set(found))


def test_no_table_is_scanned_for_a_patient(bench: ArchiveParts) -> None:
    asked: list[tuple[str, Any]] = []
    event.listen(bench.index.engine, "before_cursor_execute", lambda *call: asked.append((call[2], call[3])))
    ask(bench, "PATIENT", PatientName="smith*")
    searches = [one for one in asked if one[0].startswith("SELECT")]
    with bench.index.engine.connect() as connection:
        plans = [str(connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", of).all()) for sql, of in searches]
    assert plans and not [plan for plan in plans if "SCAN patient" in plan or "SCAN study" in plan]
