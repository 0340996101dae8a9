"""Rendition rows: the only place that writes and reads them whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, insert, or_, select, update

from storage.index.connection import now
from storage.index.garbage_rows import mark_garbage
from storage.index.reading import record_of
from storage.index.tables import instance, rendition
from storage.records import RENDITION_STATES, NewRendition, OperatingPoint, StoredRendition, Tier, Trial, Verdict

_VERDICT = ("psnr_db", "fsim_mean", "fsim_p5", "tiles", "figures", "gated")
"""Columns that hold a field of the verdict. The verdict of a committed rendition has no failures."""
_PLAIN = [one.name for one in fields(NewRendition) if one.name not in ("point", "verdict", "tried")]
"""Columns that hold a field of a rendition unchanged."""


def insert_rendition(connection: Connection, instance_key: int, new: NewRendition) -> int | None:
    """Insert a rendition, and return its key; None if a stored object or another rendition has one of its UIDs."""
    uids = [new.derived_uid, new.structure_uid]
    stored = select(instance.c.key).where(instance.c.sop_instance_uid.in_(uids))
    issued = select(rendition.c.key).where(is_known_by(uids))
    if any(connection.execute(query).first() is not None for query in (stored, issued)):
        return None
    row = {name: getattr(new, name) for name in _PLAIN}
    row |= {name: getattr(new.verdict, name) for name in _VERDICT} | {"gated": int(new.verdict.gated)}
    row |= {"point": asdict(new.point), "tried": [asdict(trial) for trial in new.tried]}
    row |= {"instance_key": instance_key, "verified_at": now(), "withdrawn": ""}
    return int(connection.execute(insert(rendition).values(row).returning(rendition.c.key)).scalar_one())


def insert_rendition_or_reuse_row(
    connection: Connection, instance_key: int, new: NewRendition, *, replace_object: bool
) -> int | None:
    """Insert the row of a rendition and return its key; None if one of its UIDs belongs to another object.

    A rendition that was made before keeps its row. The row takes the new objects if ``replace_object``, or if the
    rendition was withdrawn.
    """
    known = connection.execute(select(rendition).where(rendition.c.derived_uid == new.derived_uid)).first()
    if known is None:
        return insert_rendition(connection, instance_key, new)
    if (known.output_digest, known.structure_digest) != (new.output_digest, new.structure_digest):
        return None
    if replace_object or known.withdrawn:
        names = ("base_digest", "base_bytes", "rendition_digest", "rendition_bytes", "numerics_digest")
        objects = {name: getattr(new, name) for name in names} | {"withdrawn": ""}
        connection.execute(update(rendition).where(rendition.c.key == known.key).values(objects))
    return int(known.key)


def withdraw_in(connection: Connection, key: int, why: str) -> None:
    """Withdraw a rendition, and mark its objects as garbage, as part of a transaction."""
    mine = update(rendition).where(rendition.c.key == key).values(withdrawn=why)
    made = connection.execute(mine.returning(rendition.c.base_digest, rendition.c.rendition_digest)).one()
    mark_objects_as_garbage(connection, made)
    connection.execute(update(instance).where(instance.c.rendition_key == key).values(rendition_key=None))


def mark_objects_as_garbage(connection: Connection, made: NewRendition | Row[Any]) -> None:
    """Mark base and rendition as garbage, as part of a transaction; they are unlinked unless a row needs them."""
    for digest in (made.base_digest, made.rendition_digest):
        mark_garbage(connection, digest, Tier.HOT)


def is_served() -> ColumnElement[bool]:
    """Whether an instance has a rendition that peers find and get, as ``StoredInstance.served_rendition`` says."""
    return and_(instance.c.rendition_key.is_not(None), instance.c.state.in_(RENDITION_STATES))


def taken_reason(new: NewRendition) -> str:
    """Why ``insert_rendition_or_reuse_row`` did not commit."""
    return f"{new.derived_uid}, or its UID without noise, is the UID of another object already"


def stored_rendition(row: Row[Any]) -> StoredRendition:
    """The record of a row with all columns of ``rendition``."""
    return record_of(
        StoredRendition,
        row,
        point=OperatingPoint(**row.point),
        verdict=record_of(Verdict, row, failures=(), gated=bool(row.gated)),
        tried=tuple(Trial(**{**trial, "failures": tuple(trial["failures"])}) for trial in row.tried),
    )


def current_renditions(connection: Connection, rows: Iterable[Row[Any]]) -> dict[int, StoredRendition]:
    """The renditions that rows with ``rendition_key`` name, by key."""
    keys = [row.rendition_key for row in rows if row.rendition_key is not None]
    found = connection.execute(select(rendition).where(rendition.c.key.in_(keys)))
    return {row.key: stored_rendition(row) for row in found}


def is_known_by(uids: Sequence[str]) -> ColumnElement[bool]:
    """Whether one of the rendition's two objects has one of those UIDs."""
    return or_(rendition.c.derived_uid.in_(uids), rendition.c.structure_uid.in_(uids))
