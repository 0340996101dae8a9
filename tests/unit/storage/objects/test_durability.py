"""Proves that what is stored, journalled or moved is on disk when the call returns."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

import storage.objects.change_journal as change_module
import storage.objects.trail_journal as trail_module
from storage.objects import durability
from storage.objects.change_journal import ChangeJournal, Group
from storage.objects.inspection import recover, set_aside
from storage.objects.orphans import move_orphan
from storage.objects.store import DAMAGED, ORPHANS, ObjectStore
from storage.objects.trail_journal import TrailJournal
from storage.records import TrailEntry, TrailRecord
from tests.support.power_failure import SyncedFolder

DATA = b"bytes of an object"
DIGEST = hashlib.sha256(DATA).hexdigest()
OPEN_FILES = Path("/proc/self/fd")


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SyncedFolder]:
    """Follows a storage root that is still empty."""
    (tmp_path / "root").mkdir()
    following = SyncedFolder(tmp_path / "root", monkeypatch)
    yield following
    following.close()


@pytest.fixture
def root(tmp_path: Path, disk: SyncedFolder) -> Path:
    return tmp_path / "root"


def test_a_replaced_file_is_the_former_or_the_new_one(root: Path, disk: SyncedFolder) -> None:
    durability.replace_file(root / "mark", [b"former"])
    assert (disk.after_power_failure() / "mark").read_bytes() == b"former"
    durability.replace_file(root / "mark", [b"the ", b"new one"])
    assert (disk.after_power_failure() / "mark").read_bytes() == b"the new one"


@pytest.mark.parametrize("fails", [False, True])
def test_synced_folders_are_closed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    """Each stored object syncs folders: a node would soon reach its limit of open files."""

    def fsync(_: int) -> None:
        if fails:
            raise OSError(errno.EIO, "the disk fails")

    monkeypatch.setattr(os, "fsync", fsync)
    before = len(list(OPEN_FILES.iterdir()))
    with pytest.raises(OSError, match="the disk fails") if fails else nullcontext():
        durability.fsync_folders(tmp_path, tmp_path.parent)
    assert len(list(OPEN_FILES.iterdir())) == before


# --- objects ----------------------------------------------------------------------------------------------------


def test_a_stored_object_is_on_disk(root: Path, disk: SyncedFolder, tmp_path: Path) -> None:
    ObjectStore(root).put(DATA)
    assert ObjectStore(disk.after_power_failure()).read(DIGEST) == DATA
    other = ObjectStore(tmp_path / "other").put(b"of another store")
    ObjectStore(root).take_from(ObjectStore(tmp_path / "other"), other)
    assert ObjectStore(disk.after_power_failure()).read(other) == b"of another store"


@pytest.mark.parametrize("folder", ["", "was removed"])
def test_an_object_that_is_moved_away_and_back_is_on_disk(root: Path, disk: SyncedFolder, folder: str) -> None:
    store = ObjectStore(root)
    store.put(DATA)
    assert move_orphan(store, DIGEST, older_than=1e12)
    assert len(list((disk.after_power_failure() / ORPHANS).rglob(DIGEST))) == 1
    if folder == "was removed":
        store.path(DIGEST).parent.rmdir()
        durability.fsync_folders(root / "objects")
    assert recover(store, DIGEST)
    assert ObjectStore(disk.after_power_failure()).read(DIGEST) == DATA


def test_a_damaged_object_that_is_moved_away_is_on_disk(root: Path, disk: SyncedFolder) -> None:
    store = ObjectStore(root)
    store.put(DATA)
    with store.path(DIGEST).open("wb") as file:
        file.write(b"damaged")
        durability.fsync_file(file)
    assert set_aside(store, DIGEST) == root / DAMAGED / f"{DIGEST}.1"
    left = disk.after_power_failure()
    assert (left / DAMAGED / f"{DIGEST}.1").read_bytes() == b"damaged"
    assert not ObjectStore(left).has(DIGEST)


# --- journals ---------------------------------------------------------------------------------------------------


def test_a_journalled_change_is_on_disk(root: Path, disk: SyncedFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def left() -> list[int]:
        return [one.number for one in ChangeJournal(disk.after_power_failure() / "journal").groups()]

    journal = ChangeJournal(root / "journal")
    journal.begin("archive", 3, [[]])
    assert left() == [3]
    journal.append(Group(4, []))
    assert left() == [3, 4]
    monkeypatch.setattr(change_module, "_SEGMENT_BYTES", 0)
    journal.append(Group(5, []))
    assert left() == [3, 4, 5]
    last = root / "journal" / "changes-000000000006.jsonl"
    with last.open("ab") as other_process:
        other_process.write(change_module._line({"number": 6, "rows": []}) + b"torn")
    journal.settle()
    assert left() == [3, 4, 5, 6]
    with last.open("ab") as damaged:
        damaged.write(b"damaged\n")
    assert "8 damaged bytes" in ChangeJournal(root / "journal").repair()
    assert (left(), len(list(disk.after_power_failure().glob("journal/damaged-*")))) == ([3, 4, 5, 6], 1)
    unlink = Path.unlink

    def unlink_later(path: Path, **options: bool) -> None:
        assert left() == [6]
        unlink(path, **options)

    monkeypatch.setattr(Path, "unlink", unlink_later)
    journal.compact("archive", 6, [[]])
    assert (left(), len(list(disk.after_power_failure().glob("journal/changes-*")))) == ([6], 1)
    journal.set_aside()
    assert (left(), len(list(disk.after_power_failure().glob("journal/superseded/*/*.jsonl")))) == ([], 1)


def test_a_record_of_the_trail_is_on_disk(root: Path, disk: SyncedFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trail_module, "_SEGMENT_BYTES", 300)
    journal = TrailJournal(root / "journal")
    for number in (1, 2, 3):
        record = TrailRecord(number, "2026-01-01T00:00:00+00:00", TrailEntry("store", "A", "image", ("1.2",)), "", "")
        journal.append([record])
        assert TrailJournal(disk.after_power_failure() / "journal").last() == record
    assert len(list((root / "journal").glob("trail-*"))) == 2
