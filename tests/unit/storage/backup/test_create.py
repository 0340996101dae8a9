"""Proves that a backup is complete or not finished, and that whatever stops it leaves the former backup valid."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from storage.backup.create import Backup, BackupReport
from storage.backup.restore import restore
from storage.errors import BackupRefused
from storage.index import Index
from storage.index.integrity import Integrity
from storage.index.opening import open_checked_index
from storage.index.snapshot import NamedObject
from storage.objects.backup_manifest import COPY, NAME, read_manifest
from storage.objects.store import ObjectStore
from tests.support.holdings import Holdings, filled, uid_of


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Holdings]:
    """An archive of two images: six objects."""
    (tmp_path / "archive").mkdir()
    made = filled(tmp_path / "archive", 2)
    made.index.close()
    made.index = open_checked_index(url_of(made), made.root, holds_objects=True).index
    yield made
    made.index.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "backup"


def url_of(held: Holdings) -> str:
    return f"sqlite:///{held.root / 'index.sqlite'}"


def back_up(
    held: Holdings,
    folder: Path,
    progress: Callable[[int, int], None] = lambda done, of: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> BackupReport:
    rows = Integrity(held.index.engine)

    def promised(one: NamedObject) -> bool:
        return bool(rows.expected(one.digest, one.digest + "0"))

    file = held.root / "index.sqlite"
    return Backup(folder).make(file, held.root, {"hot": held.store}, promised, progress, cancelled)


def delete(held: Holdings, number: int) -> None:
    """Delete an image with its objects, as on a file system without hard links, where nothing preserves them for a
    backup."""
    held.index.tombstones.mark_deleted("image", uid_of(number), reason="not ours", who="user:me")
    held.index.tombstones.delete_rows()
    for digest in objects_of(held, number):
        held.store.path(digest).unlink()


def objects_of(held: Holdings, number: int) -> set[str]:
    return {kind[number - 1] for kind in (held.originals, held.bases, held.renditions)}


def test_every_object_of_the_archive_is_copied(held: Holdings, folder: Path) -> None:
    report = back_up(held, folder)
    assert (report.clean, report.objects, report.copied) == (True, 6, 6)
    assert {digest: ObjectStore(folder).read(digest) for digest in held.objects} == held.objects
    again = back_up(held, folder)
    assert (again.clean, again.objects, again.copied) == (True, 6, 0)


@pytest.mark.parametrize("steps", [0, 3])
def test_a_cancelled_backup_is_not_finished_and_leaves_the_former(held: Holdings, folder: Path, steps: int) -> None:
    back_up(held, folder)
    former = read_manifest(folder)
    held.index.holds.put_label("teaching", "1.2", who="user:me")
    asked = iter(range(100))
    report = back_up(held, folder, cancelled=lambda: next(asked) >= steps)
    assert (report.finished, report.clean) == (False, False)
    assert read_manifest(folder) == former
    assert Backup(folder).verify().clean
    assert list((held.root / "lent").iterdir()) == []


def test_a_cancelled_first_backup_is_none(held: Holdings, folder: Path) -> None:
    asked = iter(range(100))
    assert not back_up(held, folder, cancelled=lambda: next(asked) >= 2).finished
    with pytest.raises(BackupRefused, match="holds no complete backup"):
        Backup(folder).verify()
    assert back_up(held, folder).copied == 4


def test_an_image_that_is_deleted_meanwhile_is_in_no_backup(held: Holdings, folder: Path) -> None:
    """The state is copied once more, so that the restored index does not name objects that are gone."""
    rounds: list[int] = []

    def progress(done: int, of: int) -> None:
        if done == 0:
            rounds.append(of)
        if len(rounds) == 1 and done == 0:
            delete(held, 2)

    report = back_up(held, folder, progress)
    assert (report.clean, rounds) == (True, [6, 3])
    assert {one.digest for one in read_manifest(folder).objects} == objects_of(held, 1)
    (copied,) = (one.digest for one in read_manifest(folder).files if one.name == "index.sqlite")
    restored = Index.open(f"sqlite:///{ObjectStore(folder / 'state').path(copied)}")
    assert (restored.by_uid(uid_of(1)) is None, restored.by_uid(uid_of(2)) is None) == (False, True)
    restored.close()


def test_a_backup_that_never_catches_up_is_refused_and_leaves_the_former(held: Holdings, folder: Path) -> None:
    back_up(held, folder)
    former = read_manifest(folder)
    gone = held.originals[0]
    for store in (held.store, ObjectStore(folder)):
        store.delete(gone)
    with pytest.raises(BackupRefused, match="deleted faster than they were copied; make the backup at a quieter time"):
        Backup(folder).make(held.root / "index.sqlite", held.root, {"hot": held.store}, lambda _: False)
    assert read_manifest(folder) == former


def test_an_object_that_the_backup_cannot_take_is_not_reported_as_lost_by_the_archive(
    held: Holdings, folder: Path
) -> None:
    """In the backup, a file has the name of a folder of objects."""
    (folder / "objects").mkdir(parents=True)
    taken = folder / "objects" / held.originals[0][:2]
    taken.write_bytes(b"")
    with pytest.raises(BackupRefused, match=f"{folder} cannot be written: File exists"):
        back_up(held, folder)
    taken.unlink()
    assert back_up(held, folder).clean


def test_a_backup_that_lacks_an_object_of_the_archive_is_not_clean(
    held: Holdings, folder: Path, tmp_path: Path
) -> None:
    """The archive has lost the object, so it cannot be copied."""
    lost = held.originals[0]
    held.store.delete(lost)
    assert back_up(held, folder).missing == [lost]
    assert Backup(folder).verify().findings == [f"object {lost} is not in it: the archive did not have it whole"]
    root = tmp_path / "restored"
    root.mkdir()
    report = restore(Backup(folder), root / "index.sqlite", root, {"hot": ObjectStore(root)})
    assert (report.clean, report.missing) == (False, [f"object {lost}"])


def test_a_backup_whose_manifest_is_damaged_is_named_and_repaired(held: Holdings, folder: Path) -> None:
    """Formerly, the message advised to make the backup again, and this was refused as well."""
    back_up(held, folder)
    data = bytearray((folder / NAME).read_bytes())
    data[100] ^= 1
    (folder / NAME).write_bytes(data)
    (said,) = Backup(folder).verify().findings
    assert "is damaged" in said
    assert back_up(held, folder).clean
    assert Backup(folder).verify().clean
    for name in (NAME, COPY):
        (folder / name).write_bytes(data)
    with pytest.raises(BackupRefused, match=f"delete {NAME} and {COPY} of the backup, and make it again"):
        back_up(held, folder)
    for name in (NAME, COPY):
        (folder / name).unlink()
    assert back_up(held, folder).copied == 0
    assert Backup(folder).verify().clean


def test_an_archive_that_was_restored_from_an_older_backup_replaces_no_newer(held: Holdings, tmp_path: Path) -> None:
    """The restored archive has the same identity. A backup of it would delete the index and the journals of the newer
    backup."""
    older, newer = tmp_path / "older", tmp_path / "newer"
    held.index.holds.put_label("known to both", "1.2", who="user:me")
    back_up(held, older)
    held.index.holds.put_label("known to the newer one", "1.2", who="user:me")
    back_up(held, newer)
    files = read_manifest(newer).files
    held.index.close()
    root = tmp_path / "restored"
    root.mkdir()
    restore(Backup(older), root / "index.sqlite", root, {"hot": ObjectStore(root)})
    held.root, held.store = root, ObjectStore(root)
    held.index = open_checked_index(url_of(held), root, holds_objects=True).index
    assert back_up(held, older).clean
    for name in "one", "another":  # as many changes as the newer backup has, or more
        held.index.holds.put_label(name, "1.2", who="user:me")
        with pytest.raises(BackupRefused, match=r"with records that this archive lacks \(record 2 of the audit trail"):
            back_up(held, newer)
    assert read_manifest(newer).files == files
    assert Backup(newer).verify().clean


def test_a_folder_that_cannot_be_made_is_refused(held: Holdings, folder: Path) -> None:
    folder.write_bytes(b"a file")
    with pytest.raises(BackupRefused, match=f"{folder} cannot be used: (Not a directory|File exists)"):
        back_up(held, folder)
    assert folder.read_bytes() == b"a file"


def test_two_processes_never_use_one_backup(held: Holdings, folder: Path) -> None:
    back_up(held, folder)
    said = f"another process is using the backup {folder}; wait until it ends"
    with Backup(folder).opened() as (manifest, objects, _), Backup(folder).opened():
        with pytest.raises(BackupRefused, match=said):
            back_up(held, folder)
        assert all(objects.has(one.digest) for one in manifest.objects)
    assert back_up(held, folder).clean
