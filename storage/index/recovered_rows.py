"""Rows for objects that no row speaks of: what ``node/archive/orphan_recovery.py`` finds in them is committed here."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, Engine, insert, or_, select, update

from storage.index.connection import now, writing
from storage.index.holdings import Added, Index, is_known_by, is_taken, rendition_row
from storage.index.integrity import Integrity
from storage.index.tables import doomed, instance, original, reference_copy, rendition
from storage.index.tombstones import is_deleted
from storage.records import InstanceState, NewInstance, NewRendition, OriginalForm, Tier


@dataclass(frozen=True)
class FoundObject:
    """How an original was found. One that was purged has no object: the base of a rendition tells of it."""

    form: OriginalForm
    tier: Tier
    digest: str
    bytes: int


def spoken_of(engine: Engine) -> set[str]:
    """Digests of all objects that rows promise, or have given up."""
    with engine.connect() as connection:
        given_up = set(connection.execute(select(doomed.c.digest)).scalars())
    return given_up | {one.digest for one in Integrity(engine).promises("", "g")}


def may_arrive(engine: Engine, uid: str) -> bool:
    """Whether an object of that SOP Instance UID could be an image of its own: it was not deleted, nor issued here."""
    with engine.connect() as connection:
        issued = (
            select(rendition.c.key).where(is_known_by([uid])),
            select(reference_copy.c.uid).where(reference_copy.c.uid == uid),
        )
        return not is_deleted(connection, uid) and not any(connection.execute(look).first() for look in issued)


def has_rendition(engine: Engine, original_digest: str) -> bool:
    """Whether an image has a rendition, withdrawn or not, by the digest of its original."""
    query = select(rendition.c.key).join(instance, rendition.c.instance_key == instance.c.key)
    with engine.connect() as connection:
        return connection.execute(query.where(instance.c.original_digest == original_digest)).first() is not None


def adopt_original(index: Index, new: NewInstance, found: FoundObject) -> bool:
    """Commit an instance for an original that lies in a store; False where its UID is held."""
    if index.add(new) is not Added.NEW:
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
        connection.execute(update(original).where(original.c.instance_key == _key(connection, new)).values(held))
    return True


def adopt_rendition(engine: Engine, uid: str, new: NewRendition, state: InstanceState) -> bool:
    """Commit a rendition that lies in the store, and let it stand for the image of that UID; False where it cannot."""
    with writing(engine) as connection:
        key = connection.execute(select(instance.c.key).where(instance.c.sop_instance_uid == uid)).scalar()
        if key is None or is_taken(connection, new):
            return False
        fresh = insert(rendition).values(rendition_row(key, new)).returning(rendition.c.key)
        news = {
            "rendition_key": connection.execute(fresh).scalar_one(),
            "state": state,
            "reason": "",
            "reason_code": "",
        }
        waiting = or_(instance.c.rendition_key.is_(None), instance.c.state == InstanceState.RECEIVED)
        connection.execute(update(instance).where(instance.c.key == key, waiting).values(news))
    return True


def _key(connection: Connection, new: NewInstance) -> int:
    query = select(instance.c.key).where(instance.c.sop_instance_uid == new.sop_instance_uid)
    return int(connection.execute(query).scalar_one())
