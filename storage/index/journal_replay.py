"""Loads rows of the change journal into an index, in their order; loading them twice has the same result."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine

from storage.errors import NewerFormat
from storage.index.change_capture import TABLES, install_triggers, remove_triggers
from storage.objects.change_journal import Change

_ROWS_AT_ONCE = 2000


@contextmanager
def loading(engine: Engine) -> Iterator[Connection]:
    """A write transaction without triggers and foreign keys, since a row may come before the row that it refers to."""
    with engine.connect().execution_options(write=True) as connection:
        driver: Any = connection.connection.driver_connection
        driver.execute("PRAGMA foreign_keys=OFF")  # not possible within a transaction
        try:
            with connection.begin():
                remove_triggers(connection)
                yield connection
                install_triggers(connection)
        finally:
            driver.execute("PRAGMA foreign_keys=ON")


class Loader:
    """Writes changes into the tables of a ``loading`` connection, in batches. ``flush`` writes the last batches."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._waiting: dict[str, tuple[str, list[tuple[Any, ...]]]] = {}
        self._statements: dict[tuple[str, str, tuple[str, ...]], str] = {}

    def add(self, change: Change) -> None:
        """Add one change. Raises NewerFormat if it names a table or a column that this version does not have."""
        kind, name, key = change[:3]
        columns = tuple(change[3]) if kind != "-" else ()
        statement = self._statements.get((kind, name, columns))
        if statement is None:
            statement = self._statements[kind, name, columns] = _statement(kind, name, columns)
        before = self._waiting.get(name)
        if before is not None and (before[0] != statement or len(before[1]) >= _ROWS_AT_ONCE):
            self._write(name)
            before = None
        if before is None:
            before = self._waiting[name] = (statement, [])
        values = tuple(change[3].values()) if columns else ()
        before[1].append(values if kind == "+" else (*values, *key))

    def flush(self) -> None:
        """Write the changes that wait."""
        for name in list(self._waiting):
            self._write(name)

    def _write(self, name: str) -> None:
        statement, rows = self._waiting.pop(name)
        self._connection.exec_driver_sql(statement, rows)


def _statement(kind: str, name: str, columns: tuple[str, ...]) -> str:
    table = TABLES.get(name)
    if table is None or not set(columns) <= set(table.columns.keys()):
        raise NewerFormat(f"the change journal has rows of {name} that this version does not know: use a newer version")
    key = " AND ".join(f'"{column.name}" = ?' for column in table.primary_key)
    if kind == "-":
        return f'DELETE FROM "{name}" WHERE {key}'
    if kind == "~":
        changed = ", ".join(f'"{column}" = ?' for column in columns)
        return f'UPDATE "{name}" SET {changed} WHERE {key}'
    quoted = ", ".join(f'"{column}"' for column in columns)
    return f'INSERT OR REPLACE INTO "{name}" ({quoted}) VALUES ({", ".join("?" * len(columns))})'
