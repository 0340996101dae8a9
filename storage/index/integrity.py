"""Expected objects, the damage that a scrub found among them, and its effect on the instances.

Add every new object-valued column to ``_SOURCES``; otherwise a scrub treats its objects as orphans.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    CompoundSelect,
    Connection,
    Integer,
    Select,
    String,
    bindparam,
    func,
    insert,
    literal,
    select,
    union_all,
    update,
)

from storage.index.connection import writing
from storage.index.hierarchy import TO_ENCODE
from storage.index.lease import is_free
from storage.index.reading import IndexPart, record_of, rows_of, value_of
from storage.index.rendition_rows import withdraw_in
from storage.index.tables import damage, instance, model_file, original, quarantine, rendition
from storage.records import InstanceState, OriginalForm, ReasonCode, Tier

HOT = Tier.HOT
"""The store of all objects except originals that were moved to the cold store."""
END = "g"
"""A text that sorts after every digest."""


@dataclass(frozen=True)
class ExpectedObject:
    """An object that a row names. ``kind``: original, base, rendition, quarantined or model."""

    digest: str
    kind: str
    store: str
    instance_key: int | None


@dataclass(frozen=True)
class NewDamage(ExpectedObject):
    """An expected object that is damaged or missing, and the action taken."""

    condition: str
    detail: str
    moved_to: str
    action: str


@dataclass(frozen=True, kw_only=True)
class Damage(ExpectedObject):
    """An expected object that is not whole, with the key of its damage row."""

    key: int


class Integrity(IndexPart):
    # --- expected objects ---

    def expected(self, low: str = "", high: str = END) -> list[ExpectedObject]:
        """Every expected object with ``low`` <= digest < ``high``, by digest, once for each row that names it."""
        return self._expected(_IN_ORDER, low=low, high=high)

    def expected_at(self, digest: str) -> list[ExpectedObject]:
        """The expected objects with that digest, one for each row that names it."""
        return self._expected(_OF_DIGEST, named=digest)

    def expected_of(self, instance_key: int) -> list[ExpectedObject]:
        return self._expected(_OF_INSTANCE, instance_key=instance_key)

    def named(self) -> Iterator[tuple[str, ...]]:
        """Store and digest of every object that rows name, once, by digest."""
        found = _IN_RANGE.subquery()
        query = select(found.c.store, found.c.digest).distinct().order_by(found.c.digest, found.c.store)
        with self._engine.connect() as connection:
            yield from map(tuple, connection.execute(query, {"low": "", "high": END}))

    def count(self, low: str = "", high: str = END) -> int:
        """How many expected objects there are in that range."""
        found = select(func.count()).select_from(_IN_RANGE.subquery())
        return int(value_of(self._engine, found.params(low=low, high=high)))

    def _expected(self, query: CompoundSelect[Any], **values: Any) -> list[ExpectedObject]:
        return [ExpectedObject(*row) for row in rows_of(self._engine, query, values)]

    # --- damage ---

    def note(self, found: NewDamage) -> None:
        """Insert a damage row, or update the open one of the same expected object."""
        with writing(self._engine) as connection:
            key = connection.execute(select(damage.c.key).where(*_open(found))).scalar()
            if key is None:
                row = {name: getattr(found, name) for name in NewDamage.__dataclass_fields__}
                blank = {"former_state": "", "former_reason": "", "former_code": "", "set_reason": "", "outcome": ""}
                connection.execute(insert(damage).values(**row, **blank, found_at=time.time()))
            else:
                news = {"action": found.action} | ({"moved_to": found.moved_to} if found.moved_to else {})
                connection.execute(update(damage).where(damage.c.key == key).values(**news))

    def open_damage(self) -> list[Damage]:
        """Objects that are not whole again, oldest first."""
        query = select(damage).where(damage.c.closed_at.is_(None)).order_by(damage.c.key)
        return [record_of(Damage, row) for row in rows_of(self._engine, query)]

    def close(self, key: int, outcome: str) -> None:
        """Close a damage row: the object is whole again, or no longer expected. Its instance gets its state back."""
        with writing(self._engine) as connection:
            close_damage_in(connection, key, outcome)

    def close_of(self, found: ExpectedObject, outcome: str) -> None:
        """Close the open damage row of an expected object, if there is one."""
        with writing(self._engine) as connection:
            for key in connection.execute(select(damage.c.key).where(*_open(found))).scalars().all():
                close_damage_in(connection, key, outcome)

    # --- effect on an instance ---

    def flag(self, found: ExpectedObject, state: InstanceState, code: ReasonCode, reason: str) -> bool:
        """Set state and reason of the instance of an open damage row, and store its former ones in that row.

        Returns False if the instance is being worked on; the next scrub tries again.
        """
        with writing(self._engine) as connection:
            own = select(instance.c.state, instance.c.reason, instance.c.reason_code)
            mine = instance.c.key == found.instance_key
            row = connection.execute(own.where(mine, is_free(instance))).first()
            if row is None:
                return False
            if (row.state, row.reason) == (state, reason):
                return True
            noted = connection.execute(select(damage).where(*_open(found))).one()
            connection.execute(update(instance).where(mine).values(state=state, reason=reason, reason_code=code))
            former = {"former_state": row.state, "former_reason": row.reason, "former_code": row.reason_code}
            before = {} if noted.former_state else former
            connection.execute(update(damage).where(damage.c.key == noted.key).values(set_reason=reason, **before))
        return True

    def requeue(self, instance_key: int, code: ReasonCode, reason: str) -> None:
        """Set an instance back to RECEIVED. It keeps its rendition until the archivist has made a new one.

        Nothing is changed unless it is VERIFIED, MEASURED or FAILED, and its original is held.
        """
        final = [InstanceState.VERIFIED, InstanceState.MEASURED, InstanceState.FAILED]
        changes = TO_ENCODE | {"reason": reason, "reason_code": code}
        there = select(original.c.instance_key).where(original.c.form != OriginalForm.PURGED)
        with writing(self._engine) as connection:
            found = (instance.c.key == instance_key, instance.c.key.in_(there), instance.c.state.in_(final))
            connection.execute(update(instance).where(*found).values(changes))

    # --- renditions ---

    def withdraw(self, derived_uid: str, why: str) -> None:
        """Withdraw a rendition. Its objects are marked as garbage, and its UIDs still lead to the image."""
        with writing(self._engine) as connection:
            found = select(rendition.c.key).where(rendition.c.derived_uid == derived_uid)
            withdraw_in(connection, connection.execute(found).scalar_one(), why)


@dataclass(frozen=True)
class _Source:
    """A column that names objects of one kind, with their store and instance. ``rows``: conditions on its rows."""

    kind: str
    digest: Any
    store: Any
    instance_key: Any
    rows: tuple[Any, ...] = ()

    def select(self, *where: Any) -> Select[Any]:
        return select(
            self.digest.label("digest"),
            literal(self.kind).label("kind"),
            self.store.label("store"),
            self.instance_key.label("instance_key"),
        ).where(*self.rows, *where)


_IN_USE = (rendition.c.withdrawn == "",)
_HELD = (original.c.form != OriginalForm.PURGED,)

_SOURCES = (
    _Source("original", original.c.object_digest, original.c.tier, original.c.instance_key, _HELD),
    _Source("base", rendition.c.base_digest, literal(HOT), rendition.c.instance_key, _IN_USE),
    _Source("rendition", rendition.c.rendition_digest, literal(HOT), rendition.c.instance_key, _IN_USE),
    _Source("quarantined", quarantine.c.digest, literal(HOT), literal(None, Integer)),
    _Source("model", model_file.c.digest, literal(HOT), literal(None, Integer)),
)

# Built once: a scrub runs these queries for each folder, and building one takes longer than running it.
_LOW, _HIGH, _NAMED = (bindparam(name, type_=String) for name in ("low", "high", "named"))
_KEY = bindparam("instance_key", type_=Integer)
_IN_RANGE = union_all(*(one.select(one.digest >= _LOW, one.digest < _HIGH) for one in _SOURCES))
_IN_ORDER = _IN_RANGE.order_by("digest", "kind")
_OF_INSTANCE = union_all(*(one.select(one.instance_key == _KEY) for one in _SOURCES)).order_by("digest", "kind")
_OF_DIGEST = union_all(*(one.select(one.digest == _NAMED) for one in _SOURCES)).order_by("digest", "kind")


def is_expected(connection: Connection, digest: str, store: str) -> bool:
    """Whether any row names the object in that store."""
    return any(row.store == store for row in connection.execute(_OF_DIGEST, {"named": digest}))


def close_damage_in(connection: Connection, key: int, outcome: str) -> None:
    """``Integrity.close`` as part of a transaction."""
    closed = update(damage).where(damage.c.key == key).values(closed_at=time.time(), outcome=outcome)
    row = connection.execute(closed.returning(damage)).one()
    if not row.set_reason:
        return
    unchanged = (instance.c.key == row.instance_key, instance.c.reason == row.set_reason)
    former = {"state": row.former_state, "reason": row.former_reason, "reason_code": row.former_code}
    connection.execute(update(instance).where(*unchanged).values(**former, attempts=0))
    # later damage of the same instance must not restore the state that this damage set
    later = (damage.c.instance_key == row.instance_key, damage.c.former_reason == row.set_reason)
    before = {name: getattr(row, name) for name in ("former_state", "former_reason", "former_code")}
    connection.execute(update(damage).where(*later, damage.c.closed_at.is_(None)).values(before))


def _open(found: ExpectedObject) -> tuple[Any, ...]:
    """The conditions of the open damage row of the same expected object."""
    return (
        damage.c.digest == found.digest,
        damage.c.kind == found.kind,
        damage.c.store == found.store,
        damage.c.instance_key.is_not_distinct_from(found.instance_key),
        damage.c.closed_at.is_(None),
    )
