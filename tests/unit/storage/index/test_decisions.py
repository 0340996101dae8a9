"""Proves that decisions of people and audits are recorded once, and are refused where they make no sense."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import select, update

from storage.errors import ChangeRefused, JobRefused, UnknownUid
from storage.index import Index
from storage.index.audit_outcomes import AuditRows
from storage.index.connection import now, writing
from storage.index.holdings import Added
from storage.index.job_runs import Cause, JobRows, RunState
from storage.index.replicas import Replicas
from storage.index.rewritten_annotations import copies
from storage.index.tables import garbage, tombstone
from storage.index.trail_rows import NOTHING_BEFORE, first_break, record_digest
from storage.records import InstanceState, ReasonCode, StoredInstance, TrailEntry, TrailRecord
from tests.support.index_rows import VERDICT, between_look_and_write, claimed, new_instance, new_rendition, url_of

UID, DERIVED = "1.2.3.1", "2.25.1"
ENTRY = TrailEntry("audit", "job:audit", "image", (UID,))
WHY = {"reason": "not ours", "who": "user:me"}


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    """One image, VERIFIED."""
    opened = Index.open(url_of(tmp_path))
    opened.add(new_instance(UID))
    assert opened.finish_with(claimed(opened), InstanceState.VERIFIED, new_rendition(DERIVED))
    yield opened
    opened.close()


def held(index: Index, uid: str = UID) -> StoredInstance:
    found = index.by_uid(uid)
    assert found is not None
    return found


def actions(index: Index) -> list[str]:
    return [record.entry.action for record in index.trail.records()]


# --- audits -------------------------------------------------------------------------------------------------------


def test_a_failed_audit_withdraws_the_rendition_and_its_uid_leads_to_the_image(index: Index) -> None:
    rows = AuditRows(index.engine)
    assert rows.withdraw(held(index).key, DERIVED, "a band is lost", ENTRY)
    found = held(index, DERIVED)
    assert (found.sop_instance_uid, found.state, found.rendition) == (UID, InstanceState.WITHDRAWN, None)
    assert (found.reason, found.reason_code) == ("audit: a band is lost", ReasonCode.AUDIT)
    assert index.rendition(DERIVED).withdrawn == "a band is lost"  # type: ignore[union-attr]
    assert actions(index) == ["audit"]


@pytest.mark.parametrize("why", ["another rendition", "being encoded"])
def test_the_outcome_of_an_audit_of_a_former_rendition_changes_nothing(index: Index, why: str) -> None:
    """The audit measured other pixels than those that are sent now."""
    rows, key, derived = AuditRows(index.engine), held(index).key, DERIVED
    if why == "another rendition":
        derived = "2.25.2"
    else:
        with index.engine.begin() as connection:
            connection.exec_driver_sql("UPDATE instance SET state = 'received'")
        claimed(index)
    before = held(index)
    assert not rows.withdraw(key, derived, "a band is lost", ENTRY)
    assert not rows.flag(key, derived, "a band is lost", ENTRY)
    assert not rows.clear(key, derived, InstanceState.VERIFIED, ENTRY)
    assert (held(index), actions(index)) == (before, [])


@pytest.mark.parametrize("gated", [True, False])
def test_an_image_that_passes_again_gets_the_state_of_its_rendition(index: Index, gated: bool) -> None:
    if not gated:
        index.add(new_instance("1.2.3.2"))
        measured = new_rendition("2.25.2", verdict=replace(VERDICT, gated=False))
        assert index.finish_with(claimed(index), InstanceState.MEASURED, measured)
    uid, derived = (UID, DERIVED) if gated else ("1.2.3.2", "2.25.2")
    rows, before = AuditRows(index.engine), held(index, uid)
    assert rows.flag(before.key, derived, "a band is lost", ENTRY)
    assert (held(index, uid).state, held(index, uid).rendition) == (InstanceState.FAILED, before.rendition)
    assert index.retry_failed() == 0, "there may be no original to encode"
    assert [one.flagged for one in rows.candidates() if one.instance_key == before.key] == [True]
    assert rows.clear(before.key, derived, before.state, ENTRY)
    assert held(index, uid) == before


# --- deletions ----------------------------------------------------------------------------------------------------


def test_what_was_not_deleted_cannot_return(index: Index) -> None:
    with pytest.raises(UnknownUid, match=f"no image {UID} was deleted here, or it may come back already"):
        index.tombstones.allow_return("image", UID, **WHY)
    index.tombstones.mark_deleted("image", UID, **WHY)
    index.tombstones.delete_rows()
    assert index.tombstones.allow_return("image", UID, **WHY) == [UID, DERIVED, f"{DERIVED}.9"]
    with pytest.raises(UnknownUid, match="or it may come back already"):
        index.tombstones.allow_return("image", UID, **WHY)
    assert index.add(new_instance(UID)) is Added.NEW


def test_what_another_process_is_deleting_cannot_return_yet(index: Index) -> None:
    """Formerly, the image stayed "being deleted", though its deletion was reported as done."""
    index.tombstones.mark_deleted("image", UID, **WHY)
    with pytest.raises(ChangeRefused, match=f"image {UID} is being deleted at this moment; try again"):
        index.tombstones.allow_return("image", UID, **WHY)
    assert index.tombstones.delete_rows() == 1
    assert index.by_uid(UID) is None


@pytest.mark.parametrize("known", ["the return", "a later deletion"])
def test_a_trail_without_its_last_records_undoes_no_decision(index: Index, known: str) -> None:
    """Formerly, if the trail lacked the record of an allowed return, a rebuild deleted the image again, with its only
    copy."""
    index.tombstones.mark_deleted("image", UID, **WHY)
    index.tombstones.delete_rows()
    recorded = list(index.trail.records())
    index.tombstones.allow_return("image", UID, **WHY)
    index.add(new_instance(UID))
    if known == "a later deletion":
        recorded = list(index.trail.records())
        later = update(tombstone).values(deleted_at=now() + timedelta(hours=1), return_allowed_at=None)
        with writing(index.engine) as connection:
            connection.execute(later)
    assert index.tombstones.catch_up(recorded) == 0
    assert index.tombstones.delete_rows() == 0
    assert (index.tombstones.in_force(UID) is None) == (known == "the return")


def test_a_tombstone_without_the_last_records_of_the_trail_gets_them(index: Index) -> None:
    index.tombstones.mark_deleted("image", UID, **WHY)
    index.tombstones.delete_rows()
    index.tombstones.allow_return("image", UID, **WHY)
    index.add(new_instance(UID))
    index.tombstones.mark_deleted("image", UID, **WHY)
    recorded = list(index.trail.records())
    older = update(tombstone).values(deleted_at=now() - timedelta(hours=1), return_allowed_at=now())
    first = replace(recorded[0], at=(datetime.now(UTC) - timedelta(hours=1)).isoformat(timespec="milliseconds"))
    with writing(index.engine) as connection:
        connection.execute(older)
    assert index.tombstones.catch_up([first, *recorded[1:]]) == 1
    assert index.tombstones.in_force(UID) is not None
    assert index.tombstones.catch_up([first, *recorded[1:]]) == 0


def test_a_deletion_takes_the_image_and_nothing_of_another(index: Index) -> None:
    index.add(new_instance("1.2.3.2"))
    assert index.finish_with(claimed(index), InstanceState.VERIFIED, new_rendition("2.25.2"))
    first, second, made = held(index), held(index, "1.2.3.2"), new_rendition("2.25.2")
    index.tombstones.mark_deleted("image", "1.2.3.2", **WHY)
    assert index.tombstones.delete_rows() == 1
    assert (held(index), index.by_uid("1.2.3.2"), index.by_uid("2.25.2")) == (first, None, None)
    with index.engine.connect() as connection:
        marked = {row.digest for row in connection.execute(select(garbage))}
    assert marked == {second.original_digest, made.base_digest, made.rendition_digest}


@pytest.mark.parametrize("returned", [False, True])
def test_tombstones_that_were_lost_come_back_from_the_trail(index: Index, returned: bool) -> None:
    index.add(new_instance("1.2.3.2"))
    index.tombstones.mark_deleted("image", "1.2.3.2", **WHY)
    index.tombstones.mark_deleted("image", UID, **WHY)
    index.tombstones.delete_rows()
    if returned:
        index.tombstones.allow_return("image", UID, **WHY)
    with writing(index.engine) as connection:
        connection.execute(tombstone.delete())
    assert index.tombstones.catch_up(list(index.trail.records())) == 4
    assert index.tombstones.in_force("1.2.3.2") is not None
    assert (index.tombstones.in_force(UID) is None) == returned
    assert (index.tombstones.in_force(DERIVED) is None) == returned
    assert (index.add(new_instance(UID)) is Added.NEW) == returned


def test_a_deleted_image_without_an_original_leaves_the_objects_of_its_rendition_to_unlink(index: Index) -> None:
    """The object of a purged original is gone already, or belongs to another image."""
    (one,) = index.originals.purgeable(now())
    index.add(new_instance("1.2.3.2"))
    assert index.finish_with(claimed(index), InstanceState.VERIFIED, new_rendition("2.25.2"))
    assert index.originals.commit_purge(one, now(), ENTRY)
    with index.engine.begin() as connection:
        connection.execute(garbage.delete())
    index.tombstones.mark_deleted("image", UID, **WHY)
    assert index.tombstones.delete_rows() == 1
    with index.engine.connect() as connection:
        marked = {(row.digest, row.tier) for row in connection.execute(select(garbage))}
    made = new_rendition(DERIVED)
    assert marked == {(made.base_digest, "hot"), (made.rendition_digest, "hot")}


def test_an_acknowledgement_of_an_image_that_was_deleted_meanwhile_is_forgotten(index: Index) -> None:
    """If the key of the deleted image were stored, the next image with that key would count as sent."""
    sent, replicas = held(index), Replicas(index.engine)
    replicas.acknowledged("ELSEWHERE", sent)
    assert (replicas.count("ELSEWHERE"), replicas.candidates("ELSEWHERE")) == (1, [])
    index.tombstones.mark_deleted("image", UID, **WHY)
    index.tombstones.delete_rows()
    replicas.acknowledged("ELSEWHERE", sent)
    assert replicas.count("ELSEWHERE") == 0


# --- labels and holds ---------------------------------------------------------------------------------------------


def test_a_label_is_put_and_taken_once(index: Index) -> None:
    assert index.holds.put_label("teaching", "1.2.1", who="user:me")
    assert not index.holds.put_label("teaching", "1.2.1", who="user:me")
    assert index.holds.take_label("teaching", "1.2.1", who="user:me")
    assert not index.holds.take_label("teaching", "1.2.1", who="user:me")
    assert actions(index) == ["label.add", "label.remove"]


def test_a_class_that_is_released_twice_is_in_the_trail_once(index: Index) -> None:
    assert index.classes.put({UID: "cancer"}, who="user:me") == 1
    assert [hold.value for hold in index.holds.all()] == ["validation"]
    assert index.originals.purgeable(now()) == []
    assert index.classes.release([UID], who="user:me", why="used") == 1
    assert index.classes.release([UID], who="user:me", why="used") == 0
    assert actions(index).count("class.release") == 1
    assert [one.sop_instance_uid for one in index.originals.purgeable(now())] == [UID]


# --- annotations ----------------------------------------------------------------------------------------------------


def test_two_readers_that_make_the_same_copy_of_an_annotation_get_one_uid(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other reader commits the copy after our read and before our write."""
    index.add(new_instance("1.2.3.2", references=(UID,)))
    keys = [held(index, "1.2.3.2").key]
    other: list[object] = []
    between_look_and_write(monkeypatch, index.engine, lambda: other.append(copies(index.engine, keys)))
    mine = copies(index.engine, keys)
    assert other == [mine]
    assert mine[keys[0]].pairs == ((UID, DERIVED),)
    with index.engine.connect() as connection:
        assert len(connection.exec_driver_sql("SELECT uid FROM reference_copy").all()) == 1


# --- the audit trail ------------------------------------------------------------------------------------------------


def chained(count: int) -> list[TrailRecord]:
    records: list[TrailRecord] = []
    for number in range(1, count + 1):
        before = records[-1].digest if records else NOTHING_BEFORE
        blank = TrailRecord(number, "2026-01-01T00:00:00+00:00", ENTRY, before, "")
        records.append(replace(blank, digest=record_digest(blank)))
    return records


def test_a_long_trail_is_read_page_by_page_and_in_order(index: Index) -> None:
    index.trail.append(*(TrailEntry("store", "MODALITY", "image", (f"1.{number}",)) for number in range(2001)))
    found = list(index.trail.records())
    assert [record.entry.uids for record in found] == [(f"1.{number}",) for number in range(2001)]
    assert first_break(found) == ""
    assert [record.number for record in index.trail.records(after=1999)] == [2000, 2001]


def test_a_record_that_was_changed_exchanged_or_taken_out_is_found() -> None:
    records = chained(4)
    assert first_break(records) == ""
    assert first_break(records[:1] + records[2:]) == "record 2 is missing: after 1 comes 3"
    changed = replace(records[1], entry=replace(ENTRY, who="user:other"))
    assert first_break([records[0], changed]) == "record 2 was changed: its digest does not match"
    sealed = replace(changed, digest=record_digest(changed))
    said = "record 3 does not follow the one before it: one of the two was changed"
    assert first_break([records[0], sealed, *records[2:]]) == said


# --- jobs -----------------------------------------------------------------------------------------------------------


def test_a_job_or_a_run_that_is_not_there(index: Index) -> None:
    rows = JobRows(index.engine)
    rows.ensure(["scrub"])
    assert (rows.run(7), rows.history("audit")) == (None, [])
    with pytest.raises(JobRefused, match="there is no job 'audit'; there are: scrub"):
        rows.request("audit")
    ticket = rows.begin("scrub", "me", 60.0, Cause.COMMAND)
    assert ticket is not None
    found = rows.run(ticket.run_key)
    assert found is not None
    (scrub,) = rows.all()
    assert (found.job, found.state, scrub.last) == ("scrub", RunState.RUNNING, found)
