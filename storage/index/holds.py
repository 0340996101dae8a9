"""Legal holds and labels of studies: no original that a hold covers is removed, whatever its age."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, delete, func, insert, or_, select, update

from storage.index.connection import now, writing
from storage.index.reading import IndexPart, next_key, record_of, rows_of, value_of, with_patient
from storage.index.tables import former_patient, hold, instance, label, original, patient, study
from storage.index.trail_rows import append_in
from storage.records import Hold, HoldKind, OriginalForm, TrailEntry, TrailRecord


class Holds(IndexPart):
    """Holds and labels of one index. Every change is in the audit trail, in the same transaction."""

    def add(self, kind: HoldKind, value: str, *, reason: str, who: str) -> Hold:
        """Place a hold; after the commit no original that it covers is removed."""
        with writing(self._engine) as connection:
            return add_hold_in(connection, kind, value, reason=reason, who=who)

    def release(self, key: int, *, reason: str, who: str) -> Hold | None:
        """Release a hold; None if there is no such hold, or it was released before."""
        released = {"released_by": who, "released_at": now(), "release_reason": reason}
        with writing(self._engine) as connection:
            open_hold = update(hold).where(hold.c.key == key, hold.c.released_at.is_(None))
            row = connection.execute(open_hold.values(**released).returning(hold)).first()
            if row is None:
                return None
            entry = TrailEntry("hold.release", who, row.kind, (row.value,), detail=f"{key}: {reason}")
            append_in(connection, [entry])
        return _hold(row)

    def all(self, *, released: bool = False) -> list[Hold]:
        """The holds in force; with ``released`` all holds."""
        query = select(hold).order_by(hold.c.key)
        return [_hold(row) for row in rows_of(self._engine, query) if released or row.released_at is None]

    def covered(self, placed: Hold) -> int:
        """How many held originals a hold covers now."""
        originals = select(func.count()).select_from(original)
        query = with_patient(originals.join(instance, original.c.instance_key == instance.c.key))
        query = query.join(hold, hold.c.key == placed.key).where(_covers(), original.c.form != OriginalForm.PURGED)
        return int(value_of(self._engine, query))

    def put_label(self, name: str, study_uid: str, *, who: str) -> bool:
        """Label a study; False if it has that label already."""
        with writing(self._engine) as connection:
            return put_label_in(connection, name, study_uid, who=who)

    def take_label(self, name: str, study_uid: str, *, who: str) -> bool:
        """Remove a label from a study; False if it had none of that name."""
        with writing(self._engine) as connection:
            return take_label_in(connection, name, study_uid, who=who)

    def labels(self) -> list[tuple[str, str]]:
        """Every (label, Study Instance UID)."""
        query = select(label.c.name, label.c.study_instance_uid).order_by(label.c.name, label.c.study_instance_uid)
        return [(row.name, row.study_instance_uid) for row in rows_of(self._engine, query)]

    def catch_up(self, records: Iterable[TrailRecord]) -> int:
        """Apply holds, releases and labels that the trail records and the index lacks, and return their number.

        Of the records of one label of a study, the last one counts.
        """
        rows = rows_of(self._engine, select(hold.c.key, hold.c.released_at))
        released = {str(row.key): row.released_at is not None for row in rows}
        count, known = 0, set(self.labels())
        labelled: dict[tuple[str, str], TrailRecord] = {}
        for record in records:
            entry = record.entry
            number = entry.detail.partition(": ")[0]
            adds = entry.action == "hold.add" and number not in released
            if adds or (entry.action == "hold.release" and released.get(number) is False):
                self._replay(record)
                released[number] = not adds
                count += 1
            elif entry.action in ("label.add", "label.remove"):
                labelled[entry.detail, entry.uids[0]] = record
        for one, record in labelled.items():
            if (one in known) != (record.entry.action == "label.add"):
                self._replay(record)
                count += 1
        return count

    def _replay(self, record: TrailRecord) -> None:
        """Apply a record of the trail to an index that lacks its effect."""
        entry, at = record.entry, datetime.fromisoformat(record.at).replace(tzinfo=None)
        number, _, reason = entry.detail.partition(": ")
        with writing(self._engine) as connection:
            if entry.action == "hold.add":
                new = insert(hold).values(key=int(number), kind=entry.level, value=entry.uids[0], reason=reason)
                connection.execute(new.values(placed_by=entry.who, placed_at=at, released_by="", release_reason=""))
            elif entry.action == "hold.release":
                gone = update(hold).where(hold.c.key == int(number))
                connection.execute(gone.values(released_by=entry.who, released_at=at, release_reason=reason))
            elif entry.action == "label.add":
                connection.execute(insert(label).values(name=entry.detail, study_instance_uid=entry.uids[0]))
            elif entry.action == "label.remove":
                connection.execute(delete(label).where(*_labelled(entry.detail, entry.uids[0])))


def add_hold_in(connection: Connection, kind: HoldKind, value: str, *, reason: str, who: str) -> Hold:
    """``Holds.add`` as part of a transaction."""
    placed = {"kind": kind, "value": value, "reason": reason, "placed_by": who, "placed_at": now()}
    new = insert(hold).values(next_key(connection, hold.c.key) | placed | {"released_by": "", "release_reason": ""})
    row = connection.execute(new.returning(hold)).one()
    append_in(connection, [TrailEntry("hold.add", who, kind, (value,), detail=f"{row.key}: {reason}")])
    return _hold(row)


def put_label_in(connection: Connection, name: str, study_uid: str, *, who: str) -> bool:
    """``Holds.put_label`` as part of a transaction."""
    if connection.execute(select(label.c.key).where(*_labelled(name, study_uid))).first():
        return False
    connection.execute(insert(label).values(name=name, study_instance_uid=study_uid))
    append_in(connection, [TrailEntry("label.add", who, "study", (study_uid,), detail=name)])
    return True


def take_label_in(connection: Connection, name: str, study_uid: str, *, who: str) -> bool:
    """``Holds.take_label`` as part of a transaction."""
    if not connection.execute(delete(label).where(*_labelled(name, study_uid))).rowcount:
        return False
    append_in(connection, [TrailEntry("label.remove", who, "study", (study_uid,), detail=name)])
    return True


def on_hold() -> ColumnElement[bool]:
    """Whether a hold in force covers the row; the query has ``study`` and ``patient`` joined."""
    in_force = select(1).select_from(hold).where(hold.c.released_at.is_(None), _covers())
    return in_force.correlate(study, patient).exists()


def _covers() -> ColumnElement[bool]:
    of_study = select(label.c.name).where(label.c.study_instance_uid == study.c.study_instance_uid)
    former_ids = select(former_patient.c.patient_id).where(former_patient.c.study_key == study.c.key)
    return or_(
        and_(hold.c.kind == HoldKind.STUDY, hold.c.value == study.c.study_instance_uid),
        and_(hold.c.kind == HoldKind.PATIENT, hold.c.value == patient.c.patient_id),
        and_(hold.c.kind == HoldKind.PATIENT, hold.c.value.in_(former_ids.correlate(study).scalar_subquery())),
        and_(hold.c.kind == HoldKind.LABEL, hold.c.value.in_(of_study.correlate(study).scalar_subquery())),
    )


def _labelled(name: str, study_uid: str) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return label.c.name == name, label.c.study_instance_uid == study_uid


def _hold(row: Row[Any]) -> Hold:
    return record_of(Hold, row, kind=HoldKind(row.kind))
