"""The audit trail in the index: rows that are only ever added, each chained to the one before by its digest.

``append_in`` adds entries within the transaction that they record, so neither is committed without the other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, Text, cast, insert, select, text

from storage.index.connection import writing
from storage.index.reading import IndexPart, rows_of, value_of
from storage.index.tables import trail
from storage.records import TrailEntry, TrailRecord

NOTHING_BEFORE = "0" * 64
_PAGE = 1000


class Trail(IndexPart):
    """The audit trail of one index."""

    def append(self, *entries: TrailEntry) -> None:
        """Add entries in one durable commit."""
        with writing(self._engine) as connection:
            append_in(connection, entries)

    def last(self) -> tuple[int, str]:
        """Number and digest of the newest record; (0, zeros) if there is none."""
        with self._engine.connect() as connection:
            return _last(connection)

    def records(self, *, after: int = 0, since: str = "", uid: str = "", newest: int = 0) -> Iterator[TrailRecord]:
        """Records in their order, read page by page: numbered above ``after``, dated ``since`` (ISO 8601) or later,
        about ``uid``. ``newest``: only that many of the newest ones."""
        if newest:
            after = max(after, self._before_the_newest(newest, since, uid))
        while True:
            query = select(trail).where(trail.c.number > after, *_narrowed(since, uid)).order_by(trail.c.number)
            rows = rows_of(self._engine, query.limit(_PAGE))
            for row in rows:
                yield _record(row)
            if len(rows) < _PAGE:
                return
            after = rows[-1].number

    def insert_unchanged(self, records: Sequence[TrailRecord]) -> None:
        """Insert records from the journal that the index lacks."""
        if records:
            with writing(self._engine) as connection:
                connection.execute(insert(trail), [_row(record) for record in records])

    def _before_the_newest(self, count: int, since: str, uid: str) -> int:
        query = select(trail.c.number).where(*_narrowed(since, uid)).order_by(trail.c.number.desc())
        return int(value_of(self._engine, query.offset(count).limit(1)) or 0)


def append_in(connection: Connection, entries: Iterable[TrailEntry]) -> None:
    """Add entries within a write transaction."""
    if connection.dialect.name == "postgresql":  # one writer at a time, as with SQLite's BEGIN IMMEDIATE
        connection.execute(text("SELECT pg_advisory_xact_lock(7226310)"))
    number, previous = _last(connection)
    rows: list[dict[str, Any]] = []
    for entry in entries:
        number += 1
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        record = TrailRecord(number, at, entry, previous, "")
        previous = record_digest(record)
        rows.append(_row(replace(record, digest=previous)))
    if rows:
        connection.execute(insert(trail), rows)


def record_digest(record: TrailRecord) -> str:
    """The digest that a record must have."""
    content = [record.number, record.at, record.previous, asdict(record.entry)]
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def first_break(records: Iterable[TrailRecord]) -> str:
    """The first fault of a whole trail, from its first record on; empty if there is none."""
    number, previous = 0, NOTHING_BEFORE
    for record in records:
        if record.number != number + 1:
            return f"record {number + 1} is missing: after {number} comes {record.number}"
        if record.previous != previous:
            return f"record {record.number} does not follow the one before it: one of the two was changed"
        if record.digest != record_digest(record):
            return f"record {record.number} was changed: its digest does not match"
        number, previous = record.number, record.digest
    return ""


def _last(connection: Connection) -> tuple[int, str]:
    row = connection.execute(select(trail.c.number, trail.c.digest).order_by(trail.c.number.desc()).limit(1)).first()
    return (row.number, row.digest) if row else (0, NOTHING_BEFORE)


def _narrowed(since: str, uid: str) -> list[Any]:
    narrowed: list[Any] = [trail.c.at >= since] if since else []
    if uid:
        # the JSON text holds the UID in quotes; a plain search is enough for a trail read by people
        narrowed.append(cast(trail.c.uids, Text).contains(json.dumps(uid), autoescape=True))
    return narrowed


def _row(record: TrailRecord) -> dict[str, Any]:
    columns = asdict(record)
    entry: dict[str, Any] = columns.pop("entry")
    return entry | columns


def _record(row: Row[Any]) -> TrailRecord:
    entry = TrailEntry(row.action, row.who, row.level, tuple(row.uids), row.rendition, row.outcome, row.detail)
    return TrailRecord(row.number, row.at, entry, row.previous, row.digest)
