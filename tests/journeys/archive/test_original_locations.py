"""Proves that no row ever names a missing file, and that no rule of a purge is broken, when processes are killed or
work at once. Index and files are real; only the answers of workers are made here."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, text

from node.archive.audit_trail import TrailWriter
from node.archive.originals import retention
from node.archive.originals.retention import PurgeReport, would_free
from node.config import parse
from storage.errors import ConfigError, ModelMissing, ObjectMissing, OriginalPurged, ProofFailed, StoreFull
from storage.index.connection import now, writing
from storage.index.holdings import Added
from storage.index.tables import commitment, pin
from storage.records import HoldKind, InstanceState, OriginalForm, ReasonCode, StoredRendition, Tier, TrailEntry
from tests.support.archive_parts import ArchiveParts, Killed
from tests.support.index_rows import has_pin, new_instance


@pytest.fixture
def bench(tmp_path: Path) -> ArchiveParts:
    return ArchiveParts(tmp_path / "archive")


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


# --- packing ------------------------------------------------------------------------------------------------------


def test_packed_only_at_rest_and_served_all_the_same(bench: ArchiveParts) -> None:
    waiting = bench.receive("1.2.3.1", state=InstanceState.RECEIVED)
    assert bench.work() == 0
    assert bench.index.originals.totals().to_pack == 1
    claim = bench.index.claim("test", 60)
    assert claim is not None
    bench.index.finish(claim, InstanceState.EXACT, ReasonCode.OTHER, "not eligible")
    assert bench.work() == 1
    totals = bench.index.originals.totals()
    assert (totals.packed, totals.verbatim, totals.to_pack) == (1, 0, 0)
    assert totals.packed_bytes < 0.6 * len(waiting)
    assert bench.files() == 1
    assert bench.read(waiting) == waiting
    assert list((bench.root / "lent").iterdir()) == []


@pytest.mark.parametrize("step", ["adopt", "commit_packed", "collect", "delete"])
def test_killed_while_packing(bench: ArchiveParts, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """The process is killed at any step. The row names an object that is there, and after the next run there is one
    object."""
    data = bench.receive("1.2.3.1", state=InstanceState.EXACT)
    owners = {"commit_packed": bench.index.originals, "collect": bench.index.garbage}
    owner: Any = owners.get(step, bench.hot)
    with monkeypatch.context() as patch:
        patch.setattr(owner, step, raising(Killed()))
        with pytest.raises(Killed):
            bench.work()
    again = ArchiveParts(bench.root)
    again.check_promises()
    with writing(again.index.engine) as connection:
        connection.execute(text("UPDATE original SET lease_until = 0"))  # as time would
    again.work()
    again.check_promises()
    assert again.index.originals.totals().packed == 1
    assert again.files() == 1
    assert again.read(data) == data


@pytest.mark.slow
def test_a_proof_that_fails_is_in_the_trail_and_keeps_the_bytes(
    bench: ArchiveParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bench.receive("1.2.3.1", state=InstanceState.EXACT)
    monkeypatch.setattr("node.workers.requests.pack_original", raising(ProofFailed("other bytes")))
    assert bench.work() == 1
    held = bench.index.originals.of_digest(hashlib.sha256(data).hexdigest())
    assert held is not None
    assert (held.form, held.note) == (OriginalForm.VERBATIM, "other bytes")
    (record,) = bench.journal.records()
    assert (record.entry.action, record.entry.outcome) == ("original.pack", "failure")
    assert bench.work() == 0  # once is enough
    assert bench.read(data) == data


def test_a_reader_who_comes_while_it_is_packed(bench: ArchiveParts, monkeypatch: pytest.MonkeyPatch) -> None:
    """The object is removed after the reader has read the row. The reader looks it up again, and a file that was lent
    before stays readable."""
    data = bench.receive("1.2.3.1", state=InstanceState.EXACT)
    in_hand = bench.originals.lend(hashlib.sha256(data).hexdigest())
    lend = bench.hot.lend

    def packed_first(digest: str) -> Path:
        monkeypatch.setattr(bench.hot, "lend", lend)
        bench.work()
        return lend(digest)

    monkeypatch.setattr(bench.hot, "lend", packed_first)
    assert bench.read(data) == data
    assert bench.index.originals.totals().packed == 1
    assert in_hand.read_bytes() == data
    in_hand.unlink()


def test_the_same_bytes_again_while_they_are_being_unlinked(bench: ArchiveParts) -> None:
    """The original is purged, and its file is being unlinked. An image that arrives is preserved or refused, and never
    acknowledged and lost."""
    data = bench.receive("1.2.3.1")
    digest = hashlib.sha256(data).hexdigest()
    bench.retention.purge()
    assert bench.index.add(new_instance("1.2.3.1", original_digest=digest), present=lambda _: False) is Added.GONE
    assert bench.index.originals.of_digest(digest).purged  # type: ignore[union-attr]
    bench.hot.put(data)
    bench.index.garbage.mark(digest, Tier.HOT)  # as if the collector were on its way
    present = lambda each: bench.hot.path(each).is_file()  # noqa: E731
    assert bench.index.add(new_instance("1.2.3.1", original_digest=digest), present=present) is Added.AGAIN
    assert bench.index.garbage.collect(bench.stores) == 0
    bench.check_promises()


# --- purging ------------------------------------------------------------------------------------------------------


def pinned(bench: ArchiveParts, uid: str) -> None:
    """Pin an original, as storage commitment does (PS3.4 Annex J)."""
    held = bench.index.by_uid(uid)
    assert held is not None
    with writing(bench.index.engine) as connection:
        asked = {"transaction_uid": "1.9", "calling_aet": "MODALITY", "items": [], "duplicate": 0, "state": "reported"}
        row = insert(commitment).values(**asked, attempts=1, due=0.0, requested_at=now())
        (number,) = connection.execute(row).inserted_primary_key or (0,)
        connection.execute(insert(pin).values(instance_key=held.key, commitment_key=number, until=None))
    assert has_pin(bench.index.engine, held.key)


def test_only_what_may_go_goes(bench: ArchiveParts) -> None:
    """Only originals that are verified, old enough and not pinned are purged."""
    states = {
        "1.2.3.1": InstanceState.VERIFIED,
        "1.2.3.2": InstanceState.MEASURED,
        "1.2.3.3": InstanceState.EXACT,
        "1.2.3.4": InstanceState.FAILED,
        "1.2.3.5": InstanceState.VERIFIED,
        "1.2.3.6": InstanceState.RECEIVED,
    }
    for uid, state in states.items():
        bench.receive(uid, state=state)
    pinned(bench, "1.2.3.5")
    young = ArchiveParts(bench.root, retain_for="1h")
    assert young.retention.purge().purged == ()
    report = bench.retention.purge()
    assert [step.sop_instance_uid for step in report.purged] == ["1.2.3.1"]
    assert bench.rendered == ["2.25.1"]
    assert bench.retention.purge().purged == ()
    bench.check_promises()
    forever = ArchiveParts(bench.root, retain_for="forever")
    assert forever.retention.purge() == PurgeReport(False, "forever")


@pytest.mark.slow
def test_the_audit_reserve_stays(bench: ArchiveParts) -> None:
    """The reserve is drawn by the digest of each original. Originals below the bound stay, and the dry run reports
    them."""
    uids = [f"1.2.3.{number}" for number in range(1, 30)]
    digests = {uid: hashlib.sha256(bench.receive(uid)).hexdigest() for uid in uids}
    half = ArchiveParts(bench.root, reserve="50%")
    reserve = {uid for uid, digest in digests.items() if digest < "8"}
    assert 0 < len(reserve) < len(uids)
    dry = half.retention.purge(dry_run=True)
    assert {step.sop_instance_uid for step in dry.purged} == set(uids) - reserve
    assert dry.reserved == len(reserve)
    assert dry.reserved_bytes > 0
    assert would_free(half.index, half.settings, timedelta(0))[0] == len(uids) - len(reserve)
    assert not dry.kept
    half.retention.purge()
    assert {uid for uid, digest in digests.items() if not half.index.originals.of_digest(digest).purged} == reserve  # type: ignore[union-attr]
    everything = ArchiveParts(bench.root, reserve="100%")
    assert everything.retention.purge().reserved == len(reserve)
    half.check_promises()


@pytest.mark.parametrize("step", ["commit_purge", "append", "collect", "delete"])
def test_killed_while_purging(bench: ArchiveParts, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """Before the commit nothing has changed. After it, the next run unlinks the file, and the journal has the entry."""
    data = bench.receive("1.2.3.1")
    owners = {"commit_purge": bench.index.originals, "append": bench.journal, "collect": bench.index.garbage}
    owner: Any = owners.get(step, bench.hot)
    real, calls = getattr(owner, step), []

    def killed(*arguments: Any, **named: Any) -> Any:
        calls.append(step)
        if step == "collect" and len(calls) == 1:  # the one that cleans up after earlier runs
            return real(*arguments, **named)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(owner, step, killed)
        with pytest.raises(Killed):
            bench.retention.purge()
    again = ArchiveParts(bench.root)
    again.check_promises()
    held = again.index.originals.of_digest(hashlib.sha256(data).hexdigest())
    assert held is not None
    assert held.purged == (step != "commit_purge")
    again.retention.purge()
    assert again.files() == 2  # base and rendition
    assert [record.entry.action for record in again.journal.records()] == ["original.purge"]
    with pytest.raises(OriginalPurged):
        again.read(data)


def test_a_hold_placed_between_selection_and_removal(bench: ArchiveParts) -> None:
    data = bench.receive("1.2.3.1")
    study = bench.index.by_uid("1.2.3.1").study_instance_uid  # type: ignore[union-attr]

    def placing_a_hold(_: int, __: StoredRendition) -> None:
        bench.index.holds.add(HoldKind.STUDY, study, reason="now", who="user:test")

    report = bench.purging_with(placing_a_hold).purge()
    assert report.purged == ()
    assert "hold" in report.kept[0].kept_because
    assert bench.read(data) == data


def test_without_the_model_the_original_stays(bench: ArchiveParts) -> None:
    data = bench.receive("1.2.3.1")
    report = bench.purging_with(raising(ModelMissing("no weights"))).purge()
    assert (report.purged, report.kept[0].kept_because) == ((), "ModelMissing: no weights")
    assert bench.read(data) == data


def test_a_reader_with_the_file_in_hand(bench: ArchiveParts) -> None:
    data = bench.receive("1.2.3.1")
    with bench.originals.borrowed(hashlib.sha256(data).hexdigest()) as path:
        assert len(bench.retention.purge().purged) == 1
        assert path.read_bytes() == data
    with pytest.raises(OriginalPurged, match="removed by retention"):
        bench.read(data)


def test_cancelled_and_told_of_progress(bench: ArchiveParts) -> None:
    for uid in ("1.2.3.1", "1.2.3.2", "1.2.3.3"):
        bench.receive(uid)
    seen: list[tuple[int, int]] = []
    report = bench.retention.purge(progress=lambda done, of: seen.append((done, of)), cancelled=lambda: len(seen) == 2)
    assert seen == [(1, 3), (2, 3)]
    assert report.cancelled
    assert len(report.purged) == 2
    assert report.bytes_freed == sum(step.bytes for step in report.purged) > 0


# --- the cold store -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["take_from", "commit_move", "collect"])
def test_killed_while_moving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    bench = ArchiveParts(tmp_path / "archive", path=str(tmp_path / "cold"), coder="none")
    data = bench.receive("1.2.3.1")
    exact = bench.receive("1.2.3.2", state=InstanceState.EXACT)
    owners = {"commit_move": bench.index.originals, "collect": bench.index.garbage}
    owner: Any = owners.get(step, bench.stores[Tier.COLD])
    with monkeypatch.context() as patch:
        patch.setattr(owner, step, raising(Killed()))
        with pytest.raises(Killed):
            bench.work()
    again = ArchiveParts(bench.root, path=str(tmp_path / "cold"), coder="none")
    again.check_promises()
    with writing(again.index.engine) as connection:
        connection.execute(text("UPDATE original SET lease_until = 0"))
    again.work()
    again.check_promises()
    assert again.index.originals.totals().cold == 1
    assert again.files() == 4  # base, rendition, one original in each store
    assert (again.read(data), again.read(exact)) == (data, exact)


def test_a_damaged_object_is_not_moved(tmp_path: Path) -> None:
    bench = ArchiveParts(tmp_path / "archive", path=str(tmp_path / "cold"), coder="none")
    data = bench.receive("1.2.3.1")
    path = bench.hot.path(hashlib.sha256(data).hexdigest())
    path.write_bytes(data[:-1] + b"\1")
    bench.work()
    assert bench.index.originals.totals().cold == 0
    assert path.exists()
    assert list((tmp_path / "cold" / "lent").iterdir()) == []


def test_a_full_cold_store_leaves_originals_hot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = ArchiveParts(tmp_path / "archive", path=str(tmp_path / "cold"), coder="none")
    data = bench.receive("1.2.3.1")
    monkeypatch.setattr(bench.stores[Tier.COLD], "check_room", raising(StoreFull("no room")))
    with pytest.raises(StoreFull, match="no room"):  # at which the archivist pauses
        bench.work()
    assert bench.read(data) == data
    assert bench.index.originals.totals().cold == 0


def test_without_originals_path_cold_ones_say_so(tmp_path: Path) -> None:
    bench = ArchiveParts(tmp_path / "archive", path=str(tmp_path / "cold"), coder="none")
    data = bench.receive("1.2.3.1")
    bench.work()
    forgot = ArchiveParts(bench.root, coder="none")
    with pytest.raises(ObjectMissing, match=r"originals\.path"):
        forgot.read(data)
    assert forgot.retention.restore("image", "1.2.3.1", who="user:test")[0].outcome == "failed"
    assert "originals.path" in forgot.retention.purge().kept[0].kept_because
    restored = bench.retention.restore("image", "1.2.3.1", who="user:test")
    assert [step.outcome for step in restored] == ["restored"]
    assert forgot.read(data) == data
    assert bench.index.trail.last()[0] == 1


# --- trail, holds, journal ----------------------------------------------------------------------------------------


def test_an_index_made_anew_gets_holds_labels_and_trail_back(bench: ArchiveParts) -> None:
    holds = bench.index.holds
    kept = holds.add(HoldKind.LABEL, "trial", reason="a: b", who="user:a")
    gone = holds.add(HoldKind.PATIENT, "P1", reason="", who="user:b")
    holds.release(gone.key, reason="over", who="user:c")
    holds.put_label("trial", "1.2", who="user:a")
    holds.put_label("other", "1.2", who="user:a")
    holds.take_label("other", "1.2", who="user:a")
    before = (holds.all(released=True), holds.labels(), list(bench.index.trail.records()))
    bench.index.close()
    (bench.root / "index.sqlite").unlink()
    for leftover in bench.root.glob("index.sqlite-*"):
        leftover.unlink()
    again = ArchiveParts(bench.root)
    assert again.trail.recover() == 6
    assert again.trail.recover() == 0
    after = (again.index.holds.all(released=True), again.index.holds.labels(), list(again.index.trail.records()))
    assert after[1:] == before[1:]
    assert [(one.key, one.kind, one.value, one.reason, one.released_by) for one in after[0]] == [
        (one.key, one.kind, one.value, one.reason, one.released_by) for one in before[0]
    ]
    assert again.index.holds.all()[0].key == kept.key
    assert again.trail.broken() == ""


def test_a_torn_line_is_written_anew(bench: ArchiveParts) -> None:
    bench.trail.append(TrailEntry("a", "user:x"), TrailEntry("b", "user:x", uids=("1.2",)))
    (segment,) = (bench.root / "journal").glob("trail-*.jsonl")
    whole = segment.read_bytes()
    segment.write_bytes(whole[:-20])
    again = ArchiveParts(bench.root)
    again.trail.append(TrailEntry("c", "user:x"))
    assert [record.entry.action for record in again.journal.records()] == ["a", "b", "c"]
    assert segment.read_bytes().startswith(whole)
    assert again.trail.broken() == ""


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE trail SET detail = 'nothing' WHERE number = 2",
        "DELETE FROM trail WHERE number = 2",
        "DELETE FROM trail WHERE number = 3",
        "UPDATE trail SET who = 'user:other', digest = previous WHERE number = 1",
    ],
)
def test_tampering_shows(bench: ArchiveParts, change: str) -> None:
    bench.trail.append(*(TrailEntry(action, "user:x") for action in "abc"))
    assert bench.trail.broken() == ""
    with writing(bench.index.engine) as connection:
        connection.execute(text(change))
    assert bench.trail.broken()


def test_the_journal_shows_tampering_too(bench: ArchiveParts) -> None:
    bench.trail.append(*(TrailEntry(action, "user:x") for action in "abc"))
    (segment,) = (bench.root / "journal").glob("trail-*.jsonl")
    segment.write_bytes(segment.read_bytes().replace(b'"action":"b"', b'"action":"z"'))
    assert "journal: record 2 was changed" in bench.trail.broken()


def test_a_record_that_a_node_adds_during_the_check_is_no_break(
    bench: ArchiveParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.trail.append(TrailEntry("a", "user:x"))
    follow = bench.trail._follow

    def then_another() -> None:
        follow()
        bench.index.trail.append(TrailEntry("b", "node"))

    monkeypatch.setattr(bench.trail, "_follow", then_another)
    assert bench.trail.broken() == ""


def test_entries_that_nobody_waits_for(bench: ArchiveParts) -> None:
    writer = TrailWriter(bench.trail)
    for number in range(1200):
        writer.record(TrailEntry("retrieve", "VIEWER", "image", (f"1.2.{number}",), "original"))
    writer.close()
    assert bench.index.trail.last()[0] == 1200
    assert [record.entry.uids for record in bench.journal.records()] == [(f"1.2.{n}",) for n in range(1200)]
    assert [record.number for record in bench.index.trail.records(newest=2)] == [1199, 1200]
    assert [record.number for record in bench.index.trail.records(uid="1.2.7")] == [8]


# --- names lent to readers, configuration, and archives of an older release ---------------------------------------


def test_names_lent_by_ended_processes_are_swept(bench: ArchiveParts) -> None:
    digest = bench.hot.put(b"x")
    alive = bench.hot.lend(digest)
    assert alive.read_bytes() == b"x"
    host, _, unique = alive.name.split("+")
    dead, elsewhere = alive.with_name(f"{host}+999999999+{unique}"), alive.with_name(f"other+{1}+{unique}")
    dead.write_bytes(b"")
    elsewhere.write_bytes(b"")
    bench.hot.sweep_lent()
    assert [path.name for path in alive.parent.iterdir()] == [elsewhere.name]  # ours is from before this start
    with pytest.raises(ObjectMissing):
        bench.hot.lend("0" * 64)


@pytest.mark.parametrize(
    ("originals", "says"),
    [
        ({"retain_for": "a month"}, "write forever"),
        ({"path": "s3://bucket/x"}, "not supported"),
        ({"path": "file://host/x"}, "not supported"),
        ({"coder": "jpeg"}, "originals.coder"),
    ],
)
def test_configuration_that_cannot_be_meant(originals: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse({"originals": originals}, "config.yaml")


def test_mqsa_keeps_for_ever() -> None:
    with pytest.raises(ConfigError, match="us-mqsa never removes originals"):
        parse({"codec": {"profile": "us-mqsa"}, "originals": {"retain_for": "30d"}}, "config.yaml")
    assert parse({"originals": {"retain_for": "2w"}}, "x").originals.retain_for == timedelta(days=14)
    assert parse({"originals": {"path": "file:///a%20b"}}, "x").originals.path == Path("/a b")


def test_reports_are_plain(bench: ArchiveParts) -> None:
    """The report that the scheduler stores of a run can be written as JSON."""
    import json
    from dataclasses import asdict

    bench.receive("1.2.3.1")
    report = bench.retention.purge(dry_run=True)
    assert json.loads(json.dumps(asdict(report)))["purged"][0]["sop_instance_uid"] == "1.2.3.1"
    assert retention.PurgeReport.__dataclass_params__.frozen  # type: ignore[attr-defined]
