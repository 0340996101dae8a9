"""An original that is sent again while its instance is held: it goes, or it takes the place of what is lost.

Whether the object that is held is whole takes a look at the disk, so it is found out outside of any transaction. Each
function commits only where the original is still held as it was when somebody looked; the caller looks again where it
is not.
"""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import Connection, Engine, Row, select, update

from storage.index.connection import writing
from storage.index.original_locations import Present, held_original, keep_hot, mark_garbage_in, still_held, take_in
from storage.index.tables import damage, instance, original
from storage.index.trail_rows import append_in
from storage.records import HeldOriginal, NewInstance, OriginalForm, Tier, TrailEntry


def let_go(engine: Engine, held: HeldOriginal, copy: str) -> bool:
    """The object that is held is whole: let a verbatim copy go that came in beside it. False where it changed."""
    with writing(engine) as connection:
        if not still_held(connection, held):
            return False
        if (held.object_digest, held.tier) != (copy, Tier.HOT):
            mark_garbage_in(connection, copy, Tier.HOT)
        close_damage(connection, held.instance_key)
    return True


def replace_lost(engine: Engine, held: HeldOriginal, new: NewInstance, present: Present) -> bool:
    """The object that is held is lost or damaged: the original that came in again takes its place. False where the
    original is held otherwise by now, or the newcomer was unlinked meanwhile."""
    detail = f"the {held.form} object {held.object_digest} in the {held.tier} store was missing or damaged"
    uids = (new.sop_instance_uid,)
    with writing(engine) as connection:
        if not still_held(connection, held) or not keep_hot(connection, new.original_digest, present):
            return False
        verbatim = {
            "form": OriginalForm.VERBATIM,
            "tier": Tier.HOT,
            "object_digest": new.original_digest,
            "object_bytes": new.original_bytes,
            "to_pack": 1,
            "note": "",
            "attempts": 0,
            "lease_owner": None,
            "lease_until": None,
        }
        mine = original.c.instance_key == held.instance_key
        connection.execute(update(original).where(mine).values(verbatim))
        if (held.object_digest, held.tier) != (new.original_digest, Tier.HOT):
            mark_garbage_in(connection, held.object_digest, held.tier)
        close_damage(connection, held.instance_key)
        append_in(connection, [TrailEntry("original.again", new.calling_aet, "image", uids, "original", detail=detail)])
    return True


def take_in_purged(connection: Connection, new: NewInstance, held: Row[Any]) -> bool:
    """Within the transaction of an arrival: an original that had been purged is held again; False where it was not."""
    before = held_original(held)
    if not before.purged:
        return False
    take_in(connection, before.instance_key, new.original_digest, new.original_bytes)
    entry = TrailEntry("original.again", new.calling_aet, "image", (new.sop_instance_uid,), "original")
    append_in(connection, [entry])
    return True


def close_damage(connection: Connection, instance_key: int) -> None:
    """The original of an instance is whole again: what a scrub had noted and said of it goes."""
    mine = (damage.c.instance_key == instance_key, damage.c.kind == "original", damage.c.closed_at.is_(None))
    # newest first: what the last one set on the instance is undone before what an earlier one set
    for row in connection.execute(select(damage).where(*mine).order_by(damage.c.key.desc())).all():
        closed = {"closed_at": time.time(), "outcome": "sent again"}
        connection.execute(update(damage).where(damage.c.key == row.key).values(closed))
        if row.set_reason:
            said = (instance.c.key == instance_key, instance.c.reason == row.set_reason)
            former = {"state": row.former_state, "reason": row.former_reason, "reason_code": row.former_code}
            connection.execute(update(instance).where(*said).values(**former, attempts=0))
