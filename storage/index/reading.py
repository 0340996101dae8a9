"""Helpers for queries of the index: transactions that read, joins, new keys, batches, and records made of rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Column, Connection, Engine, Executable, Row, Select, func, select

from storage.index.tables import instance, patient, series, study

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Record = TypeVar("Record", bound="DataclassInstance")
Value = TypeVar("Value")
Query = TypeVar("Query", bound=Select[Any])


class IndexPart:
    """Base of the classes that read and write some tables of one index. Safe to share between threads and processes."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine


def with_study(query: Query) -> Query:
    """The query, which reads ``instance``, joined with ``series`` and ``study``."""
    joined = query.join(series, instance.c.series_key == series.c.key)
    return joined.join(study, series.c.study_key == study.c.key)


def with_patient(query: Query) -> Query:
    """The query, which reads ``instance``, joined with ``series``, ``study`` and ``patient``."""
    return with_study(query).join(patient, study.c.patient_key == patient.c.key)


def rows_of(engine: Engine, query: Executable, values: dict[str, Any] | None = None) -> Sequence[Any]:
    """All rows that a query finds. ``values``: the values of its bound parameters."""
    with engine.connect() as connection:
        return connection.execute(query, values).all()


def values_of(engine: Engine, query: Executable) -> list[Any]:
    """The first column of all rows that a query finds."""
    with engine.connect() as connection:
        return list(connection.execute(query).scalars())


def first_of(engine: Engine, query: Executable) -> Row[Any] | None:
    """The first row that a query finds; None if there is none."""
    with engine.connect() as connection:
        return connection.execute(query).first()


def value_of(engine: Engine, query: Executable) -> Any:
    """The first column of the first row that a query finds; None if there is none."""
    with engine.connect() as connection:
        return connection.execute(query).scalar()


def next_key(connection: Connection, *columns: Column[int]) -> dict[str, int]:
    """The key of a new row, above all values of ``columns``, within a write transaction.

    A sequence of PostgreSQL skips the numbers of dry runs, and does not know keys that were inserted from the trail.
    SQLite would reuse the key of a row that was deleted.
    """
    highest = [connection.execute(select(func.max(column))).scalar() for column in columns]
    return {"key": max(int(key or 0) for key in highest) + 1}


def batches(values: Iterable[Value], size: int = 500) -> Iterator[tuple[Value, ...]]:
    """The values in parts, for one query each: SQLite takes 32,766 parameters by default."""
    rest = iter(values)
    while some := tuple(islice(rest, size)):
        yield some


def record_of(kind: type[Record], row: Row[Any], /, **converted: Any) -> Record:
    """The record of a row. Each field has its value in ``converted``, or else that of the column of the same name."""
    columns = {name: getattr(row, name) for name in kind.__dataclass_fields__ if name not in converted}
    return kind(**columns, **converted)
