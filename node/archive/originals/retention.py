"""Retention: removes originals that are not needed any more, and restores others to the hot store.

An original may be removed if its image is VERIFIED, if it was held and verified at least ``originals.retain_for`` ago,
if it has no hold and no pin and is not in the audit reserve, and if the proof has just succeeded: the whole DICOM
object, header and verified pixels, was made from the rendition, encoded in explicit and in implicit VR little endian,
and read back.
The order of writes is: row and trail in one commit, journal, file. A crash in between leaves a file without a row,
which the next run unlinks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta

from node.config import Profile, Settings, retention_text
from storage.errors import LatentPacsError, PurgeRefused
from storage.index import Index
from storage.index.connection import now
from storage.objects.inspection import examine
from storage.objects.store import ObjectStore
from storage.records import Purgeable, StoredRendition, Tier, TrailEntry

LOGGER = logging.getLogger(__name__)

Prove = Callable[[int, StoredRendition], None]
"""Proves a rendition (instance key, rendition): makes its DICOM objects, header and verified pixels, and reads them
back. Raises LatentPacsError."""


@dataclass(frozen=True)
class PurgeStep:
    """One original that was, or would be, removed or kept; ``kept_because`` is empty if it is removed."""

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
    """The result of a purge, or with ``dry_run`` what it would be."""

    dry_run: bool
    keep: str
    purged: tuple[PurgeStep, ...] = field(default=())
    kept: tuple[PurgeStep, ...] = field(default=())
    """Originals that were old enough and without holds, but were kept; ``kept_because`` says why."""
    cancelled: bool = False
    reserved: int = 0
    """Number of originals that only the audit reserve keeps (``audit.reserve``); ``reserved_bytes``: on disk."""
    reserved_bytes: int = 0

    @property
    def bytes_freed(self) -> int:
        return sum(step.bytes for step in self.purged)


@dataclass(frozen=True)
class RestoreStep:
    """The result of restoring one original to the hot store."""

    sop_instance_uid: str
    outcome: str
    """``restored``, ``hot`` (it was there), ``purged``, or ``failed``."""
    bytes: int
    detail: str = ""


def would_free(index: Index, settings: Settings, keep: timedelta | None) -> tuple[int, int]:
    """Number and bytes of the originals that a purge would remove under ``keep``; nothing is rendered."""
    if keep is None or settings.codec.profile is Profile.US_MQSA:
        return 0, 0
    return index.originals.purgeable_totals(now() - keep, settings.audit.reserve_bound)


class Retention:
    """Purges and restores originals of one archive."""

    def __init__(self, index: Index, stores: Mapping[Tier, ObjectStore], settings: Settings, prove: Prove) -> None:
        self._index, self._stores, self._settings, self._prove = index, stores, settings, prove

    def purge(
        self,
        *,
        dry_run: bool = False,
        progress: Callable[[int, int], None] = lambda done, of: None,
        cancelled: Callable[[], bool] = lambda: False,
        who: str = "job:purge",
    ) -> PurgeReport:
        """Remove every original that may be removed. Raises PurgeRefused under profile us-mqsa."""
        if self._settings.codec.profile is Profile.US_MQSA:
            raise PurgeRefused("profile us-mqsa: originals are never removed (MQSA)")
        keep = self._settings.originals.retain_for
        if not dry_run:
            self._index.garbage.collect(self._stores)  # files of a run that was killed
        if keep is None:
            return PurgeReport(dry_run, "forever")
        purged: list[PurgeStep] = []
        kept: list[PurgeStep] = []
        rows, reserve = self._index.originals, self._settings.audit.reserve_bound
        of, stopped = rows.purgeable_totals(now() - keep, reserve)[0], False
        reserved = rows.reserved_totals(now() - keep, reserve)
        for done, one in enumerate(self._candidates(keep), 1):
            stopped = cancelled()
            if stopped:
                break
            why = self._why_kept(one) or ("" if dry_run else self._remove(one, keep, who))
            if why and self._was_deleted(one):
                continue
            (kept if why else purged).append(_step(one, why))
            progress(done, max(of, done))
        return PurgeReport(dry_run, retention_text(keep), tuple(purged), tuple(kept), stopped, *reserved)

    def restore(
        self, level: str, uid: str, *, who: str, progress: Callable[[int, int], None] = lambda done, of: None
    ) -> list[RestoreStep]:
        """Restore the originals of a patient, study, series or image to the hot store.

        Returns one step for each original, failures included; none if the UID is unknown.
        """
        found = self._index.originals.below(level, uid)
        steps = []
        for done, (sop_instance_uid, _) in enumerate(found, 1):
            steps.append(self._restore(sop_instance_uid, who))
            progress(done, len(found))
        self._index.garbage.collect(self._stores)
        return steps

    def _candidates(self, keep: timedelta) -> Iterator[Purgeable]:
        after, reserve = 0, self._settings.audit.reserve_bound
        while page := self._index.originals.purgeable(now() - keep, reserve=reserve, after=after):
            yield from page
            after = page[-1].original.instance_key

    def _why_kept(self, one: Purgeable) -> str:
        """Why the reconstruction cannot replace the original; empty if it can."""
        store = self._stores[Tier.HOT]
        if one.original.tier not in self._stores:
            return "it is in the cold store, and originals.path is not set"
        try:
            for digest in (one.rendition.base_digest, one.rendition.rendition_digest):
                if not (found := examine(store, digest)).whole:
                    return f"object {digest} of its reconstruction is {found.condition}"
            self._prove(one.original.instance_key, one.rendition)
        except (LatentPacsError, OSError) as error:
            if not self._was_deleted(one):
                LOGGER.error("original of %s is kept: %s", one.sop_instance_uid, error)
            return f"{type(error).__name__}: {error}"
        return ""

    def _was_deleted(self, one: Purgeable) -> bool:
        """Whether the image was deleted since it was listed. Its row is deleted before its objects are."""
        return self._index.by_uid(one.sop_instance_uid) is None

    def _remove(self, one: Purgeable, keep: timedelta, who: str) -> str:
        held = one.original
        detail = (
            f"original {held.original_digest}, {held.form} in the {held.tier} store, {held.object_bytes} bytes, "
            f"held since {held.held_since.isoformat(timespec='seconds')}, keep {retention_text(keep)}; "
            f"reconstruction {one.rendition.derived_uid}, base {one.rendition.base_digest}"
        )
        uids = (one.sop_instance_uid, one.study_instance_uid)
        entry = TrailEntry("original.purge", who, "image", uids, "original", detail=detail)
        if not self._index.originals.commit_purge(one, now() - keep, entry, self._settings.audit.reserve_bound):
            return "a hold, a pin or another change came in between"
        self._index.garbage.collect(self._stores)
        return ""

    def _restore(self, sop_instance_uid: str, who: str) -> RestoreStep:
        rows = self._index.originals
        held = next((held for _, held in rows.below("image", sop_instance_uid)), None)
        if held is None:
            return RestoreStep(sop_instance_uid, "failed", 0, "it was deleted meanwhile")
        if held.purged:
            return RestoreStep(sop_instance_uid, "purged", 0, f"removed at {held.purged_at} UTC; only a sender has it")
        if held.tier is Tier.HOT:
            rows.stays_hot(held)
            return RestoreStep(sop_instance_uid, "hot", held.object_bytes)
        if Tier.COLD not in self._stores:
            return RestoreStep(sop_instance_uid, "failed", 0, "it is in the cold store; set originals.path")
        hot = self._stores[Tier.HOT]
        entry = TrailEntry("original.restore", who, "image", (sop_instance_uid,), "original")
        try:
            hot.take_from(self._stores[Tier.COLD], held.object_digest)
            if not rows.commit_move(held, Tier.HOT, hot.has, [entry]):
                self._index.garbage.mark(held.object_digest, Tier.HOT)
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
