"""Quarantined objects: they are accepted in place of the held original, or rejected."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy import Connection, Row, delete, insert, select, update

from storage.errors import ChangeRefused
from storage.index.commitment_requests import is_pinned
from storage.index.connection import now, writing
from storage.index.garbage_rows import Present, mark_garbage, unmark_garbage
from storage.index.hierarchy import drop_empty_above, instance_row, take_attributes_of
from storage.index.holds import on_hold
from storage.index.lease import FREE
from storage.index.original_locations import held_columns, held_original, insert_original
from storage.index.reading import IndexPart, record_of, rows_of, with_patient
from storage.index.rendition_rows import withdraw_in
from storage.index.resent_originals import close_damage
from storage.index.rewritten_annotations import note_references
from storage.index.tables import instance, original, quarantine, reference, reference_copy, rendition
from storage.index.tombstones import is_deleted, next_instance_key
from storage.index.trail_rows import append_in
from storage.records import HeldOriginal, NewInstance, Quarantined, Tier, TrailEntry

REPLACED = "its original was replaced from quarantine"
"""Why a rendition of the former original is withdrawn."""


@dataclass(frozen=True)
class Former:
    """What is left of the original that an acceptance replaces.

    ``verbatim``: its digest, if it is verbatim in the hot store; empty if it was purged, is lost, or there is none.
    ``lost``: its row, if no store holds its object.
    """

    verbatim: str = ""
    lost: HeldOriginal | None = None


class QuarantineRows(IndexPart):
    def put(
        self, digest: str, sop_instance_uid: str, calling_aet: str, reason: str, present: Present = lambda _: True
    ) -> bool:
        """Commit an object that is refused under its UID. An object that is put twice has one row.

        Returns False if the object was unlinked meanwhile, and nothing was committed.
        """
        with writing(self._engine) as connection:
            if not unmark_garbage(connection, digest, present):
                return False
            _put(connection, digest, sop_instance_uid, calling_aet, reason)
        return True

    def all(self) -> list[Quarantined]:
        """Everything in quarantine, oldest first."""
        rows = rows_of(self._engine, select(quarantine).order_by(quarantine.c.key))
        return [record_of(Quarantined, row) for row in rows]

    def reject(self, one: Quarantined, entry: TrailEntry) -> bool:
        """Remove an object from quarantine, and mark it as garbage. Returns False if it is no longer there.

        Raises ChangeRefused if a hold covers the image that is held under its UID.
        """
        with writing(self._engine) as connection:
            held = _held(connection, one.sop_instance_uid)
            if held is not None and held.on_hold:
                raise ChangeRefused(f"{one.sop_instance_uid} is on hold, and nothing that arrived under it is removed")
            if not take_out(connection, one.digest):
                return False
            mark_garbage(connection, one.digest, Tier.HOT)
            append_in(connection, [entry])
        return True

    def accept(self, new: NewInstance, former: Former, entry: TrailEntry, present: Present) -> bool:
        """Make a quarantined object the original of its UID. The former original goes to quarantine.

        Returns False if a row changed meanwhile, or a lost original is back. Raises ChangeRefused if a hold or a pin
        protects the former original.
        """
        try:
            with writing(self._engine) as connection:
                _accept(connection, new, former, present)
                append_in(connection, [entry])
        except _Changed:
            return False
        return True


class _Changed(Exception):
    """A row changed since the decision was made; the transaction is rolled back."""


def _accept(connection: Connection, new: NewInstance, former: Former, present: Present) -> None:
    if is_deleted(connection, new.sop_instance_uid) or not take_out(connection, new.original_digest):
        raise _Changed
    stored = filter(None, (new.original_digest, former.verbatim))
    if not all(unmark_garbage(connection, digest, present) for digest in stored):
        raise _Changed
    held = _held(connection, new.sop_instance_uid)
    if held is None:
        row = {**instance_row(connection, new), **next_instance_key(connection)}
        key = connection.execute(insert(instance).values(row).returning(instance.c.key)).scalar_one()
    else:
        if not _is_still(former, held_original(held), present):
            raise _Changed
        key = held.key
        _replace(connection, held, new, former)
    insert_original(connection, key, new.original_digest, new.original_bytes)
    note_references(connection, key, new.references)


def _is_still(former: Former, held: HeldOriginal, present: Present) -> bool:
    """Whether the held original is in the condition in which it was found before the transaction."""
    if former.lost is not None:
        back = held.tier is Tier.HOT and present(held.object_digest)
        return not back and (held.object_digest, held.tier) == (former.lost.object_digest, former.lost.tier)
    return former.verbatim == ("" if held.purged else held.original_digest)


def _held(connection: Connection, uid: str) -> Row[Any] | None:
    own = (instance.c.key, instance.c.series_key, instance.c.original_digest, instance.c.calling_aet)
    query = select(*own, *held_columns(), on_hold().label("on_hold"), is_pinned().label("pinned"))
    query = with_patient(query.join(original, original.c.instance_key == instance.c.key))
    row = connection.execute(query.where(instance.c.sop_instance_uid == uid)).first()
    return cast(Row[Any] | None, row)


def _replace(connection: Connection, held: Row[Any], new: NewInstance, former: Former) -> None:
    if held.on_hold or held.pinned:
        why = "on hold" if held.on_hold else "pinned by a storage commitment"
        raise ChangeRefused(f"{new.sop_instance_uid}: the original that is held is {why}, and cannot be replaced")
    if former.verbatim:
        reason = f"was held until {new.original_digest} was accepted in its place"
        _put(connection, former.verbatim, new.sop_instance_uid, held.calling_aet, reason)
        mark_garbage(connection, held.object_digest, held.tier)
    if former.lost is not None:  # its object is no garbage: should it turn up, a scrub finds it among the orphans
        close_damage(connection, held.key, "another original was accepted in its place")
    mine = select(rendition.c.key).where(rendition.c.instance_key == held.key)
    for made in connection.execute(mine).scalars().all():
        withdraw_in(connection, made, REPLACED)
    for table in (reference, reference_copy):
        connection.execute(delete(table).where(table.c.instance_key == held.key))
    row = {**instance_row(connection, new), **FREE, "rendition_key": None}
    connection.execute(update(instance).where(instance.c.key == held.key).values(row))
    drop_empty_above(connection, [held.series_key])
    take_attributes_of(connection, row["series_key"], new.levels)


def _put(connection: Connection, digest: str, uid: str, calling_aet: str, reason: str) -> None:
    if connection.execute(select(quarantine.c.key).where(quarantine.c.digest == digest)).first() is None:
        row = {"digest": digest, "sop_instance_uid": uid, "calling_aet": calling_aet, "reason": reason}
        connection.execute(insert(quarantine).values(**row, arrived_at=now()))


def take_out(connection: Connection, digest: str) -> bool:
    """Remove the row of an object, as part of a transaction; False if it is not in quarantine."""
    return bool(connection.execute(delete(quarantine).where(quarantine.c.digest == digest)).rowcount)
