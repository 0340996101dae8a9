"""Commits rows for the orphans that node/archive/orphan_recovery.py recovers."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Engine, or_, select, update

from storage.index.connection import now, writing
from storage.index.holdings import Added, Index
from storage.index.integrity import Integrity
from storage.index.original_locations import insert_original
from storage.index.reading import first_of, values_of
from storage.index.rendition_rows import insert_rendition, is_known_by
from storage.index.tables import garbage, instance, original, reference_copy, rendition
from storage.index.tombstones import is_deleted
from storage.records import InstanceState, NewInstance, NewRendition, OriginalForm, ReasonCode, StoredInstance, Tier


@dataclass(frozen=True)
class FoundObject:
    """A recovered original. A purged one has no object, and is known from the base of its rendition."""

    form: OriginalForm
    tier: Tier
    digest: str
    bytes: int


def known_digests(engine: Engine) -> set[str]:
    """Digests of all expected objects, and of all garbage."""
    unlinked = set(values_of(engine, select(garbage.c.digest)))
    return unlinked | {one.digest for one in Integrity(engine).expected()}


def is_acceptable(engine: Engine, uid: str) -> bool:
    """Whether a SOP Instance UID may belong to a received image: it was neither deleted nor issued here."""
    with engine.connect() as connection:
        issued = (
            select(rendition.c.key).where(is_known_by([uid])),
            select(reference_copy.c.uid).where(reference_copy.c.uid == uid),
        )
        return not is_deleted(connection, uid) and not any(connection.execute(look).first() for look in issued)


def has_rendition(engine: Engine, original_digest: str) -> bool:
    """Whether an image has a rendition, withdrawn or not, by the digest of its original."""
    query = select(rendition.c.key).join(instance, rendition.c.instance_key == instance.c.key)
    return first_of(engine, query.where(instance.c.original_digest == original_digest)) is not None


def adopt_original(index: Index, new: NewInstance, found: FoundObject, *, missing: str = "") -> bool:
    """Commit an instance for an original that was found in a store. If it has a row, commit only where the original is.

    ``missing``: the digest of the object that its row names, if no store holds that object. Returns False if the UID is
    held with other content, deleted or issued here, or if the row of its original names another object.
    """
    added = index.add(new)
    if added not in (Added.NEW, Added.SAME_BYTES):
        return False
    held = {
        "form": found.form,
        "tier": found.tier,
        "object_digest": found.digest or None,
        "object_bytes": found.bytes,
        "to_pack": int(found.form is OriginalForm.VERBATIM),
        "purged_at": now() if found.form is OriginalForm.PURGED else None,
    }
    with writing(index.engine) as connection:
        named = select(instance.c.key).where(instance.c.sop_instance_uid == new.sop_instance_uid)
        key = int(connection.execute(named).scalar_one())
        mine = original.c.instance_key == key
        row = connection.execute(select(original.c.object_digest).where(mine)).first()
        if row is None:
            insert_original(connection, key, new.original_digest, new.original_bytes)
        elif added is Added.SAME_BYTES and (not missing or row.object_digest != missing):
            return False
        connection.execute(update(original).where(mine).values(held))
    return True


def adopt_purge(engine: Engine, held: StoredInstance, at: str) -> None:
    """Commit that the original of an instance was purged; ``at``: UTC, ISO 8601."""
    purged_at = datetime.fromisoformat(at).replace(tzinfo=None)
    gone = {"form": OriginalForm.PURGED, "tier": Tier.HOT, "object_digest": None, "object_bytes": 0}
    with writing(engine) as connection:
        if held.held is None:
            insert_original(connection, held.key, held.original_digest, held.original_bytes)
        mine = update(original).where(original.c.instance_key == held.key)
        connection.execute(mine.values(**gone, to_pack=0, note="", purged_at=purged_at))


def adopt_rendition(engine: Engine, uid: str, new: NewRendition) -> bool:
    """Commit a stored rendition of the image of that UID, as its current one if it has none or waits to be encoded.

    Returns False if there is no such image, or if one of the rendition's UIDs belongs to another object.
    """
    with writing(engine) as connection:
        key = connection.execute(select(instance.c.key).where(instance.c.sop_instance_uid == uid)).scalar()
        rendition_key = None if key is None else insert_rendition(connection, key, new)
        if rendition_key is None:
            return False
        changes = {"rendition_key": rendition_key, "state": new.state, "reason": "", "reason_code": ReasonCode.NONE}
        waiting = or_(instance.c.rendition_key.is_(None), instance.c.state == InstanceState.RECEIVED)
        connection.execute(update(instance).where(instance.c.key == key, waiting).values(changes))
    return True
