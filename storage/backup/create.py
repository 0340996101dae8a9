"""Makes an incremental backup of an archive in a folder, while the archive serves, and verifies it.

``objects/`` holds the objects of both stores, named by digest. ``state/objects/`` holds the files of the index, the
journals and the reports, named by digest too. ``manifest.jsonl`` lists which of these belong to the backup.

The order of copying makes a backup consistent. The state is copied first, as of one point in time. Then every object
that this state refers to is copied. Objects never change, and a row is committed only after its objects are on disk, so
all of these objects exist already. An object may be deleted meanwhile, because an original was packed, purged or
deleted. The store keeps a hard link to it until the backup ends (``ObjectStore.keeping``). On a file system without
hard links, the state is copied again until no object that the index still refers to is missing. Each round copies only
what is new.

A backup that is killed has only added objects and files. The previous manifest stays valid until one rename replaces
it. Objects are never removed from a backup; files of the previous state are removed after that rename.
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from storage.errors import BackupRefused, JournalDamaged, ObjectDamaged, ObjectMissing
from storage.index.snapshot import NamedObject, Snapshot, snapshot_of
from storage.index.trail_rows import record_digest
from storage.objects.backup_manifest import (
    COPY,
    NAME,
    Entry,
    Manifest,
    damage_of_manifest,
    has_manifest,
    read_manifest,
    write_manifest,
)
from storage.objects.inspection import Condition, examine, set_aside
from storage.objects.store import ObjectStore, has_digest
from storage.objects.trail_journal import is_trail_segment, newest_record
from storage.records import TrailRecord

_STATE = "state"
_OWN_NAMES = {NAME, COPY, f"{NAME}.making", _STATE, "objects", "spool", "lent", "damaged", "lock", "lost+found"}
_ROUNDS = 10
"""Maximum number of copies of the state while objects are being deleted; each takes less time than the last."""

Progress = Callable[[int, int], None]


@dataclass
class BackupReport:
    """The result of a backup. ``copied``, ``bytes_copied``: objects that this run added, in number and bytes.

    ``missing``: digests of objects that the index refers to, and that neither a store nor the backup holds whole.
    ``only_here``: digests of objects that no store holds whole any more, and that an earlier backup has copied.
    """

    archive: str = ""
    objects: int = 0
    bytes: int = 0
    files: int = 0
    copied: int = 0
    bytes_copied: int = 0
    missing: list[str] = field(default_factory=list)
    only_here: list[str] = field(default_factory=list)
    finished: bool = False

    @property
    def clean(self) -> bool:
        """Whether the backup is complete, and both it and the archive hold every object."""
        return self.finished and not self.missing and not self.only_here


@dataclass
class BackupCheck:
    """The result of verifying a backup. ``findings``: a description of each damaged or missing file or object."""

    made_at: str = ""
    checked: int = 0
    bytes: int = 0
    findings: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not self.findings


class Backup:
    """The backup in one folder. Only one process at a time may write to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def make(
        self,
        file: Path,
        root: Path,
        stores: Mapping[str, ObjectStore],
        promised: Callable[[NamedObject], bool],
        progress: Progress = lambda done, of: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> BackupReport:
        """Update the backup from the archive below ``root`` with the index ``file``. The node may serve meanwhile.

        ``promised(object)`` says whether the index still refers to an object. If ``cancelled()`` becomes true, the
        report is not ``finished``, and the former manifest stays. Raises BackupRefused, StoreFull.
        """

        def is_lost(one: NamedObject) -> bool:
            return promised(one) and not examine(stores[one.store], one.digest).whole

        self._refuse_another_folder()
        with self._locked() as (objects, state), ExitStack() as stack:
            kept = {name: stack.enter_context(store.keeping()) for name, store in stores.items()}
            made = BackupReport()
            for _ in range(_ROUNDS):
                with snapshot_of(file, root, state.spool) as taken:
                    self._refuse_another_archive(taken, state)
                    files = [_kept(state, name, path) for name, path in taken.files.items()]
                held, former, lost = self._copy(objects, stores, kept, taken, made, progress, cancelled)
                if cancelled():
                    return made
                if all(map(is_lost, lost)):
                    break
            else:
                raise BackupRefused(
                    "objects were deleted faster than they were copied; make the backup at a quieter time"
                )
            made.missing = [one.digest for one in lost]
            made.only_here = [one.digest for one in former if is_lost(one)]
            self._commit(state, taken, files, held, made)
            return made

    def verify(self, progress: Progress = lambda done, of: None) -> BackupCheck:
        """Read every file and object and compare it with its digest. Raises BackupRefused.

        Damaged files and objects are moved to ``damaged/`` if the backup is writable, so that the next backup copies
        them again.
        """
        with self.opened() as (manifest, objects, state):
            found = BackupCheck(manifest.made_at, findings=damage_of_manifest(self.folder))
            of = len(manifest.files) + len(manifest.objects)
            for store, entries in ((state, manifest.files), (objects, manifest.objects)):
                for entry in entries:
                    result = examine(store, entry.digest)
                    found.checked += 1
                    found.bytes += result.bytes_read
                    if not result.whole:
                        what = entry.name if store is state else f"object {entry.digest}"
                        found.findings.append(f"{what} is {result.condition.value}: {result.detail or entry.digest}")
                    if result.condition is Condition.DAMAGED:
                        with suppress(OSError):
                            set_aside(store, entry.digest)
                    progress(found.checked, of)
            found.findings += [
                f"object {one} is not in it: the archive did not have it whole" for one in manifest.missing
            ]
        return found

    @contextmanager
    def opened(self) -> Iterator[tuple[Manifest, ObjectStore, ObjectStore]]:
        """Lock the backup and yield its manifest, object store and state store. Raises BackupRefused."""
        manifest = read_manifest(self.folder)
        with self._locked(sweep=False) as (objects, state):
            yield manifest, objects, state

    def _copy(
        self,
        objects: ObjectStore,
        stores: Mapping[str, ObjectStore],
        kept: Mapping[str, Callable[[str], Path]],
        taken: Snapshot,
        made: BackupReport,
        progress: Progress,
        cancelled: Callable[[], bool],
    ) -> tuple[list[Entry], list[NamedObject], list[NamedObject]]:
        """Copy the objects that the backup lacks. Returns three lists: the objects that the backup then holds, those of
        them that no store holds whole any more, and the objects that neither a store nor the backup holds whole."""
        held: list[Entry] = []
        former: list[NamedObject] = []
        lost: list[NamedObject] = []
        for done, one in enumerate(taken.objects):
            progress(done, len(taken.objects))
            if cancelled():
                break
            try:
                size, copied = _take(objects, stores[one.store], kept[one.store](one.digest), one.digest)
                made.copied += copied
                made.bytes_copied += size * copied
            except (ObjectMissing, ObjectDamaged, OSError) as error:
                if isinstance(error, OSError) and examine(stores[one.store], one.digest).whole:
                    raise BackupRefused(f"{self.folder} cannot be written: {error.strerror}") from error
                if not has_digest(objects.path(one.digest), one.digest):
                    lost.append(one)
                    continue
                former.append(one)
                size = objects.path(one.digest).stat().st_size
            held.append(Entry(one.digest, size, one.store))
        progress(len(taken.objects), len(taken.objects))
        return held, former, lost

    def _commit(
        self, state: ObjectStore, taken: Snapshot, files: list[Entry], held: list[Entry], made: BackupReport
    ) -> None:
        at = datetime.now(UTC).isoformat(timespec="seconds")
        manifest = Manifest(taken.archive, taken.number, at, tuple(made.missing), tuple(files), tuple(held))
        write_manifest(self.folder, manifest)
        current = {one.digest for one in files}
        for digest in [one for one in state.digests() if one not in current]:
            state.delete(digest)
        made.archive, made.objects, made.files = taken.archive, len(held), len(files)
        made.bytes, made.finished = sum(one.bytes for one in held), True

    def _refuse_another_folder(self) -> None:
        if self.folder.is_dir() and not has_manifest(self.folder):
            foreign = sorted(entry.name for entry in self.folder.iterdir() if entry.name not in _OWN_NAMES)
            if foreign:
                raise BackupRefused(f"{self.folder} is not a backup and holds {foreign[0]}; name an empty folder")

    def _refuse_another_archive(self, taken: Snapshot, state: ObjectStore) -> None:
        former = read_manifest(self.folder) if has_manifest(self.folder) else None
        if former is None:
            return
        if former.archive != taken.archive:
            raise BackupRefused(
                f"{self.folder} holds the backup of another archive ({former.archive}, and this one is "
                f"{taken.archive}); name another folder"
            )
        newest = newest_record_in(former, state)
        if newest is not None and not taken.has_record(newest.number, newest.digest):
            raise BackupRefused(
                f"{self.folder} holds a backup of {former.made_at} with records that this archive lacks (record "
                f"{newest.number} of the audit trail, of {newest.at}): was the archive restored from an older backup? "
                "Keep this one, and name another folder"
            )

    @contextmanager
    def _locked(self, *, sweep: bool = True) -> Iterator[tuple[ObjectStore, ObjectStore]]:
        """Lock the backup and yield its object store and its state store."""
        file = self.folder / "lock"
        try:
            objects, state = ObjectStore(self.folder), ObjectStore(self.folder / _STATE)
            lock = file.open("wb" if sweep or not file.exists() else "rb")  # a copy of the backup may lack it
        except OSError as error:
            raise BackupRefused(f"{self.folder} cannot be used: {error.strerror}") from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB if sweep else fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BackupRefused(f"another process is using the backup {self.folder}; wait until it ends") from None
            try:
                if sweep:
                    for store in (objects, state):
                        store.sweep_spool()
                        store.sweep_lent()
                yield objects, state
            finally:  # a forked child that has not called exec shares the lock, so closing the file may not release it
                fcntl.flock(lock, fcntl.LOCK_UN)


def _take(objects: ObjectStore, store: ObjectStore, kept: Path, digest: str) -> tuple[int, bool]:
    """Copy an object into the backup unless it is there. Returns its size in bytes, and whether it was copied.

    An object that is deleted meanwhile is linked to ``kept`` before it is removed, so one of both paths exists. Raises
    ObjectMissing, ObjectDamaged.
    """
    for source in (store.path(digest), kept):
        with suppress(FileNotFoundError):
            size = source.stat(follow_symlinks=False).st_size
            if objects.has(digest) and objects.path(digest).stat().st_size == size:
                return size, False
            objects.take_copy(source, digest)
            return size, True
    raise ObjectMissing(f"object {digest} is not in {store.root}")


def newest_record_in(manifest: Manifest, state: ObjectStore) -> TrailRecord | None:
    """The newest record of the audit trail in a backup; None if there is none, or if it is damaged or was changed."""
    segments = sorted((one.name, one.digest) for one in manifest.files if is_trail_segment(one.name))
    digest = segments[-1][1] if segments else ""
    if not digest or not examine(state, digest).whole:
        return None
    try:
        newest = newest_record(state.path(digest))
    except JournalDamaged:
        return None
    return newest if newest is not None and record_digest(newest) == newest.digest else None


def _kept(state: ObjectStore, name: str, path: Path) -> Entry:
    """Move one file of the state into the backup, and return its entry. On return it is on disk."""
    size = path.stat().st_size
    return Entry(state.adopt(path), size, name)
