"""Retention: removes originals that may go, and brings back to the hot store those that did not.

An original may go when its image is VERIFIED, it was held as long as ``originals.keep`` says, no hold and no pin is on
it, the audit reserve does not want it, and this very node has just made the whole object, header and verified pixels,
from what would be left, encoded it as it is sent, and read it back.
The order is: row and trail in one commit, journal, file. A crash in between leaves a file that no row promises, which
the next run unlinks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta

from node.archive.audit_trail import AuditTrail
from node.archive.originals.packing import holds
from node.config import Profile, Settings, keep_text
from storage.errors import LatentPacsError, PurgeRefused
from storage.index import Index
from storage.index.connection import now
from storage.objects.store import ObjectStore
from storage.records import Purgeable, StoredRendition, Tier, TrailEntry

LOGGER = logging.getLogger(__name__)

Render = Callable[[StoredRendition], None]
"""Makes the object of a rendition, header and verified pixels, and reads it back. Raises LatentPacsError."""


@dataclass(frozen=True)
class PurgeStep:
    """What was, or would be, done with one original; ``kept_because`` is empty where it goes."""

    sop_instance_uid: str
    study_instance_uid: str
    derived_uid: str
    form: str
    tier: str
    bytes: int
    held_since: str
    kept_because: str = ""


@dataclass(frozen=True)
class PurgeReport:
    """What a purge did, or with ``dry_run`` what it would do."""

    dry_run: bool
    keep: str
    purged: tuple[PurgeStep, ...] = field(default=())
    kept: tuple[PurgeStep, ...] = field(default=())
    """Those that were old enough and free of holds, and were kept all the same."""
    cancelled: bool = False
    reserved: int = 0
    """Those that the audit reserve alone keeps (audit.reserve), and their bytes on disk."""
    reserved_bytes: int = 0

    @property
    def bytes_freed(self) -> int:
        return sum(step.bytes for step in self.purged)


@dataclass(frozen=True)
class RestoreStep:
    """What became of one original that somebody wants in the hot store."""

    sop_instance_uid: str
    outcome: str
    """``restored``, ``hot`` (it was there), ``purged``, or ``failed``."""
    bytes: int
    detail: str = ""


class Retention:
    """Purges and restores in one archive. ``render`` is the proof that the reconstruction can be made."""

    def __init__(
        self, index: Index, stores: Mapping[Tier, ObjectStore], trail: AuditTrail, settings: Settings, render: Render
    ) -> None:
        self._index, self._stores, self._trail = index, stores, trail
        self._settings, self._render = settings, render

    def purge(
        self,
        *,
        dry_run: bool = False,
        progress: Callable[[int, int], None] = lambda done, of: None,
        cancelled: Callable[[], bool] = lambda: False,
        who: str = "job:retention",
    ) -> PurgeReport:
        """Remove every original that may go. Raises PurgeRefused under profile us-mqsa."""
        if self._settings.codec.profile is Profile.US_MQSA:
            raise PurgeRefused("profile us-mqsa: originals are never removed (MQSA)")
        keep = self._settings.originals.keep
        if not dry_run:
            self._index.originals.collect(self._stores)  # what a run that was killed left behind
        if keep is None:
            return PurgeReport(dry_run, "forever")
        purged: list[PurgeStep] = []
        kept: list[PurgeStep] = []
        originals, reserve = self._index.originals, self._settings.audit.reserve_bound
        of, stopped = originals.purgeable_totals(now() - keep, reserve)[0], False
        reserved = originals.reserved_totals(now() - keep, reserve)
        for done, one in enumerate(self._candidates(keep), 1):
            stopped = cancelled()
            if stopped:
                break
            why = self._why_kept(one) or ("" if dry_run else self._remove(one, keep, who))
            (kept if why else purged).append(_step(one, why))
            progress(done, max(of, done))
        return PurgeReport(dry_run, keep_text(keep), tuple(purged), tuple(kept), stopped, *reserved)

    def would_free(self, keep: timedelta | None) -> tuple[int, int]:
        """How many originals the rules would let go under ``keep``, and their bytes; nothing is rendered for that."""
        if keep is None or self._settings.codec.profile is Profile.US_MQSA:
            return 0, 0
        return self._index.originals.purgeable_totals(now() - keep, self._settings.audit.reserve_bound)

    def restore(
        self, level: str, uid: str, *, who: str, progress: Callable[[int, int], None] = lambda done, of: None
    ) -> list[RestoreStep]:
        """Bring the originals of a patient, study, series or image back to the hot store."""
        found = self._index.originals.below(level, uid)
        steps = []
        for done, (sop_instance_uid, _) in enumerate(found, 1):
            steps.append(self._restore(sop_instance_uid, who))
            progress(done, len(found))
        self._trail.write_down()
        self._index.originals.collect(self._stores)
        return steps

    def _candidates(self, keep: timedelta) -> Iterator[Purgeable]:
        after, reserve = 0, self._settings.audit.reserve_bound
        while page := self._index.originals.purgeable(now() - keep, reserve=reserve, after=after):
            yield from page
            after = page[-1].original.instance_key

    def _why_kept(self, one: Purgeable) -> str:
        """What is missing for the reconstruction to stand alone; empty when nothing is."""
        store = self._stores[Tier.HOT]
        if one.original.tier not in self._stores:
            return "it is in the cold store, and originals.path is not set"
        try:
            store.read(one.rendition.base_digest)
            store.read(one.rendition.rendition_digest)
            self._render(one.rendition)
        except (LatentPacsError, OSError) as error:
            LOGGER.error("original of %s is kept: %s", one.sop_instance_uid, error)
            return f"{type(error).__name__}: {error}"
        return ""

    def _remove(self, one: Purgeable, keep: timedelta, who: str) -> str:
        held = one.original
        detail = (
            f"original {held.original_digest}, {held.form} in the {held.tier} store, {held.object_bytes} bytes, "
            f"held since {held.held_since.isoformat(timespec='seconds')}, keep {keep_text(keep)}; "
            f"reconstruction {one.rendition.derived_uid}, base {one.rendition.base_digest}"
        )
        uids = (one.sop_instance_uid, one.study_instance_uid)
        entry = TrailEntry("original.purge", who, "image", uids, "original", detail=detail)
        if not self._index.originals.purged(one, now() - keep, entry, self._settings.audit.reserve_bound):
            return "a hold, a pin or another change came in between"
        self._trail.write_down()
        self._index.originals.collect(self._stores)
        return ""

    def _restore(self, sop_instance_uid: str, who: str) -> RestoreStep:
        originals = self._index.originals
        (_, held), *_ = originals.below("image", sop_instance_uid)
        if held.purged:
            return RestoreStep(sop_instance_uid, "purged", 0, f"removed at {held.purged_at} UTC; only a sender has it")
        if held.tier is Tier.HOT:
            originals.stays_hot(held)
            return RestoreStep(sop_instance_uid, "hot", held.object_bytes)
        if Tier.COLD not in self._stores:
            return RestoreStep(sop_instance_uid, "failed", 0, "it is in the cold store; set originals.path")
        hot = self._stores[Tier.HOT]
        entry = TrailEntry("original.restore", who, "image", (sop_instance_uid,), "original")
        try:
            hot.take_from(self._stores[Tier.COLD], held.object_digest)
            if not originals.moved(held, Tier.HOT, holds(hot), [entry]):
                originals.mark_garbage(held.object_digest, Tier.HOT)
                return RestoreStep(sop_instance_uid, "failed", 0, "it was moved or removed meanwhile; try again")
        except (LatentPacsError, OSError) as error:
            failure = replace(entry, outcome="failure", detail=str(error))
            self._index.trail.append(failure)
            return RestoreStep(sop_instance_uid, "failed", 0, str(error))
        return RestoreStep(sop_instance_uid, "restored", held.object_bytes)


def _step(one: Purgeable, why: str) -> PurgeStep:
    return PurgeStep(
        sop_instance_uid=one.sop_instance_uid,
        study_instance_uid=one.study_instance_uid,
        derived_uid=one.rendition.derived_uid,
        form=one.original.form,
        tier=one.original.tier,
        bytes=one.original.object_bytes,
        held_since=one.original.held_since.isoformat(timespec="seconds"),
        kept_because=why,
    )
