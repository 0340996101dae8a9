"""Where every original is: packing, moving, restoring and removing as single transactions on its row.

The row changes in one commit, together with its trail entry; an object that no row needs any more is noted as doomed
in that same commit, and unlinked afterwards by ``collect``. Whoever puts an object to use spares it within the commit
and looks once more that it is there, so that no row ever promises a file that is gone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, Row, Select, and_, delete, func, insert, or_, select, update

from storage.index.commitment_requests import is_pinned
from storage.index.connection import now, writing
from storage.index.holds import on_hold
from storage.index.integrity import is_promised
from storage.index.tables import doomed, instance, original, patient, rendition, series, study
from storage.index.trail_rows import append_in
from storage.objects.store import ObjectStore
from storage.records import (
    HeldOriginal,
    InstanceState,
    OriginalClaim,
    OriginalForm,
    OriginalTotals,
    Purgeable,
    StoredRendition,
    Tier,
    TrailEntry,
)

Present = Callable[[str], bool]
"""Whether the store that is written to holds an object of that digest."""

STAYS_RESTORED = timedelta(days=7)
"""A restored original is not moved back to the cold store before."""

_AT_REST = [state for state in InstanceState if state is not InstanceState.RECEIVED]
_HAS_RENDITION = [InstanceState.VERIFIED, InstanceState.MEASURED]


class OriginalLocations:
    """The originals of one index. Safe to share between threads and processes."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    # --- looking up ---

    def of_digest(self, original_digest: str) -> HeldOriginal | None:
        """How the original of that digest is held; None where the index knows of none (an object in quarantine)."""
        with self._engine.connect() as connection:
            row = connection.execute(_held().where(instance.c.original_digest == original_digest)).first()
        return None if row is None else held_original(row)

    def below(self, level: str, uid: str) -> list[tuple[str, HeldOriginal]]:
        """(SOP Instance UID, original) of everything under a patient's ID, a study's, a series' or an image's UID."""
        column = {
            "patient": patient.c.patient_id,
            "study": study.c.study_instance_uid,
            "series": series.c.series_instance_uid,
            "image": instance.c.sop_instance_uid,
        }[level]
        query = _with_levels(_held(instance.c.sop_instance_uid)).where(column == uid).order_by(instance.c.key)
        with self._engine.connect() as connection:
            return [(row.sop_instance_uid, held_original(row)) for row in connection.execute(query)]

    def totals(self) -> OriginalTotals:
        """Counts and bytes on disk of originals, and how many wait to be packed."""
        query = select(
            original.c.form,
            original.c.tier,
            original.c.to_pack,
            func.count().label("count"),
            func.sum(original.c.object_bytes).label("bytes"),
        ).group_by(original.c.form, original.c.tier, original.c.to_pack)
        with self._engine.connect() as connection:
            rows = connection.execute(query).all()

        def total(column: str, **wanted: object) -> int:
            return sum(
                int(getattr(row, column) or 0)
                for row in rows
                if all(getattr(row, name) == value for name, value in wanted.items())
            )

        kept = (OriginalForm.VERBATIM, OriginalForm.PACKED)
        return OriginalTotals(
            verbatim=total("count", form=OriginalForm.VERBATIM),
            verbatim_bytes=total("bytes", form=OriginalForm.VERBATIM),
            packed=total("count", form=OriginalForm.PACKED),
            packed_bytes=total("bytes", form=OriginalForm.PACKED),
            cold=sum(total("count", form=form, tier=Tier.COLD) for form in kept),
            cold_bytes=sum(total("bytes", form=form, tier=Tier.COLD) for form in kept),
            purged=total("count", form=OriginalForm.PURGED),
            to_pack=total("count", form=OriginalForm.VERBATIM, to_pack=1),
        )

    # --- packing and moving ---

    def claim_to_pack(self, owner: str, lease_seconds: float) -> OriginalClaim | None:
        """Take an original that lies verbatim in the hot store, whose instance came to rest, to pack it."""
        waiting = (
            original.c.to_pack == 1,
            original.c.form == OriginalForm.VERBATIM,
            original.c.tier == Tier.HOT,
            instance.c.state.in_(_AT_REST),
        )
        return self._claim(owner, lease_seconds, *waiting)

    def claim_to_move(self, owner: str, lease_seconds: float, *, packed_first: bool) -> OriginalClaim | None:
        """Take an original in the hot store that a rendition stands for, to move it to the cold store."""
        waiting = (
            original.c.to_pack <= (0 if packed_first else 1),
            original.c.form != OriginalForm.PURGED,
            original.c.tier == Tier.HOT,
            instance.c.state.in_(_HAS_RENDITION),
            or_(original.c.restored_at.is_(None), original.c.restored_at < now() - STAYS_RESTORED),
        )
        return self._claim(owner, lease_seconds, *waiting)

    def packed(self, claim: OriginalClaim, digest: str, size: int, present: Present) -> bool:
        """Commit the packed object in place of the verbatim one; False where the claim or the object is lost."""
        held = claim.original
        with writing(self._engine) as connection:
            if not _owns(connection, claim) or not _spare(connection, digest, Tier.HOT, present):
                return False
            changes = {"form": OriginalForm.PACKED, "object_digest": digest, "object_bytes": size, "note": ""}
            _change(connection, held, to_pack=0, attempts=0, lease_owner=None, lease_until=None, **changes)
            mark_garbage_in(connection, held.object_digest, held.tier)
        return True

    def stays_verbatim(self, claim: OriginalClaim, note: str, entries: Sequence[TrailEntry] = ()) -> None:
        """Note why an original is not packed; it is not tried again."""
        with writing(self._engine) as connection:
            if _owns(connection, claim):
                _change(
                    connection, claim.original, to_pack=0, note=note, lease_owner=None, lease_until=None, attempts=0
                )
                append_in(connection, entries)

    def moved(self, held: HeldOriginal, to: Tier, present: Present, entries: Sequence[TrailEntry] = ()) -> bool:
        """Commit that an original's object is in the other store; False where its row or that object changed."""
        restored = now() if to is Tier.HOT else None
        with writing(self._engine) as connection:
            if not still_held(connection, held) or not _spare(connection, held.object_digest, to, present):
                return False
            _change(connection, held, tier=to, restored_at=restored, lease_owner=None, lease_until=None, attempts=0)
            mark_garbage_in(connection, held.object_digest, held.tier)
            append_in(connection, entries)
        return True

    def stays_hot(self, held: HeldOriginal) -> None:
        """Somebody wants an original that is in the hot store to remain there for a while."""
        with writing(self._engine) as connection:
            _change(connection, held, restored_at=now())

    def release(self, claim: OriginalClaim, *, wait: float = 0.0) -> None:
        """Give a claim back undone; it is not handed out again for ``wait`` seconds."""
        until = time.time() + wait if wait else None
        with writing(self._engine) as connection:
            if _owns(connection, claim):
                _change(connection, claim.original, lease_owner=None, lease_until=until)

    # --- removing ---

    def purgeable(
        self, held_before: datetime, *, reserve: str = "", after: int = 0, limit: int = 500
    ) -> list[Purgeable]:
        """Originals that may be removed, by key from ``after`` on: verified, held since before, unpinned, unheld.

        ``reserve``: originals whose digest is below this text stay, for audits to measure against.
        """
        query = _with_levels(
            _held(
                instance.c.sop_instance_uid, study.c.study_instance_uid, patient.c.patient_id, instance.c.rendition_key
            )
        ).where(*_may_be_purged(held_before, reserve), instance.c.key > after)
        with self._engine.connect() as connection:
            rows = connection.execute(query.order_by(instance.c.key).limit(limit)).all()
            keys = [row.rendition_key for row in rows]
            renditions = {
                row.key: row for row in connection.execute(select(rendition).where(rendition.c.key.in_(keys)))
            }
        names = StoredRendition.__dataclass_fields__
        return [
            Purgeable(
                original=held_original(row),
                sop_instance_uid=row.sop_instance_uid,
                study_instance_uid=row.study_instance_uid,
                patient_id=row.patient_id,
                rendition=StoredRendition(**{name: getattr(renditions[row.rendition_key], name) for name in names}),
            )
            for row in rows
        ]

    def purgeable_totals(self, held_before: datetime, reserve: str = "") -> tuple[int, int]:
        """How many originals may be removed, and their bytes on disk."""
        return self._totals(_may_be_purged(held_before, reserve))

    def reserved_totals(self, held_before: datetime, reserve: str) -> tuple[int, int]:
        """How many originals stay for the audit reserve alone, and their bytes on disk."""
        return self._totals((*_may_be_purged(held_before, ""), instance.c.original_digest < reserve))

    def purged(self, one: Purgeable, held_before: datetime, entry: TrailEntry, reserve: str = "") -> bool:
        """Commit that an original is removed; its object is unlinked only after. False where the rules forbid it now.

        Every rule is looked at again inside the transaction: a hold that was committed before it counts.
        """
        held = one.original
        with writing(self._engine) as connection:
            allowed = _with_levels(_held(rendition.c.derived_uid)).join(
                rendition, instance.c.rendition_key == rendition.c.key
            )
            row = connection.execute(
                allowed.where(*_may_be_purged(held_before, reserve), instance.c.key == held.instance_key)
            ).first()
            if row is None or held_original(row) != held or row.derived_uid != one.rendition.derived_uid:
                return False
            gone = {"form": OriginalForm.PURGED, "object_digest": None, "object_bytes": 0, "purged_at": now()}
            _change(connection, held, tier=Tier.HOT, to_pack=0, note="", lease_owner=None, lease_until=None, **gone)
            mark_garbage_in(connection, held.object_digest, held.tier)
            append_in(connection, [entry])
        return True

    # --- unlinking ---

    def doom(self, digest: str, tier: Tier) -> None:
        """Note an object that nothing came to need; where a row does need it, ``collect`` leaves it."""
        with writing(self._engine) as connection:
            mark_garbage_in(connection, digest, tier)

    def collect(self, stores: Mapping[Tier, ObjectStore]) -> int:
        """Unlink what is doomed and needed by no row; how many. What lies in a store that is not at hand waits."""
        with self._engine.connect() as connection:
            waiting = connection.execute(select(doomed).where(doomed.c.tier.in_(list(stores)))).all()
        count = 0
        for found in waiting:
            with writing(self._engine) as connection:  # the lock is held until the file is gone: see _spare
                still = select(doomed.c.key).where(doomed.c.key == found.key).with_for_update()
                if connection.execute(still).first() is None:
                    continue
                if not is_promised(connection, found.digest, found.tier):
                    stores[Tier(found.tier)].delete(found.digest)
                    count += 1
                connection.execute(delete(doomed).where(doomed.c.key == found.key))
        return count

    def _totals(self, rules: tuple[ColumnElement[bool], ...]) -> tuple[int, int]:
        counted = select(func.count(), func.sum(original.c.object_bytes)).select_from(original)
        joined = counted.join(instance, original.c.instance_key == instance.c.key)
        with self._engine.connect() as connection:
            row = connection.execute(_with_levels(joined).where(*rules)).one()
        return int(row[0]), int(row[1] or 0)

    def _claim(self, owner: str, lease_seconds: float, *waiting: ColumnElement[bool]) -> OriginalClaim | None:
        free = or_(original.c.lease_until.is_(None), original.c.lease_until < time.time())
        oldest = _held(instance.c.sop_instance_uid, original.c.attempts).where(*waiting, free)
        oldest = oldest.order_by(original.c.attempts, original.c.instance_key).limit(1)
        with self._engine.connect() as connection:  # most looks find nothing: do not take the write lock for them
            if connection.execute(oldest).first() is None:
                return None
        with writing(self._engine) as connection:
            row = connection.execute(oldest).first()
            if row is None:
                return None
            leased = {"lease_owner": owner, "lease_until": time.time() + lease_seconds}
            taken = update(original).where(original.c.instance_key == row.instance_key, free)
            if not connection.execute(taken.values(**leased, attempts=row.attempts + 1)).rowcount:
                return None
        return OriginalClaim(held_original(row), row.sop_instance_uid, owner, row.attempts + 1)


# --- used by the index when an instance comes in --------------------------------------------------------------


def take_in(connection: Connection, instance_key: int, digest: str, size: int) -> None:
    """The row of an original that was just received, or received again after it was purged."""
    row = {
        "form": OriginalForm.VERBATIM,
        "tier": Tier.HOT,
        "object_digest": digest,
        "object_bytes": size,
        "to_pack": 1,
        "note": "",
        "held_since": now(),
        "purged_at": None,
        "attempts": 0,
    }
    known = update(original).where(original.c.instance_key == instance_key)
    if not connection.execute(known.values(**row)).rowcount:
        connection.execute(insert(original).values(instance_key=instance_key, **row))


def keep_hot(connection: Connection, digest: str, present: Present) -> bool:
    """Keep an object in the hot store from being unlinked; False where it is gone already."""
    return _spare(connection, digest, Tier.HOT, present)


def held_columns() -> list[ColumnElement[Any]]:
    """The columns that ``held_original`` needs."""
    names = [name for name in HeldOriginal.__dataclass_fields__ if name != "original_digest"]
    return [original.c[name] for name in names]


def held_original(row: Row[Any]) -> HeldOriginal:
    """How an original is held, from a row with ``held_columns`` and the instance's digest."""
    fields = {name: getattr(row, name) for name in HeldOriginal.__dataclass_fields__}
    named = {"form": OriginalForm(row.form), "tier": Tier(row.tier), "object_digest": row.object_digest or ""}
    return HeldOriginal(**{**fields, **named})


# --- parts of the transactions --------------------------------------------------------------------------------


def _held(*more: ColumnElement[Any]) -> Select[Any]:
    columns = [*held_columns(), instance.c.original_digest, *more]
    return select(*columns).select_from(original).join(instance, original.c.instance_key == instance.c.key)


def _with_levels(query: Any) -> Any:
    return (
        query.join(series, instance.c.series_key == series.c.key)
        .join(study, series.c.study_key == study.c.key)
        .join(patient, study.c.patient_key == patient.c.key)
    )


def _may_be_purged(held_before: datetime, reserve: str) -> tuple[ColumnElement[bool], ...]:
    return (
        instance.c.original_digest >= reserve,
        instance.c.state == InstanceState.VERIFIED,
        instance.c.rendition_key.is_not(None),
        original.c.form != OriginalForm.PURGED,
        original.c.held_since <= held_before,
        ~is_pinned(),
        ~on_hold(),
    )


def _change(connection: Connection, held: HeldOriginal, **values: Any) -> None:
    connection.execute(update(original).where(original.c.instance_key == held.instance_key).values(**values))


def _owns(connection: Connection, claim: OriginalClaim) -> bool:
    owned = and_(original.c.lease_owner == claim.owner, original.c.attempts == claim.attempts)
    query = select(1).where(original.c.instance_key == claim.original.instance_key, owned)
    return connection.execute(query).first() is not None and still_held(connection, claim.original)


def still_held(connection: Connection, held: HeldOriginal) -> bool:
    """Whether an original is still held by the object that it was seen with."""
    query = select(1).where(
        original.c.instance_key == held.instance_key,
        original.c.object_digest == held.object_digest,
        original.c.tier == held.tier,
    )
    return connection.execute(query).first() is not None


def mark_garbage_in(connection: Connection, digest: str, tier: str) -> None:
    """Note an object that no row needs any more, within the transaction of that change."""
    known = select(doomed.c.key).where(doomed.c.digest == digest, doomed.c.tier == tier)
    if connection.execute(known).first() is None:
        connection.execute(insert(doomed).values(digest=digest, tier=tier))


def _spare(connection: Connection, digest: str, tier: Tier, present: Present) -> bool:
    """The write lock (a row lock elsewhere) keeps ``collect`` out until the commit: what is there now stays."""
    connection.execute(delete(doomed).where(doomed.c.digest == digest, doomed.c.tier == tier))
    return present(digest)
