"""Proves that a restore writes into an empty archive only, or goes on where the same restore was interrupted."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from storage.backup.create import Backup
from storage.backup.restore import MARK, refuse_occupied, restore
from storage.errors import BackupRefused, IndexRefused, StoreFull
from storage.index import Index
from storage.index.opening import open_checked_index
from storage.index.rebuild import rebuild
from storage.objects.backup_manifest import Manifest, read_manifest
from storage.objects.store import ObjectStore
from tests.support.holdings import Holdings, filled, uid_of
from tests.support.largest_file import largest_file


@pytest.fixture
def held(tmp_path: Path) -> Holdings:
    """A stopped archive of two images, of which ``backup`` has a backup."""
    (tmp_path / "archive").mkdir()
    made = filled(tmp_path / "archive", 2)
    made.index.close()
    file = made.root / "index.sqlite"
    open_checked_index(f"sqlite:///{file}", made.root, holds_objects=True).index.close()
    assert Backup(tmp_path / "backup").make(file, made.root, {"hot": made.store}, lambda _: True).clean
    return made


@pytest.fixture
def manifest(held: Holdings, tmp_path: Path) -> Manifest:
    return read_manifest(tmp_path / "backup")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "restored"
    made.mkdir()
    return made


def refused(manifest: Manifest, root: Path, cold: Path | None = None) -> None:
    refuse_occupied(manifest, root / "index.sqlite", root, cold)


@pytest.mark.parametrize("cold", [False, True])
def test_a_store_with_an_object_is_refused(manifest: Manifest, root: Path, tmp_path: Path, cold: bool) -> None:
    folder = tmp_path / "cold" if cold else root
    ObjectStore(folder)
    refused(manifest, root, tmp_path / "cold")
    ObjectStore(folder).put(b"x")
    said = f"{folder} holds objects; restore into an empty folder, or move these away first"
    with pytest.raises(BackupRefused, match=re.escape(said)):
        refused(manifest, root, tmp_path / "cold")


@pytest.mark.parametrize("name", ["index.sqlite", "journal"])
def test_an_index_or_a_journal_is_never_written_over(manifest: Manifest, root: Path, name: str) -> None:
    """They alone hold what no object holds: holds, deletions and the audit trail."""
    (root / name).mkdir() if name == "journal" else (root / name).write_bytes(b"rows")
    with pytest.raises(BackupRefused, match=f"{root} holds an index or a journal; restore into an empty folder"):
        refused(manifest, root)


def test_an_interrupted_restore_of_another_backup_is_refused(manifest: Manifest, root: Path) -> None:
    ObjectStore(root).put(b"x")
    (root / MARK).write_text(f"{manifest.archive} {manifest.made_at}")
    refused(manifest, root)
    later = replace(manifest, made_at="2030-01-01T00:00:00+00:00")
    with pytest.raises(BackupRefused, match=f"{root} holds an incomplete restore of another backup; empty it first"):
        refused(later, root)


@pytest.mark.parametrize("left", ["restoring", "restoring.making"])
def test_a_restore_that_was_killed_while_it_began_goes_on(
    held: Holdings, manifest: Manifest, root: Path, tmp_path: Path, left: str
) -> None:
    """Formerly, the file ``restoring`` was written in two steps, and an empty one was taken for that of another
    backup."""
    (root / left).write_text("")
    refused(manifest, root)
    report = restore(Backup(tmp_path / "backup"), root / "index.sqlite", root, {"hot": ObjectStore(root)})
    assert (report.clean, report.objects) == (True, 6)
    assert not list(root.glob(f"{MARK}*"))


def test_a_mark_that_does_not_fit_is_no_mark(held: Holdings, root: Path, tmp_path: Path) -> None:
    with largest_file(10), pytest.raises(StoreFull):
        restore(Backup(tmp_path / "backup"), root / "index.sqlite", root, {"hot": ObjectStore(root)})
    assert not (root / MARK).exists()


def test_a_copy_of_a_backup_without_its_lock_is_restored(held: Holdings, root: Path, tmp_path: Path) -> None:
    """A copy of the documented files has no lock file. Formerly, the restore ended with "No such file or directory"."""
    for name in ("lock", "spool", "lent", "state/spool", "state/lent"):
        path = tmp_path / "backup" / name
        path.rmdir() if path.is_dir() else path.unlink()
    assert Backup(tmp_path / "backup").verify().clean
    report = restore(Backup(tmp_path / "backup"), root / "index.sqlite", root, {"hot": ObjectStore(root)})
    assert (report.clean, report.objects) == (True, 6)


@pytest.mark.parametrize("later", ["the other index", "the journal"])
def test_an_index_from_before_the_restore_is_refused(held: Holdings, root: Path, tmp_path: Path, later: str) -> None:
    """It has the identity of the journal. Formerly it was opened, and everything acknowledged since the restore was
    lost silently."""
    former = held.root / "index.sqlite"
    change(former, held.root, [f"before {number}" for number in range(5 if later == "the other index" else 1)])
    store, file = ObjectStore(root), root / "index.sqlite"
    restore(Backup(tmp_path / "backup"), file, root, {"hot": store})
    change(file, root, ["after 1", "after 2"])
    for end in ("", "-wal", "-shm"):
        file.with_name(file.name + end).unlink(missing_ok=True)
    shutil.copy(former, file)
    with pytest.raises(IndexRefused, match=r"have different records . of the audit trail, as happens if one of them"):
        change(file, root, [])
    rebuild(file, root)
    assert change(file, root, []) == [("after 1", "1.2"), ("after 2", "1.2")]


def change(file: Path, root: Path, labels: list[str]) -> list[tuple[str, str]]:
    """Open an archive and put labels on a study. Returns all labels of the archive."""
    index = open_checked_index(f"sqlite:///{file}", root, holds_objects=True).index
    for name in labels:
        index.holds.put_label(name, "1.2", who="user:me")
    found = index.holds.labels()
    index.close()
    return found


def test_objects_of_a_store_that_is_not_configured_stop_it_before_anything_is_written(
    held: Holdings, root: Path, tmp_path: Path
) -> None:
    with pytest.raises(BackupRefused, match=r"holds objects of originals\.path"):
        restore(Backup(tmp_path / "backup"), root / "index.sqlite", root, {})
    assert list(root.iterdir()) == []


def test_what_was_copied_in_part_is_copied_again(held: Holdings, root: Path, tmp_path: Path) -> None:
    store, file = ObjectStore(root), root / "index.sqlite"
    partial = store.path(held.originals[0])
    partial.parent.mkdir()
    partial.write_bytes(b"x")
    (root / "index.sqlite-wal").write_bytes(b"log of another index")
    report = restore(Backup(tmp_path / "backup"), file, root, {"hot": store})
    assert (report.clean, report.rebuilt, report.objects) == (True, False, 6)
    assert {digest: store.read(digest) for digest in held.objects} == held.objects
    assert not (root / MARK).exists()
    restored = Index.open(f"sqlite:///{file}")
    assert [restored.by_uid(uid_of(number)) for number in (1, 2)] == [held.of(1), held.of(2)]
    restored.close()
