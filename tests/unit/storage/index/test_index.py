"""Proves that instances are added once, work is claimed once, and the schema is that of the tables."""

from __future__ import annotations

import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, delete, event, func, insert, inspect, select
from sqlalchemy.exc import IntegrityError

from storage.errors import StoreFull
from storage.index import Index, connect, lease, migrate
from storage.index.connection import writing
from storage.index.holdings import Added
from storage.index.integrity import Integrity
from storage.index.quarantined import Former
from storage.index.reading import batches
from storage.index.tables import instance, metadata, patient, rendition, series, study
from storage.records import (
    Claim,
    InstanceState,
    ReasonCode,
    StoredInstance,
    StoredRendition,
    TrailEntry,
    Trial,
)
from tests.support.index_rows import POINT, VERDICT, claimed, digest, new_instance, new_rendition, url_of
from tests.support.paths import GOLDEN
from tests.support.samples import MAMMOGRAPHY


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    opened = Index.open(url_of(tmp_path))
    yield opened
    opened.close()


class Clock:
    """The time of day, which a test sets."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    moved = Clock()
    monkeypatch.setattr(lease, "time", moved)
    return moved


def held(index: Index, uid: str = "1.2.3.1") -> StoredInstance:
    found = index.by_uid(uid)
    assert found is not None
    return found


def together(*tasks: Callable[[], Any]) -> list[Any]:
    """Run tasks at the same moment, one thread each, and return what they return."""
    barrier, results, errors = threading.Barrier(len(tasks)), [], []

    def run(task: Callable[[], Any]) -> None:
        barrier.wait()
        try:
            results.append(task())
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(task,)) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    return results


def rows_of(engine: Engine) -> dict[str, int]:
    with engine.connect() as connection:
        return {
            table.name: connection.execute(select(func.count()).select_from(table)).scalar_one()
            for table in (patient, study, series, instance, rendition)
        }


# --- the schema and the connection ----------------------------------------------------------------------------


@pytest.mark.parametrize("since", ["now", "the first release"])
def test_an_index_has_exactly_the_tables(tmp_path: Path, since: str) -> None:
    """This holds for an index that this version created, and for one that was upgraded from the first version."""
    if since != "now":
        with zipfile.ZipFile(GOLDEN / "archive-v1.zip") as archive:
            Path(url_of(tmp_path).removeprefix("sqlite:///")).write_bytes(archive.read("index.sqlite"))
    engine = connect(url_of(tmp_path))
    migrate(engine)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, metadata) == []
        assert set(inspect(connection).get_table_names()) == {*metadata.tables, "alembic_version"}
    engine.dispose()


def test_opening_an_index_again_keeps_what_it_holds(tmp_path: Path) -> None:
    first = Index.open(url_of(tmp_path))
    first.add(new_instance())
    first.close()
    again = Index.open(url_of(tmp_path))
    migrate(again.engine)
    assert held(again).original_digest == digest("1.2.3.1")
    again.close()


@pytest.mark.parametrize(
    ("pragma", "value"),
    [("journal_mode", "wal"), ("synchronous", 2), ("foreign_keys", 1), ("busy_timeout", 60000)],
)
def test_every_connection_has_the_pragmas(index: Index, pragma: str, value: Any) -> None:
    with index.engine.connect() as one, index.engine.connect() as other:
        for connection in (one, other):
            assert connection.exec_driver_sql(f"PRAGMA {pragma}").scalar() == value


def test_foreign_keys_are_checked(index: Index) -> None:
    index.add(new_instance())
    with pytest.raises(IntegrityError), writing(index.engine) as connection:
        connection.execute(delete(study))
    assert rows_of(index.engine)["study"] == 1


def test_an_open_write_does_not_keep_readers_waiting(index: Index) -> None:
    index.add(new_instance())
    with writing(index.engine) as connection:
        connection.execute(delete(instance))
        assert held(index).sop_instance_uid == "1.2.3.1"  # over another connection, as it was before
    assert index.by_uid("1.2.3.1") is None


def test_a_write_that_fails_leaves_nothing(index: Index) -> None:
    row = {"identity": "x", "patient_id": "x", "name": "", "birth_date": "", "sex": "", "attributes": {}}
    with pytest.raises(ZeroDivisionError), writing(index.engine) as connection:
        connection.execute(insert(patient).values(row))
        raise ZeroDivisionError
    assert rows_of(index.engine)["patient"] == 0


def test_a_full_database_is_store_full_and_stores_nothing(tmp_path: Path) -> None:
    Index.open(url_of(tmp_path)).close()
    engine = connect(url_of(tmp_path))

    @event.listens_for(engine, "connect")
    def no_more_pages(connection: Any, _record: Any) -> None:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count={pages + 2}")

    full = Index(engine)
    levels = new_instance().levels
    heavy = replace(levels, instance={**levels.instance, "00204000": {"vr": "LT", "Value": ["x" * 100_000]}})
    with pytest.raises(StoreFull, match="the index cannot be written"):
        full.add(new_instance(levels=heavy))
    assert full.by_uid("1.2.3.1") is None
    assert set(rows_of(engine).values()) == {0}
    full.close()


# --- coming in ------------------------------------------------------------------------------------------------


def test_an_instance_comes_back_as_it_was_added(index: Index) -> None:
    before = datetime.now(UTC).replace(tzinfo=None) - timedelta(seconds=1)
    assert index.add(new_instance()) is Added.NEW
    found = held(index)
    assert found == StoredInstance(
        key=found.key,
        sop_instance_uid="1.2.3.1",
        sop_class_uid=MAMMOGRAPHY,
        study_instance_uid="1.2.1",
        series_instance_uid="1.2.1.7",
        patient_id="P1",
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        original_digest=digest("1.2.3.1"),
        original_bytes=1000,
        pixel_bytes=32,
        state=InstanceState.RECEIVED,
        reason="",
        reason_code=ReasonCode.NONE,
        received_at=found.received_at,
        calling_aet="MODALITY",
        rendition=None,
        held=found.held,
    )
    assert found.held is not None
    assert (found.held.form, found.held.tier) == ("verbatim", "hot")
    assert (found.held.object_digest, found.held.object_bytes) == (digest("1.2.3.1"), 1000)
    assert before < found.received_at < before + timedelta(minutes=5)
    assert index.by_key(found.key) == found
    assert rows_of(index.engine) == {"patient": 1, "study": 1, "series": 1, "instance": 1, "rendition": 0}


def test_the_same_uid_is_added_once(index: Index) -> None:
    assert index.add(new_instance()) is Added.NEW
    assert index.add(new_instance()) is Added.SAME_BYTES
    assert index.add(new_instance(original_digest=digest("other"), calling_aet="OTHER")) is Added.HELD
    assert held(index).original_digest == digest("1.2.3.1")
    assert held(index).calling_aet == "MODALITY"
    assert rows_of(index.engine)["instance"] == 1


def test_more_keys_than_a_query_takes(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "__defaults__", (2,))
    for number in range(5):
        index.add(new_instance(f"1.2.3.{number}", original_digest=digest(str(number))))
    assert [one.sop_instance_uid for one in index.by_keys([5, 2, 9, 1, 4, 3])] == [
        f"1.2.3.{number}" for number in (4, 1, 0, 3, 2)
    ]


def test_a_newcomer_that_is_refused_leaves_no_patient_behind(index: Index) -> None:
    index.add(new_instance())
    index.add(new_instance(patient_id="P2", study_uid="1.2.2", original_digest=digest("other")))
    assert rows_of(index.engine) == {"patient": 1, "study": 1, "series": 1, "instance": 1, "rendition": 0}


def test_instances_share_their_series_study_and_patient(index: Index) -> None:
    index.add(new_instance("1.2.3.1"))
    index.add(new_instance("1.2.3.2"))
    index.add(new_instance("1.2.3.3", series_uid="1.2.1.8"))
    index.add(new_instance("1.2.3.4", study_uid="1.2.2"))
    index.add(new_instance("1.2.3.5", study_uid="1.2.9", patient_id="P2"))
    assert rows_of(index.engine) == {"patient": 2, "study": 3, "series": 4, "instance": 5, "rendition": 0}
    assert held(index, "1.2.3.5").patient_id == "P2"
    assert held(index, "1.2.3.4").study_instance_uid == "1.2.2"
    assert held(index, "1.2.3.3").series_instance_uid == "1.2.1.8"


def test_patients_without_an_id_are_not_merged(index: Index) -> None:
    index.add(new_instance("1.2.3.1", patient_id="", study_uid="1.2.1"))
    index.add(new_instance("1.2.3.2", patient_id="", study_uid="1.2.2"))
    assert rows_of(index.engine)["patient"] == 2


def test_pixels_that_are_not_sound_bring_an_instance_to_rest(index: Index) -> None:
    index.add(new_instance(pixel_warning="pixel data is short: 2 bytes for 32"))
    assert held(index).state is InstanceState.EXACT
    assert held(index).reason == "pixel data is short: 2 bytes for 32"
    assert index.claim("worker", 60) is None


@pytest.mark.parametrize("same_bytes", [True, False])
def test_of_two_threads_that_add_one_uid_exactly_one_is_first(index: Index, same_bytes: bool, tmp_path: Path) -> None:
    other = Index.open(url_of(tmp_path))  # as another process would have it
    second = Added.SAME_BYTES if same_bytes else Added.HELD
    for number in range(12):
        uid = f"1.2.3.{number}"
        one = new_instance(uid)
        two = new_instance(uid, original_digest=one.original_digest if same_bytes else digest("other"))
        results = together(lambda one=one: index.add(one), lambda two=two: other.add(two))
        assert sorted(result.name for result in results) == sorted([Added.NEW.name, second.name])
    assert rows_of(index.engine) == {"patient": 1, "study": 1, "series": 1, "instance": 12, "rendition": 0}
    other.close()


def test_threads_that_add_to_one_study_all_succeed(index: Index) -> None:
    tasks = [lambda number=number: index.add(new_instance(f"1.2.3.{number}")) for number in range(8)]
    assert together(*tasks) == [Added.NEW] * 8
    assert rows_of(index.engine) == {"patient": 1, "study": 1, "series": 1, "instance": 8, "rendition": 0}


def test_what_is_in_quarantine_is_listed_once_and_in_order(index: Index) -> None:
    assert index.quarantine.all() == []
    index.quarantine.put(digest("b"), "1.2.3.1", "MODALITY", "first")
    index.quarantine.put(digest("a"), "1.2.3.1", "OTHER", "second")
    index.quarantine.put(digest("b"), "1.2.3.1", "MODALITY", "again")
    listed = index.quarantine.all()
    assert [(each.digest, each.sop_instance_uid, each.calling_aet, each.reason) for each in listed] == [
        (digest("b"), "1.2.3.1", "MODALITY", "first"),
        (digest("a"), "1.2.3.1", "OTHER", "second"),
    ]
    assert listed[0].arrived_at <= listed[1].arrived_at
    assert index.counts().quarantined == 2


# --- looking up -----------------------------------------------------------------------------------------------


def test_what_is_not_held_is_not_found(index: Index) -> None:
    assert index.by_uid("1.2.3.9") is None
    assert index.by_key(1) is None
    assert index.by_keys([]) == []
    assert index.rendition("2.25.9") is None
    assert index.states(["1.2.3.9"]) == {}
    assert index.states([]) == {}


def test_instances_come_in_the_order_of_the_keys_asked_for(index: Index) -> None:
    for number in range(4):
        index.add(new_instance(f"1.2.3.{number}"))
    keys = [held(index, f"1.2.3.{number}").key for number in (2, 0, 3)]
    found = index.by_keys([keys[0], 999, keys[1], keys[2]])
    assert [each.sop_instance_uid for each in found] == ["1.2.3.2", "1.2.3.0", "1.2.3.3"]


def test_states_are_of_the_instances_that_are_held(index: Index) -> None:
    index.add(new_instance("1.2.3.1"))
    index.add(new_instance("1.2.3.2"))
    index.finish(claimed(index), InstanceState.EXACT, ReasonCode.OTHER, "not eligible")
    assert index.states(["1.2.3.2", "1.2.3.1", "1.2.3.9"]) == {
        "1.2.3.1": InstanceState.EXACT,
        "1.2.3.2": InstanceState.RECEIVED,
    }


def test_hostile_uids_are_values_and_never_sql(index: Index) -> None:
    index.add(new_instance())
    for uid in ("' OR 1=1 --", "1.2.3.%", "1.2.3._", "*", "", "\0"):
        assert index.by_uid(uid) is None
        assert index.states([uid]) == {}


# --- work -----------------------------------------------------------------------------------------------------


def test_a_claim_says_what_to_work_on(index: Index) -> None:
    assert index.claim("worker", 60) is None
    index.add(new_instance())
    claim = index.claim("worker", 60)
    assert claim == Claim(held(index).key, "1.2.3.1", digest("1.2.3.1"), 1, "worker")
    assert held(index).state is InstanceState.RECEIVED


def test_an_instance_is_claimed_by_one_at_a_time_oldest_first(index: Index) -> None:
    for number in range(3):
        index.add(new_instance(f"1.2.3.{number}"))
    claims = [claimed(index, f"worker {number}").sop_instance_uid for number in range(3)]
    assert claims == ["1.2.3.0", "1.2.3.1", "1.2.3.2"]
    assert index.claim("worker 3", 60) is None


def test_threads_never_claim_the_same_instance(index: Index, tmp_path: Path) -> None:
    for number in range(20):
        index.add(new_instance(f"1.2.3.{number}"))
    other = Index.open(url_of(tmp_path))

    def work(which: Index, owner: str) -> list[str]:
        found = []
        while claim := which.claim(owner, 60):
            found.append(claim.sop_instance_uid)
        return found

    results = together(
        *(lambda owner=owner: work(index if owner % 2 else other, f"worker {owner}") for owner in range(4))
    )
    assert sorted(uid for found in results for uid in found) == sorted(f"1.2.3.{number}" for number in range(20))
    other.close()


def test_a_lease_that_ran_out_is_free_and_not_a_moment_before(index: Index, clock: Clock) -> None:
    index.add(new_instance())
    first = claimed(index, "first", lease=60)
    clock.now += 59.9
    assert index.claim("second", 60) is None
    clock.now += 0.2
    second = claimed(index, "second", lease=60)
    assert (second.key, second.attempts, second.owner) == (first.key, 2, "second")


def test_a_lost_lease_changes_nothing_any_more(index: Index, clock: Clock) -> None:
    index.add(new_instance())
    lost = claimed(index, "first", lease=60)
    clock.now += 61
    owner = claimed(index, "second", lease=60)
    assert not index.renew(lost, 3600)
    assert not index.release(lost)
    assert not index.release(lost, forgive=True)
    assert not index.finish(lost, InstanceState.FAILED, ReasonCode.OTHER, "too late")
    assert not index.finish_with(lost, InstanceState.VERIFIED, new_rendition())
    found = held(index)
    assert (found.state, found.reason, found.rendition) == (InstanceState.RECEIVED, "", None)
    clock.now += 59
    assert index.claim("third", 60) is None  # the lease of the second is as long as it was
    assert index.finish(owner, InstanceState.EXACT, ReasonCode.OTHER, "done")
    assert held(index).state is InstanceState.EXACT


def test_a_lease_that_ran_out_and_was_not_taken_is_still_good(index: Index, clock: Clock) -> None:
    index.add(new_instance())
    claim = claimed(index, lease=60)
    clock.now += 600
    assert index.renew(claim, 60)
    assert index.claim("second", 60) is None
    assert index.finish(claim, InstanceState.EXACT, ReasonCode.OTHER, "done")


def test_a_renewed_lease_lasts_longer(index: Index, clock: Clock) -> None:
    index.add(new_instance())
    claim = claimed(index, lease=60)
    clock.now += 50
    assert index.renew(claim, 60)
    clock.now += 50
    assert index.claim("second", 60) is None
    clock.now += 11
    assert claimed(index, "second").attempts == 2


@pytest.mark.parametrize(("forgive", "attempts"), [(False, 2), (True, 1)])
def test_work_given_back_is_free_at_once(index: Index, forgive: bool, attempts: int) -> None:
    index.add(new_instance())
    claim = claimed(index)
    assert index.release(claim, forgive=forgive)
    assert not index.release(claim)
    again = claimed(index, "second")
    assert (again.key, again.attempts) == (claim.key, attempts)


def test_what_failed_before_comes_after_what_is_new(index: Index) -> None:
    index.add(new_instance("1.2.3.1"))
    index.release(claimed(index))
    index.add(new_instance("1.2.3.2"))
    assert claimed(index).sop_instance_uid == "1.2.3.2"
    assert claimed(index).sop_instance_uid == "1.2.3.1"


@pytest.mark.slow
@pytest.mark.parametrize("state", [state for state in InstanceState if state is not InstanceState.RECEIVED])
def test_finished_work_is_at_rest(index: Index, state: InstanceState) -> None:
    index.add(new_instance())
    claim = claimed(index)
    assert index.finish(claim, state, ReasonCode.OTHER, "the reason")
    assert (held(index).state, held(index).reason) == (state, "the reason")
    assert index.claim("second", 60) is None
    assert not index.finish(claim, InstanceState.FAILED, ReasonCode.OTHER, "again")
    assert held(index).state is state


def test_a_rendition_is_committed_with_the_state_it_means(index: Index) -> None:
    index.add(new_instance())
    before = datetime.now(UTC).replace(tzinfo=None) - timedelta(seconds=1)
    assert index.finish_with(claimed(index), InstanceState.VERIFIED, new_rendition())
    found = held(index)
    assert (found.state, found.reason) == (InstanceState.VERIFIED, "")
    made = found.rendition
    assert made is not None
    assert made == StoredRendition(
        derived_uid="2.25.1",
        structure_uid="2.25.1.9",
        base_digest=digest("base 2.25.1"),
        base_bytes=70,
        rendition_digest=digest("rendition 2.25.1"),
        rendition_bytes=30,
        point=POINT,
        upscaler="mammo",
        weights_digest=digest("weights"),
        output_digest=digest("output"),
        structure_digest=digest("structure"),
        verdict=VERDICT,
        tried=(Trial("x4 jpegxl d0.3", "mammo", 50, ("too coarse",), 1.5),),
        seconds=2.5,
        verified_at=made.verified_at,
    )
    assert made.payload_bytes == 100
    assert made.verified_at > before
    assert index.claim("second", 60) is None
    with index.engine.connect() as connection:
        row = connection.execute(select(rendition.c.tried, rendition.c.gated)).one()
    assert row.gated == 1
    assert [(each["point"], each["failures"]) for each in row.tried] == [("x4 jpegxl d0.3", ["too coarse"])]
    verdict, (trial,) = made.verdict, made.tried
    assert verdict == VERDICT
    assert trial == Trial("x4 jpegxl d0.3", "mammo", 50, ("too coarse",), 1.5)


def test_an_instance_is_found_by_its_derived_uid(index: Index) -> None:
    index.add(new_instance("1.2.3.1"))
    index.add(new_instance("1.2.3.2"))
    index.finish_with(claimed(index), InstanceState.VERIFIED, new_rendition("2.25.1"))
    index.finish_with(claimed(index), InstanceState.MEASURED, new_rendition("2.25.2"))
    assert held(index, "2.25.2") == held(index, "1.2.3.2")
    assert held(index, "2.25.2.9") == held(index, "1.2.3.2"), "the same rendition without noise"
    assert index.rendition("2.25.2.9") == index.rendition("2.25.2")
    assert held(index, "2.25.1") == held(index, "1.2.3.1")
    assert held(index, "2.25.2").state is InstanceState.MEASURED
    assert index.rendition("2.25.1") == held(index, "1.2.3.1").rendition


def test_a_derived_uid_resolves_after_a_newer_rendition_took_its_place(index: Index) -> None:
    index.add(new_instance())
    index.finish_with(claimed(index), InstanceState.VERIFIED, new_rendition("2.25.1"))
    back_to_work(index)
    index.finish_with(claimed(index), InstanceState.VERIFIED, new_rendition("2.25.2", upscaler="sd_x2"))
    current = held(index).rendition
    assert current is not None
    assert current.derived_uid == "2.25.2"
    assert held(index, "2.25.1") == held(index)
    old = index.rendition("2.25.1")
    assert old is not None
    assert (old.derived_uid, old.upscaler) == ("2.25.1", "mammo")


def test_the_same_rendition_made_again_is_one_row(index: Index) -> None:
    index.add(new_instance())
    index.finish_with(claimed(index), InstanceState.VERIFIED, new_rendition())
    back_to_work(index)
    assert index.finish_with(claimed(index), InstanceState.VERIFIED, new_rendition())
    assert rows_of(index.engine)["rendition"] == 1
    assert held(index).state is InstanceState.VERIFIED


def back_to_work(index: Index) -> None:
    with writing(index.engine) as connection:
        connection.execute(instance.update().values(state=InstanceState.RECEIVED))


def test_what_failed_can_be_tried_again_from_the_start(index: Index) -> None:
    for number in range(3):
        index.add(new_instance(f"1.2.3.{number}"))
    index.finish(claimed(index), InstanceState.FAILED, ReasonCode.OTHER, "worker died")
    index.finish(claimed(index), InstanceState.EXACT, ReasonCode.OTHER, "not eligible")
    index.release(claimed(index))
    assert index.retry_failed() == 1
    assert index.retry_failed() == 0
    assert (held(index, "1.2.3.0").state, held(index, "1.2.3.0").reason) == (InstanceState.RECEIVED, "")
    assert held(index, "1.2.3.1").state is InstanceState.EXACT
    again = claimed(index)
    assert (again.sop_instance_uid, again.attempts) == ("1.2.3.0", 1)


def test_exact_images_can_be_tried_again_by_their_reason(index: Index) -> None:
    """This is needed after a change of eligibility.classes. Images whose pixels cannot be trusted stay EXACT."""
    for uid, code in (("1.2.3.1", ReasonCode.SOP_CLASS), ("1.2.3.2", ReasonCode.LOSSY)):
        index.add(new_instance(uid))
        index.finish(claimed(index), InstanceState.EXACT, code)
    index.add(new_instance("1.2.3.9", pixel_warning="short"))
    assert [index.retry_exact(code) for code in (ReasonCode.PIXELS, ReasonCode.SOP_CLASS)] == [0, 1]
    assert (held(index, "1.2.3.1").state, held(index, "1.2.3.1").reason) == (InstanceState.RECEIVED, "")
    assert held(index, "1.2.3.2").state is held(index, "1.2.3.9").state is InstanceState.EXACT


# --- counting -------------------------------------------------------------------------------------------------


def test_an_empty_index_counts_nothing(index: Index) -> None:
    counts = index.counts()
    assert counts.by_state == dict.fromkeys((state.value for state in InstanceState), 0)
    assert counts.bytes_by_kind == {"original": 0, "base": 0, "rendition": 0}
    assert (counts.backlog, counts.quarantined) == (0, 0)
    assert counts.all_pixel_bytes == 0


def test_counts_add_up(index: Index) -> None:
    index.add(new_instance("1.2.3.1", original_bytes=1000, pixel_bytes=4000))
    index.finish_with(
        claimed(index), InstanceState.VERIFIED, new_rendition("2.25.1", base_bytes=70, rendition_bytes=30)
    )
    index.add(new_instance("1.2.3.2", original_bytes=2000, pixel_bytes=5000))
    index.finish_with(claimed(index), InstanceState.MEASURED, new_rendition("2.25.2", base_bytes=7, rendition_bytes=3))
    index.add(new_instance("1.2.3.3", original_bytes=300, pixel_bytes=0))  # a report: its file counts
    index.finish(claimed(index), InstanceState.EXACT, ReasonCode.NO_PIXELS)
    index.add(new_instance("1.2.3.4", original_bytes=50, pixel_bytes=60))
    index.add(new_instance("1.2.3.5", original_bytes=51, pixel_bytes=60))
    index.quarantine.put(digest("q"), "1.2.3.4", "MODALITY", "why")
    counts = index.counts()
    assert counts.by_state == {"received": 2, "verified": 1, "measured": 1, "exact": 1, "withdrawn": 0, "failed": 0}
    assert counts.backlog == 2
    assert counts.quarantined == 1
    assert counts.bytes_by_kind == {"original": 1000 + 2000 + 300 + 50 + 51, "base": 77, "rendition": 33}
    assert counts.reconstructable_pixel_bytes == 4000 + 5000
    assert counts.reconstructable_payload_bytes == 100 + 10
    assert counts.all_pixel_bytes == 4000 + 5000 + 300 + 60 + 60
    Integrity(index.engine).withdraw("2.25.2", "other pixels")
    assert index.counts().bytes_by_kind == {**counts.bytes_by_kind, "base": 70, "rendition": 30}, "its objects go"


def test_exact_instances_are_counted_by_the_code_of_their_reason(index: Index) -> None:
    codes = [ReasonCode.SMALL, ReasonCode.LOSSY, ReasonCode.SMALL, ReasonCode.GATE, ReasonCode.OTHER]
    for number, code in enumerate(codes):
        index.add(new_instance(f"1.2.3.{number}"))
        index.finish(claimed(index), InstanceState.EXACT, code, "" if code.sentence else "a sentence of its own")
    assert held(index, "1.2.3.0").reason == ReasonCode.SMALL.sentence
    counts = index.counts().left_out
    assert list(counts.items()) == [(ReasonCode.SMALL.sentence, 2), (ReasonCode.LOSSY.sentence, 1), ("other", 2)]


def test_an_object_that_two_rows_share_takes_its_bytes_once(index: Index) -> None:
    shared = {"base_digest": digest("base"), "rendition_digest": digest("rendition")}
    for number in (1, 2):
        index.add(new_instance(f"1.2.3.{number}", original_digest=digest("original"), original_bytes=500))
        index.finish_with(claimed(index), InstanceState.VERIFIED, new_rendition(f"2.25.{number}", **shared))
    assert index.counts().bytes_by_kind == {"original": 500, "base": 70, "rendition": 30}


def test_a_claim_ends_if_another_original_is_accepted_meanwhile(index: Index) -> None:
    """Owner and number of attempts are the same in both claims: all threads of the archivist have one owner, and the
    accepted original is at its first attempt too."""
    index.add(new_instance("1.2.3.1", original_digest=digest("former")))
    stale = index.claim("node", 60)
    index.quarantine.put(digest("accepted"), "1.2.3.1", "MODALITY", "other content")
    entry = TrailEntry("quarantine.accept", "user:test", "image", ("1.2.3.1",))
    accepted = new_instance("1.2.3.1", original_digest=digest("accepted"))
    index.quarantine.accept(accepted, Former(verbatim=digest("former")), entry, lambda _: True)
    fresh = index.claim("node", 60)
    assert stale is not None
    assert fresh is not None
    assert (stale.owner, stale.attempts) == (fresh.owner, fresh.attempts)
    assert not index.renew(stale, 60)
    assert not index.finish_with(stale, InstanceState.VERIFIED, new_rendition("2.25.777"))
    assert index.finish_with(fresh, InstanceState.VERIFIED, new_rendition("2.25.888"))
    held = index.by_uid("1.2.3.1")
    assert held is not None
    assert held.rendition is not None
    assert held.rendition.derived_uid == "2.25.888"
