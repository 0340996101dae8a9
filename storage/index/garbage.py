"""Garbage: unlinks objects that rows let go of, unless another row needs them."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import delete, select

from storage.index.connection import writing
from storage.index.garbage_rows import mark_garbage
from storage.index.integrity import is_expected
from storage.index.reading import IndexPart, rows_of
from storage.index.tables import garbage
from storage.objects.store import ObjectStore
from storage.records import Tier


class Garbage(IndexPart):
    """The marks of one index."""

    def mark(self, digest: str, tier: Tier) -> None:
        """Mark an object to be unlinked; if a row needs it, ``collect`` leaves it."""
        with writing(self._engine) as connection:
            mark_garbage(connection, digest, tier)

    def collect(self, stores: Mapping[Tier, ObjectStore]) -> int:
        """Unlink garbage that no row needs; how many objects. Garbage in a store that is not in ``stores`` stays."""
        waiting = rows_of(self._engine, select(garbage).where(garbage.c.tier.in_(list(stores))))
        count = 0
        for found in waiting:
            with writing(self._engine) as connection:  # holds the lock until the file is unlinked: see unmark_garbage
                still = select(garbage.c.key).where(garbage.c.key == found.key).with_for_update()
                if connection.execute(still).first() is None:
                    continue
                if not is_expected(connection, found.digest, found.tier):
                    stores[Tier(found.tier)].delete(found.digest)
                    count += 1
                connection.execute(delete(garbage).where(garbage.c.key == found.key))
        return count
