"""Proves that moving objects away loses none that a row needs, that is stored again or that is whole."""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from storage.objects.inspection import finish_moves, is_back, listing, put_back, recover, set_aside
from storage.objects.orphans import forget_orphans, move_orphan
from storage.objects.store import DAMAGED, ORPHANS, ObjectStore

DAY = 86400.0
DATA = b"bytes of an object"
DIGEST = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore(tmp_path)


def orphan(store: ObjectStore, data: bytes, moved: str) -> Path:
    """An object that was moved away on that day."""
    digest = hashlib.sha256(data).hexdigest()
    aside = store.root / ORPHANS / moved / digest[:2] / digest
    aside.parent.mkdir(parents=True, exist_ok=True)
    aside.write_bytes(data)
    return aside


def day(ago: int) -> str:
    return f"{datetime.now(UTC) - timedelta(days=ago):%Y-%m-%d}"


def test_of_old_orphans_those_that_a_row_needs_are_put_back(store: ObjectStore) -> None:
    needed, forgotten = orphan(store, DATA, day(40)), orphan(store, b"nobody's", day(40))
    assert forget_orphans(store, 30 * DAY, lambda digest: digest == DIGEST) == (1, 1)
    assert store.read(DIGEST) == DATA
    assert list(store.digests()) == [DIGEST]
    assert not (needed.exists() or forgotten.exists())


@pytest.mark.parametrize("moved", [30, 29, "2000-13-01", "not-a-date", "2000-01-01"])
def test_an_orphan_stays_until_its_days_are_over(store: ObjectStore, moved: str | int) -> None:
    """If the name of a folder is not a date, or a date by a wrong clock, nobody knows how old its objects are, and they
    stay."""
    aside = orphan(store, DATA, day(moved) if isinstance(moved, int) else moved)
    assert forget_orphans(store, 30 * DAY, lambda _: False) == (0, 0)
    assert aside.read_bytes() == DATA


def test_what_is_gone_already_is_not_moved(store: ObjectStore) -> None:
    assert not move_orphan(store, DIGEST, older_than=time.time())
    assert set_aside(store, DIGEST) is None
    assert not [path for path in store.root.rglob("*") if path.is_file()]


def test_a_moved_orphan_is_found_by_its_digest_again(store: ObjectStore) -> None:
    store.put(DATA)
    os.utime(store.path(DIGEST), (1e9, 1e9))
    assert move_orphan(store, DIGEST, older_than=time.time() - DAY)
    assert not store.has(DIGEST)
    assert (store.root / ORPHANS / day(0) / DIGEST[:2] / DIGEST).read_bytes() == DATA
    assert recover(store, DIGEST)
    assert store.read(DIGEST) == DATA


@pytest.mark.parametrize("stored_again", [False, True])
def test_an_object_is_put_back_where_there_are_no_hard_links(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, stored_again: bool
) -> None:
    """FAT and some network file systems have no hard links. An object that was stored again meanwhile is not
    replaced."""
    aside = orphan(store, DATA, day(0))
    if stored_again:
        store.put(DATA)
        store.path(DIGEST).chmod(0o640)

    def refused(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    assert recover(store, DIGEST)
    assert store.read(DIGEST) == DATA
    assert (store.path(DIGEST).stat().st_mode & 0o777 == 0o640) == stored_again
    assert not aside.exists()


def test_an_old_orphan_is_kept_while_the_object_that_is_needed_is_damaged(store: ObjectStore) -> None:
    """The orphan may be the only whole copy. A scrub of a share of the objects may not have seen the damage yet."""
    aside, nobodys = orphan(store, DATA, day(40)), orphan(store, b"nobody's", day(40))
    store.put(DATA)
    store.path(DIGEST).write_bytes(b"damaged")
    assert forget_orphans(store, 30 * DAY, lambda digest: digest == DIGEST) == (1, 0)
    assert (aside.read_bytes(), nobodys.exists()) == (DATA, False)
    assert set_aside(store, DIGEST) is not None
    assert forget_orphans(store, 30 * DAY, lambda digest: digest == DIGEST) == (0, 1)
    assert store.read(DIGEST) == DATA
    assert not aside.parent.parent.exists()


def test_a_folder_with_the_name_of_an_object_is_not_moved(store: ObjectStore) -> None:
    """Formerly it was moved, could not be deleted as an orphan, and each scrub that tried ended with an exception."""
    store.path(DIGEST).mkdir(parents=True)
    assert not move_orphan(store, DIGEST, older_than=time.time() + DAY)
    assert store.path(DIGEST).is_dir()


def test_a_second_damaged_object_of_one_digest_replaces_no_first(store: ObjectStore) -> None:
    for text in (b"first", b"second"):
        store.put(DATA)
        store.path(DIGEST).write_bytes(text)
        assert set_aside(store, DIGEST) is not None
    folder = store.root / DAMAGED
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        f"{DIGEST}.1": b"first",
        f"{DIGEST}.2": b"second",
    }
    assert not recover(store, DIGEST)


def test_an_object_that_goes_while_it_is_listed_is_left_out(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put(DATA)
    other = store.path(DIGEST).parent / "letter.txt"
    other.write_bytes(b"x")
    real = Path.lstat

    def late(self: Path) -> os.stat_result:
        if self.name == DIGEST:
            self.unlink()
        return real(self)

    monkeypatch.setattr(Path, "lstat", late)
    found = listing(store, DIGEST[:2])
    assert [(one.name, one.digest, one.bytes) for one in found] == [("letter.txt", "", 1)]


def killed_before(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """Let this process end, as the files show it, before its first call of ``step``."""

    def kill(*_: object, **__: object) -> None:
        raise Killed

    monkeypatch.setattr(os, step, kill)


class Killed(BaseException):
    """Stands for SIGKILL."""


@pytest.mark.parametrize("aside", [DAMAGED, ORPHANS])
def test_a_put_back_that_was_killed_between_its_two_steps_is_finished(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, aside: str
) -> None:
    """Both folders hold the object after the kill. Formerly, the link in ``damaged/`` kept its bytes for good, even
    after a purge."""
    store.put(DATA)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_before(patch, "unlink")
        set_aside(store, DIGEST) if aside == DAMAGED else move_orphan(store, DIGEST, older_than=0)
    others = [store.root / aside / "letter.txt", store.root / DAMAGED / f"{DIGEST}.7"]
    for other in others:
        other.parent.mkdir(exist_ok=True)
        other.write_bytes(b"not a link to an object")
    assert store.path(DIGEST).stat().st_nlink == 2
    finish_moves(store)
    assert (store.read(DIGEST), store.path(DIGEST).stat().st_nlink) == (DATA, 1)
    assert all(other.exists() for other in others)


@pytest.mark.parametrize("move", [set_aside, lambda store, digest: move_orphan(store, digest, older_than=0)])
def test_a_reader_that_puts_an_object_back_while_it_is_moved_harms_nothing(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, move: Callable[[ObjectStore, str], object]
) -> None:
    """The reader puts the object back between the two steps of the move. The mover then finds it gone, and reports no
    damage."""
    store.put(DATA)
    real = Path.rename

    def rename(source: Path, target: Path) -> Path:
        moved = real(source, target)
        assert recover(store, DIGEST)
        return moved

    monkeypatch.setattr(Path, "rename", rename)
    assert not move(store, DIGEST)
    assert store.read(DIGEST) == DATA


def test_an_object_that_cannot_be_put_back_is_not_back(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader on a read-only disk goes on to another copy of the image."""

    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    orphan(store, DATA, day(1))
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", read_only)
        patch.setattr(Path, "replace", read_only)
        assert not is_back(store, DIGEST)
    assert is_back(store, DIGEST)


def test_an_object_that_is_gone_from_both_places_is_not_put_back(store: ObjectStore) -> None:
    aside = store.root / ORPHANS / day(1) / DIGEST[:2] / DIGEST
    with pytest.raises(FileNotFoundError):
        put_back(aside, store.path(DIGEST))
