"""Proves that the names of a patient outlive the index: a rebuild and a restored backup have the same rows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from pydicom import Dataset

from node.app import Node, rebuild_index
from node.archive.query.find import find
from node.archive.query.identifier import Root
from node.config import RenditionPolicy
from storage.dicom.header_amendments import AmendmentKind, changes_of
from storage.index import Index
from tests.support.commands import run
from tests.support.everything import receive, tables_of
from tests.support.filled_archive import FilledArchive, configured
from tests.support.samples import breast, mammogram


def listed(made: FilledArchive, name: str) -> list[tuple[str, str]]:
    """Accession number and patient name of the studies that ``latent-pacs study list`` finds by a name."""
    done = run("study", "list", "--name", name, "-c", str(made.config), "--json")
    assert done.returncode == 0, done.stderr
    return sorted((one["AccessionNumber"], one["PatientName"]) for one in json.loads(done.stdout))


def test_the_names_of_a_patient_outlive_the_index(tmp_path: Path) -> None:
    made = FilledArchive(configured(tmp_path), {})
    with Node(made.quiet) as node:
        for number, name in enumerate(("Doe^Jane", "Smith^Jane", "Smith^Jane", "Other^One"), 1):
            person = {"PatientID": "P9" if name == "Other^One" else "P1", "PatientName": name}
            ds = mammogram(breast(64, 48), AccessionNumber=str(number), **person)
            receive(node, ds, tmp_path / "sent.dcm")
        moved = changes_of({"PatientID": "P1"})
        node.index.amendments.make(AmendmentKind.STUDY, ds.StudyInstanceUID, moved, reason="wrong", who="user:me")

    def check() -> None:
        assert listed(made, "doe*") == [("1", "Doe^Jane")]
        assert listed(made, "SMITH^*") == [("2", "Smith^Jane"), ("3", "Smith^Jane"), ("4", "Smith^Jane")]
        assert listed(made, "Other*") == []

    check()
    rows = tables_of(made.file)
    assert len(rows["patient"]) == 2
    backup = tmp_path / "backup"
    assert run("backup", "create", str(backup), "-c", str(made.config)).returncode == 0
    made.drop_index()
    assert rebuild_index(made.settings, lambda *_: None).clean
    assert tables_of(made.file) == rows
    check()
    shutil.rmtree(made.root)
    assert run("backup", "restore", str(backup), "-c", str(made.config)).returncode == 0
    assert tables_of(made.file) == rows
    check()


def test_the_last_name_is_that_of_the_newest_study_without_a_journal(tmp_path: Path) -> None:
    """Objects without rows are recovered in the order in which they were received."""
    made = FilledArchive(configured(tmp_path), {})
    with Node(made.quiet) as node:
        for number, name in enumerate(("Doe^Jane", "Roe^Jane", "Smith^Jane"), 1):
            ds = mammogram(breast(64, 48), PatientID="P1", PatientName=name, AccessionNumber=str(number))
            receive(node, ds, tmp_path / "sent.dcm")
    made.drop_index()
    shutil.rmtree(made.root / "journal")
    assert rebuild_index(made.settings, lambda *_: None).clean
    identifier = Dataset()
    identifier.QueryRetrieveLevel, identifier.PatientName = "PATIENT", "Doe*"
    index = Index.open(f"sqlite:///{made.file}")
    found = find(index, identifier, Root.PATIENT, policy=RenditionPolicy.ORIGINAL, retrieve_ae_title="LATENTPACS")
    assert [str(one.PatientName) for one in found] == ["Smith^Jane"]
    index.close()
