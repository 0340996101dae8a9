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

from sqlalchemy import Connection, Row, Select, func, insert, or_, select

from storage.index.connection import writing
from storage.index.reading import IndexPart, first_of, rows_of, value_of, values_of, with_study
from storage.index.tables import instance, reference_copy, rendition, series, study, tombstone, trail
from storage.records import TrailEntry, TrailRecord

NOTHING_BEFORE = "0" * 64
"""The field ``previous`` of the first record."""
_PAGE = 1000


class Trail(IndexPart):
    def append(self, *entries: TrailEntry) -> None:
        """Add entries in one durable commit."""
        with writing(self._engine) as connection:
            append_in(connection, entries)

    def last(self) -> tuple[int, str]:
        """Number and digest of the newest record; (0, zeros) if there is none."""
        with self._engine.connect() as connection:
            return _last(connection)

    def records(self, *, after: int = 0, since: str = "", uid: str = "", newest: int = 0) -> Iterator[TrailRecord]:
        """Records in their order, read page by page.

        ``after``: only those with a higher number. ``since``: only those of this time (ISO 8601) or later. ``uid``:
        only those about it or what it contains, as a study contains series, images and their reconstructions.
        ``newest``: only that many of the newest.
        """
        narrowed = self._narrowed(since, uid)
        if newest:
            query = select(trail.c.number).where(*narrowed).order_by(trail.c.number.desc())
            after = max(after, int(value_of(self._engine, query.offset(newest).limit(1)) or 0))
        while True:
            query = select(trail).where(trail.c.number > after, *narrowed).order_by(trail.c.number)
            rows = rows_of(self._engine, query.limit(_PAGE))
            for row in rows:
                yield _record(row)
            if len(rows) < _PAGE:
                return
            after = rows[-1].number

    def newest_of(self, actions: Sequence[str], detail: str) -> TrailRecord | None:
        """The newest record of these actions whose detail begins with ``detail``; None if there is none."""
        wanted = (trail.c.action.in_(actions), trail.c.detail.startswith(detail, autoescape=True))
        row = first_of(self._engine, select(trail).where(*wanted).order_by(trail.c.number.desc()))
        return None if row is None else _record(row)

    def insert_unchanged(self, records: Sequence[TrailRecord]) -> None:
        """Insert records from the journal that the index lacks, with their numbers and digests."""
        if records:
            with writing(self._engine) as connection:
                connection.execute(insert(trail), [_row(record) for record in records])

    def _narrowed(self, since: str, uid: str) -> list[Any]:
        narrowed: list[Any] = [trail.c.at >= since] if since else []
        if uid:
            of_json = func.json_each if self._engine.dialect.name == "sqlite" else func.json_array_elements_text
            named = of_json(trail.c.uids).table_valued("value")
            wanted = {uid, *(each for query in _within(uid) for each in values_of(self._engine, query))}
            narrowed.append(select(named.c.value).where(named.c.value.in_(wanted)).exists())
        return narrowed


def append_in(connection: Connection, entries: Iterable[TrailEntry]) -> None:
    """Add entries within a write transaction."""
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
    """SHA-256, hex, of all fields of a record except its own digest, as canonical JSON."""
    content = [record.number, record.at, record.previous, asdict(record.entry)]
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def first_break(records: Iterable[TrailRecord]) -> str:
    """The first fault of a trail, given all its records from the first one; empty if there is none."""
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


def _within(uid: str) -> Iterator[Select[Any]]:
    """Queries for the UIDs of all that a study, a series or an image contains: reconstructions and deleted ones too."""
    in_study, in_series = study.c.study_instance_uid == uid, series.c.series_instance_uid == uid
    keys = with_study(select(instance.c.key)).where(in_study | in_series | (instance.c.sop_instance_uid == uid))
    yield select(series.c.series_instance_uid).join(study, series.c.study_key == study.c.key).where(in_study)
    yield select(instance.c.sop_instance_uid).where(instance.c.key.in_(keys))
    for made in (rendition.c.derived_uid, rendition.c.structure_uid):
        yield select(made).where(rendition.c.instance_key.in_(keys))
    yield select(reference_copy.c.uid).where(reference_copy.c.instance_key.in_(keys))
    levels = (tombstone.c.study_instance_uid, tombstone.c.series_instance_uid, tombstone.c.original_uid)
    yield select(tombstone.c.uid).where(or_(*(level == uid for level in levels)))


def _row(record: TrailRecord) -> dict[str, Any]:
    columns = asdict(record)
    entry: dict[str, Any] = columns.pop("entry")
    return entry | columns


def _record(row: Row[Any]) -> TrailRecord:
    entry = TrailEntry(row.action, row.who, row.level, tuple(row.uids), row.rendition, row.outcome, row.detail)
    return TrailRecord(row.number, row.at, entry, row.previous, row.digest)
