"""Proves that storage.objects.store keeps objects intact and names what is missing, damaged or too large."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import storage.objects.store as objects_module
from storage.errors import ConfigError, ObjectDamaged, ObjectMissing, StoreFull
from storage.objects.durability import full_disk_is_store_full
from storage.objects.store import ObjectStore

DATA = b"bytes of an object"
DIGEST = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore(tmp_path / "store")


@pytest.mark.parametrize("folder", ["spool", "lent", "damaged", "orphans"])
def test_a_folder_on_another_file_system_than_the_objects_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    """Otherwise every store would be answered with A700, or no damaged object could be moved aside and no scrub would
    end.

    The kernel gives this error for two mounts, whatever the file.
    """
    root = tmp_path / "store"
    (root / folder).mkdir(parents=True)
    assert ObjectStore(root).root == root
    real = Path.rename

    def rename(source: Path, target: Path) -> Path:
        assert target.parent.name == "objects"
        if source.parent.name == folder:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        return real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        with pytest.raises(ConfigError, match=f"{folder} and .*objects are on different file systems"):
            ObjectStore(root)


def spooled(store: ObjectStore, data: bytes = DATA, name: str = "incoming") -> Path:
    path = store.spool / name
    path.write_bytes(data)
    return path


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# --- storing and reading --------------------------------------------------------------------------------------


def test_an_adopted_file_is_held_under_its_digest(store: ObjectStore) -> None:
    file = spooled(store)
    assert store.adopt(file) == DIGEST
    assert not file.exists()
    assert store.held(DIGEST) == store.path(DIGEST) == store.root / "objects" / DIGEST[:2] / DIGEST
    assert store.read(DIGEST) == DATA
    assert files_below(store.root) == {f"objects/{DIGEST[:2]}/{DIGEST}"}


@pytest.mark.parametrize("data", [b"", b"x", bytes(3_000_000)])
def test_put_bytes_are_held_under_their_digest(store: ObjectStore, data: bytes) -> None:
    digest = store.put(data)
    assert digest == hashlib.sha256(data).hexdigest()
    assert store.read(digest) == data
    assert list(store.spool.iterdir()) == []


def test_storing_twice_keeps_one_object_and_writes_nothing(store: ObjectStore) -> None:
    """Only the time of the object is updated, so that it is not removed as an orphan before its row is committed."""
    assert store.put(DATA) == DIGEST
    os.utime(store.held(DIGEST), (1e9, 1e9))
    before = store.held(DIGEST).stat()
    assert store.put(DATA) == DIGEST
    file = spooled(store)
    assert store.adopt(file) == DIGEST
    assert not file.exists()
    after = store.held(DIGEST).stat()
    assert before.st_ino == after.st_ino
    assert after.st_mtime > before.st_mtime
    assert list(store.digests()) == [DIGEST]


@pytest.mark.parametrize("folder", [True, False], ids=["another folder", "another object"])
def test_an_object_stored_by_two_threads_is_durable_before_either_returns(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, folder: bool
) -> None:
    """The first thread has renamed the object, but has not synced the folder yet."""
    final, synced = store.path(DIGEST), []
    final.parent.mkdir()
    if not folder:
        final.write_bytes(DATA)
    monkeypatch.setattr(objects_module, "fsync_folders", synced.append)
    store.put(DATA)
    assert synced == [final.parent.parent, final.parent]


def test_a_reopened_store_has_its_objects(store: ObjectStore) -> None:
    store.put(DATA)
    assert ObjectStore(store.root).read(DIGEST) == DATA


def test_digests_are_ordered(store: ObjectStore) -> None:
    assert list(store.digests()) == []
    digests = [store.put(bytes([number])) for number in range(60)]
    assert len(set(digests)) == 60
    assert list(store.digests()) == sorted(digests)


def test_files_that_are_no_objects_are_no_digests(store: ObjectStore) -> None:
    """File managers and people leave such files. Formerly, a rebuild of the index ended with an exception on them."""
    digest, objects = store.put(DATA), store.root / "objects"
    for name in (b".DS_Store", b"00", DIGEST[:2].encode() + b"/letter.txt", DIGEST[:2].encode() + b"/\xff\xfe"):
        (objects / os.fsdecode(name)).write_bytes(b"x")
    (objects / "lost+found").mkdir()
    (objects / "lost+found" / ("a" * 64)).write_bytes(b"x")
    assert list(store.digests()) == [digest]


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.EIO])
def test_an_object_that_cannot_be_read_is_replaced_when_it_is_stored_again(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Formerly, its sender got A700 each time."""
    store.put(DATA)
    before, real = store.path(DIGEST).stat().st_ino, os.open

    def refused(path: object, *arguments: int, **named: int) -> int:
        if Path(str(path)).name == DIGEST and Path(str(path)).stat().st_ino == before:
            raise OSError(code, os.strerror(code))
        return real(str(path), *arguments, **named)

    monkeypatch.setattr(os, "open", refused)
    assert store.put(DATA) == DIGEST
    assert store.read(DIGEST) == DATA
    assert store.path(DIGEST).stat().st_ino != before


def test_an_object_can_be_deleted_twice(store: ObjectStore) -> None:
    other = store.put(b"another")
    store.put(DATA)
    store.delete(DIGEST)
    store.delete(DIGEST)
    with pytest.raises(ObjectMissing, match=DIGEST):
        store.held(DIGEST)
    assert list(store.digests()) == [other]
    assert store.put(DATA) == DIGEST
    assert store.read(DIGEST) == DATA


def test_threads_that_store_the_same_bytes_all_succeed(store: ObjectStore) -> None:
    barrier, results = threading.Barrier(8), []

    def work(number: int) -> None:
        data = DATA if number % 2 else b"other bytes"
        barrier.wait()
        results.append((store.put(data), hashlib.sha256(data).hexdigest()))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert all(got == expected for got, expected in results)
    assert len(list(store.digests())) == 2
    assert list(store.spool.iterdir()) == []


# --- what is missing, damaged or hostile ----------------------------------------------------------------------


def test_an_absent_object_is_missing(store: ObjectStore) -> None:
    assert not store.path(DIGEST).exists()
    for ask in (store.held, store.read):
        with pytest.raises(ObjectMissing, match=f"{DIGEST} is not in"):
            ask(DIGEST)


def test_a_folder_with_the_name_of_an_object_is_not_an_object(store: ObjectStore) -> None:
    store.path(DIGEST).mkdir(parents=True)
    with pytest.raises(ObjectMissing):
        store.held(DIGEST)


@pytest.mark.parametrize("damage", ["flipped", "cut", "longer", "empty"])
def test_changed_bytes_are_detected(store: ObjectStore, damage: str) -> None:
    store.put(DATA)
    bad = {"flipped": bytes([DATA[0] ^ 1]) + DATA[1:], "cut": DATA[:-1], "longer": DATA + b"\0", "empty": b""}[damage]
    store.path(DIGEST).write_bytes(bad)
    with pytest.raises(ObjectDamaged, match=DIGEST):
        store.read(DIGEST)


@pytest.mark.parametrize(
    "digest",
    [
        "",
        "../x",
        "../" * 20 + "etc",
        "/etc/passwd",
        DIGEST.upper(),
        DIGEST[:-1],
        DIGEST + "0",
        DIGEST[:-1] + "g",
        DIGEST[:-1] + "\n",
        DIGEST[:-1] + "\0",
        DIGEST[:-2] + "/.",
        "." * 64,
        "/" * 64,
        "٠" * 64,  # digits, but not ASCII
    ],
)
def test_an_invalid_digest_never_becomes_a_path(store: ObjectStore, digest: str) -> None:
    if DIGEST.upper() == digest:
        store.put(DATA)  # stored under another name
    before = files_below(store.root.parent)
    asks: list[Callable[[str], Any]] = [store.path, store.held, store.read, store.delete]
    for ask in asks:
        with pytest.raises(ObjectMissing, match="is not a SHA-256 digest"):
            ask(digest)
    assert files_below(store.root.parent) == before


# --- durability -----------------------------------------------------------------------------------------------


class Recorder:
    """Records the calls that make an object durable, in order."""

    def __init__(
        self, root: Path, monkeypatch: pytest.MonkeyPatch, fail: Callable[[str], None] = lambda step: None
    ) -> None:
        self.steps: list[str] = []
        fsync, replace, link = os.fsync, Path.replace, os.link

        def fsynced(handle: int) -> None:
            folders = {path.stat().st_ino: path.name for path in root.rglob("*") if path.is_dir()}
            self.note(f"fsync {folders.get(os.fstat(handle).st_ino, 'bytes')}", fail)
            fsync(handle)

        def replaced(source: Path, target: Path) -> Path:
            self.note("final name", fail)
            return replace(source, target)

        def linked(*_args: Any, **_options: Any) -> None:
            self.note("final name", fail)
            link(*_args, **_options)

        monkeypatch.setattr(os, "fsync", fsynced)
        monkeypatch.setattr(Path, "replace", replaced)
        monkeypatch.setattr(os, "link", linked)

    def note(self, step: str, fail: Callable[[str], None]) -> None:
        self.steps.append(step)
        fail(step)


@pytest.mark.parametrize("how", ["put", "adopt"])
def test_bytes_are_synced_before_the_rename_and_the_rename_before_success(
    store: ObjectStore, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(store.root, monkeypatch)
    store.put(DATA) if how == "put" else store.adopt(spooled(store))
    assert "final name" in recorder.steps
    name = recorder.steps.index("final name")
    assert "fsync bytes" in recorder.steps[:name]
    assert f"fsync {DIGEST[:2]}" in recorder.steps[name:]  # the folder with the new name in it
    assert "fsync objects" in recorder.steps  # the folder with the new folder in it


def test_a_second_object_of_a_folder_does_not_sync_the_folder_above_again(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = (f"{number}".encode() for number in range(10_000))
    store.put(next(text for text in texts if hashlib.sha256(text).hexdigest()[:2] == DIGEST[:2]))
    recorder = Recorder(store.root, monkeypatch)
    store.put(DATA)
    assert recorder.steps == ["fsync bytes", "final name", f"fsync {DIGEST[:2]}"]


def test_an_object_that_is_deleted_while_it_is_read_is_missing(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put(DATA)
    path, real = store.held(DIGEST), Path.read_bytes

    def deleted_before(self: Path) -> bytes:
        path.unlink()
        return real(self)

    monkeypatch.setattr(Path, "read_bytes", deleted_before)
    with pytest.raises(ObjectMissing, match=f"{DIGEST} is not in"):
        store.read(DIGEST)


def test_an_object_that_was_not_synced_is_not_renamed(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(step: str) -> None:
        if step == "fsync bytes":
            raise OSError(errno.EIO, "Input/output error")

    Recorder(store.root, monkeypatch, fail)
    with pytest.raises(OSError, match="Input/output error"):
        store.put(DATA)
    with pytest.raises(ObjectMissing):
        store.held(DIGEST)


# --- no room --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize("step", ["fsync bytes", "final name"])
def test_a_full_disk_stores_nothing_and_says_so(
    store: ObjectStore, code: int, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(at: str) -> None:
        if at == step:
            raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        Recorder(store.root, patch, fail)
        with pytest.raises(StoreFull, match=os.strerror(code)):
            store.put(DATA)
        file = spooled(store)
        with pytest.raises(StoreFull, match=os.strerror(code)):
            store.adopt(file)
    assert file.read_bytes() == DATA  # the caller still owns it
    assert files_below(store.root) == {"spool/incoming"}
    assert store.adopt(file) == DIGEST


def test_another_disk_error_is_not_store_full() -> None:
    with pytest.raises(OSError, match="denied"), full_disk_is_store_full():
        raise OSError(errno.EACCES, "Permission denied")


SMALL_DISK = """
import os, resource, signal, sys
from pathlib import Path
from storage.errors import StoreFull
from storage.objects.store import ObjectStore

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = ObjectStore(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
held = store.put(bytes(90_000))
try:
    store.put(bytes(200_000))
except StoreFull as error:
    print("full:", error)
assert list(store.digests()) == [held], list(store.digests())
assert not list(store.spool.iterdir()), "half an object is left over"
assert store.read(held) == bytes(90_000)
print("still works:", store.put(b"small"))
"""


def test_a_partial_write_stores_nothing(tmp_path: Path) -> None:
    """The write fails with EFBIG, which a real limit in a child process causes."""
    done = subprocess.run(
        [sys.executable, "-c", SMALL_DISK, str(tmp_path)], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "full: no room for the object: File too large" in done.stdout
    assert f"still works: {hashlib.sha256(b'small').hexdigest()}" in done.stdout


def test_check_room_keeps_min_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ObjectStore(tmp_path, min_free=1000)
    usage = shutil.disk_usage(tmp_path)
    asked = []

    def free(number: int) -> Callable[[Path], Any]:
        def answer(path: Path) -> Any:
            asked.append(path)
            return usage._replace(free=number)

        return answer

    monkeypatch.setattr(shutil, "disk_usage", free(1500))
    store.check_room()
    store.check_room(500)
    with pytest.raises(StoreFull, match=r"1500 bytes free below .*, 1000 must stay free"):
        store.check_room(501)
    monkeypatch.setattr(shutil, "disk_usage", free(999))
    with pytest.raises(StoreFull):
        store.check_room()
    assert set(asked) == {tmp_path}


def test_a_disk_with_less_than_min_free_is_full(tmp_path: Path) -> None:
    ObjectStore(tmp_path).check_room()
    with pytest.raises(StoreFull, match="must stay free"):
        ObjectStore(tmp_path, min_free=1 << 60).check_room()


# --- the spool ------------------------------------------------------------------------------------------------


def test_sweeping_empties_the_spool_and_nothing_else(store: ObjectStore) -> None:
    store.put(DATA)
    spooled(store, name="half")
    (store.spool / "folder" / "deeper").mkdir(parents=True)
    (store.spool / "folder" / "deeper" / "file").write_bytes(b"x")
    store.sweep_spool()
    assert list(store.spool.iterdir()) == []
    assert store.spool.is_dir()
    assert store.read(DIGEST) == DATA
    store.sweep_spool()


def test_opening_a_store_does_not_change_the_spool(store: ObjectStore) -> None:
    file = spooled(store)
    ObjectStore(store.root)
    assert file.exists()  # another process may be receiving it


def test_sweeping_does_not_follow_links_out_of_the_spool(store: ObjectStore, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_bytes(b"x")
    (store.spool / "link").symlink_to(outside)
    (store.spool / "file link").symlink_to(outside / "kept")
    store.sweep_spool()
    assert (outside / "kept").read_bytes() == b"x"
