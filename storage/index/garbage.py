"""Garbage: unlinks objects that a row no longer needs, unless another row needs them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Engine, Row, delete, select

from storage.index.connection import writing
from storage.index.garbage_rows import mark_garbage
from storage.index.integrity import is_expected
from storage.index.reading import IndexPart, rows_of
from storage.index.tables import garbage
from storage.objects.inspection import holds_any
from storage.objects.store import ObjectStore
from storage.records import Tier

LOGGER = logging.getLogger(__name__)


class Garbage(IndexPart):
    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._logged: set[str] = set()
        """Digests of objects whose failure was logged once; an idle archivist tries again every second or two."""

    def mark(self, digest: str, tier: Tier) -> None:
        """Mark an object to be unlinked. If a row needs it, ``collect`` removes only the mark."""
        with writing(self._engine) as connection:
            mark_garbage(connection, digest, tier)

    def collect(self, stores: Mapping[Tier, ObjectStore]) -> int:
        """Unlink garbage that no row needs, and return the number of objects.

        An object stays marked if its store is not in ``stores``, if the disk of that store is not mounted, or if it
        cannot be unlinked.
        """
        waiting = rows_of(self._engine, select(garbage).where(garbage.c.tier.in_(list(stores))))
        if not waiting:
            return 0
        with writing(self._engine):
            pass  # raises if a change cannot be journalled, which may be the one that marked an object
        mounted = {tier for tier, store in stores.items() if holds_any(store.root)}
        count = 0
        for found in waiting:
            if Tier(found.tier) not in mounted:
                continue
            try:
                count += self._unlink(found, stores[Tier(found.tier)])
            except OSError as error:  # of one object, such as a file that is immutable
                if found.digest not in self._logged:
                    self._logged.add(found.digest)
                    LOGGER.error("garbage %s in the %s store cannot be unlinked: %s", found.digest, found.tier, error)
        return count

    def _unlink(self, found: Row[Any], store: ObjectStore) -> bool:
        """Unlink one object if no row needs it, and remove its mark. Returns whether it was unlinked."""
        with writing(self._engine) as connection:  # holds the lock until the file is unlinked: see unmark_garbage
            still = select(garbage.c.key).where(garbage.c.key == found.key)
            if connection.execute(still).first() is None:
                return False
            needed = is_expected(connection, found.digest, found.tier)
            if not needed:
                store.delete(found.digest)
            connection.execute(delete(garbage).where(garbage.c.key == found.key))
            return not needed
