"""Rebuilds the index from the change journal and the journal of the audit trail.

The new index is written to ``index.sqlite.making``, and replaces the former one when it is complete and on disk. If a
rebuild is killed before that, the former index stays in place. It is kept under another name afterwards.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, func, insert, select, update

from storage.index.change_capture import TABLES, last_number, set_last_number
from storage.index.hierarchy import TO_ENCODE
from storage.index.holdings import Index
from storage.index.journal_replay import Loader, loading
from storage.index.opening import begin_journal
from storage.index.reading import value_of
from storage.index.tables import archive, instance, rendition
from storage.objects.change_journal import ChangeJournal
from storage.objects.durability import fsync_file, fsync_folders
from storage.objects.file_modes import give_to_owner
from storage.objects.trail_journal import TrailJournal


@dataclass
class Rebuilt:
    """The result of a rebuild.

    ``unlinked_rows``: number of rows that were dropped, since they refer to a row on a damaged line. ``from_objects``:
    number of recovered objects that no journal names. ``decisions``: number of holds, labels, classes, amendments and
    deletions that only the audit trail had. ``former``: path of the former index; empty if there was none.
    """

    changes: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    trail: int = 0
    damaged_lines: list[str] = field(default_factory=list)
    unlinked_rows: int = 0
    from_objects: int = 0
    decisions: int = 0
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
    """Rebuild the index ``file`` of the archive below ``root``. No node may run on it.

    ``take_in_objects`` gets the new index with all journalled rows, recovers objects that the journal does not name,
    and returns their number. ``progress``: (done, of, what). Raises NewerFormat, StoreFull.
    """
    began, made = time.monotonic(), Rebuilt()
    making = file.with_name(f"{file.name}.making")
    journal, of_trail = ChangeJournal(root / "journal"), TrailJournal(root / "journal")
    with journal.locked():
        _remove(making)
        for note in (journal.repair(), of_trail.repair()):
            made.damaged_lines += [note] if note else []
        with closing(Index.open(f"sqlite:///{making}")) as index:
            known = journal.last() >= 0
            _load(index, journal, made, progress)
            progress(0, 0, "audit trail")
            # the journal may lack its last lines; without one, the decisions apply to the objects recovered below
            decisions, made.trail = index.replay_trail(list(of_trail.records()))
            made.decisions = decisions if known else 0
            progress(0, 0, "objects")
            made.from_objects = take_in_objects(index)
            progress(0, 0, "writing")
            begin_anew = not made.clean or made.from_objects > 0 or made.decisions > 0 or not known
            with index.engine.connect().execution_options(write=True) as connection, connection.begin():
                made.rows = _counts(connection)
                if begin_anew:  # ahead of the journal: if this is killed, opening the index writes the journal again
                    set_last_number(connection, last_number(connection) + 1)
            _into_one_file(index)
        made.former = _swap(making, file)
        if begin_anew:
            with closing(Index.open(f"sqlite:///{file}")) as index:
                begin_journal(index, journal, value_of(index.engine, select(archive.c.identity)))
    made.seconds = round(time.monotonic() - began, 3)
    return made


def _load(index: Index, journal: ChangeJournal, made: Rebuilt, progress: Callable[[int, int, str], None]) -> None:
    size, read = journal.size(), 0

    def count(more: int) -> None:
        nonlocal read
        read += more

    identity, last = journal.archive() or str(uuid.uuid4()), max(journal.last(), 0)
    with loading(index.engine) as connection:
        connection.exec_driver_sql("PRAGMA cache_size=-262144")
        loader = Loader(connection)
        for group in journal.groups(damaged=made.damaged_lines.append, progress=count):
            for change in group.rows:
                loader.add(change)
            made.changes += len(group.rows)
            progress(read, size, "journal")
        loader.flush()
        made.unlinked_rows = _drop_unlinked(connection)
        _forget_lost_renditions(connection)
        connection.execute(insert(archive).values(identity=identity))
        set_last_number(connection, last)


def _drop_unlinked(connection: Connection) -> int:
    """Delete rows whose parent row is missing, since its line was damaged, and return their number."""
    count = 0
    while found := connection.exec_driver_sql("PRAGMA foreign_key_check").all():
        for table, rowid, *_ in found:
            connection.exec_driver_sql(f'DELETE FROM "{table}" WHERE rowid = ?', (rowid,))
        count += len(found)
    return count


def _forget_lost_renditions(connection: Connection) -> None:
    """Set images whose current rendition has no row back to RECEIVED: another rendition will get its key."""
    own = select(1).where(rendition.c.key == instance.c.rendition_key, rendition.c.instance_key == instance.c.key)
    lost = (instance.c.rendition_key.is_not(None), ~own.exists())
    connection.execute(update(instance).where(*lost).values(rendition_key=None, **TO_ENCODE))


def _counts(connection: Connection) -> dict[str, int]:
    return {
        name: int(connection.execute(select(func.count()).select_from(table)).scalar_one())
        for name, table in TABLES.items()
    }


def _into_one_file(index: Index) -> None:
    """Write everything to the file itself, without a log."""
    with index.engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        driver.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        driver.execute("PRAGMA journal_mode=DELETE")


def _swap(making: Path, file: Path) -> str:
    """Replace the index by the new one. The former one, with its log, is kept under another name."""
    with making.open("rb") as opened:
        fsync_file(opened)
    give_to_owner(making)
    former = file.with_name(f"{file.name}.replaced-{time.time_ns()}")
    there = file.exists()
    for end in ("", "-wal", "-shm"):  # SQLite would apply a leftover write-ahead log to the new file
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
