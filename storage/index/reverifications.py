"""Re-verification in the index: which images another model made, who tries the configured one, and what came of it.

Every try is a row per image, base and terms (model, recipe and gate), claimed under a lease. What came of it stays, so
that the same model is not tried on the same base under the same gate again.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Engine, Select, and_, exists, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from storage.index.connection import writing
from storage.index.holdings import is_taken, rendition_row, stored_rendition
from storage.index.tables import instance, rendition, reverification
from storage.records import InstanceState, NewRendition, ReasonCode, StoredRendition


@dataclass(frozen=True)
class ReverificationTerms:
    """What images are to be re-verified with. ``digest`` stands for all of it, and for the gate's thresholds.

    ``gated``: whether a gate decides; without one, only images are taken that were never verified either.
    """

    upscaler: str
    weights_digest: str
    recipe: str
    gated: bool
    digest: str

    @property
    def model(self) -> str:
        return f"{self.upscaler} {self.weights_digest} {self.recipe}"


@dataclass(frozen=True)
class ReverificationAttempt:
    """The right to re-verify one image until the lease runs out. ``current``: the rendition that it has now."""

    key: int
    instance_key: int
    sop_instance_uid: str
    original_digest: str
    current: StoredRendition
    attempts: int
    owner: str


class ReverificationOutcome(StrEnum):
    """What came of a try."""

    PASSED = "passed"
    SAME = "same"
    """The configured model makes the very rendition that the image has."""
    KEPT = "kept"
    """It did not pass: the image keeps its model."""
    UNTRIED = "untried"
    """It could not be tried, time and again."""
    MOVED = "moved"
    """Meanwhile the image got another rendition, or the lease was lost: nothing was changed."""


class Reverifications:
    """The job's side of the index. Safe to share between threads and processes."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def count(self, terms: ReverificationTerms, most: int) -> int:
        """How many images wait to be tried; ``most``: attempts after which one is let be."""
        with self._engine.connect() as connection:
            due = _due(terms, most, time.time()).subquery()
            return int(connection.execute(select(func.count()).select_from(due)).scalar_one())

    def claim(
        self, terms: ReverificationTerms, owner: str, lease: float, *, after: int, most: int
    ) -> ReverificationAttempt | None:
        """Take the first image beyond instance key ``after`` that nobody tries; None when there is none."""
        while True:
            try:
                with writing(self._engine) as connection:
                    return _claim(connection, terms, owner, lease, after, most)
            except IntegrityError:  # another node claimed it in between (not possible on SQLite): look again
                continue

    def renew(self, attempt: ReverificationAttempt, lease: float) -> bool:
        """Extend a lease; False when it was lost."""
        with writing(self._engine) as connection:
            return _touch(connection, attempt, lease_until=time.time() + lease)

    def release(self, attempt: ReverificationAttempt, *, forgive: bool = False) -> bool:
        """Give the image back untried; ``forgive`` takes the attempt back too (a shutdown is no failure)."""
        with writing(self._engine) as connection:
            attempts = attempt.attempts - 1 if forgive else attempt.attempts
            return _touch(connection, attempt, lease_owner=None, lease_until=None, attempts=attempts)

    def settle(self, attempt: ReverificationAttempt, outcome: ReverificationOutcome, reason: str) -> bool:
        """Remember what came of it; the image stays as it is. False when the lease was lost."""
        with writing(self._engine) as connection:
            return _settle(connection, attempt, outcome, reason)

    def adopt(self, attempt: ReverificationAttempt, new: NewRendition) -> tuple[ReverificationOutcome, str]:
        """Commit the new rendition beside the old ones and make it the image's current one; what came of it, and why.

        A derived UID stands for one image for ever: where it was issued for other pixels, the old model is kept.
        """
        with writing(self._engine) as connection:
            if not _still_as_claimed(connection, attempt):
                _touch(connection, attempt, lease_owner=None, lease_until=None, attempts=attempt.attempts - 1)
                return ReverificationOutcome.MOVED, "its rendition or state changed meanwhile"
            if new.derived_uid == attempt.current.derived_uid:
                reason = "the configured model makes the rendition that it has"
                _settle(connection, attempt, ReverificationOutcome.SAME, reason)
                return ReverificationOutcome.SAME, reason
            key = _row_for(connection, attempt, new)
            if key is None:
                reason = f"{new.derived_uid}, or its UID without noise, stands for another object already"
                _settle(connection, attempt, ReverificationOutcome.KEPT, reason)
                return ReverificationOutcome.KEPT, reason
            news: dict[str, Any] = {"rendition_key": key}
            if new.verdict.passed:
                news |= {"state": InstanceState.VERIFIED}
            connection.execute(update(instance).where(instance.c.key == attempt.instance_key).values(news))
            _settle(connection, attempt, ReverificationOutcome.PASSED, "")
            return ReverificationOutcome.PASSED, ""


def _due(terms: ReverificationTerms, most: int, now: float) -> Select[Any]:
    """Images at rest whose current rendition is of another model, and that nobody tried or tries under these terms."""
    states = [InstanceState.VERIFIED, InstanceState.MEASURED] if terms.gated else [InstanceState.MEASURED]
    other = or_(
        rendition.c.upscaler != terms.upscaler,
        rendition.c.weights_digest != terms.weights_digest,
        rendition.c.recipe != terms.recipe,
    )
    done = exists().where(
        *_of(instance.c.key, rendition.c.base_digest, terms),
        or_(reverification.c.outcome != "", reverification.c.attempts >= most, reverification.c.lease_until > now),
    )
    return (
        select(instance.c.key, instance.c.sop_instance_uid, instance.c.original_digest, instance.c.rendition_key)
        .join(rendition, instance.c.rendition_key == rendition.c.key)
        .where(instance.c.state.in_(states), instance.c.reason_code != ReasonCode.ORIGINAL_LOST, other, ~done)
    )


def _of(instance_key: Any, base_digest: Any, terms: ReverificationTerms) -> tuple[Any, ...]:
    return (
        reverification.c.instance_key == instance_key,
        reverification.c.base_digest == base_digest,
        reverification.c.terms == terms.digest,
    )


def _claim(
    connection: Connection, terms: ReverificationTerms, owner: str, lease: float, after: int, most: int
) -> ReverificationAttempt | None:
    now = time.time()
    first = _due(terms, most, now).where(instance.c.key > after).order_by(instance.c.key).limit(1)
    found = connection.execute(first).first()
    if found is None:
        return None
    current = stored_rendition(
        connection.execute(select(rendition).where(rendition.c.key == found.rendition_key)).one()
    )
    known = _of(found.key, current.base_digest, terms)
    values = {"lease_owner": owner, "lease_until": now + lease, "tried_at": now}
    row = connection.execute(
        update(reverification)
        .where(*known, or_(reverification.c.lease_until.is_(None), reverification.c.lease_until <= now))
        .values(attempts=reverification.c.attempts + 1, **values)
        .returning(reverification.c.key, reverification.c.attempts)
    ).first()
    if row is None:
        fresh = {"instance_key": found.key, "base_digest": current.base_digest, "terms": terms.digest}
        fresh |= {"model": terms.model, "outcome": "", "reason": "", "attempts": 1, **values}
        row = connection.execute(
            insert(reverification).values(fresh).returning(reverification.c.key, reverification.c.attempts)
        ).one()
    return ReverificationAttempt(
        row.key, found.key, found.sop_instance_uid, found.original_digest, current, row.attempts, owner
    )


def _touch(connection: Connection, attempt: ReverificationAttempt, **values: Any) -> bool:
    owned = and_(
        reverification.c.key == attempt.key,
        reverification.c.lease_owner == attempt.owner,
        reverification.c.attempts == attempt.attempts,
    )
    return bool(connection.execute(update(reverification).where(owned).values(**values)).rowcount)


def _settle(
    connection: Connection, attempt: ReverificationAttempt, outcome: ReverificationOutcome, reason: str
) -> bool:
    return _touch(
        connection,
        attempt,
        outcome=outcome.value,
        reason=reason,
        lease_owner=None,
        lease_until=None,
        tried_at=time.time(),
    )


def _still_as_claimed(connection: Connection, attempt: ReverificationAttempt) -> bool:
    """Whether the lease is ours and the image at rest with the rendition that it had."""
    rested = [InstanceState.VERIFIED, InstanceState.MEASURED]
    held = (
        select(instance.c.key)
        .join(rendition, instance.c.rendition_key == rendition.c.key)
        .where(
            instance.c.key == attempt.instance_key,
            instance.c.state.in_(rested),
            rendition.c.derived_uid == attempt.current.derived_uid,
        )
    )
    return _touch(connection, attempt, outcome="") and connection.execute(held).scalar() is not None


def _row_for(connection: Connection, attempt: ReverificationAttempt, new: NewRendition) -> int | None:
    """The row of the rendition, inserted where it is new; None where its UID stands for other pixels already.

    One that was made before, by a model that the archive comes back to, keeps its row and its objects.
    """
    known = connection.execute(select(rendition).where(rendition.c.derived_uid == new.derived_uid)).first()
    if known is None:
        if is_taken(connection, new):
            return None
        fresh = insert(rendition).values(rendition_row(attempt.instance_key, new))
        return int(connection.execute(fresh.returning(rendition.c.key)).scalar_one())
    if (known.output_digest, known.structure_digest) != (new.output_digest, new.structure_digest):
        return None
    if known.withdrawn:
        objects = {"rendition_digest": new.rendition_digest, "rendition_bytes": new.rendition_bytes, "withdrawn": ""}
        connection.execute(update(rendition).where(rendition.c.key == known.key).values(objects))
    return int(known.key)
