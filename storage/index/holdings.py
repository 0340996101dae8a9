"""What is held: instances coming in, their work, their renditions, and the counts for ``status``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from enum import Enum
from typing import Any

from sqlalchemy import Connection, Engine, Row, and_, func, insert, or_, select, update

from storage.errors import ObjectMissing
from storage.index.amendments import Amendments
from storage.index.class_labels import ClassLabels
from storage.index.connection import connect, migrate, now, writing
from storage.index.hierarchy import instance_row
from storage.index.holds import Holds
from storage.index.original_locations import OriginalLocations, Present, held_columns, held_original, keep_hot, take_in
from storage.index.quarantined import QuarantineRows
from storage.index.resent_originals import take_in_purged
from storage.index.rewritten_annotations import note_references
from storage.index.tables import instance, original, patient, quarantine, rendition, series, study
from storage.index.tombstones import Tombstones, is_deleted, next_instance_key
from storage.index.trail_rows import Trail
from storage.ineligibility import LeftOut
from storage.records import (
    Applied,
    Claim,
    HoldingCounts,
    InstanceState,
    ModelUse,
    NewInstance,
    NewRendition,
    OperatingPoint,
    ReasonCode,
    StoredInstance,
    StoredRendition,
    TrailRecord,
)


class Added(Enum):
    """What became of a new instance."""

    NEW = "new"
    SAME_BYTES = "same bytes"
    """The original is known; whether what is held of it is whole is for the caller to find out."""
    AGAIN = "again"
    """The very bytes of an original that had been purged: it is held again."""
    GONE = "gone"
    """The object was unlinked meanwhile, and nothing was committed: the sender has to send it again."""
    DELETED = "deleted"
    """The UID was deleted here, and may not come back."""
    DERIVED = "derived"
    """The UID was issued to a reconstruction at this very moment."""
    HELD = "held"
    """The UID is held with other bytes; whether the content is the same is for the caller to find out."""


class Index:
    """The index on one database. Safe to share between threads and processes."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.custody = OriginalLocations(engine)
        self.holds = Holds(engine)
        self.amendments = Amendments(engine)
        self.tombstones = Tombstones(engine)
        self.quarantine = QuarantineRows(engine)
        self.classes = ClassLabels(engine)
        self.trail = Trail(engine)

    @classmethod
    def open(cls, url: str) -> Index:
        """Connect, and bring the schema up to date."""
        engine = connect(url)
        migrate(engine)
        return cls(engine)

    def close(self) -> None:
        self.engine.dispose()

    def replay(self, record: TrailRecord) -> None:
        """Do again what a record of the trail tells, in an index that lost it; the trail itself is left alone."""
        for part in (self.holds, self.classes, self.amendments, self.tombstones):
            part.replay(record)

    # --- coming in ---

    def add(self, new: NewInstance, present: Present = lambda _: True) -> Added:
        """Commit an instance with its study, series and patient. On return the row is durable.

        ``present`` says whether the store still holds the original's object.
        """
        with writing(self.engine) as connection:
            if not keep_hot(connection, new.original_digest, present):
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
                return _arrived_again(connection, new, held)
            row = instance_row(connection, new) | next_instance_key(connection)
            key = connection.execute(insert(instance).values(row).returning(instance.c.key)).scalar_one()
            take_in(connection, key, new.original_digest, new.original_bytes)
            note_references(connection, key, new.references)
        return Added.NEW

    # --- looking up ---

    def by_uid(self, uid: str) -> StoredInstance | None:
        """The instance of an original or derived SOP Instance UID."""
        with self.engine.connect() as connection:
            key = connection.execute(select(instance.c.key).where(instance.c.sop_instance_uid == uid)).scalar()
            if key is None:
                key = connection.execute(select(rendition.c.instance_key).where(is_known_by([uid]))).scalar()
        return None if key is None else self.by_key(key)

    def by_key(self, key: int) -> StoredInstance | None:
        """The instance row of that key, with its current rendition."""
        found = self.by_keys([key])
        return found[0] if found else None

    def by_keys(self, keys: Sequence[int]) -> list[StoredInstance]:
        """The instance rows of those keys, in their order."""
        query = (
            select(
                instance,
                series.c.series_instance_uid,
                study.c.study_instance_uid,
                study.c.amended,
                patient.c.patient_id,
                *held_columns(),
            )
            .outerjoin(original, original.c.instance_key == instance.c.key)
            .join(series, instance.c.series_key == series.c.key)
            .join(study, series.c.study_key == study.c.key)
            .join(patient, study.c.patient_key == patient.c.key)
        )
        with self.engine.connect() as connection:
            rows = {row.key: row for row in connection.execute(query.where(instance.c.key.in_(keys)))}
            wanted = [row.rendition_key for row in rows.values() if row.rendition_key is not None]
            found = connection.execute(select(rendition).where(rendition.c.key.in_(wanted)))
            renditions = {row.key: stored_rendition(row) for row in found}
        return [_stored_instance(rows[key], renditions.get(rows[key].rendition_key)) for key in keys if key in rows]

    def rendition(self, uid: str) -> StoredRendition | None:
        """A rendition by the UID of either of its objects, current or not."""
        with self.engine.connect() as connection:
            row = connection.execute(select(rendition).where(is_known_by([uid]))).first()
        return None if row is None else stored_rendition(row)

    def renditions(self, uids: Sequence[str]) -> dict[int, list[StoredRendition]]:
        """Per instance key the renditions of which an object has one of those UIDs, current or not, oldest first; no
        withdrawn ones."""
        found: dict[int, list[StoredRendition]] = {}
        wanted = (is_known_by(uids), rendition.c.withdrawn == "")
        with self.engine.connect() as connection:
            for row in connection.execute(select(rendition).where(*wanted).order_by(rendition.c.key)):
                found.setdefault(row.instance_key, []).append(stored_rendition(row))
        return found

    def states(self, uids: Sequence[str]) -> dict[str, InstanceState]:
        """State per original SOP Instance UID, for those that are held."""
        with self.engine.connect() as connection:
            rows = connection.execute(
                select(instance.c.sop_instance_uid, instance.c.state).where(instance.c.sop_instance_uid.in_(uids))
            )
            return {row.sop_instance_uid: InstanceState(row.state) for row in rows}

    # --- the archivist's work ---

    def claim(self, owner: str, lease_seconds: float) -> Claim | None:
        """Take the oldest instance that nobody works on; None when there is none."""
        moment = time.time()
        free = or_(instance.c.lease_until.is_(None), instance.c.lease_until < moment)
        with self.engine.connect() as connection:  # most looks find nothing: do not take the write lock for them
            if connection.execute(select(_oldest(free))).scalar() is None:
                return None
        with writing(self.engine) as connection:
            row = connection.execute(
                update(instance)
                .where(instance.c.key == _oldest(free), free)
                .values(lease_owner=owner, lease_until=moment + lease_seconds, attempts=instance.c.attempts + 1)
                .returning(
                    instance.c.key,
                    instance.c.sop_instance_uid,
                    instance.c.original_digest,
                    instance.c.attempts,
                )
            ).first()
        return None if row is None else Claim(row.key, row.sop_instance_uid, row.original_digest, row.attempts, owner)

    def renew(self, claim: Claim, lease_seconds: float) -> bool:
        """Extend a lease; False when it was lost."""
        with writing(self.engine) as connection:
            return _touch(connection, claim, lease_until=time.time() + lease_seconds)

    def release(self, claim: Claim, *, forgive: bool = False) -> bool:
        """Give the instance back undone; ``forgive`` takes the attempt back too (a shutdown is no failure)."""
        with writing(self.engine) as connection:
            attempts = claim.attempts - 1 if forgive else claim.attempts
            return _touch(connection, claim, lease_owner=None, lease_until=None, attempts=attempts)

    def finish(self, claim: Claim, state: InstanceState, code: ReasonCode = ReasonCode.NONE, reason: str = "") -> bool:
        """Bring an instance to rest without a rendition; False when the lease was lost."""
        told = {"state": state, "reason": reason, "reason_code": code}
        with writing(self.engine) as connection:
            return _touch(connection, claim, **told, lease_owner=None, lease_until=None)

    def finish_with(
        self, claim: Claim, state: InstanceState, new: NewRendition, present: Present = lambda _: True
    ) -> bool:
        """Commit a rendition and make it the instance's current one; False when the lease was lost.

        ``present`` says whether the store still holds an object. Raises ObjectMissing where one was unlinked meanwhile.
        A derived UID stands for one image for ever: where it was issued for other pixels, the instance stays exact.
        """
        with writing(self.engine) as connection:
            if connection.execute(select(instance.c.key).where(*_owned(claim))).scalar() is None:
                return False
            if not all(keep_hot(connection, digest, present) for digest in (new.base_digest, new.rendition_digest)):
                raise ObjectMissing(f"{new.derived_uid}: an object was being removed while it was made again")
            key = _rendition_key(connection, claim, new)
            if key is None:
                reason = f"{new.derived_uid}, or its UID without noise, stands for another object already"
                told = {"state": InstanceState.EXACT, "reason": reason, "reason_code": ReasonCode.OTHER}
                return _touch(connection, claim, **told, lease_owner=None, lease_until=None)
            return _touch(
                connection,
                claim,
                state=state,
                reason="",
                reason_code=ReasonCode.NONE,
                rendition_key=key,
                lease_owner=None,
                lease_until=None,
            )

    def retry_failed(self) -> int:
        """Put every FAILED or WITHDRAWN instance back to work; how many there were.

        One that an audit flagged has no original to work on: it waits for an audit that it passes.
        """
        flagged = and_(instance.c.state == InstanceState.FAILED, instance.c.reason_code == ReasonCode.AUDIT)
        told = {"state": InstanceState.RECEIVED, "reason": "", "reason_code": ReasonCode.NONE}
        with writing(self.engine) as connection:
            result = connection.execute(
                update(instance)
                .where(instance.c.state.in_([InstanceState.FAILED, InstanceState.WITHDRAWN]), ~flagged)
                .values(**told, attempts=0, lease_owner=None, lease_until=None)
            )
            return int(result.rowcount)

    # --- counting ---

    def reconstructable_originals(self) -> list[str]:
        """Digests of the originals that a reconstruction was tried of, whether one passed or not, oldest first."""
        tried = or_(
            instance.c.state.in_([InstanceState.VERIFIED, InstanceState.MEASURED]),
            and_(instance.c.state == InstanceState.EXACT, instance.c.reason_code == ReasonCode.GATE),
        )
        with self.engine.connect() as connection:
            query = select(instance.c.original_digest).where(tried).order_by(instance.c.key)
            return list(dict.fromkeys(connection.execute(query).scalars()))

    def models(self) -> list[ModelUse]:
        """Every model that renditions were made with, and how many."""
        columns = (rendition.c.upscaler, rendition.c.weights_digest)
        query = select(*columns, func.count()).group_by(*columns).order_by(*columns)
        with self.engine.connect() as connection:
            return [ModelUse(*row) for row in connection.execute(query)]

    def counts(self) -> HoldingCounts:
        """Counts and bytes for ``latent-pacs status``. In bytes by kind an object used by two rows counts once."""
        reconstructable = instance.c.rendition_key.is_not(None)
        with self.engine.connect() as connection:

            def total(query: Any) -> int:
                return int(connection.execute(query).scalar() or 0)

            by_state = {
                row.state: row.n
                for row in connection.execute(
                    select(instance.c.state, func.count().label("n")).group_by(instance.c.state)
                )
            }
            payloads = total(
                select(func.sum(rendition.c.base_bytes + rendition.c.rendition_bytes)).join(
                    instance, instance.c.rendition_key == rendition.c.key
                )
            )
            exact_only = total(
                select(func.sum(original.c.object_bytes))
                .join(instance, original.c.instance_key == instance.c.key)
                .where(~reconstructable)
            )
            return HoldingCounts(
                by_state={state.value: by_state.get(state.value, 0) for state in InstanceState},
                bytes_by_kind={
                    "original": _distinct_bytes(connection, original.c.object_digest, original.c.object_bytes),
                    "base": _distinct_bytes(connection, rendition.c.base_digest, rendition.c.base_bytes),
                    "rendition": _distinct_bytes(connection, rendition.c.rendition_digest, rendition.c.rendition_bytes),
                },
                backlog=by_state.get(InstanceState.RECEIVED.value, 0),
                quarantined=total(select(func.count()).select_from(quarantine)),
                reconstructable_pixel_bytes=total(select(func.sum(instance.c.pixel_bytes)).where(reconstructable)),
                reconstructable_payload_bytes=payloads,
                all_pixel_bytes=total(select(func.sum(_raw_bytes()))),
                all_hot_bytes=payloads + exact_only,
                left_out=_left_out(connection, by_state.get(InstanceState.EXACT.value, 0)),
            )


def _left_out(connection: Connection, exact: int) -> dict[str, int]:
    """Instances in state EXACT by reason, most first, and last those whose reason is their own, as ``other``."""
    query = (
        select(instance.c.reason, func.count().label("n"))
        .where(instance.c.state == InstanceState.EXACT, instance.c.reason.in_([reason.value for reason in LeftOut]))
        .group_by(instance.c.reason)
        .order_by(func.count().desc(), instance.c.reason)
    )
    found = {row.reason: int(row.n) for row in connection.execute(query)}
    others = exact - sum(found.values())
    return found | ({"other": others} if others else {})


def _arrived_again(connection: Connection, new: NewInstance, held: Row[Any]) -> Added:
    """What to do with an original whose SOP Instance UID is known."""
    if held.original_digest != new.original_digest:
        return Added.HELD
    if held.form is not None and take_in_purged(connection, new, held):
        return Added.AGAIN
    return Added.SAME_BYTES


def _raw_bytes() -> Any:
    """Uncompressed size of an instance: its pixels, or its file where it has none."""
    from sqlalchemy import case

    return case((instance.c.pixel_bytes > 0, instance.c.pixel_bytes), else_=instance.c.original_bytes)


def _distinct_bytes(connection: Connection, digest: Any, size: Any) -> int:
    once = select(func.max(size).label("bytes")).group_by(digest).subquery()
    return int(connection.execute(select(func.sum(once.c.bytes))).scalar() or 0)


def _oldest(free: Any) -> Any:
    return (
        select(instance.c.key)
        .where(instance.c.state == InstanceState.RECEIVED, free)
        .order_by(instance.c.attempts, instance.c.key)
        .limit(1)
        .scalar_subquery()
    )


def _owned(claim: Claim) -> tuple[Any, ...]:
    """The instance of a claim, as long as the claim is the latest one on it."""
    return (
        instance.c.key == claim.key,
        instance.c.lease_owner == claim.owner,
        instance.c.attempts == claim.attempts,
    )


def _touch(connection: Connection, claim: Claim, **values: Any) -> bool:
    result = connection.execute(update(instance).where(*_owned(claim)).values(**values))
    return bool(result.rowcount)


def _rendition_key(connection: Connection, claim: Claim, new: NewRendition) -> int | None:
    """The row of a rendition, inserted where it is new. One made again keeps its row and points to the new objects;
    None where its UID stands for another object already."""
    known = select(rendition).where(rendition.c.derived_uid == new.derived_uid)
    row = connection.execute(known).first()
    if row is None:
        if is_taken(connection, new):
            return None
        fresh = insert(rendition).values(rendition_row(claim.key, new))
        return int(connection.execute(fresh.returning(rendition.c.key)).scalar_one())
    if (row.output_digest, row.structure_digest) != (new.output_digest, new.structure_digest):
        return None
    objects = {"rendition_digest": new.rendition_digest, "rendition_bytes": new.rendition_bytes, "withdrawn": ""}
    connection.execute(update(rendition).where(rendition.c.key == row.key).values(objects))
    return int(row.key)


def is_taken(connection: Connection, new: NewRendition) -> bool:
    """Whether an object that somebody stored, or another rendition, has one of the UIDs of a rendition that is new."""
    uids = [new.derived_uid, new.structure_uid]
    stored = select(instance.c.key).where(instance.c.sop_instance_uid.in_(uids))
    made = select(rendition.c.key).where(is_known_by(uids))
    return any(connection.execute(query).first() is not None for query in (stored, made))


def rendition_row(instance_key: int, new: NewRendition) -> dict[str, Any]:
    """The columns of a new rendition."""
    return {
        "instance_key": instance_key,
        "derived_uid": new.derived_uid,
        "structure_uid": new.structure_uid,
        "base_digest": new.base_digest,
        "base_bytes": new.base_bytes,
        "rendition_digest": new.rendition_digest,
        "rendition_bytes": new.rendition_bytes,
        "point": str(new.point),
        "operating_point": asdict(new.point),
        "upscaler": new.upscaler,
        "weights_digest": new.weights_digest,
        "output_digest": new.output_digest,
        "structure_digest": new.structure_digest,
        "psnr_db": new.verdict.psnr_db,
        "fsim_mean": new.verdict.fsim_mean,
        "fsim_p5": new.verdict.fsim_p5,
        "tiles": new.verdict.tiles,
        "figures": new.verdict.figures,
        "gated": int(new.verdict.gated),
        "tried": [asdict(trial) for trial in new.tried],
        "seconds": new.seconds,
        "recipe": new.recipe,
        "verified_at": now(),
    }


def stored_rendition(row: Row[Any]) -> StoredRendition:
    """A rendition row as the rest of the archive knows it."""
    fields = {name: getattr(row, name) for name in StoredRendition.__dataclass_fields__}
    told = {"operating_point": OperatingPoint(**row.operating_point), "gated": bool(row.gated)}
    return StoredRendition(**{**fields, **told})


def is_known_by(uids: Sequence[str]) -> Any:
    """That one of the two objects of a rendition has one of those UIDs."""
    return or_(rendition.c.derived_uid.in_(uids), rendition.c.structure_uid.in_(uids))


def _stored_instance(row: Row[Any], current: StoredRendition | None) -> StoredInstance:
    made_here = {"rendition", "state", "reason_code", "held", "amended"}
    fields = {name: getattr(row, name) for name in StoredInstance.__dataclass_fields__ if name not in made_here}
    held = held_original(row) if row.form is not None else None
    amended = tuple(Applied(**one) for one in row.amended or ())
    fields |= {"state": InstanceState(row.state), "reason_code": ReasonCode(row.reason_code)}
    return StoredInstance(**fields, rendition=current, held=held, amended=amended)
