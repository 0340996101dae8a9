"""Proves that a reader can still read an object that is deleted meanwhile, and that only unused links are removed."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from storage.errors import ObjectMissing
from storage.objects.store import ObjectStore
from tests.conftest import wait_for

DATA = b"bytes of an object"
DIGEST = hashlib.sha256(DATA).hexdigest()
HOST = socket.gethostname().replace("+", "-")


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    made = ObjectStore(tmp_path / "store")
    made.put(DATA)
    return made


@pytest.fixture
def running() -> Iterator[int]:
    """The id of another process, which runs."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process.pid


@pytest.fixture
def ended() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def lent_by(store: ObjectStore, pid: int, *, host: str = HOST, ending: str = "") -> Path:
    path = store.root / "lent" / f"{host}+{pid}+0123{ending}"
    path.write_bytes(b"")
    return path


def no_hard_links(*_: Any, **__: Any) -> None:
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


def delete_first(store: ObjectStore, monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> None:
    """Let another process delete the object just before that function is called."""
    real = getattr(module, name)

    def late(*args: Any, **options: Any) -> Any:
        store.path(DIGEST).unlink(missing_ok=True)
        return real(*args, **options)

    monkeypatch.setattr(module, name, late)


def test_links_of_processes_that_run_stay(store: ObjectStore, running: int, ended: int) -> None:
    kept = {lent_by(store, running), lent_by(store, 1), lent_by(store, ended, host="elsewhere")}
    lent_by(store, ended)
    store.sweep_lent()
    assert set((store.root / "lent").iterdir()) == kept


def test_what_another_host_has_lent_is_removed_after_a_week(
    store: ObjectStore, running: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container has another host name when it is started again. Formerly, the links of a killed container stayed for
    good. After a backup was killed, each object that was deleted or purged kept its bytes in a new link."""
    links = [
        lent_by(store, running, host=host, ending=end) for host in (HOST, "container1") for end in ("", "-keeping")
    ]
    own = store.lend(DIGEST)
    monkeypatch.setattr(time, "time", lambda now=time.time: now() + 7 * 86400 - 60)
    store.sweep_lent()
    assert [one.exists() for one in (*links, own)] == [True] * 4 + [False]
    monkeypatch.setattr(time, "time", lambda now=time.time: now() + 60)
    store.delete(DIGEST)
    assert not list((store.root / "lent").glob(f"*{DIGEST}"))
    store.sweep_lent()
    assert list((store.root / "lent").iterdir()) == []


def test_a_backup_that_runs_for_weeks_keeps_what_is_deleted(store: ObjectStore) -> None:
    """A backup renews its file in ``lent/`` with each object that it copies."""
    other = store.put(b"other")
    with store.keeping() as path_of:
        mark = next((store.root / "lent").glob("*-keeping"))
        began = mark.stat().st_ctime_ns
        wait_for(lambda: not path_of(other).exists() and mark.stat().st_ctime_ns > began, what="the mark to be renewed")
        store.delete(DIGEST)
        assert path_of(DIGEST).read_bytes() == DATA


def test_a_lent_object_outlives_its_deletion(store: ObjectStore) -> None:
    lent = store.lend(DIGEST)
    store.delete(DIGEST)
    assert lent.read_bytes() == DATA


def test_without_hard_links_a_copy_is_lent(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", no_hard_links)
    lent = store.lend(DIGEST)
    assert lent.parent == store.root / "lent"
    store.delete(DIGEST)
    assert lent.read_bytes() == DATA


def test_a_copy_that_does_not_fit_goes_to_the_temporary_folder(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.copyfile

    def full(source: Path, target: Path, **options: Any) -> Any:
        if Path(target).parent == store.root / "lent":
            Path(target).write_bytes(DATA[:4])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(source, target, **options)

    monkeypatch.setattr(os, "link", no_hard_links)
    monkeypatch.setattr(shutil, "copyfile", full)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    lent = store.lend(DIGEST)
    assert (lent.parent, lent.read_bytes()) == (tmp_path, DATA)
    assert list((store.root / "lent").iterdir()) == []


@pytest.mark.parametrize("links", [True, False])
def test_an_object_that_is_deleted_before_it_is_lent_is_missing(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    if links:
        delete_first(store, monkeypatch, os, "link")
    else:
        monkeypatch.setattr(os, "link", no_hard_links)
        delete_first(store, monkeypatch, shutil, "copyfile")
    with pytest.raises(ObjectMissing, match=f"object {DIGEST} is not in"):
        store.lend(DIGEST)
    assert list((store.root / "lent").iterdir()) == []


def test_only_a_backup_that_runs_keeps_what_is_deleted(store: ObjectStore, running: int, ended: int) -> None:
    other = store.put(b"other")
    kept = lent_by(store, running, ending="-keeping")
    elsewhere = lent_by(store, ended, host="elsewhere", ending="-keeping")
    dead = lent_by(store, ended, ending="-keeping")
    with store.keeping() as path_of:
        store.delete(DIGEST)
        store.delete(DIGEST)
        assert path_of(DIGEST).read_bytes() == DATA
        assert not path_of(other).exists()
    assert list(store.digests()) == [other]
    links = {path for path in (store.root / "lent").iterdir() if path not in (kept, elsewhere, dead)}
    assert links == {
        kept.with_name(f"{HOST}+{running}+0123-{DIGEST}"),
        kept.with_name(f"elsewhere+{ended}+0123-{DIGEST}"),
    }


# --- objects that go or change while they are looked at ----------------------------------------------------------


def test_an_object_that_goes_while_it_is_stored_again_is_written(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The object had the right digest, and was removed before its time was updated."""
    delete_first(store, monkeypatch, os, "utime")
    assert store.put(DATA) == DIGEST
    assert store.read(DIGEST) == DATA


def test_a_link_that_takes_the_place_of_an_object_is_replaced(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The link is not followed, although its target has the right bytes."""
    (tmp_path / "outside").write_bytes(DATA)
    real = ObjectStore.has

    def swapped(self: ObjectStore, digest: str) -> bool:
        found = real(self, digest)
        self.path(digest).unlink()
        self.path(digest).symlink_to(tmp_path / "outside")
        return found

    monkeypatch.setattr(ObjectStore, "has", swapped)
    assert store.put(DATA) == DIGEST
    assert not store.path(DIGEST).is_symlink()
    assert store.path(DIGEST).read_bytes() == DATA


def test_an_error_that_is_not_of_the_object_is_not_taken_for_other_bytes(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller gets the error, and both files are unchanged."""
    before = store.path(DIGEST).stat()

    def broken(*_: Any, **__: Any) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    file = store.spool / "again"
    file.write_bytes(DATA)
    with monkeypatch.context() as patch:
        patch.setattr("storage.objects.store._not_a_link", broken)
        with pytest.raises(OSError, match="Too many open files"):
            store.adopt(file)
    assert file.read_bytes() == DATA
    assert store.path(DIGEST).stat() == before


@pytest.mark.parametrize("name", ["._x-keeping", "a+b-keeping", "{host}+x+y", "{host}+1", ".DS_Store"])
def test_a_file_that_was_not_made_here_is_left_and_stops_nothing(tmp_path: Path, name: str) -> None:
    """Formerly, a file whose name ends in ``-keeping`` made every deletion and every purge fail."""
    store = ObjectStore(tmp_path)
    digest = store.put(b"x")
    foreign = tmp_path / "lent" / name.format(host=store.lend(digest).name.partition("+")[0])
    foreign.touch()
    store.sweep_lent()
    store.delete(digest)
    assert not store.has(digest)
    assert list((tmp_path / "lent").iterdir()) == [foreign]
