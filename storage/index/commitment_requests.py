"""Storage commitment requests as rows, and the pins that keep a committed original from being purged.

A request is claimed with a lease, so that a restart loses no request.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Connection, exists, insert, or_, select

from storage.index import lease
from storage.index.connection import now, writing
from storage.index.lease import is_free, owned
from storage.index.reading import IndexPart, batches, record_of
from storage.index.tables import commitment, instance, original, pin, quarantine, tombstone, tombstone_in_force
from storage.records import OriginalForm


class CommitmentState(StrEnum):
    """The state of a request. REQUESTED and DECIDED are open."""

    REQUESTED = "requested"
    DECIDED = "decided"
    """The report is fixed and its originals are pinned. The peer has not received the report yet."""
    REPORTED = "reported"
    GIVEN_UP = "given up"
    """The peer could not be reached in time. The pins stay."""


@dataclass(frozen=True)
class CommitmentItem:
    sop_class_uid: str
    sop_instance_uid: str


@dataclass(frozen=True)
class CommitmentAnswer(CommitmentItem):
    """One instance with its Failure Reason (0008,1197); 0 if it is committed.

    ``instance_key`` and ``original_digest`` name the original to pin.
    """

    reason: int
    instance_key: int = 0
    original_digest: str = ""


@dataclass(frozen=True)
class CommitmentRequest:
    key: int
    transaction_uid: str
    calling_aet: str
    references: tuple[CommitmentItem, ...]
    duplicate: bool
    report: tuple[CommitmentAnswer, ...] | None
    attempts: int
    requested_at: datetime
    owner: str


_OPEN = (CommitmentState.REQUESTED, CommitmentState.DECIDED)


class Commitments(IndexPart):
    def add(self, transaction_uid: str, calling_aet: str, references: Sequence[CommitmentItem], *, due: float) -> int:
        """Commit a request, and return its key. ``due``: when to work on it if nobody claims it by key before.

        It is a duplicate if another request with that transaction UID is still open.
        """
        same = (commitment.c.transaction_uid == transaction_uid, commitment.c.state.in_(_OPEN))
        with writing(self._engine) as connection:
            row = {
                "transaction_uid": transaction_uid,
                "calling_aet": calling_aet,
                "items": [[one.sop_class_uid, one.sop_instance_uid] for one in references],
                "duplicate": int(connection.execute(select(commitment.c.key).where(*same)).first() is not None),
                "state": CommitmentState.REQUESTED,
                "attempts": 0,
                "due": due,
                "requested_at": now(),
            }
            return int(connection.execute(insert(commitment).values(row).returning(commitment.c.key)).scalar_one())

    def claim(self, owner: str, lease_seconds: float, *, key: int | None = None) -> CommitmentRequest | None:
        """Claim the open request that has been due longest, or the one of that key; None if there is none."""
        wanted = commitment.c.due <= time.time() if key is None else commitment.c.key == key
        first = (
            select(commitment.c.key)
            .where(commitment.c.state.in_(_OPEN), is_free(commitment), wanted)
            .order_by(commitment.c.due)
            .limit(1)
            .scalar_subquery()
        )
        with writing(self._engine) as connection:
            row = lease.claim(connection, commitment, commitment.c.key == first, owner, lease_seconds)
        return None if row is None else _request(row, owner)

    def renew(self, request: CommitmentRequest, lease_seconds: float) -> bool:
        """Extend the lease; False if it was lost."""
        with writing(self._engine) as connection:
            return lease.renew(connection, commitment, _owned(request), lease_seconds)

    def decide(
        self, request: CommitmentRequest, report: Sequence[CommitmentAnswer], *, until: float | None
    ) -> tuple[CommitmentAnswer, ...]:
        """Fix the report, pin the originals that it commits until that time (None: for ever), and return the report.

        An original that was replaced, purged or deleted since it was checked fails with 0110H.
        """
        with writing(self._engine) as connection:
            held: dict[int, str] = {}
            for keys in batches(one.instance_key for one in report if not one.reason):
                held |= _originals_of(connection, keys)
            final = tuple(
                one if one.reason or held.get(one.instance_key) == one.original_digest else _failed(one)
                for one in report
            )
            pins = [
                {"instance_key": one.instance_key, "commitment_key": request.key, "until": until}
                for one in final
                if not one.reason
            ]
            if pins:
                connection.execute(insert(pin), pins)
            items = [[one.sop_class_uid, one.sop_instance_uid, one.reason] for one in final]
            lease.change(connection, commitment, _owned(request), report=items, state=CommitmentState.DECIDED)
        return final

    def close(self, request: CommitmentRequest, *, given_up: bool = False) -> None:
        """Close a request whose report the peer has received, or whose peer cannot be reached. Its pins stay."""
        state = CommitmentState.GIVEN_UP if given_up else CommitmentState.REPORTED
        with writing(self._engine) as connection:
            lease.change_and_release(connection, commitment, _owned(request), state=state, closed_at=now())

    def postpone(self, request: CommitmentRequest, due: float) -> None:
        """Release a request, to be tried again at that time."""
        with writing(self._engine) as connection:
            lease.change_and_release(connection, commitment, _owned(request), attempts=request.attempts + 1, due=due)

    def contested(self, sop_instance_uids: Sequence[str]) -> set[str]:
        """Those of the given UIDs under which another data set is in quarantine."""
        query = select(quarantine.c.sop_instance_uid)
        found: set[str] = set()
        with self._engine.connect() as connection:
            for some in batches(sop_instance_uids):
                found |= set(connection.execute(query.where(quarantine.c.sop_instance_uid.in_(some))).scalars())
        return found


def is_pinned() -> ColumnElement[bool]:
    """Whether the original of a row of ``instance`` is committed now. A purge checks it in its write transaction."""
    lasts = or_(pin.c.until.is_(None), pin.c.until > time.time())
    return exists(select(pin.c.key).where(pin.c.instance_key == instance.c.key, lasts))


PROCESSING_FAILURE = 0x0110
"""Failure Reason (PS3.3 C.14.1.1)."""


def _originals_of(connection: Connection, keys: Sequence[int]) -> dict[int, str]:
    """The digest of the original of each of these instances that has one and was not deleted."""
    of_instance = select(tombstone.c.key).where(tombstone.c.uid == instance.c.sop_instance_uid, tombstone_in_force)
    rows = connection.execute(
        select(instance.c.key, instance.c.original_digest)
        .join(original, original.c.instance_key == instance.c.key)
        .where(instance.c.key.in_(keys), original.c.form != OriginalForm.PURGED, ~exists(of_instance))
    )
    return {row.key: row.original_digest for row in rows}


def _failed(one: CommitmentAnswer) -> CommitmentAnswer:
    return CommitmentAnswer(one.sop_class_uid, one.sop_instance_uid, PROCESSING_FAILURE)


def _owned(request: CommitmentRequest) -> ColumnElement[bool]:
    return owned(commitment, request.owner, key=request.key)


def _request(row: Any, owner: str) -> CommitmentRequest:
    return record_of(
        CommitmentRequest,
        row,
        references=tuple(CommitmentItem(*item) for item in row.items),
        duplicate=bool(row.duplicate),
        report=None if row.report is None else tuple(CommitmentAnswer(*item) for item in row.report),
        owner=owner,
    )
