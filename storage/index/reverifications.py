"""Re-verification in the index: attempts to replace the renditions of other models by the configured model's.

Each attempt has a row for its image, base and terms (model, recipe and gate, or numerics), claimed with a lease. The
row keeps the outcome, so that the same model is not tried again on the same base under the same gate. The column
``reason`` holds the reason of the outcome, or the derived UID of the rendition that was made.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, case, exists, func, insert, or_, select, update

from storage.index import lease
from storage.index.connection import writing
from storage.index.garbage_rows import Present, unmark_garbage
from storage.index.lease import is_free, leased_to, owned
from storage.index.original_locations import is_gone
from storage.index.reading import IndexPart, value_of
from storage.index.rendition_rows import insert_rendition_or_reuse_row, stored_rendition, taken_reason
from storage.index.tables import instance, original, rendition, reverification
from storage.records import RENDITION_STATES, InstanceState, NewRendition, StoredRendition


@dataclass(frozen=True)
class ReverificationTerms:
    """What images are re-verified with. ``digest`` covers all fields and the gate's thresholds.

    ``gated``: whether a gate decides; without one, only MEASURED images are due. ``numerics``: digests of the numerics
    of this machine. If there are any, images that were verified with other numerics are due, whatever their model.
    """

    upscaler: str
    weights_digest: str
    recipe: str
    gated: bool
    digest: str
    numerics: tuple[str, ...] = ()

    @property
    def model(self) -> str:
        return f"{self.upscaler} {self.weights_digest} {self.recipe}"


@dataclass(frozen=True)
class ReverificationAttempt:
    """A lease on one image, to re-verify it. ``current``: the rendition that it has now."""

    key: int
    instance_key: int
    sop_instance_uid: str
    original_digest: str
    current: StoredRendition
    attempts: int
    owner: str


class ReverificationOutcome(StrEnum):
    PASSED = "passed"
    SAME = "same"
    """The new rendition is the one that the image has already."""
    KEPT = "kept"
    """The new rendition did not pass, or its UID is taken: the image keeps its rendition."""
    UNTRIED = "untried"
    """Every attempt failed with an error."""
    MOVED = "moved"
    """The image got another rendition meanwhile, or the lease was lost: nothing was changed."""


class Reverifications(IndexPart):
    def count(self, terms: ReverificationTerms, most: int) -> int:
        """How many images are due; ``most``: attempts after which an image is not tried again."""
        return int(value_of(self._engine, select(func.count()).select_from(_due(terms, most).subquery())))

    def claim(
        self, terms: ReverificationTerms, owner: str, lease_seconds: float, *, after: int, most: int
    ) -> ReverificationAttempt | None:
        """Claim the first due image with an instance key above ``after``; None if there is none."""
        with writing(self._engine) as connection:
            return _claim(connection, terms, owner, lease_seconds, after, most)

    def renew(self, attempt: ReverificationAttempt, lease_seconds: float) -> bool:
        """Extend a lease; False if it was lost."""
        with writing(self._engine) as connection:
            return lease.renew(connection, reverification, _owned(attempt), lease_seconds)

    def release(self, attempt: ReverificationAttempt, *, forgive: bool = False) -> bool:
        """Release an unfinished image. With ``forgive``, the attempt does not count, as at a shutdown."""
        with writing(self._engine) as connection:
            attempts = attempt.attempts - 1 if forgive else attempt.attempts
            return lease.change_and_release(connection, reverification, _owned(attempt), attempts=attempts)

    def settle(self, attempt: ReverificationAttempt, outcome: ReverificationOutcome, reason: str) -> bool:
        """Commit the outcome, without a change to the image. Returns False if the lease was lost."""
        with writing(self._engine) as connection:
            return _settle(connection, attempt, outcome, reason)

    def adopt(
        self, attempt: ReverificationAttempt, new: NewRendition, present: Present = lambda _: True
    ) -> tuple[ReverificationOutcome, str]:
        """Commit the new rendition beside the old ones, as the image's current one. Returns the outcome and its reason.

        ``present``: whether the store still holds an object. If one was unlinked meanwhile, the attempt does not count.

        A derived UID belongs to one image: if it was issued for other pixels, the image keeps its rendition.
        """
        with writing(self._engine) as connection:
            if not _still_as_claimed(connection, attempt):
                lease.change_and_release(connection, reverification, _owned(attempt), attempts=attempt.attempts - 1)
                return ReverificationOutcome.MOVED, "its rendition or state changed meanwhile"
            if not all(unmark_garbage(connection, one, present) for one in (new.base_digest, new.rendition_digest)):
                lease.change_and_release(connection, reverification, _owned(attempt), attempts=attempt.attempts - 1)
                return ReverificationOutcome.MOVED, "one of its objects was unlinked meanwhile"
            if new.derived_uid == attempt.current.derived_uid:
                outcome, reason = ReverificationOutcome.SAME, ""
            elif (
                key := insert_rendition_or_reuse_row(connection, attempt.instance_key, new, replace_object=False)
            ) is None:
                outcome, reason = ReverificationOutcome.KEPT, taken_reason(new)
            else:
                outcome, reason = ReverificationOutcome.PASSED, ""
                state = {"state": InstanceState.VERIFIED} if new.verdict.passed else {}
                mine = update(instance).where(instance.c.key == attempt.instance_key)
                connection.execute(mine.values(rendition_key=key, **state))
            _settle(connection, attempt, outcome, reason or new.derived_uid)
            return outcome, reason


def _due(terms: ReverificationTerms, most: int) -> Select[Any]:
    """Images with a rendition of another model or numerics, without an outcome under these terms, and not being tried.

    An adopted rendition counts as an outcome only while it is the image's current one, since another model may have
    replaced it.
    """
    states = list(RENDITION_STATES) if terms.gated else [InstanceState.MEASURED]
    wanted: ColumnElement[bool]
    if terms.numerics:
        wanted = rendition.c.numerics_digest.not_in(terms.numerics)
    else:
        model = {"upscaler": terms.upscaler, "weights_digest": terms.weights_digest, "recipe": terms.recipe}
        other = or_(*(rendition.c[name] != value for name, value in model.items()))
        wanted = and_(~is_gone(), other)  # it has to be measured against the original
    tried, uid = reverification.c.outcome, rendition.c.derived_uid
    stands = or_(tried.in_([ReverificationOutcome.KEPT, ReverificationOutcome.UNTRIED]), reverification.c.reason == uid)
    given_up = and_(tried == "", reverification.c.attempts >= most)
    done = exists().where(
        _of(instance.c.key, rendition.c.base_digest, terms),
        or_(and_(tried != "", stands), given_up, ~is_free(reverification)),
    )
    return (
        select(instance.c.key, instance.c.sop_instance_uid, instance.c.original_digest, instance.c.rendition_key)
        .join(rendition, instance.c.rendition_key == rendition.c.key)
        .outerjoin(original, original.c.instance_key == instance.c.key)
        # concat hides the index of states, by which all due images would be sorted to claim one
        .where(instance.c.state.concat("").in_(states), wanted, ~done)
    )


def _of(instance_key: Any, base_digest: Any, terms: ReverificationTerms) -> ColumnElement[bool]:
    return and_(
        reverification.c.instance_key == instance_key,
        reverification.c.base_digest == base_digest,
        reverification.c.terms == terms.digest,
    )


def _claim(
    connection: Connection, terms: ReverificationTerms, owner: str, lease_seconds: float, after: int, most: int
) -> ReverificationAttempt | None:
    first = _due(terms, most).where(instance.c.key > after).order_by(instance.c.key).limit(1)
    found = connection.execute(first).first()
    if found is None:
        return None
    current = stored_rendition(
        connection.execute(select(rendition).where(rendition.c.key == found.rendition_key)).one()
    )
    known, tried_at = _of(found.key, current.base_digest, terms), time.time()
    attempts = case((reverification.c.outcome == "", reverification.c.attempts + 1), else_=1)
    more = {"attempts": attempts, "outcome": "", "tried_at": tried_at}
    row = lease.claim(connection, reverification, known, owner, lease_seconds, **more)
    if row is None:
        fresh = {"instance_key": found.key, "base_digest": current.base_digest, "terms": terms.digest}
        fresh |= {"model": terms.model, "outcome": "", "reason": "", "attempts": 1, "tried_at": tried_at}
        fresh |= leased_to(owner, lease_seconds)
        row = connection.execute(insert(reverification).values(fresh).returning(reverification)).one()
    return ReverificationAttempt(
        row.key, found.key, found.sop_instance_uid, found.original_digest, current, row.attempts, owner
    )


def _owned(attempt: ReverificationAttempt) -> ColumnElement[bool]:
    return owned(reverification, attempt.owner, key=attempt.key, attempts=attempt.attempts)


def _settle(
    connection: Connection, attempt: ReverificationAttempt, outcome: ReverificationOutcome, reason: str
) -> bool:
    result = {"outcome": outcome.value, "reason": reason, "tried_at": time.time()}
    return lease.change_and_release(connection, reverification, _owned(attempt), **result)


def _still_as_claimed(connection: Connection, attempt: ReverificationAttempt) -> bool:
    """Whether the lease is ours, and the image has the state and the rendition that it had."""
    held = (
        select(instance.c.key)
        .join(rendition, instance.c.rendition_key == rendition.c.key)
        .where(
            instance.c.key == attempt.instance_key,
            instance.c.state.in_(RENDITION_STATES),
            rendition.c.derived_uid == attempt.current.derived_uid,
        )
    )
    mine = lease.change(connection, reverification, _owned(attempt), outcome="")
    return mine and connection.execute(held).scalar() is not None
