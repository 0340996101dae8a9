"""Proves what a purge would free, and what each outcome of a restore leaves where."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import func, select, update

from node.archive.originals.retention import RestoreStep, Retention, would_free
from node.config import parse
from storage.errors import PurgeRefused
from storage.index.connection import now, writing
from storage.index.tables import instance, original, rendition
from storage.records import HeldOriginal, StoredRendition, Tier
from tests.support.archive_parts import ArchiveParts, in_the_cold_store
from tests.support.coded_images import just_before

UID = "1.2.3.1"


@pytest.fixture
def bench(tmp_path: Path) -> ArchiveParts:
    """An archive whose only original is in the cold store."""
    return in_the_cold_store(tmp_path, UID)


def held(bench: ArchiveParts) -> HeldOriginal:
    ((_, found),) = bench.index.originals.below("image", UID)
    return found


def restored(bench: ArchiveParts) -> RestoreStep:
    (step,) = bench.retention.restore("image", UID, who="user:test")
    return step


def test_nothing_would_be_freed_if_originals_are_kept_for_ever(bench: ArchiveParts) -> None:
    size = held(bench).object_bytes
    assert would_free(bench.index, bench.settings, timedelta(0)) == (1, size)
    assert would_free(bench.index, bench.settings, None) == (0, 0)
    assert would_free(bench.index, bench.settings, timedelta(days=1)) == (0, 0)


def test_under_profile_us_mqsa_nothing_is_freed(bench: ArchiveParts) -> None:
    codec = parse({"codec": {"profile": "us-mqsa"}}, "test").codec
    settings = bench.settings.model_copy(update={"codec": codec})
    strict = Retention(bench.index, bench.stores, settings, lambda *_: None)
    assert would_free(bench.index, settings, timedelta(0)) == (0, 0)
    with pytest.raises(PurgeRefused, match="profile us-mqsa: originals are never removed"):
        strict.purge()


def test_an_original_that_is_restored_again_stays_hot_for_another_week(bench: ArchiveParts) -> None:
    assert restored(bench).outcome == "restored"
    with writing(bench.index.engine) as connection:
        connection.execute(update(original).values(restored_at=now() - timedelta(days=6, hours=23)))
    assert restored(bench) == RestoreStep(UID, "hot", held(bench).object_bytes)
    restored_at = held(bench)
    assert restored_at.tier is Tier.HOT
    with writing(bench.index.engine) as connection:
        (at,) = connection.execute(original.select().with_only_columns(original.c.restored_at)).one()
    assert now() - at < timedelta(minutes=5)
    assert bench.work() == 0


def test_a_purged_original_is_not_restored(bench: ArchiveParts) -> None:
    bench.retention.purge()
    step = restored(bench)
    assert (step.outcome, step.bytes) == ("purged", 0)
    assert step.detail.startswith("removed at ")
    assert step.detail.endswith(" UTC; only a sender has it")


def delete(bench: ArchiveParts) -> None:
    bench.index.tombstones.mark_deleted("image", UID, reason="wrong patient", who="user:test")
    bench.index.tombstones.delete_rows()
    bench.index.garbage.collect(bench.stores)


def test_an_image_that_is_deleted_while_it_is_purged_is_not_reported_as_kept(
    bench: ArchiveParts, caplog: pytest.LogCaptureFixture
) -> None:
    """Found by benchmarks.load. Formerly, the purge reported a missing object, and ended with exit code 1."""

    def render(_: int, rendition: StoredRendition) -> None:
        delete(bench)
        bench.stores[Tier.HOT].read(rendition.base_digest)

    done = bench.purging_with(render).purge()
    assert (done.purged, done.kept, caplog.records) == ((), (), [])


MEANWHILE: dict[str, Callable[[ArchiveParts], object]] = {
    "purged": lambda bench: bench.retention.purge(),
    "deleted": delete,
}


@pytest.mark.parametrize("how", MEANWHILE)
def test_an_original_that_goes_while_it_is_restored_leaves_no_copy(
    bench: ArchiveParts, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    just_before(monkeypatch, bench.index.originals, "commit_move", lambda: MEANWHILE[how](bench))
    assert restored(bench) == RestoreStep(UID, "failed", 0, "it was moved or removed meanwhile; try again")
    assert bench.files() == (2 if how == "purged" else 0)  # base and rendition


def test_an_image_that_is_deleted_does_not_end_the_restore_of_its_study(
    bench: ArchiveParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.receive("1.2.3.2")
    bench.work()
    below = bench.index.originals.below

    def list_and_delete(level: str, uid: str) -> list[tuple[str, HeldOriginal]]:
        found = below(level, uid)
        if level == "study":
            delete(bench)
        return found

    monkeypatch.setattr(bench.index.originals, "below", list_and_delete)
    steps = bench.retention.restore("study", "1.2.1", who="user:test")
    assert [(step.sop_instance_uid, step.outcome, step.detail) for step in steps] == [
        (UID, "failed", "it was deleted meanwhile"),
        ("1.2.3.2", "restored", ""),
    ]


def test_a_damaged_original_is_not_restored_and_the_failure_is_in_the_trail(bench: ArchiveParts) -> None:
    path = bench.stores[Tier.COLD].path(held(bench).object_digest)
    path.write_bytes(b"damaged")
    step = restored(bench)
    reason = f"object {path.name}, read from {path}, no longer has that digest"
    assert step == RestoreStep(UID, "failed", 0, reason)
    (newest,) = bench.index.trail.records(newest=1)
    assert (newest.entry.action, newest.entry.outcome, newest.entry.detail) == ("original.restore", "failure", reason)
    assert held(bench).tier is Tier.COLD
    assert not bench.hot.has(path.name)


LONG_AGO = now() - timedelta(days=90)
WRONG = datetime(2000, 1, 1)


@pytest.mark.parametrize(
    ("held_since", "verified_at", "purged"),
    [
        ((LONG_AGO, LONG_AGO), (LONG_AGO, LONG_AGO), [1, 2]),
        ((now(), LONG_AGO), (now(), LONG_AGO), []),
        ((LONG_AGO, LONG_AGO), (LONG_AGO, now()), [1]),
        ((WRONG, LONG_AGO), (WRONG, LONG_AGO), [2]),
        ((now() + timedelta(days=9), LONG_AGO), (now() + timedelta(days=9), LONG_AGO), [2]),
    ],
    ids=["right", "back for the second", "right again when verified", "no battery", "ahead for the first"],
)
def test_an_original_that_was_received_by_a_wrong_clock_is_not_purged_early(
    tmp_path: Path, held_since: tuple[datetime, datetime], verified_at: tuple[datetime, datetime], purged: list[int]
) -> None:
    bench = ArchiveParts(tmp_path, retain_for="30d")
    for number in (1, 2):
        bench.receive(f"1.2.3.{number}")
        with writing(bench.index.engine) as connection:
            key = connection.execute(select(func.max(instance.c.key))).scalar_one()
            times = {"held_since": held_since[number - 1]}
            connection.execute(update(original).where(original.c.instance_key == key).values(times))
            times = {"verified_at": verified_at[number - 1]}
            connection.execute(update(rendition).where(rendition.c.instance_key == key).values(times))
    assert [step.sop_instance_uid for step in bench.retention.purge().purged] == [f"1.2.3.{one}" for one in purged]
