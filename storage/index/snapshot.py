"""A consistent copy of index, journals and reports at one point in time, while others continue to write.

A read transaction on the index begins while the locks of both journals are held, and the lengths of the journals are
taken under the same locks, so the journals never contain more than the index. Changes that the index has and the
journals lack are still marked in the index, and are journalled when it is opened again. The locks are held for
milliseconds: journals only grow, and SQLite keeps the state of a read transaction, so both are copied afterwards.
"""

from __future__ import annotations

import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from sqlalchemy import select

from storage.errors import BackupRefused
from storage.index.change_capture import last_number
from storage.index.connection import connect
from storage.index.integrity import Integrity
from storage.index.tables import archive
from storage.objects.backup_manifest import INDEX
from storage.objects.change_journal import ChangeJournal
from storage.objects.durability import full_disk_is_store_full
from storage.objects.trail_journal import TrailJournal

_PASSING = (".lock", ".making")
"""Endings of the names of temporary files."""


@dataclass(frozen=True, slots=True)
class NamedObject:
    """An object that the index names, and its store."""

    store: str
    digest: str


@dataclass(frozen=True)
class Snapshot:
    """The copied state. ``files``: the copies by their path below the storage root. ``objects``: all that rows name.

    ``has_record``: whether the audit trail has a record of that number and digest. It reads the copy of the index.
    """

    archive: str
    number: int
    files: dict[str, Path]
    objects: list[NamedObject]
    has_record: Callable[[int, str], bool]


@contextmanager
def snapshot_of(file: Path, root: Path, spool: Path) -> Iterator[Snapshot]:
    """Copy the state of the archive with the index ``file`` into ``spool``. Raises StoreFull, BackupRefused.

    The caller moves or removes the copies.
    """
    changes, trail = ChangeJournal(root / "journal"), TrailJournal(root / "journal")
    with ExitStack() as stack, full_disk_is_store_full():
        with changes.locked(), trail.locked():
            source = stack.enter_context(closing(sqlite3.connect(file, timeout=60, isolation_level=None)))
            source.execute("BEGIN")
            source.execute("SELECT count(*) FROM sqlite_master").fetchone()  # fixes what the transaction sees
            journals = {name: stack.enter_context(path.open("rb")) for name, path in _files(root, "journal").items()}
            lengths = {name: opened.seek(0, 2) for name, opened in journals.items()}
        copy = spool / "snapshot"
        copy.unlink(missing_ok=True)
        try:
            with closing(sqlite3.connect(copy)) as target:
                source.backup(target)
        except sqlite3.Error as error:
            raise BackupRefused(f"the index {file} cannot be copied to {spool}: {error}") from error
        source.execute("ROLLBACK")
        files = {INDEX: copy}
        for name, opened in journals.items():
            files[name] = _copied(opened, lengths[name], spool / f"snapshot-{len(files)}")
        for name, path in _files(root, "reports").items():  # written before their rows, so none is missing
            files[name] = Path(shutil.copyfile(path, spool / f"snapshot-{len(files)}"))
        yield _snapshot(copy, files)


def _snapshot(copy: Path, files: dict[str, Path]) -> Snapshot:
    engine = connect(f"sqlite:///{copy}")
    try:
        with engine.connect() as connection:
            identity = connection.execute(select(archive.c.identity)).scalar_one()
            number = last_number(connection)
        objects = [NamedObject(sys.intern(store), digest) for store, digest in Integrity(engine).named()]
    finally:
        engine.dispose()
    with closing(sqlite3.connect(copy)) as one_file:
        one_file.execute("PRAGMA journal_mode=DELETE")
    return Snapshot(str(identity), number, files, objects, partial(_has_record, copy))


def _has_record(copy: Path, number: int, digest: str) -> bool:
    with closing(sqlite3.connect(copy)) as connection:
        found = connection.execute("SELECT 1 FROM trail WHERE number = ? AND digest = ?", (number, digest))
        return found.fetchone() is not None


def _files(root: Path, folder: str) -> dict[str, Path]:
    found = (path for path in sorted((root / folder).rglob("*")) if path.is_file() and not path.is_symlink())
    return {
        path.relative_to(root).as_posix(): path
        for path in found
        if path.name != "lock" and not path.name.endswith(_PASSING)
    }


def _copied(opened: IO[bytes], length: int, to: Path) -> Path:
    """Copy the first ``length`` bytes of a journal, which may have grown since."""
    opened.seek(0)
    with to.open("wb") as out:
        while length > 0 and (some := opened.read(min(length, 1 << 20))):
            out.write(some)
            length -= len(some)
    return to
