"""Makes the index anew from the change journal and the journal of the audit trail.

The new index is made in a file of its own, ``index.sqlite.making``, and takes the place of the former one when it is
complete and on disk. A rebuild that was killed has changed nothing, and is begun again. The former index is kept.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import Connection, func, insert, select

from storage.index.change_capture import TABLES, last_number, set_last_number
from storage.index.holdings import Index
from storage.index.journal_replay import Loader, loading
from storage.index.opening import begin_journal, take_in_trail
from storage.index.tables import archive
from storage.objects.change_journal import ChangeJournal
from storage.objects.durability import fsync_file, fsync_folders
from storage.objects.trail_journal import TrailJournal


@dataclass
class Rebuilt:
    """What came of a rebuild. ``former``: where the index is now that was there before, empty where there was none."""

    changes: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    trail: int = 0
    damaged_lines: list[str] = field(default_factory=list)
    unlinked_rows: int = 0
    """Rows that refer to one that a damaged line took away, and were left out."""
    from_objects: int = 0
    """Objects that no journal tells of, and that were taken in for what they hold."""
    former: str = ""
    seconds: float = 0.0

    @property
    def clean(self) -> bool:
        return not self.damaged_lines and not self.unlinked_rows


def rebuild(
    file: Path,
    root: Path,
    *,
    take_in_objects: Callable[[Index], int] = lambda index: 0,
    progress: Callable[[int, int, str], None] = lambda done, of, what: None,
) -> Rebuilt:
    """Make the index ``file`` of the archive below ``root`` anew. No node may run on it.

    ``take_in_objects`` is given the new index when all rows are in it, adds what the journal does not tell of, and says
    of how many objects. ``progress``: (done, of, what). Raises NewerFormat, StoreFull.
    """
    began, made = time.monotonic(), Rebuilt()
    making = file.with_name(f"{file.name}.making")
    journal, of_trail = ChangeJournal(root / "journal"), TrailJournal(root / "journal")
    with journal.locked():
        _remove(making)
        for note in (journal.repair(), of_trail.repair()):
            made.damaged_lines += [note] if note else []
        index = Index.open(f"sqlite:///{making}")
        try:
            known = journal.last() >= 0
            _load(index, journal, made, progress)
            progress(0, 0, "audit trail")
            made.trail = take_in_trail(index, of_trail)
            if not known:  # what the trail tells applies to what comes in after it
                for record in of_trail.records():
                    index.replay(record)
            progress(0, 0, "objects")
            made.from_objects = take_in_objects(index)
            progress(0, 0, "writing")
            begin_anew = not made.clean or made.from_objects > 0 or not known
            with index.engine.connect().execution_options(write=True) as connection, connection.begin():
                made.rows = _counts(connection)
                if begin_anew:  # ahead of the journal: where this is killed, the next one to open it begins the journal
                    set_last_number(connection, last_number(connection) + 1)
            _into_one_file(index)
        finally:
            index.close()
        made.former = _swap(making, file)
        if begin_anew:
            _journal_of(file, journal)
    made.seconds = round(time.monotonic() - began, 3)
    return made


def _journal_of(file: Path, journal: ChangeJournal) -> None:
    """Begin the journal anew with the rows of the index that took its place."""
    index = Index.open(f"sqlite:///{file}")
    try:
        with index.engine.connect() as connection:
            identity = connection.execute(select(archive.c.identity)).scalar_one()
        begin_journal(index, journal, identity)
    finally:
        index.close()


def _load(index: Index, journal: ChangeJournal, made: Rebuilt, progress: Callable[[int, int, str], None]) -> None:
    size, read = journal.size(), 0

    def count(more: int) -> None:
        nonlocal read
        read += more

    def damaged(segment: Path, line: int) -> None:
        made.damaged_lines.append(f"line {line} of {segment.name}")

    identity, last = journal.archive() or str(uuid.uuid4()), max(journal.last(), 0)
    with loading(index.engine) as connection:
        connection.exec_driver_sql("PRAGMA cache_size=-262144")
        loader = Loader(connection)
        for group in journal.groups(damaged=damaged, progress=count):
            for change in group.rows:
                loader.add(change)
            made.changes += len(group.rows)
            progress(read, size, "journal")
        loader.flush()
        made.unlinked_rows = _drop_unlinked(connection)
        connection.execute(insert(archive).values(identity=identity))
        set_last_number(connection, last)


def _drop_unlinked(connection: Connection) -> int:
    """Rows whose parent a damaged line took away cannot stay; how many there were."""
    count = 0
    while found := connection.exec_driver_sql("PRAGMA foreign_key_check").all():
        for table, rowid, *_ in found:
            connection.exec_driver_sql(f'DELETE FROM "{table}" WHERE rowid = ?', (rowid,))
        count += len(found)
    return count


def _counts(connection: Connection) -> dict[str, int]:
    return {
        name: int(connection.execute(select(func.count()).select_from(table)).scalar_one())
        for name, table in TABLES.items()
    }


def _into_one_file(index: Index) -> None:
    """Everything is in the file itself, and on disk."""
    with index.engine.connect() as connection:
        driver = connection.connection.driver_connection
        assert driver is not None
        driver.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        driver.execute("PRAGMA journal_mode=DELETE")


def _swap(making: Path, file: Path) -> str:
    """Put the new index in its place. The former one, with its log, is kept under another name."""
    with making.open("rb") as opened:
        fsync_file(opened)
    former = file.with_name(f"{file.name}.replaced-{time.time_ns()}")
    there = file.exists()
    for end in ("", "-wal", "-shm"):  # a log left behind would be taken for one of the new file
        part = file.with_name(file.name + end)
        if part.exists():
            part.replace(former.with_name(former.name + end))
    making.replace(file)
    _remove(making)
    fsync_folders(file.parent)
    return str(former) if there else ""


def _remove(making: Path) -> None:
    for end in ("", "-wal", "-shm", "-journal"):
        making.with_name(making.name + end).unlink(missing_ok=True)
