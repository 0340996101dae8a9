"""A backup given back into an empty archive: objects first, then journals and reports, and the index last.

``restoring`` below the storage root says which backup is being restored. A restore that was killed finds it, and goes
on; without it, a root that holds anything is refused.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from storage.backup.create import Backup, Progress
from storage.errors import BackupRefused, ObjectDamaged, ObjectMissing
from storage.index import Index
from storage.index.index_trust import damage_of
from storage.index.rebuild import rebuild
from storage.objects.backup_manifest import INDEX, Entry, Manifest
from storage.objects.durability import fsync_file, fsync_folders, full_disk_is_store_full
from storage.objects.inspection import holds_any
from storage.objects.store import ObjectStore, has_digest

MARK = "restoring"
"""File below the storage root while a restore is not complete."""


@dataclass
class RestoreReport:
    """What came of a restore. ``missing``: objects and files that the backup does not hold whole, in words.

    ``rebuilt``: whether the index was made anew from the journal, since the backup does not hold it whole.
    """

    made_at: str = ""
    objects: int = 0
    bytes: int = 0
    files: int = 0
    rebuilt: bool = False
    missing: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not self.missing


def refuse_what_is_held(manifest: Manifest, file: Path, root: Path, cold: Path | None) -> None:
    """A backup is restored into nothing, or where a restore of it was cut off. Raises BackupRefused."""
    if (root / MARK).exists():
        if (root / MARK).read_text() != _identity(manifest):
            raise BackupRefused(f"{root} holds part of another backup that was being restored; empty it first")
        return
    for folder in (root, cold):
        if folder is not None and holds_any(folder / "objects"):
            raise BackupRefused(f"{folder} holds objects; restore into an empty folder, or move these away first")
    if file.exists() or (root / "journal").is_dir():
        raise BackupRefused(
            f"{root} holds an index or a journal; restore into an empty folder, or move these away first"
        )


def restore(
    backup: Backup,
    file: Path,
    root: Path,
    stores: Mapping[str, ObjectStore],
    take_in_objects: Callable[[Index], int] = lambda index: 0,
    progress: Progress = lambda done, of: None,
) -> RestoreReport:
    """Give a backup back to the storage root ``root`` with the index ``file``. The caller has looked that it is empty.

    The index is checked at the end. ``take_in_objects``: see ``rebuild``. Raises BackupRefused, StoreFull.
    """
    with backup.opened() as (manifest, objects, state):
        absent = {one.name for one in manifest.objects} - set(stores)
        if absent:
            raise BackupRefused("the backup holds objects of originals.path; name an empty folder there in config.yaml")
        (root / MARK).write_text(_identity(manifest))
        made, of = RestoreReport(manifest.made_at), len(manifest.objects) + len(manifest.files)
        for entry in manifest.objects:
            try:
                _give_object(objects, stores[entry.name], entry)
                made.objects, made.bytes = made.objects + 1, made.bytes + entry.bytes
            except (ObjectMissing, ObjectDamaged):
                made.missing.append(f"object {entry.digest}")
            progress(made.objects + len(made.missing), of)
        for end in ("-wal", "-shm"):  # a log left behind would be taken for one of the restored index
            file.with_name(file.name + end).unlink(missing_ok=True)
        for entry in sorted(manifest.files, key=lambda one: one.name == INDEX):
            try:
                _give_file(state, entry, file if entry.name == INDEX else root / entry.name)
                made.files += 1
            except (ObjectMissing, ObjectDamaged):
                made.missing.append(entry.name)
        progress(of, of)
    if not file.exists() or damage_of(file, "integrity_check"):
        rebuild(file, root, take_in_objects=take_in_objects)
        made.rebuilt = True
    (root / MARK).unlink()
    fsync_folders(root)
    return made


def _identity(manifest: Manifest) -> str:
    return f"{manifest.archive} {manifest.made_at}"


def _give_object(objects: ObjectStore, store: ObjectStore, entry: Entry) -> None:
    """An object that is there with its size was restored before a restore was cut off."""
    if not (store.has(entry.digest) and store.path(entry.digest).stat().st_size == entry.bytes):
        store.take_from(objects, entry.digest)


def _give_file(state: ObjectStore, entry: Entry, target: Path) -> None:
    """Put a file in its place, complete and on disk. Raises ObjectMissing, ObjectDamaged."""
    target.parent.mkdir(parents=True, exist_ok=True)
    copied = target.with_name(f"{target.name}.restored")  # the index may be on another file system
    with full_disk_is_store_full():
        shutil.copyfile(state.held(entry.digest), copied)
        if not has_digest(copied, entry.digest):
            raise ObjectDamaged(f"{entry.name} does not have the digest that the manifest names")
        with copied.open("rb") as opened:
            fsync_file(opened)
        copied.replace(target)
    fsync_folders(target.parent)
