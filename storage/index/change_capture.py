"""Capture of changes in the index: triggers mark rows, and the marked rows are read for the change journal.

The triggers see every write of every process. A mark names a row, not its values: the journal gets the row as it is
when the mark is read, so marks can be read late and together. Changes of leases and of the progress of a run leave no
mark. Only SQLite has these triggers; another database has its own log.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection, Table

from storage.index.reading import batches
from storage.index.tables import archive, change, metadata, trail
from storage.objects.change_journal import Change

_NOT_JOURNALLED = {"lease_owner", "lease_until"}
_PROGRESS = {"job_run": {"done", "total", "text"}}
_JOURNALLED_ALONE = {"instance": ("state", "reason", "reason_code", "rendition_key", "attempts")}
"""Columns that change often in large rows. A change of only these is journalled without the rest of the row."""
_ROWS_AT_ONCE = 500

TABLES: dict[str, Table] = {
    table.name: table for table in metadata.sorted_tables if table.name not in (change.name, trail.name, archive.name)
}
"""Tables whose rows are in the change journal. The trail has a journal of its own."""


def install_triggers(connection: Connection) -> None:
    """Create the triggers, replacing existing ones."""
    remove_triggers(connection)
    for sql in _triggers().values():
        connection.exec_driver_sql(sql)


def triggers_are_right(connection: Connection) -> bool:
    """Whether the triggers exist as this version creates them."""
    return _existing(connection) == _triggers()


def remove_triggers(connection: Connection) -> None:
    """Drop the triggers, before rows are loaded from the journal."""
    for name in _existing(connection):
        connection.exec_driver_sql(f'DROP TRIGGER "{name}"')


def last_number(connection: Connection) -> int:
    """The number of the last change in this index; 0 if there was none."""
    found = connection.exec_driver_sql("SELECT seq FROM sqlite_sequence WHERE name = 'change'").scalar()
    return int(found or 0)


def set_last_number(connection: Connection, number: int) -> None:
    """Give the next change the number after this one, and delete all marks, as if their changes were journalled."""
    connection.exec_driver_sql("DELETE FROM change")
    connection.exec_driver_sql("DELETE FROM sqlite_sequence WHERE name = 'change'")
    connection.exec_driver_sql("INSERT INTO sqlite_sequence (name, seq) VALUES ('change', ?)", (number,))


def unmarked_since(connection: Connection, number: int) -> int:
    """How many changes after that number have no mark any more, so that they cannot be journalled one by one.

    The connection is in one transaction, so a node that commits meanwhile does not change the result.
    """
    query = "SELECT count(*) FROM change WHERE number > ?"
    marked = int(connection.exec_driver_sql(query, (number,)).scalar_one())
    return last_number(connection) - number - marked


def changed_rows(connection: Connection, after: int) -> tuple[int, list[Change]]:
    """The number of the last change, and the rows changed after the number ``after``, deleted ones first."""
    wanted: dict[str, dict[str, bool]] = {}
    number = after
    query = "SELECT number, name, key, whole FROM change WHERE number > ? ORDER BY number"
    for mark, name, key, whole in connection.exec_driver_sql(query, (after,)):
        number = mark
        of_table = wanted.setdefault(name, {})
        of_table[key] = of_table.get(key, False) or bool(whole)
    deleted: list[Change] = []
    stored: list[Change] = []
    for name in TABLES:
        keys = wanted.get(name, {})
        found = {tuple(_key(name, row)): row for row in _rows(connection, name, keys)}
        for text, whole in keys.items():
            key = json.loads(text)
            row = found.get(tuple(key))
            if row is None:
                deleted.append(["-", name, key])
            elif whole:
                stored.append(["+", name, key, row])
            else:
                stored.append(["~", name, key, {column: row[column] for column in _JOURNALLED_ALONE[name]}])
    return number, deleted + stored


def all_rows(connection: Connection) -> Iterator[list[Change]]:
    """Every row of every table, in batches."""
    for name in TABLES:
        found = connection.exec_driver_sql(f'SELECT * FROM "{name}"').mappings()
        while some := found.fetchmany(_ROWS_AT_ONCE):
            yield [["+", name, _key(name, row), _clean(row)] for row in some]


def _rows(connection: Connection, name: str, keys: dict[str, bool]) -> Iterator[dict[str, Any]]:
    columns = [column.name for column in TABLES[name].primary_key]
    for some in batches(map(json.loads, keys)):
        if len(columns) == 1:
            where = f'"{columns[0]}" IN ({", ".join("?" * len(some))})'
            looks = [(where, tuple(key for (key,) in some))]
        else:
            where = " AND ".join(f'"{column}" = ?' for column in columns)
            looks = [(where, tuple(key)) for key in some]
        for where, parameters in looks:
            for row in connection.exec_driver_sql(f'SELECT * FROM "{name}" WHERE {where}', parameters).mappings():
                yield _clean(row)


def _clean(row: Any) -> dict[str, Any]:
    return {name: None if name in _NOT_JOURNALLED else value for name, value in row.items()}


def _key(name: str, row: Any) -> list[Any]:
    return [row[column.name] for column in TABLES[name].primary_key]


def _existing(connection: Connection) -> dict[str, str]:
    query = "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND name GLOB 'change_*'"
    return {row.name: row.sql for row in connection.exec_driver_sql(query)}


def _triggers() -> dict[str, str]:
    made = {}
    for name, table in TABLES.items():
        skipped = _NOT_JOURNALLED | _PROGRESS.get(name, set()) | set(_JOURNALLED_ALONE.get(name, ()))
        columns = [column.name for column in table.columns if column.name not in skipped]
        kinds = [("insert", "INSERT", "NEW", 1), ("delete", "DELETE", "OLD", 1)]
        kinds.append(("update", f"UPDATE OF {_quoted(columns)}", "NEW", 1))
        if name in _JOURNALLED_ALONE:
            kinds.append(("move", f"UPDATE OF {_quoted(_JOURNALLED_ALONE[name])}", "NEW", 0))
        for kind, event, source, whole in kinds:
            key = ", ".join(f'{source}."{column.name}"' for column in table.primary_key)
            made[f"change_{name}_{kind}"] = (
                f'CREATE TRIGGER "change_{name}_{kind}" AFTER {event} ON "{name}" BEGIN '
                f"INSERT INTO change (name, key, whole) VALUES ('{name}', json_array({key}), {whole}); END"
            )
    return made


def _quoted(names: Any) -> str:
    return ", ".join(f'"{name}"' for name in names)
