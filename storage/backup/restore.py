"""Restores a backup into an empty archive: objects first, then journals and reports, and the index last.

The file ``restoring`` below the storage root names the backup that is being restored. After a restore was killed, the
next one finds the file and continues. Without the file, a storage root that is not empty is refused.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from storage.backup.create import Backup, Progress, newest_record_in
from storage.errors import BackupRefused, ObjectDamaged, ObjectMissing
from storage.index import Index
from storage.index.index_trust import damage_of
from storage.index.rebuild import rebuild
from storage.objects.backup_manifest import INDEX, Entry, Manifest
from storage.objects.durability import fsync_file, fsync_folders, full_disk_is_store_full, make_folder, replace_file
from storage.objects.file_modes import give_to_owner
from storage.objects.inspection import holds_any
from storage.objects.store import ObjectStore, has_digest

MARK = "restoring"
"""Name of the file below the storage root that exists until a restore is complete."""


@dataclass
class RestoreReport:
    """The result of a restore. ``missing``: names of objects and files that are missing or damaged in the backup.

    ``rebuilt``: whether the index was rebuilt from the journal, because it is missing or damaged in the backup.
    ``trail_ends``: the time of the newest record of the audit trail in the backup, which holds no later decision;
    empty if there is no record, or if it is damaged.
    """

    made_at: str = ""
    trail_ends: str = ""
    objects: int = 0
    bytes: int = 0
    files: int = 0
    rebuilt: bool = False
    missing: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not self.missing


def refuse_occupied(manifest: Manifest, file: Path, root: Path, cold: Path | None) -> None:
    """Raises BackupRefused unless the archive is empty or a restore of this backup was interrupted there."""
    if (root / MARK).exists():
        if (root / MARK).read_text() not in (_identity(manifest), ""):  # an earlier version could leave it empty
            raise BackupRefused(f"{root} holds an incomplete restore of another backup; empty it first")
        return
    for folder in (root, cold):
        if folder is not None and holds_any(folder):
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
    """Restore a backup to the storage root ``root`` with the index ``file``. A damaged index is rebuilt at the end.

    The caller has called ``refuse_occupied``. ``take_in_objects``: see ``rebuild``. Raises BackupRefused, StoreFull.
    """
    with backup.opened() as (manifest, objects, state):
        absent = {one.name for one in manifest.objects} - set(stores)
        if absent:
            raise BackupRefused("the backup holds objects of originals.path; name an empty folder there in config.yaml")
        replace_file(root / MARK, [_identity(manifest).encode()])
        newest = newest_record_in(manifest, state)
        made = RestoreReport(manifest.made_at, newest.at if newest is not None else "")
        of = len(manifest.objects) + len(manifest.files)
        for entry in manifest.objects:
            try:
                _restore_object(objects, stores[entry.name], entry)
                made.objects, made.bytes = made.objects + 1, made.bytes + entry.bytes
            except (ObjectMissing, ObjectDamaged):
                made.missing.append(f"object {entry.digest}")
            progress(made.objects + len(made.missing), of)
        made.missing += [f"object {digest}" for digest in manifest.missing]
        for end in ("-wal", "-shm"):  # SQLite would apply a leftover write-ahead log to the restored index
            file.with_name(file.name + end).unlink(missing_ok=True)
        for entry in sorted(manifest.files, key=lambda one: one.name == INDEX):
            try:
                _restore_file(state, entry, file if entry.name == INDEX else root / entry.name)
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


def _restore_object(objects: ObjectStore, store: ObjectStore, entry: Entry) -> None:
    """Copy an object unless an interrupted restore has copied it already."""
    if not (store.has(entry.digest) and store.path(entry.digest).stat().st_size == entry.bytes):
        store.take_from(objects, entry.digest)


def _restore_file(state: ObjectStore, entry: Entry, target: Path) -> None:
    """Write a file to its final path. On return it is complete and on disk. Raises ObjectMissing, ObjectDamaged."""
    make_folder(target.parent)
    give_to_owner(target.parent)
    copied = target.with_name(f"{target.name}.restored")  # the index may be on another file system
    with full_disk_is_store_full():
        shutil.copyfile(state.held(entry.digest), copied)
        if not has_digest(copied, entry.digest):
            raise ObjectDamaged(f"{entry.name} does not have the digest in the manifest")
        with copied.open("rb") as opened:
            fsync_file(opened)
        give_to_owner(copied)
        copied.replace(target)
    fsync_folders(target.parent)
