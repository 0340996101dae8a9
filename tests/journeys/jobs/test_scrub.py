"""Proves that the scrub finds every kind of damage to an object, reports nothing else, and repairs what it can."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from node.config import ScrubSettings
from node.jobs import scrub_job
from node.jobs.scrub_job import Extent, Scrub, ScrubPlan
from node.jobs.scrub_repair import ScrubRepair
from storage.errors import IndexRefused, ObjectMissing
from storage.index.connection import writing
from storage.index.integrity import END, HOT, Integrity
from storage.index.job_runs import JobRows
from storage.index.tables import instance
from storage.objects.inspection import examine, set_aside
from storage.objects.orphans import move_orphan
from storage.objects.store import DAMAGED, ORPHANS, ObjectStore
from storage.records import InstanceState, ReasonCode
from tests.support.holdings import LONG_AGO, Holdings, filled
from tests.support.job_runs import CountedRun, scrub_in

FULL = ScrubPlan(ScrubSettings(), Extent.FULL)
DAY = 86400.0


def scrub_of(held: Holdings, plan: ScrubPlan = FULL) -> Scrub:
    return scrub_in(held.index, {HOT: held.store}, plan)


def scrubbed(held: Holdings, plan: ScrubPlan = FULL) -> dict[str, Any]:
    return CountedRun().of(scrub_of(held, plan).run)


def found_in(report: dict[str, Any]) -> dict[str, str]:
    return {found["digest"]: found["condition"] for found in report["findings"]}


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Holdings]:
    """Forty images: a hundred and twenty objects."""
    made = filled(tmp_path, 40)
    yield made
    made.index.close()


@pytest.fixture(scope="module")
def thousand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Holdings]:
    """1,002 objects, all of which rows name."""
    made = filled(tmp_path_factory.mktemp("thousand"), 334)
    yield made
    made.index.close()


def flip(path: Path, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def truncate(path: Path, chance: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: chance.randrange(path.stat().st_size)])


def extend(path: Path, chance: random.Random) -> None:
    with path.open("ab") as out:
        out.write(bytes(chance.randint(1, 9)))


def replace_bytes(path: Path, chance: random.Random) -> None:
    path.write_bytes(chance.randbytes(path.stat().st_size))


def into_folder(path: Path, _: random.Random) -> None:
    path.unlink()
    path.mkdir()


def into_loop(path: Path, _: random.Random) -> None:
    """Replace a file by a link to itself, which nobody can open, not even root."""
    path.unlink()
    path.symlink_to(path.name)


def into_dangling_link(path: Path, _: random.Random) -> None:
    path.unlink()
    path.symlink_to("nowhere")


HARM = {
    "flipped": flip,
    "truncated": truncate,
    "emptied": lambda path, _: path.write_bytes(b""),
    "extended": extend,
    "replaced": replace_bytes,
    "deleted": lambda path, _: path.unlink(),
    "a folder": into_folder,
    "unreadable": into_loop,
    "a dangling link": into_dangling_link,
}


@pytest.mark.slow
def test_a_thousand_clean_objects_raise_no_alarm(thousand: Holdings) -> None:
    for _ in range(3):
        report = scrubbed(thousand)
        assert (report["clean"], report["finished"], report["checked"]) == (True, True, 1002)
        assert report["bytes"] == sum(map(len, thousand.objects.values()))
        assert (report["damaged"], report["orphans"], report["foreign"]) == (0, 0, 0)
    assert not (thousand.root / DAMAGED).exists()


@pytest.mark.slow
@pytest.mark.parametrize("harm", HARM)
def test_whatever_happens_to_an_object_is_found(thousand: Holdings, harm: str) -> None:
    """Random objects of a thousand are changed at random places. Exactly these are found, and none once they are whole
    again."""
    chance = random.Random(harm)
    harmed = chance.sample(sorted(thousand.objects), 6)
    for digest in harmed:
        HARM[harm](thousand.store.path(digest), chance)
    report = scrubbed(thousand)
    assert not report["clean"]
    assert set(found_in(report)) == set(harmed)
    for digest in harmed:
        assert not thousand.store.path(digest).exists(), "moved aside, or missing"
        thousand.restore(digest)
    assert scrubbed(thousand)["clean"]
    aside = list((thousand.root / DAMAGED).glob("*"))
    assert len(aside) >= (0 if harm == "deleted" else 6), "nothing is deleted"
    for entry in aside:
        entry.rmdir() if entry.is_dir() and not entry.is_symlink() else entry.unlink()


@pytest.mark.slow
def test_a_flipped_bit_in_every_one_of_a_thousand(tmp_path: Path) -> None:
    held, chance = filled(tmp_path, 334, seed=9), random.Random(4)
    for digest in held.objects:
        flip(held.store.path(digest), chance)
    assert scrubbed(held)["damaged"] == 1002
    held.index.close()


def test_what_cannot_be_read_is_left_alone(held: Holdings) -> None:
    """People must correct permissions and mounts. Nothing is moved, and no row is changed."""
    digest = held.originals[0]
    folder = held.store.path(digest).parent
    here = {one for one in held.objects if one[:2] == digest[:2]}
    folder.rename(held.root / "kept")
    folder.write_bytes(b"a file where a folder was")
    report = scrubbed(held)
    assert found_in(report) == dict.fromkeys(here, "unreadable")
    assert report["reported"] == len(here)
    assert not report["clean"]
    assert held.of(1).reason == ""
    folder.unlink()
    (held.root / "kept").rename(folder)
    assert scrubbed(held)["clean"]


def test_a_lost_base_or_rendition_goes_back_to_the_archivist(held: Holdings) -> None:
    flip(held.store.path(held.bases[0]), random.Random(1))
    held.store.path(held.renditions[1]).unlink()
    report = scrubbed(held)
    assert (report["queued"], report["damaged"]) == (2, 2)
    assert {found["sop_instance_uid"] for found in report["findings"]} == {"1.2.3.1", "1.2.3.2"}
    for number, kind in ((1, "base damaged"), (2, "rendition missing")):
        instance = held.of(number)
        assert instance.state is InstanceState.RECEIVED
        assert kind in instance.reason
        assert instance.rendition is not None, "its UID goes on leading here"
    assert not scrubbed(held)["clean"], "not repaired yet"
    assert held.of(3).state is InstanceState.VERIFIED


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["base", "rendition", "both"])
def test_a_lost_rendition_of_an_image_that_is_served_as_its_original_is_withdrawn(held: Holdings, lost: str) -> None:
    """Formerly, each scrub reported that the image would be encoded again, and it never was."""
    with writing(held.index.engine) as connection:
        connection.execute(update(instance).where(instance.c.key == 1).values(state=InstanceState.EXACT))
    for digest in (held.bases[0],) * (lost != "rendition") + (held.renditions[0],) * (lost != "base"):
        held.store.path(digest).unlink()
    report = scrubbed(held)
    assert (report["withdrawn"], report["queued"], report["damaged"]) == (1, 0, 1)
    assert (held.of(1).state, held.of(1).rendition) == (InstanceState.EXACT, None)
    assert held.index.rendition("2.25.1") is not None, "its UID goes on leading here"
    assert scrubbed(held)["clean"]


@pytest.mark.slow
def test_a_lost_original_with_a_whole_rendition_is_flagged(held: Holdings) -> None:
    flip(held.store.path(held.originals[0]), random.Random(1))
    assert scrubbed(held)["flagged"] == 1
    instance = held.of(1)
    assert instance.state is InstanceState.VERIFIED
    assert "original damaged; its reconstruction is whole" in instance.reason
    assert scrubbed(held)["flagged"] == 1, "as long as it is so, every scrub says so"
    assert len(list((held.root / DAMAGED).iterdir())) == 1
    held.restore(held.originals[0])  # as when the modality sends it again
    assert scrubbed(held)["clean"]
    assert (held.of(1).state, held.of(1).reason) == (InstanceState.VERIFIED, "")


@pytest.mark.slow
@pytest.mark.parametrize("first", ["original", "base"])
def test_nothing_left_of_an_image_and_back_again(held: Holdings, first: str) -> None:
    original, base = held.originals[0], held.bases[0]
    for digest in (original, base):
        held.store.path(digest).unlink()
    assert scrubbed(held)["lost"] == 2
    assert held.of(1).state is InstanceState.FAILED
    assert "nothing whole is left" in held.of(1).reason
    held.restore(original if first == "original" else base)
    report = scrubbed(held)
    assert (report["lost"], report["damaged"]) == (0, 1)
    if first == "original":
        assert held.of(1).state is InstanceState.RECEIVED, "the archivist makes the base again"
    else:
        assert held.of(1).state is InstanceState.VERIFIED
        assert "its reconstruction is whole" in held.of(1).reason
    held.restore(original)
    held.restore(base)
    assert scrubbed(held)["clean"]


def test_everything_of_an_image_back_at_once(held: Holdings) -> None:
    three = (held.originals[0], held.bases[0], held.renditions[0])
    for digest in three:
        held.store.path(digest).unlink()
    for _ in range(2):
        assert scrubbed(held)["lost"] == 3
        assert held.of(1).state is InstanceState.FAILED
    for digest in three:
        held.restore(digest)
    assert scrubbed(held)["clean"]
    assert (held.of(1).state, held.of(1).reason) == (InstanceState.VERIFIED, "")


def test_what_the_replica_has_only_later_is_whole_at_once(held: Holdings, tmp_path: Path) -> None:
    """Formerly, the report said "recovered", and the image stayed FAILED until the next scrub."""
    replica, gone = ObjectStore(tmp_path / "replica"), (held.originals[0], held.bases[0], held.renditions[0])
    for digest in gone:
        held.store.path(digest).unlink()
    repair = ScrubRepair(held.index, {HOT: held.store}, replica.root)
    for digest in gone:
        repair.settle(repair.integrity.expected_at(digest), examine(held.store, digest))
    assert held.of(1).state is InstanceState.FAILED
    for digest in gone:
        replica.put(held.objects[digest])
    assert {found.action for found in repair.recheck()} == {"recovered"}
    assert (held.of(1).state, held.of(1).reason) == (InstanceState.VERIFIED, "")
    assert not repair.integrity.open_damage()


def test_an_instance_that_is_being_worked_on_is_left_to_its_worker(held: Holdings) -> None:
    integrity = Integrity(held.index.engine)
    integrity.requeue(1, ReasonCode.OTHER, "test")
    claim = held.index.claim("worker", 60)
    assert claim is not None
    held.store.path(held.originals[0]).unlink()
    held.store.path(held.bases[0]).unlink()
    scrubbed(held)
    assert held.of(1).state is InstanceState.RECEIVED
    held.index.release(claim)
    scrubbed(held)
    assert held.of(1).state is InstanceState.FAILED


def test_what_is_no_longer_promised_is_no_damage(held: Holdings) -> None:
    held.store.path(held.bases[0]).unlink()
    scrubbed(held)
    Integrity(held.index.engine).withdraw("2.25.1", "a test")
    report = scrubbed(held)
    assert (report["clean"], report["orphans"]) == (True, 1), "its rendition is not needed any more"
    assert held.index.by_uid("2.25.1") is not None
    assert not Integrity(held.index.engine).open_damage()


def test_orphans(held: Holdings) -> None:
    old, young = held.put(b"nobody's"), held.put(b"on its way in")
    os.utime(held.store.path(young))
    (held.store.path(old).parent / "thumbs.db").write_bytes(b"")
    report = scrubbed(held)
    assert (report["clean"], report["orphans"], report["orphan_list"]) == (True, 1, [old])
    assert (report["orphan_bytes"], report["foreign"]) == (len(b"nobody's"), 1)
    assert held.store.path(old).exists()
    report = scrubbed(held, replace(FULL, remove_orphans=True))
    assert (report["orphans"], report["orphans_moved"], report["orphans_deleted"]) == (1, 1, 0)
    assert not held.store.path(old).exists()
    assert held.store.path(young).exists()
    assert scrubbed(held)["orphans"] == 0
    (aside,) = (held.root / ORPHANS).glob("*/*/*")
    assert (aside.parent.name, aside.name, aside.read_bytes()) == (old[:2], old, b"nobody's")


def aged(held: Holdings, days: int) -> None:
    """Rename the folder of orphans, as if they had been moved so many days ago."""
    (folder,) = (held.root / ORPHANS).iterdir()
    folder.rename(folder.with_name(f"{datetime.now(UTC) - timedelta(days=days):%Y-%m-%d}"))


def test_an_orphan_is_kept_for_the_configured_time(held: Holdings) -> None:
    digest = held.put(b"nobody's")
    removing = replace(FULL, remove_orphans=True, settings=ScrubSettings(keep_orphans=10 * DAY))
    scrubbed(held, removing)
    aged(held, 10)
    assert scrubbed(held, removing)["orphans_deleted"] == 0
    aged(held, 12)
    assert scrubbed(held)["orphans_deleted"] == 0, "nothing is deleted unasked"
    assert scrubbed(held, removing)["orphans_deleted"] == 1
    assert not list((held.root / ORPHANS).rglob(digest))


def test_an_orphan_that_a_row_needs_after_all_is_put_back(held: Holdings) -> None:
    """A wrong index had the object moved aside. The next scrub finds that it is missing, and where it is."""
    removing = replace(FULL, remove_orphans=True)
    base = held.bases[0]
    move_orphan(held.store, base, older_than=time.time())
    assert not held.store.path(base).exists()
    report = scrubbed(held)
    assert (report["clean"], report["recovered"]) == (True, 1)
    assert held.store.read(base) == held.objects[base]
    move_orphan(held.store, base, older_than=time.time())
    aged(held, 100)
    scrubbed(held, removing)
    assert held.store.read(base) == held.objects[base]


class Doubtful:
    def doubt(self) -> str:
        return "it is the index of another archive"

    def damage(self) -> list[str]:
        return ["a page is damaged"]


def test_a_doubtful_index_calls_nothing_an_orphan(held: Holdings) -> None:
    digest = held.put(b"nobody's")
    scrub = scrub_of(held, replace(FULL, remove_orphans=True))
    scrub._standing = Doubtful()
    with pytest.raises(IndexRefused, match="index rebuild"):
        CountedRun().of(scrub.run)
    assert held.store.path(digest).exists()


def test_what_a_rebuild_would_bring_back_is_not_moved(held: Holdings) -> None:
    digest = held.put(b"somebody's")
    scrub = scrub_of(held, replace(FULL, remove_orphans=True))
    scrub._can_recover = lambda store, found: found == digest
    report = CountedRun().of(scrub.run)
    assert (report["orphans"], report["unclaimed"]) == (0, 1)
    assert held.store.path(digest).exists()


def test_an_orphan_that_is_stored_again_is_not_removed(held: Holdings) -> None:
    """Bytes are stored before their row. Between these steps, the scrub must not remove them."""
    old = held.put(b"once nobody's")
    listed = held.store.path(old).stat().st_mtime
    assert listed == LONG_AGO
    assert held.store.put(b"once nobody's") == old
    assert not move_orphan(held.store, old, older_than=time.time() - DAY)
    assert held.store.read(old) == b"once nobody's"


def test_storing_against_removing(held: Holdings) -> None:
    """Whatever the order of their steps, the bytes are there once storing has returned."""
    data = b"wanted and unwanted"
    for _ in range(40):
        digest = held.put(data)
        remover = threading.Thread(target=move_orphan, args=(held.store, digest), kwargs={"older_than": LONG_AGO + 1})
        remover.start()
        assert held.store.put(data) == digest
        remover.join()
        assert held.store.read(digest) == data


def test_an_orphan_that_is_moved_while_its_time_is_updated(held: Holdings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scrub renames the file and reads its time while the update has found the file and has not changed its time
    yet."""
    data = b"wanted and unwanted"
    digest = held.put(data)
    update = os.utime

    def late(path: Path) -> None:
        with path.open("rb") as found:
            assert move_orphan(held.store, digest, older_than=LONG_AGO + 1)
            update(found.fileno())

    monkeypatch.setattr(os, "utime", late)
    assert held.store.put(data) == digest
    assert held.store.read(digest) == data


def test_what_is_whole_is_put_back(held: Holdings) -> None:
    digest = held.originals[0]
    assert set_aside(held.store, digest) is None
    assert held.store.read(digest) == held.objects[digest]
    held.store.path(digest).rename(held.root / DAMAGED / f"{digest}.7")  # as if killed in between
    report = scrubbed(held)
    assert (report["recovered"], report["clean"]) == (1, True)
    assert held.store.read(digest) == held.objects[digest]
    assert not list((held.root / DAMAGED).iterdir())


def test_a_damaged_object_of_which_a_whole_copy_was_moved_aside_is_replaced_by_it(held: Holdings) -> None:
    """The whole copy was an orphan before the object was stored again. Formerly, the image was marked as lost until the
    next scrub."""
    path, day = held.store.path(held.originals[0]), f"{datetime.now(UTC):%Y-%m-%d}"
    aside = held.root / ORPHANS / day / path.parent.name / path.name
    aside.parent.mkdir(parents=True)
    aside.write_bytes(held.objects[path.name])
    path.write_bytes(b"other bytes")
    held.store.path(held.renditions[0]).unlink()
    report = scrubbed(held)
    assert (report["recovered"], report["lost"]) == (1, 0)
    assert path.read_bytes() == held.objects[path.name]
    assert not aside.exists()
    assert (held.root / DAMAGED / f"{path.name}.1").read_bytes() == b"other bytes"


def test_an_empty_store_is_not_a_thousand_lost_images(held: Holdings) -> None:
    """If a disk is not mounted, there is one clear sentence, and nothing is changed."""
    (held.root / "objects").rename(held.root / "elsewhere")
    (held.root / "objects").mkdir()
    with pytest.raises(ObjectMissing, match="mounted"):
        scrubbed(held)
    assert held.of(1).state is InstanceState.VERIFIED
    assert not Integrity(held.index.engine).open_damage()


# --- shares and samples ---


class Clock:
    """The time of day, which a test sets."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def time(self) -> float:
        return self.now

    monotonic = time


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    moved = Clock()
    monkeypatch.setattr(scrub_job, "time", moved)
    return moved


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every digest that is read, in order."""
    digests: list[str] = []
    real = scrub_job.examine

    def examine(store: Any, digest: str) -> Any:
        digests.append(digest)
        return real(store, digest)

    monkeypatch.setattr(scrub_job, "examine", examine)
    return digests


SHARE = ScrubPlan(ScrubSettings(period=30 * DAY, when="every 1d"))


def test_a_share_a_night_and_everything_once_a_period(held: Holdings, clock: Clock, checked: list[str]) -> None:
    for night in range(30):
        before = len(checked)
        report = scrubbed(held, SHARE)
        assert report["clean"]
        assert report["checked"] == len(checked) - before <= 20, night
        clock.now += DAY
    assert checked == sorted(held.objects), "each once"
    scrubbed(held, SHARE)
    clock.now += DAY
    assert checked[120:] == sorted(held.objects)[: len(checked) - 120] != [], "the next round begins"


def test_missed_nights_are_made_up_for_by_one_run(held: Holdings, clock: Clock, checked: list[str]) -> None:
    scrubbed(held, SHARE)
    clock.now += 14 * DAY
    scrubbed(held, SHARE)
    assert 40 <= len(checked) <= 80, "half the period has gone by"
    clock.now += 300 * DAY
    scrubbed(held, SHARE)
    assert checked == sorted(held.objects), "everything once, not ten times"
    clock.now += DAY
    scrubbed(held, SHARE)
    assert len(checked) < 140, "and a new round, from today on"


def test_a_cancelled_share_goes_on_where_it_was(held: Holdings, clock: Clock, checked: list[str]) -> None:
    plan = replace(SHARE, settings=ScrubSettings(period=30 * DAY, when="every 30d"))
    report = CountedRun(steps=50).of(scrub_of(held, plan).run)
    assert (report["finished"], len(checked)) == (False, 50)
    watched = CountedRun()
    report = watched.of(scrub_of(held, plan).run)
    assert report["finished"]
    assert watched.last == (70, 70, "0 damaged")
    assert checked == sorted(held.objects)


def test_a_round_that_a_wrong_clock_began_goes_on_once_it_is_right(
    held: Holdings, clock: Clock, checked: list[str]
) -> None:
    clock.now += 3650 * DAY
    scrubbed(held, SHARE)
    clock.now -= 3650 * DAY
    for _ in range(30):
        scrubbed(held, SHARE)
        clock.now += DAY
    assert checked == sorted(held.objects)


def test_a_second_run_on_the_same_day_has_nothing_to_do(held: Holdings, clock: Clock, checked: list[str]) -> None:
    scrubbed(held, SHARE)
    once = len(checked)
    scrubbed(held, SHARE)
    assert len(checked) == once > 0
    assert JobRows(held.index.engine).memory("scrub")["cursor"] < END


def test_a_sample_is_about_as_large_as_asked_and_another_each_time(thousand: Holdings, checked: list[str]) -> None:
    for _ in range(2):
        scrubbed(thousand, ScrubPlan(ScrubSettings(), Extent.SAMPLE, 0.2))
    assert 240 < len(checked) < 560
    assert 240 / 2 < len(set(checked)) < len(checked), "two draws overlap, and differ"
