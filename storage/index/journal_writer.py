"""Writes committed changes to the journals, with fsync, before the caller continues.

The journals are written after the commit. A killed process leaves marks in the index, and the next writer journals
them. The commit itself is not synced: changes that a power failure takes from the index are replayed from the journal
at the next start, so one sync per commit is enough. A follower also detects that the file of the index was removed or
replaced under a running process, since a commit to it would be lost.
"""

from __future__ import annotations

import threading
from pathlib import Path

from sqlalchemy import Engine

from storage.errors import IndexLost
from storage.index.change_capture import changed_rows
from storage.index.trail_rows import Trail
from storage.objects.change_journal import ChangeJournal, Group
from storage.objects.trail_journal import TrailJournal

_MARKS_KEPT = 1000
"""Number of journalled changes after which their marks are deleted together. Each deletion is a commit. Chosen, not
measured."""


class Follower:
    """Called after each write transaction. Safe to share between threads and processes."""

    def __init__(self, engine: Engine, journal: ChangeJournal, trail: TrailFollower, file: Path) -> None:
        self._engine, self._journal, self._trail, self._file = engine, journal, trail, file
        self._identity = _identity(file)
        self._lock = threading.Lock()
        self._written = self._pruned = -1

    def __call__(self) -> None:
        """Journal committed changes; on return they are on disk. Raises IndexLost, StoreFull."""
        self._check_file()
        with self._lock:
            with self._engine.connect() as connection:
                newest = connection.exec_driver_sql("SELECT max(number) FROM change").scalar()
            if (newest or 0) > self._written:
                self._journal_changes()
        self._trail()

    def _check_file(self) -> None:
        if _identity(self._file) != self._identity:
            raise IndexLost(
                f"{self._file} was removed or replaced while this process had it open, and can store nothing: stop the "
                "node, and put the index back or run `latent-pacs index rebuild`"
            )

    def _journal_changes(self) -> None:
        with self._journal.locked():
            self._check_file()  # again, because a rebuild replaces the file while it holds this lock
            self._journal.settle()
            last = self._journal.last()
            with self._engine.connect() as connection:
                number, rows = changed_rows(connection, last)
            if rows:
                self._journal.append(Group(number, rows))
            self._written = number
        if self._written - self._pruned >= _MARKS_KEPT:
            with self._engine.connect().execution_options(write=True) as connection, connection.begin():
                connection.exec_driver_sql("DELETE FROM change WHERE number <= ?", (self._written,))
            self._pruned = self._written


class TrailFollower:
    """Appends new records of the audit trail to their journal."""

    def __init__(self, trail: Trail, journal: TrailJournal) -> None:
        self._trail, self._journal = trail, journal
        self._written = 0

    def __call__(self) -> None:
        """Append the records that the journal lacks. Takes one query if there are none. Raises StoreFull."""
        if self._trail.last()[0] == self._written:
            return
        with self._journal.locked():
            last = self._journal.last()
            after = last.number if last else 0
            records = list(self._trail.records(after=after))
            self._journal.append(records)
            self._written = records[-1].number if records else after


def _identity(file: Path) -> tuple[int, int] | None:
    try:
        status = file.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino
