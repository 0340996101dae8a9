"""An original that is received again while its instance is held: it is dropped, or it replaces a lost object.

The caller checks on disk, outside of any transaction, whether the held object is whole. Each function commits only if
the row of the original still names the object that was checked; otherwise the caller checks again.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Engine, Row, and_, select, update

from storage.index.connection import writing
from storage.index.garbage_rows import Present, mark_garbage, unmark_garbage
from storage.index.hierarchy import TO_ENCODE
from storage.index.integrity import close_damage_in
from storage.index.lease import FREE
from storage.index.original_locations import as_received, held_original, insert_original, still_held
from storage.index.tables import damage, instance, original
from storage.index.trail_rows import append_in
from storage.records import HeldOriginal, InstanceState, NewInstance, ReasonCode, Tier, TrailEntry


def drop_copy(engine: Engine, held: HeldOriginal, copy: str) -> bool:
    """Mark a second verbatim copy as garbage, since the held object is whole. Returns False if the row changed.

    The copy may be the held object itself: a lost verbatim object is stored again under the same digest.
    """
    with writing(engine) as connection:
        if not still_held(connection, held):
            return False
        if (held.object_digest, held.tier) != (copy, Tier.HOT):
            mark_garbage(connection, copy, Tier.HOT)
        _is_whole_again(connection, held.instance_key)
    return True


def replace_lost(engine: Engine, held: HeldOriginal, new: NewInstance, present: Present) -> bool:
    """Replace a lost or damaged object by the original that was received again. False if the row changed, or if the
    new object was unlinked meanwhile."""
    detail = f"the {held.form} object {held.object_digest} in the {held.tier} store was missing or damaged"
    uids = (new.sop_instance_uid,)
    with writing(engine) as connection:
        if not still_held(connection, held) or not unmark_garbage(connection, new.original_digest, present):
            return False
        mine = update(original).where(original.c.instance_key == held.instance_key)
        connection.execute(mine.values({**as_received(new.original_digest, new.original_bytes), **FREE}))
        if (held.object_digest, held.tier) != (new.original_digest, Tier.HOT):
            mark_garbage(connection, held.object_digest, held.tier)
        _is_whole_again(connection, held.instance_key)
        append_in(connection, [TrailEntry("original.again", new.calling_aet, "image", uids, "original", detail=detail)])
    return True


def insert_lost_row(engine: Engine, new: NewInstance, present: Present) -> bool:
    """Insert the row of an original whose instance is held, and which a damaged journal had lost. False if the row is
    there, or if the instance was deleted or the new object unlinked meanwhile."""
    mine = (instance.c.sop_instance_uid == new.sop_instance_uid, instance.c.original_digest == new.original_digest)
    row = select(original.c.instance_key).where(original.c.instance_key == instance.c.key)
    with writing(engine) as connection:
        key = connection.execute(select(instance.c.key).where(*mine, ~row.exists())).scalar()
        if key is None or not unmark_garbage(connection, new.original_digest, present):
            return False
        insert_original(connection, key, new.original_digest, new.original_bytes)
        _is_whole_again(connection, key)
        detail = "the row of the original was missing"
        uids = (new.sop_instance_uid,)
        append_in(connection, [TrailEntry("original.again", new.calling_aet, "image", uids, "original", detail=detail)])
    return True


def _is_whole_again(connection: Connection, instance_key: int) -> None:
    """Close the damage of an instance's original, and give the instance back to the archivist if its encoding failed,
    perhaps because of that damage."""
    close_damage(connection, instance_key)
    failed = and_(
        instance.c.key == instance_key,
        instance.c.state == InstanceState.FAILED,
        instance.c.reason_code == ReasonCode.OTHER,
        instance.c.rendition_key.is_(None),
    )
    connection.execute(update(instance).where(failed).values(TO_ENCODE))


def hold_again(connection: Connection, new: NewInstance, held: Row[Any]) -> bool:
    """Within the transaction of an arrival: hold a purged original again; False if it is not purged."""
    before = held_original(held)
    if not before.purged:
        return False
    insert_original(connection, before.instance_key, new.original_digest, new.original_bytes)
    _is_whole_again(connection, before.instance_key)
    entry = TrailEntry("original.again", new.calling_aet, "image", (new.sop_instance_uid,), "original")
    append_in(connection, [entry])
    return True


def close_damage(connection: Connection, instance_key: int, outcome: str = "sent again") -> None:
    """Close the damage of an instance's original, which is whole again or was replaced."""
    mine = (damage.c.instance_key == instance_key, damage.c.kind == "original", damage.c.closed_at.is_(None))
    # newest first, since each row holds the state before it
    for key in connection.execute(select(damage.c.key).where(*mine).order_by(damage.c.key.desc())).scalars().all():
        close_damage_in(connection, key, outcome)
