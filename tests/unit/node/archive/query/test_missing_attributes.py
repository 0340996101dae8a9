"""Proves that a study is found by attributes that its first instance lacked and a later one has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset

from node.archive.query.find import find
from node.archive.query.identifier import Root
from node.config import RenditionPolicy
from storage.dicom.header_amendments import AmendmentKind
from tests.support.archive_parts import ArchiveParts
from tests.support.coded_images import receive, small
from tests.support.samples import write

STUDY = "1.2.3.4.5"


@pytest.fixture
def bench(tmp_path: Path) -> ArchiveParts:
    return ArchiveParts(tmp_path / "archive", coder="none")


def send(bench: ArchiveParts, number: int, **values: Any) -> None:
    ds = small(f"1.2.3.{number}", **{"StudyInstanceUID": STUDY, **values})
    receive(bench, write(ds, bench.root / "sent.dcm").read_bytes(), ds)


def found(bench: ArchiveParts, **keys: str) -> list[Dataset]:
    identifier = Dataset()
    identifier.QueryRetrieveLevel = "STUDY"
    for keyword, value in {"StudyInstanceUID": STUDY, **keys}.items():
        setattr(identifier, keyword, value)
    return list(
        find(bench.index, identifier, Root.STUDY, policy=RenditionPolicy.ORIGINAL, retrieve_ae_title="LATENTPACS")
    )


@pytest.mark.parametrize(
    ("keyword", "key"),
    [("AccessionNumber", "ACC0001"), ("StudyDate", "20260101-20260103"), ("PatientName", "M*"), ("PatientSex", "F")],
)
def test_what_the_first_instance_lacks_is_taken_from_a_later_one(bench: ArchiveParts, keyword: str, key: str) -> None:
    send(bench, 1, **{keyword: None})
    assert not found(bench, **{keyword: key})
    send(bench, 2)
    assert len(found(bench, **{keyword: key})) == 1


def test_what_the_first_instance_has_stays(bench: ArchiveParts) -> None:
    send(bench, 1, AccessionNumber="FIRST", PatientName="First^Name")
    send(bench, 2, AccessionNumber="OTHER", PatientName="Other^Name", StudyDescription="Screening")
    assert found(bench, AccessionNumber="FIRST", PatientName="FIRST*", StudyDescription="Screening")
    assert not found(bench, AccessionNumber="OTHER")
    assert not found(bench, PatientName="Other*")


def test_a_study_gets_nothing_of_another_study_of_the_patient(bench: ArchiveParts) -> None:
    send(bench, 1, PatientName=None)
    send(bench, 2, StudyInstanceUID="1.2.3.4.6")
    assert not found(bench, PatientName="M*")


@pytest.mark.parametrize("other", [{"PatientID": "P2"}, {"IssuerOfPatientID": "H2"}, {"PatientID": None}])
def test_another_patient_adds_nothing_to_a_patient(bench: ArchiveParts, other: dict[str, str | None]) -> None:
    send(bench, 1, PatientName=None)
    send(bench, 2, **{"PatientName": "Other^Name", **other})
    assert not found(bench, PatientName="Other*")
    [answer] = found(bench, PatientID="", IssuerOfPatientID="")
    assert (answer.PatientID, answer.IssuerOfPatientID) == ("P0001", "")


def test_what_an_amendment_emptied_stays_empty(bench: ArchiveParts) -> None:
    send(bench, 1)
    emptied = {"00080050": {"vr": "SH"}}
    bench.index.amendments.make(AmendmentKind.STUDY, STUDY, emptied, reason="wrong", who="user:me")
    send(bench, 2)
    assert not found(bench, AccessionNumber="ACC0001")


def test_an_offset_from_utc_is_not_added_to_dates_of_another_instance(bench: ArchiveParts) -> None:
    send(bench, 1)
    send(bench, 2, TimezoneOffsetFromUTC="+0900")
    [answer] = found(bench, StudyDate="")
    assert "TimezoneOffsetFromUTC" not in answer
