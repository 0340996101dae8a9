"""Marks of objects that no row may need any more, written in the transaction that lets go of them.

``OriginalLocations.collect`` unlinks them later, unless a row needs them after all.
"""

from __future__ import annotations

from sqlalchemy import Connection, insert, select

from storage.index.tables import garbage


def mark_garbage_in(connection: Connection, digest: str, tier: str) -> None:
    """Mark an object as garbage, as part of a transaction."""
    known = select(garbage.c.key).where(garbage.c.digest == digest, garbage.c.tier == tier)
    if connection.execute(known).first() is None:
        connection.execute(insert(garbage).values(digest=digest, tier=tier))
