"""Follows the index into the change journal: what was committed is written down, with fsync, before anybody is told.

The journal is written after the commit. A crash in between leaves marks in the index, which are worked off by whoever
writes next. Also notices where the file of the index was removed or replaced under a running process: what is committed
then is held nowhere, and nobody may be told that it is.
"""

from __future__ import annotations

import threading
from pathlib import Path

from sqlalchemy import Engine

from storage.changes import ChangeJournal, Group
from storage.errors import IndexLost
from storage.index.changes import changed_rows

_MARKS_KEPT = 1000
"""Marks that were worked off are deleted so many at a time: a commit of its own for each would cost a sync more."""


class Follower:
    """Called after each write transaction. Safe to share between threads and processes."""

    def __init__(self, engine: Engine, journal: ChangeJournal, file: Path) -> None:
        self._engine, self._journal, self._file = engine, journal, file
        self._identity = _identity(file)
        self._lock = threading.Lock()
        self._written = self._pruned = -1

    def __call__(self) -> None:
        """Write down what was committed; on return it is on disk. Raises IndexLost, StoreFull."""
        if _identity(self._file) != self._identity:
            raise IndexLost(
                f"{self._file} was removed or replaced while this process had it open, and nothing is kept in it any "
                "more: stop the node, and put the index back or run `latent-pacs index rebuild`"
            )
        with self._lock:
            with self._engine.connect() as connection:
                newest = connection.exec_driver_sql("SELECT max(number) FROM change").scalar()
            if (newest or 0) > self._written:
                self._write_down()

    def _write_down(self) -> None:
        with self._journal.locked():
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


def _identity(file: Path) -> tuple[int, int] | None:
    try:
        status = file.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino
