"""What the index promises to hold, what a scrub found of it, and what that makes of the instances.

``promises`` is the one place that says which objects have to be there: whatever new kind of object a row comes to
point to becomes a line in ``_SOURCES``, and is scrubbed, and no orphan, from then on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import Connection, Engine, Integer, Row, Select, func, insert, literal, or_, select, union_all, update

from storage.index.connection import writing
from storage.index.tables import damage, instance, model_file, original, quarantine, rendition
from storage.records import InstanceState, OriginalForm, ReasonCode, Tier, Trial, Verdict

HOT = Tier.HOT
"""The store that everything but originals is in."""


@dataclass(frozen=True)
class ExpectedObject:
    """One row's word that an object is held. ``kind``: original, base, rendition, quarantined or model."""

    digest: str
    kind: str
    store: str
    instance_key: int | None


@dataclass(frozen=True)
class NewDamage:
    """A damaged object that a row promises, and what was done about it."""

    digest: str
    kind: str
    store: str
    instance_key: int | None
    condition: str
    detail: str
    moved_to: str
    action: str


@dataclass(frozen=True)
class Damage:
    """A damage row that is still open."""

    key: int
    digest: str
    kind: str
    store: str
    instance_key: int | None
    condition: str
    detail: str
    moved_to: str
    found_at: float
    action: str


class Integrity:
    """The scrub's side of the index."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    # --- what should be there ---

    def promises(self, low: str, high: str) -> list[ExpectedObject]:
        """Every promise of a digest in ``low`` <= digest < ``high``, by digest."""
        return self._promises(lambda source: source.select(source.digest >= low, source.digest < high))

    def promises_for(self, instance_key: int) -> list[ExpectedObject]:
        """What one instance needs."""
        return self._promises(lambda source: source.select(source.instance_key == instance_key))

    def count(self, low: str, high: str) -> int:
        """How many promises there are in that range."""
        found = union_all(*(one.select(one.digest >= low, one.digest < high) for one in _SOURCES)).subquery()
        with self._engine.connect() as connection:
            return int(connection.execute(select(func.count()).select_from(found)).scalar_one())

    def _promises(self, of: Callable[[_Source], Select[Any]]) -> list[ExpectedObject]:
        query = union_all(*map(of, _SOURCES)).order_by("digest", "kind")
        with self._engine.connect() as connection:
            return [
                ExpectedObject(row.digest, row.kind, row.store, row.instance_key) for row in connection.execute(query)
            ]

    # --- what was found ---

    def note(self, found: NewDamage) -> None:
        """Open a damage row, or bring the open one of the same promise up to date."""
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
        """What is not whole again yet, oldest first."""
        query = select(damage).where(damage.c.closed_at.is_(None)).order_by(damage.c.key)
        with self._engine.connect() as connection:
            return [_damage_of(row) for row in connection.execute(query)]

    def close(self, key: int, outcome: str) -> None:
        """The object is whole again, or nobody promises it any more. What the scrub had set on its instance goes."""
        with writing(self._engine) as connection:
            connection.execute(update(damage).where(damage.c.key == key).values(closed_at=time.time(), outcome=outcome))
            row = connection.execute(select(damage).where(damage.c.key == key)).one()
            if row.instance_key is None or not row.set_reason:
                return
            said = (instance.c.key == row.instance_key, instance.c.reason == row.set_reason)
            connection.execute(
                update(instance)
                .where(*said)
                .values(state=row.former_state, reason=row.former_reason, reason_code=row.former_code, attempts=0)
            )

    # --- what it makes of an instance ---

    def flag(self, found: NewDamage, state: InstanceState, code: ReasonCode, reason: str) -> bool:
        """Let the instance of a damage row say ``state`` and ``reason``, and note what it said before.

        False where somebody works on the instance; the next scrub comes by again.
        """
        idle = or_(instance.c.lease_until.is_(None), instance.c.lease_until < time.time())
        with writing(self._engine) as connection:
            row = connection.execute(
                select(instance.c.state, instance.c.reason, instance.c.reason_code).where(
                    instance.c.key == found.instance_key, idle
                )
            ).first()
            if row is None:
                return False
            if (row.state, row.reason) == (state, reason):
                return True
            noted = connection.execute(select(damage).where(*_open(found))).one()
            connection.execute(
                update(instance)
                .where(instance.c.key == found.instance_key)
                .values(state=state, reason=reason, reason_code=code)
            )
            former = {"former_state": row.state, "former_reason": row.reason, "former_code": row.reason_code}
            before = {} if noted.former_state else former
            connection.execute(update(damage).where(damage.c.key == noted.key).values(set_reason=reason, **before))
        return True

    def send_back(self, instance_key: int, code: ReasonCode, reason: str) -> None:
        """Give an instance to the archivist once more; it keeps its rendition, which it is to make again."""
        rested = [InstanceState.VERIFIED, InstanceState.MEASURED, InstanceState.FAILED]
        with writing(self._engine) as connection:
            connection.execute(
                update(instance)
                .where(instance.c.key == instance_key, instance.c.state.in_(rested))
                .values(
                    state=InstanceState.RECEIVED,
                    reason=reason,
                    reason_code=code,
                    attempts=0,
                    lease_owner=None,
                    lease_until=None,
                )
            )

    # --- making a rendition again ---

    def measured(self, derived_uid: str) -> tuple[Verdict, tuple[Trial, ...]]:
        """The verdict on a rendition and what was tried for it, as recorded when it was made."""
        with self._engine.connect() as connection:
            row = connection.execute(select(rendition).where(rendition.c.derived_uid == derived_uid)).one()
        return verdict_of(row), trials_of(row.tried)

    def state_with(self, derived_uid: str) -> InstanceState:
        """The state of an instance that this rendition stands for."""
        query = select(rendition.c.gated).where(rendition.c.derived_uid == derived_uid)
        with self._engine.connect() as connection:
            return InstanceState.VERIFIED if connection.execute(query).scalar_one() else InstanceState.MEASURED

    def withdraw(self, derived_uid: str, why: str) -> None:
        """A rendition stands for its image no more. Its UID keeps leading to the image."""
        with writing(self._engine) as connection:
            key = connection.execute(
                update(rendition)
                .where(rendition.c.derived_uid == derived_uid)
                .values(withdrawn=why)
                .returning(rendition.c.key)
            ).scalar_one()
            connection.execute(update(instance).where(instance.c.rendition_key == key).values(rendition_key=None))


@dataclass(frozen=True)
class _Source:
    """Which column promises objects of a kind: its digest, the store they are in, whose they are, which rows count."""

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
"""Every promise there is: a new kind of object, or another store, is a line here."""


def is_promised(connection: Connection, digest: str, store: str) -> bool:
    """Whether any row gives its word for an object in that store."""
    looks = (source.select(source.digest == digest, source.store == store).limit(1) for source in _SOURCES)
    return any(connection.execute(look).first() is not None for look in looks)


def _open(found: NewDamage) -> tuple[Any, ...]:
    """The open row of the same promise."""
    return (
        damage.c.digest == found.digest,
        damage.c.kind == found.kind,
        damage.c.store == found.store,
        damage.c.instance_key.is_not_distinct_from(found.instance_key),
        damage.c.closed_at.is_(None),
    )


def trials_of(recorded: list[dict[str, Any]]) -> tuple[Trial, ...]:
    """What a rendition's row tells of the operating points that were tried."""
    return tuple(Trial(**{**trial, "failures": tuple(trial["failures"])}) for trial in recorded)


def verdict_of(row: Row[Any]) -> Verdict:
    """The verdict of a rendition's row; what was kept had missed no limit."""
    return Verdict(row.psnr_db, row.fsim_mean, row.fsim_p5, row.tiles, row.figures, (), bool(row.gated))


def _damage_of(row: Row[Any]) -> Damage:
    return Damage(**{field.name: getattr(row, field.name) for field in fields(Damage)})
