"""Where every original is held: packing, moving, restoring and removing, each as one transaction.

A row changes in one commit with its trail entry. An object that no row needs any more is marked as garbage in the same
commit (garbage.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, and_, func, insert, or_, select, true, update

from storage.clock import EARLIEST
from storage.index import lease
from storage.index.commitment_requests import is_pinned
from storage.index.connection import now, writing
from storage.index.garbage_rows import Present, mark_garbage, unmark_garbage
from storage.index.holds import on_hold
from storage.index.lease import FREE, is_free, owned
from storage.index.reading import IndexPart, first_of, record_of, rows_of, with_patient
from storage.index.rendition_rows import current_renditions
from storage.index.tables import instance, original, patient, rendition, series, study
from storage.index.trail_rows import append_in
from storage.records import (
    RENDITION_STATES,
    HeldOriginal,
    InstanceState,
    OriginalClaim,
    OriginalForm,
    OriginalTotals,
    Purgeable,
    ReasonCode,
    Tier,
    TrailEntry,
)

STAYS_RESTORED = timedelta(days=7)
"""How long a restored original stays in the hot store. Chosen, not measured."""

_BEYOND = 2**63 - 1
"""More than any key."""
_FINAL = [state for state in InstanceState if state is not InstanceState.RECEIVED]


class OriginalLocations(IndexPart):
    # --- looking up ---

    def of_digest(self, original_digest: str) -> HeldOriginal | None:
        """The original of that digest; None if no instance has it (an object in quarantine)."""
        row = first_of(self._engine, _held().where(instance.c.original_digest == original_digest))
        return None if row is None else held_original(row)

    def below(self, level: str, uid: str) -> list[tuple[str, HeldOriginal]]:
        """(SOP Instance UID, original) of every instance of a patient ID, or of a study, series or image UID."""
        column = {
            "patient": patient.c.patient_id,
            "study": study.c.study_instance_uid,
            "series": series.c.series_instance_uid,
            "image": instance.c.sop_instance_uid,
        }[level]
        query = with_patient(_held(instance.c.sop_instance_uid)).where(column == uid).order_by(instance.c.key)
        return [(row.sop_instance_uid, held_original(row)) for row in rows_of(self._engine, query)]

    def totals(self) -> OriginalTotals:
        """Counts and bytes on disk, and how many originals are to be packed."""
        form, size = original.c.form, func.sum(original.c.object_bytes)
        kinds = {
            "verbatim": form == OriginalForm.VERBATIM,
            "packed": form == OriginalForm.PACKED,
            "cold": and_(form != OriginalForm.PURGED, original.c.tier == Tier.COLD),
            "purged": form == OriginalForm.PURGED,
            "to_pack": and_(form == OriginalForm.VERBATIM, original.c.to_pack == 1),
        }
        counts = [func.count().filter(which).label(kind) for kind, which in kinds.items()]
        sizes = [size.filter(kinds[kind]).label(f"{kind}_bytes") for kind in ("verbatim", "packed", "cold")]
        (row,) = rows_of(self._engine, select(*counts, *sizes).select_from(original))
        return OriginalTotals(**{name: int(value or 0) for name, value in row._mapping.items()})

    # --- packing and moving ---

    def claim_to_pack(self, owner: str, lease_seconds: float) -> OriginalClaim | None:
        """Claim a verbatim original in the hot store whose instance does not wait to be encoded; None if there is
        none."""
        waiting = (
            original.c.to_pack == 1,
            original.c.form == OriginalForm.VERBATIM,
            original.c.tier == Tier.HOT,
            instance.c.state.in_(_FINAL),
        )
        return self._claim(owner, lease_seconds, *waiting)

    def claim_to_move(self, owner: str, lease_seconds: float, *, packed_first: bool) -> OriginalClaim | None:
        """Claim an original in the hot store whose instance is VERIFIED or MEASURED, to move it to the cold store."""
        waiting = (
            original.c.to_pack == 0 if packed_first else true(),
            original.c.form != OriginalForm.PURGED,
            original.c.tier == Tier.HOT,
            instance.c.state.in_(RENDITION_STATES),
            or_(original.c.restored_at.is_(None), original.c.restored_at < now() - STAYS_RESTORED),
        )
        return self._claim(owner, lease_seconds, *waiting)

    def commit_packed(self, claim: OriginalClaim, digest: str, size: int, present: Present) -> bool:
        """Commit the packed object in place of the verbatim one; False if the lease or the object was lost."""
        held = claim.original
        with writing(self._engine) as connection:
            if not _owns(connection, claim) or not unmark_garbage(connection, digest, present):
                return False
            changes = {"form": OriginalForm.PACKED, "object_digest": digest, "object_bytes": size, "note": ""}
            _change(connection, held, to_pack=0, attempts=0, **FREE, **changes)
            mark_garbage(connection, held.object_digest, held.tier)
        return True

    def stays_verbatim(self, claim: OriginalClaim, note: str, entries: Sequence[TrailEntry] = ()) -> None:
        """Record why an original is not packed; packing is not tried again."""
        with writing(self._engine) as connection:
            if _owns(connection, claim):
                _change(connection, claim.original, to_pack=0, note=note, attempts=0, **FREE)
                append_in(connection, entries)

    def commit_move(self, held: HeldOriginal, to: Tier, present: Present, entries: Sequence[TrailEntry] = ()) -> bool:
        """Commit that an original's object is in the other store. False if its row changed, or the object is gone."""
        restored = now() if to is Tier.HOT else None
        with writing(self._engine) as connection:
            if not still_held(connection, held) or not unmark_garbage(connection, held.object_digest, present, to):
                return False
            _change(connection, held, tier=to, restored_at=restored, attempts=0, **FREE)
            mark_garbage(connection, held.object_digest, held.tier)
            append_in(connection, entries)
        return True

    def stays_hot(self, held: HeldOriginal) -> None:
        """Keep an original in the hot store for another STAYS_RESTORED."""
        with writing(self._engine) as connection:
            _change(connection, held, restored_at=now())

    def release(self, claim: OriginalClaim, *, wait: float = 0.0) -> None:
        """Release an unfinished original. Nobody can claim it again for ``wait`` seconds."""
        with writing(self._engine) as connection:
            if _owns(connection, claim):
                _change(connection, claim.original, **(lease.leased_to(None, wait) if wait else FREE))

    # --- removing ---

    def purgeable(
        self, held_before: datetime, *, reserve: str = "", after: int = 0, limit: int = 500
    ) -> list[Purgeable]:
        """Originals that may be removed, by key above ``after``: verified, old enough, not pinned, not on hold.

        ``reserve``: originals whose digest is below this text stay, since audits measure against them.
        """
        query = with_patient(_held(instance.c.sop_instance_uid, study.c.study_instance_uid, instance.c.rendition_key))
        query = query.where(*_may_be_purged(held_before, reserve), instance.c.key > after)
        with self._engine.connect() as connection:
            rows = connection.execute(query.order_by(instance.c.key).limit(limit)).all()
            renditions = current_renditions(connection, rows)
        return [
            record_of(Purgeable, row, original=held_original(row), rendition=renditions[row.rendition_key])
            for row in rows
        ]

    def purgeable_totals(self, held_before: datetime, reserve: str = "") -> tuple[int, int]:
        """How many originals may be removed, and their bytes on disk."""
        return self._totals(_may_be_purged(held_before, reserve))

    def reserved_totals(self, held_before: datetime, reserve: str) -> tuple[int, int]:
        """How many originals stay only because of the audit reserve, and their bytes on disk."""
        return self._totals((*_may_be_purged(held_before, ""), instance.c.original_digest < reserve))

    def commit_purge(self, one: Purgeable, held_before: datetime, entry: TrailEntry, reserve: str = "") -> bool:
        """Commit that an original is removed; its object is unlinked afterwards. Returns False if a rule forbids it.

        Every rule is checked again inside the transaction, so that a hold that was committed before it counts.
        """
        held = one.original
        with writing(self._engine) as connection:
            query = with_patient(_held(rendition.c.derived_uid))
            query = query.join(rendition, instance.c.rendition_key == rendition.c.key)
            allowed = (*_may_be_purged(held_before, reserve), instance.c.key == held.instance_key)
            row = connection.execute(query.where(*allowed)).first()
            if row is None or held_original(row) != held or row.derived_uid != one.rendition.derived_uid:
                return False
            gone = {"form": OriginalForm.PURGED, "object_digest": None, "object_bytes": 0, "purged_at": now()}
            _change(connection, held, tier=Tier.HOT, to_pack=0, note="", **FREE, **gone)
            mark_garbage(connection, held.object_digest, held.tier)
            append_in(connection, [entry])
        return True

    def _totals(self, rules: tuple[ColumnElement[bool], ...]) -> tuple[int, int]:
        counted: Any = select(func.count(), func.sum(original.c.object_bytes)).select_from(original)
        joined = counted.join(instance, original.c.instance_key == instance.c.key)
        ((count, size),) = rows_of(self._engine, with_patient(joined).where(*rules))
        return int(count), int(size or 0)

    def _claim(self, owner: str, lease_seconds: float, *waiting: ColumnElement[bool]) -> OriginalClaim | None:
        oldest = _held(instance.c.sop_instance_uid).where(*waiting, is_free(original))
        oldest = oldest.order_by(original.c.attempts, original.c.instance_key).limit(1)
        if first_of(self._engine, oldest) is None:  # the usual case, which needs no write lock
            return None

        def take(connection: Connection) -> OriginalClaim | None:
            row = connection.execute(oldest).first()
            if row is None:
                return None
            wanted = original.c.instance_key == row.instance_key
            attempts = original.c.attempts + 1
            taken = lease.claim(connection, original, wanted, owner, lease_seconds, attempts=attempts)
            return taken and OriginalClaim(held_original(row), row.sop_instance_uid, owner, taken.attempts)

        return lease.claimed(self._engine, take, self.release)


# --- for other transactions -----------------------------------------------------------------------------------


def as_received(digest: str, size: int) -> dict[str, Any]:
    """Columns of an original that is held as it was received, and is to be packed."""
    held = {"form": OriginalForm.VERBATIM, "tier": Tier.HOT, "object_digest": digest, "object_bytes": size}
    return {**held, "to_pack": 1, "note": "", "attempts": 0}


def insert_original(connection: Connection, instance_key: int, digest: str, size: int) -> None:
    """Insert the row of an original that was received, or reset the row if it was received again."""
    row = {**as_received(digest, size), "held_since": now(), "purged_at": None}
    known = update(original).where(original.c.instance_key == instance_key)
    if not connection.execute(known.values(**row)).rowcount:
        connection.execute(insert(original).values(instance_key=instance_key, **row))


def held_columns() -> list[ColumnElement[Any]]:
    """The columns that ``held_original`` needs."""
    names = [name for name in HeldOriginal.__dataclass_fields__ if name != "original_digest"]
    return [original.c[name] for name in names]


def held_original(row: Row[Any]) -> HeldOriginal:
    """The record of a row with ``held_columns`` and the instance's digest."""
    named = {"form": OriginalForm(row.form), "tier": Tier(row.tier), "object_digest": row.object_digest or ""}
    return record_of(HeldOriginal, row, **named)


# --- parts of the transactions --------------------------------------------------------------------------------


def is_gone() -> ColumnElement[bool]:
    """Whether an instance's original was purged or lost, as ``StoredInstance.original_gone`` says."""
    return or_(original.c.form == OriginalForm.PURGED, instance.c.reason_code == ReasonCode.ORIGINAL_LOST)


def _held(*more: ColumnElement[Any]) -> Select[Any]:
    columns = [*held_columns(), instance.c.original_digest, *more]
    return select(*columns).select_from(original).join(instance, original.c.instance_key == instance.c.key)


def _may_be_purged(held_before: datetime, reserve: str) -> tuple[ColumnElement[bool], ...]:
    """The conditions of a purge. The original must be held, and its rendition verified, since before ``held_before``.

    A wrong clock may have written a time. But renditions get their keys in the order in which they are made, so a
    rendition that follows a too young one is too young itself, whatever its time.
    """
    other = rendition.alias()  # not the rendition of a query that joins this table
    younger = (other.c.verified_at > held_before, other.c.verified_at <= now())
    first_younger = select(func.coalesce(func.min(other.c.key), _BEYOND)).where(*younger).scalar_subquery()
    return (
        instance.c.original_digest >= reserve,
        instance.c.state == InstanceState.VERIFIED,
        instance.c.rendition_key < first_younger,
        original.c.form != OriginalForm.PURGED,
        original.c.held_since.between(EARLIEST, held_before),
        ~is_pinned(),
        ~on_hold(),
    )


def _change(connection: Connection, held: HeldOriginal, **values: Any) -> None:
    connection.execute(update(original).where(original.c.instance_key == held.instance_key).values(**values))


def _owns(connection: Connection, claim: OriginalClaim) -> bool:
    mine = owned(original, claim.owner, instance_key=claim.original.instance_key, attempts=claim.attempts)
    query = select(1).where(mine)
    return connection.execute(query).first() is not None and still_held(connection, claim.original)


def still_held(connection: Connection, held: HeldOriginal) -> bool:
    """Whether the row of an original still names the same object."""
    query = select(1).where(
        original.c.instance_key == held.instance_key,
        original.c.object_digest == held.object_digest,
        original.c.tier == held.tier,
    )
    return connection.execute(query).first() is not None
