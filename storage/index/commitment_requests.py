"""Storage commitment requests as rows: asked, judged, told; and the pins that keep a committed original from a purge.

A request is claimed with a lease: several nodes on one database tell each peer once, and a restart loses nothing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Engine, exists, insert, or_, select, update

from storage.index.connection import writing
from storage.index.tables import commitment, instance, pin, quarantine


class CommitmentState(StrEnum):
    """Where a request is. ASKED and JUDGED are work to do."""

    ASKED = "asked"
    JUDGED = "judged"
    """The report is fixed, its originals are pinned; the peer has not been told yet."""
    TOLD = "told"
    GIVEN_UP = "given up"
    """The peer could not be told in time. The pins stay."""


@dataclass(frozen=True)
class CommitmentItem:
    """One instance of a request."""

    sop_class_uid: str
    sop_instance_uid: str


@dataclass(frozen=True)
class CommitmentAnswer:
    """One instance with its Failure Reason (0008,1197); 0 where it is committed.

    ``instance_key`` and ``original_digest`` say what was committed, so that it can be pinned.
    """

    sop_class_uid: str
    sop_instance_uid: str
    reason: int
    instance_key: int = 0
    original_digest: str = ""


@dataclass(frozen=True)
class CommitmentRequest:
    """A claimed request."""

    key: int
    transaction_uid: str
    calling_aet: str
    references: tuple[CommitmentItem, ...]
    duplicate: bool
    report: tuple[CommitmentAnswer, ...] | None
    attempts: int
    asked_at: datetime
    owner: str


_OPEN = (CommitmentState.ASKED, CommitmentState.JUDGED)


class Commitments:
    """The requests and pins on one database. Safe to share between threads and processes."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def ask(self, transaction_uid: str, calling_aet: str, references: Sequence[CommitmentItem], *, due: float) -> int:
        """Note a request; on return it is durable. ``due``: when to work on it if nobody claims it by key before.

        It is a duplicate where another request with that transaction UID is still open.
        """
        open_too = select(commitment.c.key).where(
            commitment.c.transaction_uid == transaction_uid, commitment.c.state.in_(_OPEN)
        )
        with writing(self._engine) as connection:
            row = {
                "transaction_uid": transaction_uid,
                "calling_aet": calling_aet,
                "items": [[one.sop_class_uid, one.sop_instance_uid] for one in references],
                "duplicate": int(connection.execute(open_too).first() is not None),
                "state": CommitmentState.ASKED,
                "attempts": 0,
                "due": due,
                "asked_at": _now(),
            }
            return int(connection.execute(insert(commitment).values(row).returning(commitment.c.key)).scalar_one())

    def claim(self, owner: str, lease_seconds: float, *, key: int | None = None) -> CommitmentRequest | None:
        """The open request that has been due longest, or the one of that key; None where there is none to work on."""
        now = time.time()
        free = or_(commitment.c.lease_until.is_(None), commitment.c.lease_until < now)
        wanted = commitment.c.due <= now if key is None else commitment.c.key == key
        first = (
            select(commitment.c.key)
            .where(commitment.c.state.in_(_OPEN), free, wanted)
            .order_by(commitment.c.due)
            .limit(1)
            .scalar_subquery()
        )
        with writing(self._engine) as connection:
            row = connection.execute(
                update(commitment)
                .where(commitment.c.key == first)
                .values(lease_owner=owner, lease_until=now + lease_seconds)
                .returning(commitment)
            ).first()
        return None if row is None else _asked(row, owner)

    def renew(self, asked: CommitmentRequest, lease_seconds: float) -> None:
        """Extend the lease of a claimed request."""
        with writing(self._engine) as connection:
            until = time.time() + lease_seconds
            connection.execute(update(commitment).where(*_owned(asked)).values(lease_until=until))

    def judge(
        self, asked: CommitmentRequest, report: Sequence[CommitmentAnswer], *, until: float | None
    ) -> tuple[CommitmentAnswer, ...]:
        """Fix the report and pin what it commits until that time (None: for ever); the report as it then is.

        An original that changed or went since it was looked at is failed with 0110H.
        """
        with writing(self._engine) as connection:
            keys = [one.instance_key for one in report if not one.reason]
            rows = connection.execute(
                select(instance.c.key, instance.c.original_digest).where(instance.c.key.in_(keys))
            )
            held = {row.key: row.original_digest for row in rows}
            final = tuple(
                one if one.reason or held.get(one.instance_key) == one.original_digest else _gone(one) for one in report
            )
            pins = [
                {"instance_key": one.instance_key, "commitment_key": asked.key, "until": until}
                for one in final
                if not one.reason
            ]
            if pins:
                connection.execute(insert(pin), pins)
            items = [[one.sop_class_uid, one.sop_instance_uid, one.reason] for one in final]
            connection.execute(
                update(commitment).where(*_owned(asked)).values(report=items, state=CommitmentState.JUDGED)
            )
        return final

    def told(self, asked: CommitmentRequest) -> None:
        """The peer knows; the request is closed."""
        self._close(asked, CommitmentState.TOLD)

    def give_up(self, asked: CommitmentRequest) -> None:
        """Close a request whose peer cannot be told. Its pins stay."""
        self._close(asked, CommitmentState.GIVEN_UP)

    def postpone(self, asked: CommitmentRequest, due: float) -> None:
        """Try again at that time."""
        values = {"attempts": asked.attempts + 1, "due": due, "lease_owner": None, "lease_until": None}
        with writing(self._engine) as connection:
            connection.execute(update(commitment).where(*_owned(asked)).values(values))

    def states(self, transaction_uid: str) -> list[CommitmentState]:
        """The states of the requests with that transaction UID, oldest first."""
        query = select(commitment.c.state).where(commitment.c.transaction_uid == transaction_uid)
        with self._engine.connect() as connection:
            return [CommitmentState(state) for state in connection.execute(query.order_by(commitment.c.key)).scalars()]

    def contested(self, sop_instance_uids: Sequence[str]) -> set[str]:
        """Those of the UIDs under which another data set waits in quarantine."""
        query = select(quarantine.c.sop_instance_uid)
        found: set[str] = set()
        with self._engine.connect() as connection:
            for start in range(0, len(sop_instance_uids), 500):
                some = sop_instance_uids[start : start + 500]
                found |= set(connection.execute(query.where(quarantine.c.sop_instance_uid.in_(some))).scalars())
        return found

    def pinned(self, instance_key: int) -> bool:
        """True where an original must not be purged, since it was committed."""
        with self._engine.connect() as connection:
            row = connection.execute(select(instance.c.key).where(instance.c.key == instance_key, is_pinned())).first()
        return row is not None

    def _close(self, asked: CommitmentRequest, state: CommitmentState) -> None:
        values = {"state": state, "done_at": _now(), "lease_owner": None, "lease_until": None}
        with writing(self._engine) as connection:
            connection.execute(update(commitment).where(*_owned(asked)).values(values))


def is_pinned() -> ColumnElement[bool]:
    """For a query on ``instance``: its original is committed today. A purge asks in its own write transaction."""
    lasts = or_(pin.c.until.is_(None), pin.c.until > time.time())
    return exists(select(pin.c.key).where(pin.c.instance_key == instance.c.key, lasts))


PROCESSING_FAILURE = 0x0110
"""Failure Reason (PS3.3 C.14.1.1)."""


def _gone(one: CommitmentAnswer) -> CommitmentAnswer:
    return CommitmentAnswer(one.sop_class_uid, one.sop_instance_uid, PROCESSING_FAILURE)


def _owned(asked: CommitmentRequest) -> tuple[Any, ...]:
    return commitment.c.key == asked.key, commitment.c.lease_owner == asked.owner


def _asked(row: Any, owner: str) -> CommitmentRequest:
    return CommitmentRequest(
        key=row.key,
        transaction_uid=row.transaction_uid,
        calling_aet=row.calling_aet,
        references=tuple(CommitmentItem(*item) for item in row.items),
        duplicate=bool(row.duplicate),
        report=None if row.report is None else tuple(CommitmentAnswer(*item) for item in row.report),
        attempts=row.attempts,
        asked_at=row.asked_at,
        owner=owner,
    )


def _now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)
