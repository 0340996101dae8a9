"""Tombstones: the record of deliberate deletions, so that deleted instances are refused when they are sent again.

``mark_deleted`` writes tombstones and trail in one commit, and ends every lease on the images. It is refused if a hold
or a pin protects an original. ``delete_rows`` deletes the rows in a second commit, which marks their objects as
garbage. After a crash in between, ``delete_rows`` continues. A rebuilt index gets the tombstones from the journal.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from storage.errors import ChangeRefused, UnknownUid
from storage.index.commitment_requests import is_pinned
from storage.index.connection import now, writing
from storage.index.garbage_rows import mark_garbage
from storage.index.hierarchy import drop_empty_above
from storage.index.holds import on_hold
from storage.index.lease import FREE
from storage.index.reading import IndexPart, batches, first_of, next_key, record_of, values_of, with_patient
from storage.index.rendition_rows import is_known_by, mark_objects_as_garbage
from storage.index.tables import (
    damage,
    instance,
    original,
    pin,
    reference,
    reference_copy,
    rendition,
    replica,
    reverification,
    series,
    study,
    tombstone,
    tombstone_in_force,
)
from storage.index.trail_rows import append_in
from storage.records import InstanceState, OriginalForm, ReasonCode, TrailEntry, TrailRecord

_NAMED = 5
"""Maximum number of images that a refusal names."""
_SAME = timedelta(seconds=1)
"""A tombstone that is younger than a record of the trail by more than this belongs to another deletion. Chosen, not
measured."""


@dataclass(frozen=True)
class PlannedDeletion:
    """One image to delete. ``kept_because``: the rule that forbids it."""

    sop_instance_uid: str
    series_instance_uid: str
    study_instance_uid: str
    derived_uids: tuple[str, ...]
    state: str
    original_bytes: int
    kept_because: str = ""


@dataclass(frozen=True)
class Tombstone:
    """A SOP Instance UID, original or derived, that was deleted and is refused."""

    uid: str
    original_uid: str
    deleted_at: datetime


class Tombstones(IndexPart):
    """Deletions in one index. Every deletion is in the audit trail, in the same transaction."""

    def plan(self, level: str, uid: str) -> list[PlannedDeletion]:
        """The images that a deletion would remove. Raises UnknownUid."""
        with self._engine.connect() as connection:
            return _plan(connection, level, uid)

    def mark_deleted(self, level: str, uid: str, *, reason: str, who: str) -> list[PlannedDeletion]:
        """Write tombstones for all UIDs, original and derived, of an image, a series or a study.

        Returns the images. Raises UnknownUid, ChangeRefused.
        """
        with writing(self._engine) as connection:
            found = _plan(connection, level, uid)
            kept = [one for one in found if one.kept_because]
            if kept:
                named = "; ".join(f"{one.sop_instance_uid} {one.kept_because}" for one in kept[:_NAMED])
                more = f"; and {len(kept) - _NAMED} more" if len(kept) > _NAMED else ""
                raise ChangeRefused(f"nothing was deleted: {named}{more}")
            for one in found:
                for each in (one.sop_instance_uid, *one.derived_uids):
                    _put(connection, each, one, reason=reason, who=who, at=now())
            stopped = {"state": InstanceState.EXACT, "reason": "being deleted", "reason_code": ReasonCode.OTHER, **FREE}
            for some in batches(one.sop_instance_uid for one in found):
                those = update(instance).where(instance.c.sop_instance_uid.in_(some))
                # the archivist loses its claims, and its results
                connection.execute(those.values(**stopped, attempts=instance.c.attempts + 1))
            append_in(connection, [_entry(one, reason, who) for one in found])
        return found

    def keys_to_delete(self) -> set[int]:
        """Keys of the instances that are marked deleted and still have rows."""
        return set(values_of(self._engine, select(instance.c.key).where(instance.c.sop_instance_uid.in_(_WAITING))))

    def digests_to_delete(self) -> list[str]:
        """Digests of all objects, present or former, of instances that are marked deleted and still have rows."""
        columns = (
            (instance.c.original_digest, instance.c.key),
            (original.c.object_digest, original.c.instance_key),
            (rendition.c.base_digest, rendition.c.instance_key),
            (rendition.c.rendition_digest, rendition.c.instance_key),
            (damage.c.digest, damage.c.instance_key),
        )
        with self._engine.connect() as connection:
            keys = select(instance.c.key).where(instance.c.sop_instance_uid.in_(_WAITING))
            found = [connection.execute(select(digest).where(key.in_(keys))).scalars() for digest, key in columns]
            return sorted({digest for digests in found for digest in digests if digest})

    def delete_rows(self) -> int:
        """Delete the rows of all instances marked deleted, and mark their objects as garbage. Returns their number."""
        marks = select(tombstone.c.key).where(tombstone.c.rows_deleted == 0)
        if first_of(self._engine, marks) is None:  # the usual case, which needs no write lock
            return 0
        with writing(self._engine) as connection:
            marked = instance.c.sop_instance_uid.in_(_WAITING)
            rows = connection.execute(select(instance.c.key, instance.c.series_key).where(marked)).all()
            for row in rows:
                _remove(connection, row.key)
            drop_empty_above(connection, [row.series_key for row in rows])
            connection.execute(update(tombstone).where(tombstone.c.rows_deleted == 0).values(rows_deleted=1))
        return len(rows)

    def in_force(self, uid: str) -> Tombstone | None:
        """The tombstone of a UID, unless its return was allowed."""
        row = first_of(self._engine, select(tombstone).where(tombstone.c.uid == uid, tombstone_in_force))
        return None if row is None else record_of(Tombstone, row)

    def allow_return(self, level: str, uid: str, *, reason: str, who: str) -> list[str]:
        """Accept deleted instances again if they are sent. Returns their UIDs, original ones first.

        Raises UnknownUid, and ChangeRefused while another process deletes them.
        """
        with writing(self._engine) as connection:
            named = (_BY_LEVEL[level] == uid, tombstone_in_force)
            rows = connection.execute(select(tombstone).where(*named).order_by(tombstone.c.key)).all()
            if not rows:
                raise UnknownUid(f"no {level} {uid} was deleted here, or it may come back already")
            if not all(row.rows_deleted for row in rows):  # else it would stay, neither deleted nor encoded
                raise ChangeRefused(f"{level} {uid} is being deleted at this moment; try again")
            connection.execute(update(tombstone).where(*named).values(return_allowed_at=now()))
            uids = [row.uid for row in sorted(rows, key=lambda row: row.uid != row.original_uid)]
            entries = [TrailEntry("delete.allow-return", who, "image", tuple(uids), detail=reason)]
            append_in(connection, entries)
        return uids

    def catch_up(self, records: Iterable[TrailRecord]) -> int:
        """Write tombstones that are missing, or older than what the trail records. Returns the number of UIDs.

        The last record of each UID counts, whatever its time: a clock may have been set back. The trail may lack its
        own last records, so a tombstone that is newer than the trail is not changed.
        """
        deleted: dict[str, list[TrailRecord]] = {}
        allowed: dict[str, TrailRecord] = {}
        for record in records:
            if record.entry.action == "delete":
                uid, _, _, *derived = record.entry.uids
                for each in (uid, *derived):
                    deleted.setdefault(each, []).append(record)
                    allowed.pop(each, None)
            elif record.entry.action == "delete.allow-return":
                allowed |= dict.fromkeys(record.entry.uids, record)
        with writing(self._engine) as connection:
            rows = connection.execute(select(tombstone.c.uid, tombstone.c.deleted_at, tombstone.c.return_allowed_at))
            known = {row.uid: row for row in rows}
            stale = [uid for uid in deleted if _is_older(known.get(uid), deleted[uid], returned=uid in allowed)]
            for uid in stale:
                _put_recorded(connection, uid, deleted[uid][-1])
                if uid in allowed:
                    returned = update(tombstone).where(tombstone.c.uid == uid)
                    connection.execute(returned.values(return_allowed_at=_time_of(allowed[uid])))
        return len(stale)


def is_deleted(connection: Connection, uid: str) -> bool:
    """Whether a UID has a tombstone in force."""
    found = connection.execute(select(tombstone.c.key).where(tombstone.c.uid == uid, tombstone_in_force)).first()
    return found is not None


def next_instance_key(connection: Connection) -> dict[str, int]:
    """The key of a new instance, which no deleted one had."""
    return next_key(connection, instance.c.key, tombstone.c.instance_key)


_WAITING = select(tombstone.c.uid).where(tombstone.c.rows_deleted == 0, tombstone_in_force)
_BY_LEVEL = {
    "image": tombstone.c.original_uid,
    "series": tombstone.c.series_instance_uid,
    "study": tombstone.c.study_instance_uid,
}


def _plan(connection: Connection, level: str, uid: str) -> list[PlannedDeletion]:
    column = {
        "image": instance.c.sop_instance_uid,
        "series": series.c.series_instance_uid,
        "study": study.c.study_instance_uid,
    }[level]
    above = (series.c.series_instance_uid, study.c.study_instance_uid)
    query = with_patient(select(instance, *above, on_hold().label("on_hold"), is_pinned().label("pinned")))
    rows = connection.execute(query.where(column == uid).order_by(instance.c.key)).all()
    if not rows:
        of = select(instance.c.sop_instance_uid).join(rendition, rendition.c.instance_key == instance.c.key)
        made_of = connection.execute(of.where(is_known_by([uid]))).scalar()
        hint = f"; it is a reconstruction of {made_of}, which can be deleted" if made_of else ""
        raise UnknownUid(f"no {level} {uid} is held here{hint}")
    return [
        record_of(
            PlannedDeletion,
            row,
            derived_uids=tuple(_derived(connection, row.key)),
            kept_because="is on hold" if row.on_hold else "is pinned by a storage commitment" if row.pinned else "",
        )
        for row in rows
    ]


def _derived(connection: Connection, instance_key: int) -> Sequence[str]:
    objects = (rendition.c.derived_uid, rendition.c.structure_uid)
    made = select(*objects).where(rendition.c.instance_key == instance_key).order_by(rendition.c.key)
    copies = select(reference_copy.c.uid).where(reference_copy.c.instance_key == instance_key)
    return [*(uid for row in connection.execute(made) for uid in row), *connection.execute(copies).scalars()]


def _put(connection: Connection, uid: str, one: PlannedDeletion, *, reason: str, who: str, at: datetime) -> None:
    """Insert a tombstone, or reset the one of an earlier deletion."""
    key = select(instance.c.key).where(instance.c.sop_instance_uid == one.sop_instance_uid)
    row = {
        "original_uid": one.sop_instance_uid,
        "study_instance_uid": one.study_instance_uid,
        "series_instance_uid": one.series_instance_uid,
        "reason": reason,
        "deleted_by": who,
        "deleted_at": at,
        "instance_key": connection.execute(key).scalar() or 0,
        "rows_deleted": 0,
        "return_allowed_at": None,
    }
    known = update(tombstone).where(tombstone.c.uid == uid)
    if not connection.execute(known.values(row)).rowcount:
        connection.execute(insert(tombstone).values(uid=uid, **row))


def _put_recorded(connection: Connection, uid: str, record: TrailRecord) -> None:
    """Insert the tombstone of a UID that the trail says was deleted; ``delete_rows`` follows."""
    original_uid, series_uid, study_uid, *derived = record.entry.uids
    one = PlannedDeletion(original_uid, series_uid, study_uid, tuple(derived), "", 0)
    _put(connection, uid, one, reason=record.entry.detail, who=record.entry.who, at=_time_of(record))


def _is_older(row: Row[Any, Any, Any] | None, deletions: Sequence[TrailRecord], *, returned: bool) -> bool:
    """Whether the tombstone of a UID lacks what the trail records: a deletion, or that its return was allowed.

    A tombstone belongs to the deletion whose record is nearest in time. Its time is taken shortly before that of the
    record, which is rounded down to milliseconds.
    """
    if row is None:
        return True
    nearest = min(deletions, key=lambda record: abs(_time_of(record) - row.deleted_at))
    if nearest is not deletions[-1]:
        return True
    of_a_later_one = row.deleted_at > _time_of(nearest) + _SAME
    return returned and row.return_allowed_at is None and not of_a_later_one


def _time_of(record: TrailRecord) -> datetime:
    return datetime.fromisoformat(record.at).replace(tzinfo=None)


def _entry(one: PlannedDeletion, reason: str, who: str) -> TrailEntry:
    uids = (one.sop_instance_uid, one.series_instance_uid, one.study_instance_uid, *one.derived_uids)
    return TrailEntry("delete", who, "image", uids, detail=reason)


def _remove(connection: Connection, key: int) -> None:
    """Delete the rows of one instance, and mark their objects as garbage."""
    held = connection.execute(select(original).where(original.c.instance_key == key)).first()
    if held is not None and held.form != OriginalForm.PURGED:
        mark_garbage(connection, held.object_digest, held.tier)
    for made in connection.execute(select(rendition).where(rendition.c.instance_key == key)):
        mark_objects_as_garbage(connection, made)
    for table in (damage, pin, replica, reverification, rendition, original, reference, reference_copy):
        connection.execute(delete(table).where(table.c.instance_key == key))
    connection.execute(delete(instance).where(instance.c.key == key))
