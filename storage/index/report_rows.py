"""Reports of audits and validations as rows, in short. Times are seconds since the epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import Engine, Row, func, insert, select

from storage.index.connection import writing
from storage.index.tables import report


@dataclass(frozen=True)
class NewReport:
    """One run's report. ``name``: of its files. ``verdict``: a sentence. ``summary``: figures as plain JSON, with which
    later runs compare theirs. ``alarm``: a person has to look at it."""

    kind: str
    name: str
    started_at: float
    finished_at: float
    verdict: str
    alarm: bool
    summary: Mapping[str, Any]


@dataclass(frozen=True)
class StoredReport(NewReport):
    """A report row."""

    key: int


class ReportRows:
    """The reports in one index. Safe to share between threads and processes."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add(self, new: NewReport) -> StoredReport:
        """Commit a report, whose name is unique."""
        row = {field.name: getattr(new, field.name) for field in fields(NewReport)}
        row |= {"alarm": int(new.alarm), "summary": dict(new.summary)}
        with writing(self._engine) as connection:
            key = connection.execute(insert(report).values(row).returning(report.c.key)).scalar_one()
        return StoredReport(**{**row, "alarm": new.alarm}, key=int(key))

    def get(self, key: int) -> StoredReport | None:
        """The report of that number."""
        with self._engine.connect() as connection:
            row = connection.execute(select(report).where(report.c.key == key)).first()
        return None if row is None else _stored(row)

    def newest(self, kinds: Sequence[str] = (), limit: int = 1) -> list[StoredReport]:
        """Reports of those kinds, or of all kinds, newest first; at most ``limit``, 0 for all."""
        query = select(report).order_by(report.c.finished_at.desc(), report.c.key.desc()).limit(limit or None)
        if kinds:
            query = query.where(report.c.kind.in_(kinds))
        with self._engine.connect() as connection:
            return [_stored(row) for row in connection.execute(query)]

    def alarms(self) -> dict[str, int]:
        """How many reports raised an alarm, by kind; 0 for kinds without one."""
        query = select(report.c.kind, func.sum(report.c.alarm)).group_by(report.c.kind).order_by(report.c.kind)
        with self._engine.connect() as connection:
            return {kind: int(count) for kind, count in connection.execute(query)}


def _stored(row: Row[Any]) -> StoredReport:
    values = {field.name: getattr(row, field.name) for field in fields(StoredReport)}
    return StoredReport(**{**values, "alarm": bool(row.alarm)})
