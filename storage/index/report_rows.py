"""Rows with the summaries of the reports of audits and validations. Times are seconds since the epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import Row, func, insert, select

from storage.index.connection import writing
from storage.index.reading import IndexPart, first_of, record_of, rows_of
from storage.index.tables import report


@dataclass(frozen=True)
class NewReport:
    """The report of one run. ``name``: that of its files. ``verdict``: a sentence. ``summary``: figures as plain JSON,
    with which later runs compare theirs. ``alarm``: whether a person has to look at it."""

    kind: str
    name: str
    started_at: float
    finished_at: float
    verdict: str
    alarm: bool
    summary: Mapping[str, Any]


@dataclass(frozen=True)
class StoredReport(NewReport):
    key: int


class ReportRows(IndexPart):
    def add(self, new: NewReport) -> StoredReport:
        """Commit a report, whose name is unique."""
        row = {field.name: getattr(new, field.name) for field in fields(NewReport)}
        row |= {"alarm": int(new.alarm), "summary": dict(new.summary)}
        with writing(self._engine) as connection:
            key = connection.execute(insert(report).values(row).returning(report.c.key)).scalar_one()
        return StoredReport(**{**row, "alarm": new.alarm}, key=int(key))

    def get(self, key: int) -> StoredReport | None:
        row = first_of(self._engine, select(report).where(report.c.key == key))
        return None if row is None else _stored(row)

    def newest(self, kinds: Sequence[str] = (), limit: int = 1) -> list[StoredReport]:
        """Reports of those kinds, or of all kinds, newest first; at most ``limit``, 0 for all.

        Their order is that of their numbers, since the clock may have been wrong.
        """
        query = select(report).order_by(report.c.key.desc()).limit(limit or None)
        if kinds:
            query = query.where(report.c.kind.in_(kinds))
        return [_stored(row) for row in rows_of(self._engine, query)]

    def summaries(self, kind: str) -> Iterator[tuple[float, Mapping[str, Any]]]:
        """When each report of a kind was finished, and its summary, in the order of their numbers.

        They are read one by one, since the summaries of years take hundreds of megabytes.
        """
        query = select(report.c.finished_at, report.c.summary).where(report.c.kind == kind).order_by(report.c.key)
        with self._engine.connect() as connection:
            yield from map(tuple, connection.execute(query))

    def alarms(self) -> dict[str, int]:
        """How many reports raised an alarm, by kind; 0 for kinds without one."""
        query = select(report.c.kind, func.sum(report.c.alarm)).group_by(report.c.kind).order_by(report.c.kind)
        return {kind: int(count) for kind, count in rows_of(self._engine, query)}


def _stored(row: Row[Any]) -> StoredReport:
    return record_of(StoredReport, row, alarm=bool(row.alarm))
