"""Marks of garbage, written in the transaction in which a row stops to name an object.

``Garbage.collect`` unlinks the objects later. A transaction that starts to use an object first removes its mark and
then checks that the object is there, so that no row ever names an object that is gone.
"""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import Connection, delete, insert, select

from storage.index.tables import garbage
from storage.records import Tier

Present = Callable[[str], bool]
"""Whether the store holds an object of that digest."""


def mark_garbage(connection: Connection, digest: str, tier: str) -> None:
    """Mark an object as garbage, as part of a transaction."""
    known = select(garbage.c.key).where(garbage.c.digest == digest, garbage.c.tier == tier)
    if connection.execute(known).first() is None:
        connection.execute(insert(garbage).values(digest=digest, tier=tier))


def unmark_garbage(connection: Connection, digest: str, present: Present, tier: Tier = Tier.HOT) -> bool:
    """Remove an object's mark, as part of a transaction that starts to use it. Returns False if the object is gone.

    The write lock keeps ``collect`` out until the commit, so an object that is there now stays.
    """
    connection.execute(delete(garbage).where(garbage.c.digest == digest, garbage.c.tier == tier))
    return present(digest)
