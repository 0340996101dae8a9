"""Adds and looks up instances, and gives the encoder claims on them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from enum import Enum
from functools import partial
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, Row, ScalarSelect, and_, func, insert, or_, select, update

from storage.errors import ObjectMissing
from storage.index import lease
from storage.index.amendments import Amendments
from storage.index.class_labels import ClassLabels
from storage.index.connection import connect, migrate, writing
from storage.index.garbage import Garbage
from storage.index.garbage_rows import Present, unmark_garbage
from storage.index.hierarchy import TO_ENCODE, instance_row
from storage.index.holding_counts import holding_counts
from storage.index.holds import Holds
from storage.index.lease import FREE, is_free, owned
from storage.index.original_locations import OriginalLocations, held_columns, held_original, insert_original
from storage.index.quarantined import QuarantineRows, take_out
from storage.index.reading import batches, first_of, record_of, rows_of, value_of, values_of, with_patient
from storage.index.rendition_rows import (
    current_renditions,
    insert_rendition_or_reuse_row,
    is_known_by,
    mark_objects_as_garbage,
    stored_rendition,
    taken_reason,
)
from storage.index.resent_originals import hold_again
from storage.index.rewritten_annotations import note_references
from storage.index.tables import instance, original, patient, rendition, series, study
from storage.index.tombstones import Tombstones, is_deleted, next_instance_key
from storage.index.trail_rows import Trail
from storage.records import (
    RENDITION_STATES,
    Applied,
    Claim,
    HoldingCounts,
    InstanceState,
    ModelUse,
    NewInstance,
    NewRendition,
    OriginalForm,
    ReasonCode,
    StoredInstance,
    StoredRendition,
    TrailRecord,
)


class Added(Enum):
    NEW = "new"
    SAME_BYTES = "same bytes"
    """The original is held already; the caller checks whether its object is whole."""
    AGAIN = "again"
    """The original had been purged, and is held again."""
    GONE = "gone"
    """The original's object was unlinked meanwhile, and nothing was committed: the sender has to send it again."""
    DELETED = "deleted"
    """The UID was deleted here, and its return is not allowed."""
    DERIVED = "derived"
    """The UID was issued to a reconstruction."""
    HELD = "held"
    """The UID is held with other bytes; the caller checks whether the content is the same."""


class Index:
    """The index on one database. Safe to share between threads and processes."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.originals = OriginalLocations(engine)
        self.garbage = Garbage(engine)
        self.holds = Holds(engine)
        self.amendments = Amendments(engine)
        self.tombstones = Tombstones(engine)
        self.quarantine = QuarantineRows(engine)
        self.classes = ClassLabels(engine)
        self.trail = Trail(engine)

    @classmethod
    def open(cls, url: str) -> Index:
        """Connect, and create or upgrade the schema. Raises the errors of ``connect`` and ``migrate``."""
        index = cls(connect(url))
        try:
            migrate(index.engine)
        except BaseException:
            index.close()
            raise
        return index

    def close(self) -> None:
        self.engine.dispose()

    def replay_trail(self, records: Sequence[TrailRecord]) -> tuple[int, int]:
        """Apply the holds, labels, classes, amendments and deletions of the trail that the index lacks, and insert the
        records that it lacks. Returns the numbers of decisions and of records.

        The records are inserted last, so that after a crash the next call does both again.
        """
        decisions = sum(part.catch_up(records) for part in (self.holds, self.classes, self.amendments, self.tombstones))
        last = self.trail.last()[0]
        lacking = [record for record in records if record.number > last]
        self.trail.insert_unchanged(lacking)
        return decisions, len(lacking)

    # --- adding ---

    def add(self, new: NewInstance, present: Present = lambda _: True) -> Added:
        """Commit an instance with its study, series and patient. On return the row is durable.

        ``present``: whether the store still holds the original's object.
        """
        with writing(self.engine) as connection:
            if not unmark_garbage(connection, new.original_digest, present):
                return Added.GONE
            if is_deleted(connection, new.sop_instance_uid):
                return Added.DELETED
            if connection.execute(select(rendition.c.key).where(is_known_by([new.sop_instance_uid]))).first():
                return Added.DERIVED
            held = connection.execute(
                select(instance.c.key, instance.c.original_digest, *held_columns())
                .outerjoin(original, original.c.instance_key == instance.c.key)
                .where(instance.c.sop_instance_uid == new.sop_instance_uid)
            ).first()
            if held is not None:
                return _received_again(connection, new, held)
            row = instance_row(connection, new) | next_instance_key(connection)
            key = connection.execute(insert(instance).values(row).returning(instance.c.key)).scalar_one()
            insert_original(connection, key, new.original_digest, new.original_bytes)
            note_references(connection, key, new.references)
            take_out(connection, new.original_digest)  # it had been deleted, and may come back
        return Added.NEW

    # --- looking up ---

    def by_uid(self, uid: str) -> StoredInstance | None:
        """The instance of an original or derived SOP Instance UID; None if there is none."""
        with self.engine.connect() as connection:
            key = connection.execute(select(instance.c.key).where(instance.c.sop_instance_uid == uid)).scalar()
            if key is None:
                key = connection.execute(select(rendition.c.instance_key).where(is_known_by([uid]))).scalar()
        return None if key is None else self.by_key(key)

    def by_key(self, key: int) -> StoredInstance | None:
        found = self.by_keys([key])
        return found[0] if found else None

    def by_keys(self, keys: Sequence[int]) -> list[StoredInstance]:
        """The instance rows of those keys, in their order, each with its current rendition."""
        return [one for some in batches(keys) for one in self._by_some_keys(some)]

    def _by_some_keys(self, keys: Sequence[int]) -> list[StoredInstance]:
        above = (series.c.series_instance_uid, study.c.study_instance_uid, study.c.amended, patient.c.patient_id)
        query = select(instance, *above, *held_columns()).outerjoin(original, original.c.instance_key == instance.c.key)
        with self.engine.connect() as connection:
            rows = {row.key: row for row in connection.execute(with_patient(query).where(instance.c.key.in_(keys)))}
            renditions = current_renditions(connection, rows.values())
        return [_stored_instance(rows[key], renditions.get(rows[key].rendition_key)) for key in keys if key in rows]

    def rendition(self, uid: str) -> StoredRendition | None:
        """A rendition by the UID of either of its objects, current or not."""
        row = first_of(self.engine, select(rendition).where(is_known_by([uid])))
        return None if row is None else stored_rendition(row)

    def renditions(self, uids: Sequence[str]) -> dict[int, list[StoredRendition]]:
        """Renditions by instance key, oldest first, that have one of those UIDs, current or not, but not withdrawn."""
        found: dict[int, list[StoredRendition]] = {}
        wanted = select(rendition).where(is_known_by(uids), rendition.c.withdrawn == "").order_by(rendition.c.key)
        for row in rows_of(self.engine, wanted):
            found.setdefault(row.instance_key, []).append(stored_rendition(row))
        return found

    def states(self, uids: Sequence[str]) -> dict[str, InstanceState]:
        """State by original SOP Instance UID, for those that are held."""
        query = select(instance.c.sop_instance_uid, instance.c.state).where(instance.c.sop_instance_uid.in_(uids))
        return {uid: InstanceState(state) for uid, state in rows_of(self.engine, query)}

    def last_received_at(self) -> datetime | None:
        """When the newest instance was received, by the clock of that time; None if there is no instance."""
        newest = first_of(self.engine, select(instance.c.received_at).order_by(instance.c.key.desc()).limit(1))
        return newest and newest.received_at

    # --- claims of the encoder ---

    def claim(self, owner: str, lease_seconds: float) -> Claim | None:
        """Claim the RECEIVED instance with the fewest attempts, the oldest first; None if there is none."""
        if value_of(self.engine, select(_next_to_encode())) is None:  # the usual case, which needs no write lock
            return None

        def take(connection: Connection) -> Claim | None:
            wanted = instance.c.key == _next_to_encode()
            row = lease.claim(connection, instance, wanted, owner, lease_seconds, attempts=instance.c.attempts + 1)
            return row and Claim(row.key, row.sop_instance_uid, row.original_digest, row.attempts, owner)

        return lease.claimed(self.engine, take, partial(self.release, forgive=True))

    def renew(self, claim: Claim, lease_seconds: float) -> bool:
        """Extend a lease; False if it was lost."""
        with writing(self.engine) as connection:
            return lease.renew(connection, instance, _owned(claim), lease_seconds)

    def release(self, claim: Claim, *, forgive: bool = False, wait: float = 0.0) -> bool:
        """Release an unfinished instance. With ``forgive``, the attempt does not count, as at a shutdown.

        Nobody can claim it again for ``wait`` seconds. Returns False if the lease was lost.
        """
        later = lease.leased_to(None, wait) if wait else lease.FREE
        with writing(self.engine) as connection:
            attempts = claim.attempts - 1 if forgive else claim.attempts
            return lease.change_and_release(connection, instance, _owned(claim), attempts=attempts, **later)

    def finish(self, claim: Claim, state: InstanceState, code: ReasonCode = ReasonCode.NONE, reason: str = "") -> bool:
        """Set the final state of an instance without a new rendition; False if the lease was lost.

        ``reason``: the sentence of the code, unless given.
        """
        with writing(self.engine) as connection:
            return lease.change_and_release(connection, instance, _owned(claim), **_state(state, code, reason))

    def finish_with(
        self, claim: Claim, state: InstanceState, new: NewRendition, present: Present = lambda _: True
    ) -> bool:
        """Commit a rendition as the instance's current one; False if the lease was lost.

        ``present``: whether the store still holds an object. Raises ObjectMissing if one was unlinked meanwhile. A
        derived UID belongs to one image: if it was issued for other pixels, the instance becomes EXACT. In that case,
        and if the lease was lost, both objects are marked as garbage.
        """
        with writing(self.engine) as connection:
            if connection.execute(select(instance.c.key).where(_owned(claim))).scalar() is None:
                mark_objects_as_garbage(connection, new)
                return False
            stored = (new.base_digest, new.rendition_digest)
            if not all(unmark_garbage(connection, digest, present) for digest in stored):
                raise ObjectMissing(f"{new.derived_uid}: one of its objects was unlinked before it was committed")
            key = insert_rendition_or_reuse_row(connection, claim.key, new, replace_object=True)
            if key is None:
                changes = _state(InstanceState.EXACT, ReasonCode.OTHER, taken_reason(new))
                mark_objects_as_garbage(connection, new)
            else:
                changes = _state(state, ReasonCode.NONE, "") | {"rendition_key": key}
            return lease.change_and_release(connection, instance, _owned(claim), **changes)

    def end_claims(self) -> None:
        """End all claims on images and originals, for a node that knows that no other runs. The attempts count."""
        with writing(self.engine) as connection:
            for table in (instance, original):
                connection.execute(update(table).where(table.c.lease_owner.is_not(None)).values(**FREE))

    def retry_failed(self) -> int:
        """Set FAILED and WITHDRAWN instances back to RECEIVED, and return their number.

        Two kinds are left out, since they have no original to encode. An instance that an audit flagged waits for an
        audit that it passes. An instance whose original was purged waits for a scrub that finds its rendition whole.
        """
        flagged = and_(instance.c.state == InstanceState.FAILED, instance.c.reason_code == ReasonCode.AUDIT)
        purged = select(original.c.instance_key).where(original.c.form == OriginalForm.PURGED)
        failed = instance.c.state.in_([InstanceState.FAILED, InstanceState.WITHDRAWN])
        return self._retry(failed, ~flagged, instance.c.key.not_in(purged))

    def retry_exact(self, code: ReasonCode) -> int:
        """Set every EXACT instance with that reason and sound pixels back to RECEIVED, and return their number."""
        exact = instance.c.state == InstanceState.EXACT
        return self._retry(exact, instance.c.reason_code == code, instance.c.pixel_warning == "")

    def _retry(self, *which: ColumnElement[bool]) -> int:
        with writing(self.engine) as connection:
            return int(connection.execute(update(instance).where(*which).values(TO_ENCODE)).rowcount)

    # --- counting ---

    def reconstructable_originals(self) -> list[str]:
        """Digests of the originals for which a reconstruction was tried, whether it passed or not, in their order."""
        tried = or_(
            instance.c.state.in_(RENDITION_STATES),
            and_(instance.c.state == InstanceState.EXACT, instance.c.reason_code == ReasonCode.GATE),
        )
        query = select(instance.c.original_digest).where(tried).order_by(instance.c.original_digest).distinct()
        return list(values_of(self.engine, query))

    def models(self) -> list[ModelUse]:
        """Every model that made renditions, and how many."""
        columns = (rendition.c.upscaler, rendition.c.weights_digest)
        query = select(*columns, func.count()).group_by(*columns).order_by(*columns)
        return [ModelUse(*row) for row in rows_of(self.engine, query)]

    def counts(self) -> HoldingCounts:
        """Counts and bytes for ``latent-pacs status``."""
        with self.engine.connect() as connection:
            return holding_counts(connection)


def _received_again(connection: Connection, new: NewInstance, held: Row[Any]) -> Added:
    """The result for an original whose SOP Instance UID is held."""
    if held.original_digest != new.original_digest:
        return Added.HELD
    if held.form is not None and hold_again(connection, new, held):
        return Added.AGAIN
    return Added.SAME_BYTES


def _state(state: InstanceState, code: ReasonCode, reason: str) -> dict[str, Any]:
    return {"state": state, "reason": reason or code.sentence, "reason_code": code}


def _next_to_encode() -> ScalarSelect[Any]:
    return (
        select(instance.c.key)
        .where(instance.c.state == InstanceState.RECEIVED, is_free(instance))
        .order_by(instance.c.attempts, instance.c.key)
        .limit(1)
        .scalar_subquery()
    )


def _owned(claim: Claim) -> ColumnElement[bool]:
    """The instance of a claim, if no later claim was made on it and its original was not replaced."""
    claimed = {"key": claim.key, "attempts": claim.attempts, "original_digest": claim.original_digest}
    return owned(instance, claim.owner, **claimed)


def _stored_instance(row: Row[Any], current: StoredRendition | None) -> StoredInstance:
    return record_of(
        StoredInstance,
        row,
        state=InstanceState(row.state),
        reason_code=ReasonCode(row.reason_code),
        rendition=current,
        held=held_original(row) if row.form is not None else None,
        amended=tuple(Applied(**one) for one in row.amended or ()),
    )
