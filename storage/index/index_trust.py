"""Checks of an index: its pages are sound, and it ends where the journal ends."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

from sqlalchemy import select

from storage.errors import IndexFault, IndexRefused, StoreFull
from storage.index.change_capture import last_number
from storage.index.connection import advice_on
from storage.index.holdings import Index
from storage.index.tables import archive
from storage.objects.change_journal import ChangeJournal

_ROOM = 1 << 20
"""Maximum bytes that SQLite needs beside an index to open it. Chosen, not measured."""
_NOT_OPENED = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM)
"""SQLite's primary result codes that mean that the file could not be opened, and not that it is damaged."""
REBUILD = "run `latent-pacs index rebuild`, which makes it again from the objects and the journal"


def sqlite_file(url: str) -> Path | None:
    """The file of an SQLite database; None for another database."""
    return Path(url.removeprefix("sqlite:///")) if url.startswith("sqlite:///") else None


def quick_check(file: Path) -> None:
    """Check the pages. Raises IndexRefused if one is damaged, IndexFault if the file cannot be opened, StoreFull."""
    try:
        found = damage_of(file, "quick_check") if file.exists() and file.stat().st_size else []
    except sqlite3.OperationalError as error:
        if advice := advice_on(error):
            raise IndexFault(f"the index {file} cannot be used ({error}): {advice}") from error
        raise
    if found:
        raise IndexRefused(f"the index {file} is damaged ({found[0]}); {REBUILD}")


def damage_of(file: Path, check: str) -> list[str]:
    """The findings of SQLite's ``quick_check`` or ``integrity_check``, a line each; empty if the file is sound.

    Raises sqlite3.OperationalError if the file cannot be opened, and StoreFull if the disk is too full to open it.
    """
    try:
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=60)) as connection:
            found = [str(line) for (line,) in connection.execute(f"PRAGMA {check}(20)")]
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF in _NOT_OPENED:
            raise
        if shutil.disk_usage(file.parent).free < _ROOM:  # SQLite reports an I/O error then
            raise StoreFull(f"the disk of the index {file} is too full to open it") from error
        return [str(error)]
    except sqlite3.DatabaseError as error:
        return [str(error)]
    return [] if found == ["ok"] else [line for lines in found for line in lines.splitlines()]


class IndexStanding:
    """The checks of a scrub on the index of the archive below ``root``."""

    def __init__(self, index: Index, root: Path) -> None:
        self._index, self._journal = index, root / "journal"
        self._file = sqlite_file(str(index.engine.url))

    def doubt(self) -> str:
        """Why the index cannot decide which objects are orphans or lost; empty if it can."""
        if self._file is None:
            return ""
        journal = ChangeJournal(self._journal)
        with journal.locked(), self._index.engine.connect() as connection:
            identity, last = connection.execute(select(archive.c.identity)).scalar(), journal.last()
            recorded, number = journal.archive(), last_number(connection)
        if identity is None or not recorded:
            return "it is empty, or was not opened with the journal of the objects"
        if identity != recorded:
            return "it is the index of another archive"
        return f"it ends at change {number}, and the journal at {last}" if number < last else ""

    def damage(self) -> list[str]:
        """Damaged pages and broken rows, a line each."""
        return [] if self._file is None else damage_of(self._file, "integrity_check")
