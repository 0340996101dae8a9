"""A backup of an archive in a folder: made while the archive serves, incremental, verified, and given back.

``objects/`` holds the objects of both stores by their digests, and ``state/objects/`` the files of the index, the
journals and the reports, by their digests too. ``manifest.jsonl`` says which of these are the backup.

It is consistent because of its order. The state is copied first, as of one point in time. Then every object that this
state names is copied. Objects never change, and a row is only committed after its objects are on disk, so each of them
is there already. An object may go meanwhile, because an original was packed, purged or deleted. The store keeps another
name for it until the backup has ended (``ObjectStore.keeping``). A file system without hard links cannot do that. There
the state is copied again, until nothing is lacking that the archive still promises; each round copies what is new.

A backup that is killed has only added objects and files. The former manifest stays valid until the new one takes its
place in one rename. Objects are never removed from a backup; files of a former state are, after that rename.
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from storage.errors import BackupRefused, ObjectDamaged, ObjectMissing
from storage.index.snapshot import NamedObject, Snapshot, snapshot_of
from storage.objects.backup_manifest import NAME, Entry, Manifest, read_manifest, write_manifest
from storage.objects.inspection import Condition, examine, set_aside
from storage.objects.store import ObjectStore, has_digest

_STATE = "state"
_OURS = {NAME, f"{NAME}.making", _STATE, "objects", "spool", "lent", "damaged", "lock", "lost+found"}
_ROUNDS = 10
"""How often the state is copied at most because objects went. Each round is shorter than the one before."""

Progress = Callable[[int, int], None]


@dataclass
class BackupReport:
    """What came of a backup. ``missing``: objects that the archive promises and holds nowhere whole, by digest."""

    archive: str = ""
    objects: int = 0
    bytes: int = 0
    files: int = 0
    copied: int = 0
    bytes_copied: int = 0
    missing: list[str] = field(default_factory=list)
    finished: bool = False

    @property
    def clean(self) -> bool:
        return self.finished and not self.missing


@dataclass
class BackupCheck:
    """What a look at every object of a backup found: each damaged or missing one, in words."""

    made_at: str = ""
    checked: int = 0
    bytes: int = 0
    findings: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not self.findings


class Backup:
    """The backup in one folder, which one process at a time works on."""

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
        """Bring the backup up to the archive below ``root`` with the index ``file``; the node may serve meanwhile.

        ``promised`` says whether the index still names an object by now. Raises BackupRefused, StoreFull.
        """
        self._refuse_another_folder()
        with self._locked() as (objects, state), ExitStack() as stack:
            kept = {name: stack.enter_context(store.keeping()) for name, store in stores.items()}
            made = BackupReport()
            for _ in range(_ROUNDS):
                with snapshot_of(file, root, state.spool) as taken:
                    self._refuse_another_archive(taken.archive)
                    files = [_kept(state, name, path) for name, path in taken.files.items()]
                held, lost = self._copy(objects, stores, kept, taken, made, progress, cancelled)
                if cancelled():
                    return made
                if all(promised(one) and not examine(stores[one.store], one.digest).whole for one in lost):
                    break
            else:
                raise BackupRefused("objects went faster than they could be copied; make the backup at a quieter time")
            made.missing = [one.digest for one in lost]
            self._commit(state, taken, files, held, made)
            return made

    def verify(self, progress: Progress = lambda done, of: None) -> BackupCheck:
        """Read everything again and compare it with its digest. What is damaged is moved to ``damaged/``, where the
        medium can be written to, so that the next backup copies it again. Raises BackupRefused."""
        manifest = read_manifest(self.folder)
        found = BackupCheck(manifest.made_at)
        with self._locked(sweep=False) as (objects, state):
            of = len(manifest.files) + len(manifest.objects)
            for store, entries in ((state, manifest.files), (objects, manifest.objects)):
                for entry in entries:
                    look = examine(store, entry.digest)
                    found.checked += 1
                    found.bytes += look.bytes_read
                    if not look.whole:
                        what = entry.name if store is state else f"object {entry.digest}"
                        found.findings.append(f"{what} is {look.condition.value}: {look.detail or entry.digest}")
                    if look.condition is Condition.DAMAGED:
                        with suppress(OSError):
                            set_aside(store, entry.digest)
                    progress(found.checked, of)
        return found

    @contextmanager
    def opened(self) -> Iterator[tuple[Manifest, ObjectStore, ObjectStore]]:
        """The manifest, the objects and the files of the state, to restore them. Raises BackupRefused."""
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
    ) -> tuple[list[Entry], list[NamedObject]]:
        """Copy what is lacking. What the backup holds afterwards, and what it could not get."""
        held: list[Entry] = []
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
                size = objects.path(one.digest).stat().st_size  # an earlier backup has it
            held.append(Entry(one.digest, size, one.store))
        progress(len(taken.objects), len(taken.objects))
        return held, lost

    def _commit(
        self, state: ObjectStore, taken: Snapshot, files: list[Entry], held: list[Entry], made: BackupReport
    ) -> None:
        at = datetime.now(UTC).isoformat(timespec="seconds")
        manifest = Manifest(taken.archive, taken.number, at, len(made.missing), tuple(files), tuple(held))
        write_manifest(self.folder, manifest)
        current = {one.digest for one in files}
        for digest in [one for one in state.digests() if one not in current]:
            state.delete(digest)
        made.archive, made.objects, made.files = taken.archive, len(held), len(files)
        made.bytes, made.finished = sum(one.bytes for one in held), True

    def _refuse_another_folder(self) -> None:
        if self.folder.is_dir() and not (self.folder / NAME).exists():
            foreign = sorted(entry.name for entry in self.folder.iterdir() if entry.name not in _OURS)
            if foreign:
                raise BackupRefused(f"{self.folder} is no backup and holds {foreign[0]}; name an empty folder")

    def _refuse_another_archive(self, archive: str) -> None:
        former = read_manifest(self.folder) if (self.folder / NAME).exists() else None
        if former is not None and former.archive != archive:
            raise BackupRefused(
                f"{self.folder} holds the backup of another archive ({former.archive}, and this one is {archive}); "
                "name another folder"
            )

    @contextmanager
    def _locked(self, *, sweep: bool = True) -> Iterator[tuple[ObjectStore, ObjectStore]]:
        """The stores of objects and of state, while no other process works on them."""
        try:
            objects, state = ObjectStore(self.folder), ObjectStore(self.folder / _STATE)
            lock = (self.folder / "lock").open("wb" if sweep else "rb")
        except OSError as error:
            raise BackupRefused(f"{self.folder} cannot be used: {error.strerror}") from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB if sweep else fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BackupRefused(f"another process works on the backup {self.folder}; wait until it ends") from None
            if sweep:
                for store in (objects, state):
                    store.sweep_spool()
                    store.sweep_lent()
            yield objects, state


def _take(objects: ObjectStore, store: ObjectStore, kept: Path, digest: str) -> tuple[int, bool]:
    """Have an object in the backup: its bytes, and whether it was copied. Raises ObjectMissing, ObjectDamaged.

    One that goes meanwhile is first linked to ``kept`` and then removed, so that it is found under one of both names.
    """
    for source in (store.path(digest), kept):
        with suppress(FileNotFoundError):
            size = source.stat(follow_symlinks=False).st_size
            if objects.has(digest) and objects.path(digest).stat().st_size == size:
                return size, False
            objects.take_copy(source, digest)
            return size, True
    raise ObjectMissing(f"object {digest} is not in {store.root}")


def _kept(state: ObjectStore, name: str, path: Path) -> Entry:
    """Take one file of the state into the backup; on return it is on disk."""
    size = path.stat().st_size
    return Entry(state.adopt(path), size, name)
