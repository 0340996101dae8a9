"""Proves that labels are read from CSV, written to the journal, and hold originals until a validation has used them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import insert, update

from node.archive.audit_trail import AuditTrail
from node.validation.label_file import LabelsInvalid, read_labels
from storage.index import Index
from storage.index.connection import now, writing
from storage.index.journal_writer import TrailFollower
from storage.index.tables import instance, series, study
from storage.objects.trail_journal import TrailJournal
from storage.records import TrailEntry
from tests.support.commands import run
from tests.support.holdings import Holdings, filled, uid_of

WHO = "user:test"


@pytest.fixture
def holdings(tmp_path: Path) -> Holdings:
    """Four images of patient P: one study with 1 to 3, another with 4; views R CC, L CC, R MLO and L MLO."""
    made = filled(tmp_path, 4)
    none: dict[str, Any] = {
        "attributes": {},
        "study_date": "",
        "study_time": "",
        "accession_number": "",
        "study_id": "",
    }
    with writing(made.index.engine) as connection:
        connection.execute(insert(study).values(key=2, patient_key=1, study_instance_uid="1.3", **none))
        laterality = {"00200060": {"vr": "CS", "Value": ["L"]}}
        connection.execute(
            insert(series).values(key=2, study_key=2, series_instance_uid="1.3.3", modality="MG", attributes=laterality)
        )
        code = {"00080100": {"vr": "SH", "Value": ["399368009"]}}
        attributes = [
            {"00200062": {"vr": "CS", "Value": ["R"]}, "00185101": {"vr": "CS", "Value": ["CC"]}},
            {"00200062": {"vr": "CS", "Value": ["L"]}, "00185101": {"vr": "CS", "Value": ["CC"]}},
            {"00200062": {"vr": "CS", "Value": ["R"]}, "00540220": {"vr": "SQ", "Value": [code]}},
            {"00540220": {"vr": "SQ", "Value": [code]}},
        ]
        for number, own in enumerate(attributes, 1):
            of = {"attributes": own, "series_key": 2 if number == 4 else 1}
            connection.execute(update(instance).where(instance.c.key == number).values(**of))
    return made


def csv(folder: Path, *lines: str) -> Path:
    path = folder / "labels.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_images_are_named_by_either_uid(holdings: Holdings, tmp_path: Path) -> None:
    file = csv(
        tmp_path, "note,Class, sop_instance_uid", f",cancer,{uid_of(1)}", ",none,2.25.2", ",none,9.9", "a,none,1.2.3.3"
    )
    found = read_labels(file, holdings.index)
    assert found.classes == {uid_of(1): "cancer", uid_of(2): "none", uid_of(3): "none"}
    assert found.unmatched == (4,)


def test_images_are_named_by_patient_and_view(holdings: Holdings, tmp_path: Path) -> None:
    """The view is View Position or the code of the view, and the laterality is that of the image or of its series
    (PS3.3 C.8.11.7)."""
    lines = ("P,R,CC,a", "P,L,cc,b", "P,r,MLO,c", "P,L,MLO,d", "Q,L,MLO,d", "P,L,ML,d")
    found = read_labels(csv(tmp_path, "patient_id,laterality,view,class", *lines), holdings.index)
    assert found.classes == {uid_of(number): name for number, name in enumerate("abcd", 1)}
    assert found.unmatched == (6, 7)


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (("uid,class", "1,2"), "first line must name the columns sop_instance_uid,class or patient_id"),
        (("sop_instance_uid,class", "1.2.3.1,"), "line 2: class is empty"),
        (("sop_instance_uid,class", "1.2.3.1"), "line 2: class is empty"),
        (("sop_instance_uid,class", "1.2.3.1,a", "2.25.1,b"), "line 3: class 'b' for an image that line 2 calls 'a'"),
        (("sop_instance_uid,class", "1.2.3.1," + 65 * "a"), "line 2: a class has 64 characters at most"),
        (("sop_instance_uid,class", '1.2.3.1,"a'), "is not a CSV file in UTF-8"),
    ],
)
def test_a_malformed_file_is_refused_whole(
    holdings: Holdings, tmp_path: Path, lines: tuple[str, ...], says: str
) -> None:
    with pytest.raises(LabelsInvalid, match=says):
        read_labels(csv(tmp_path, *lines), holdings.index)
    with pytest.raises(LabelsInvalid, match="cannot be read"):
        read_labels(tmp_path / "none.csv", holdings.index)


def test_labelled_originals_are_held_until_they_are_released(holdings: Holdings) -> None:
    """A hold covers a study, and ends when the last labelled image of the study is released."""
    index = holdings.index

    def free() -> set[str]:
        return {one.sop_instance_uid for one in index.originals.purgeable(now())}

    assert free() == {uid_of(number) for number in (1, 2, 3, 4)}
    assert index.classes.put({uid_of(1): "a", uid_of(2): "b", uid_of(4): "b"}, who=WHO) == 3
    assert free() == set()
    assert [(one.value, index.holds.covered(one)) for one in index.holds.all()] == [("validation", 4)]
    assert index.classes.release([uid_of(4), uid_of(1)], who=WHO, why="used") == 2
    assert free() == {uid_of(4)}
    assert index.classes.put({uid_of(1): "a"}, who=WHO) == 0  # the same again, held again
    assert [(one.class_name, one.held) for one in index.classes.all()] == [("a", True), ("b", True), ("b", False)]
    assert len(index.holds.all(released=True)) == 1
    assert index.classes.release([uid_of(1), uid_of(2), "9.9"], who=WHO, why="used") == 2
    assert free() == {uid_of(number) for number in (1, 2, 3, 4)}


def test_classes_come_back_from_the_journal(holdings: Holdings, tmp_path: Path) -> None:
    journal = TrailJournal(tmp_path / "journal")
    many = {f"1.9.{number}": "c" for number in range(450)}  # more than one record; images that are gone meanwhile
    holdings.index.classes.put({uid_of(1): "a", uid_of(2): "b", **many}, who=WHO)
    holdings.index.classes.put({uid_of(2): "a"}, who=WHO)
    holdings.index.classes.release([uid_of(1)], who=WHO, why="used")
    TrailFollower(holdings.index.trail, journal)()
    again = Index.open(f"sqlite:///{tmp_path / 'again.sqlite'}")
    trail = AuditTrail(again, journal)
    assert trail.recover() == holdings.index.trail.last()[0]
    assert again.classes.all() == holdings.index.classes.all()
    assert again.holds.labels() == holdings.index.holds.labels() == [("validation", "1.2")]
    assert trail.broken() == ""


@pytest.mark.slow
def test_labels_by_command(holdings: Holdings, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"storage": {"root": str(holdings.root)}}))
    database = holdings.root / "index.sqlite"
    assert database.is_file()
    malformed = csv(tmp_path, "sop_instance_uid,class", f"{uid_of(1)},")
    assert run("class-label", "import", str(malformed), "--config", str(config)).returncode == 2
    file = csv(tmp_path, "sop_instance_uid,class", f"{uid_of(1)},a", f"{uid_of(2)},b", "9.9,b")
    two = next(one for one in holdings.index.originals.purgeable(now()) if one.sop_instance_uid == uid_of(2))
    assert holdings.index.originals.commit_purge(two, now(), TrailEntry("purge", WHO, "image", (uid_of(2),)))
    done = run("class-label", "import", str(file), "--config", str(config), "--json")
    assert done.returncode == 1, done.stderr
    assert json.loads(done.stdout) == {"images": 2, "changed": 2, "classes": {"a": 1, "b": 1}, "unmatched": [4]}
    holdings.index.classes.put({"9.9": "a"}, who=WHO)  # as an image that was deleted since
    listed = json.loads(run("class-label", "list", "--config", str(config), "--json").stdout)
    assert listed[0] == {"sop_instance_uid": uid_of(1), "class_name": "a", "held": True, "original": "held"}
    assert [one["original"] for one in listed] == ["held", "purged", "not here"]
    assert json.loads(run("class-label", "release", "--config", str(config), "--json").stdout) == {"released": 3}
    assert "no" in run("class-label", "list", "--config", str(config)).stdout
