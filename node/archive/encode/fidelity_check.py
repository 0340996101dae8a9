"""Audits the rendition of an image: decodes it again, compares it with what was verified, and withdraws it if it fails.

The same base, model and numerics must give exactly the pixels that were verified, whose digest is recorded. Another
machine's numerics may change single grey levels; then only the figures can be compared. If the original is held, the
figures are always measured again, and compared with the recorded ones.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum

from node.archive.model_store import ModelStore
from node.archive.originals.original_access import OriginalAccess
from node.archive.originals.storage_commitment import original_fault
from node.config import Settings
from node.workers.auditing import Audited, AuditPictures, AuditRequest
from node.workers.pool import Priority, WorkerPool
from node.workers.waiting import wait_for_result
from storage.errors import (
    Cancelled,
    LatentPacsError,
    ModelMissing,
    ObjectDamaged,
    ObjectMissing,
    OriginalPurged,
    PayloadError,
)
from storage.index import Index
from storage.index.audit_outcomes import AuditRows
from storage.objects.store import ObjectStore
from storage.records import InstanceState, StoredInstance, StoredRendition, TrailEntry, Verdict
from storage.thresholds import burden_of, limits_of, shares_of

__all__ = ["TRENDS", "AuditPictures", "FidelityCheck", "FidelityFinding", "FidelityOutcome"]

LOGGER = logging.getLogger(__name__)

TRENDS = ("fsim_mean", "fsim_p5", "psnr_db", "burden")
"""The figures that are charted over time: those of the paper, and ``burden``, the gate's figure that is nearest to its
limit, as a share of that limit."""


class FidelityOutcome(StrEnum):
    SAME = "as verified"
    """Exactly the pixels that were verified, and the same figures if the original is held."""
    OTHER_NUMERICS = "other numerics"
    """Other pixels, by another machine or library than those verified; the figures are as recorded."""
    NOT_HERE = "cannot be made here"
    """Other pixels, by another machine or library than those verified, and no original to measure or to send."""
    REMEASURED = "measured otherwise"
    """Exactly the pixels that were verified, but other figures: the measure changed, or the record is wrong."""
    WORSE = "worse"
    """Other pixels, with figures worse than those recorded by more than the tolerance; or, if the rendition was gated,
    figures beyond a limit of the gate although the recorded ones meet all limits."""
    MISMATCH = "other pixels"
    """Other pixels than those verified, under the same numerics."""
    UNMADE = "cannot be made"
    """The model or the payload of the rendition cannot be used."""
    DAMAGED = "damaged"
    """An object of the rendition or the original is missing or damaged; a scrub repairs it."""
    UNTRIED = "not audited"
    """Another error ended the audit of the image; the log says which. Nothing was judged."""

    @property
    def failed(self) -> bool:
        """Whether the rendition may no longer be served in place of its original."""
        return self in (FidelityOutcome.WORSE, FidelityOutcome.MISMATCH, FidelityOutcome.UNMADE)

    @property
    def alarming(self) -> bool:
        """Whether a person should look into it."""
        return self not in (FidelityOutcome.SAME, FidelityOutcome.OTHER_NUMERICS)


@dataclass(frozen=True)
class FidelityFinding:
    """The audit of one image. ``action``: withdrawn, flagged, cleared, changed meanwhile, or empty. ``recorded`` and
    ``now`` have the figures of ``TRENDS`` and of the gate by name; ``now`` is empty if there was no original."""

    instance_key: int
    sop_instance_uid: str
    derived_uid: str
    outcome: FidelityOutcome
    reason: str = ""
    action: str = ""
    recorded: dict[str, float] = field(default_factory=dict)
    now: dict[str, float] = field(default_factory=dict)
    pixel_bytes: int = 0
    payload_bytes: int = 0
    original_bytes: int = 0


class FidelityCheck:
    """Audits images one by one; ``pool`` decodes the renditions."""

    def __init__(
        self,
        index: Index,
        store: ObjectStore,
        originals: OriginalAccess,
        settings: Settings,
        pool: WorkerPool,
        cancelled: Callable[[], bool],
    ) -> None:
        self._index, self._store, self._originals = index, store, originals
        self._tolerance, self._thresholds = settings.audit.tolerance, settings.thresholds
        self._pool, self._cancelled = pool, cancelled
        self._rows, self._models = AuditRows(index.engine), ModelStore(index, store)

    def audit(self, instance_key: int) -> FidelityFinding | None:
        """Audit the current rendition of an image, and act on the result; None if it has none or waits to be encoded.

        Raises Cancelled.
        """
        image = self._index.by_key(instance_key)
        if image is None or image.rendition is None or image.state is InstanceState.RECEIVED:
            return None
        held = self._index.originals.of_digest(image.original_digest)
        unjudged = FidelityFinding(
            image.key,
            image.sop_instance_uid,
            image.rendition.derived_uid,
            FidelityOutcome.UNTRIED,
            pixel_bytes=image.pixel_bytes,
            payload_bytes=image.rendition.payload_bytes,
            original_bytes=0 if held is None else held.object_bytes,
        )
        try:
            answer, why_no_original = self._decode_again(image, image.rendition, pictures=False)
            found = self._judge(unjudged, image, image.rendition, answer)
        except Cancelled:
            raise
        except (ModelMissing, PayloadError) as error:
            found, why_no_original = replace(unjudged, outcome=FidelityOutcome.UNMADE, reason=str(error)), ""
        except (ObjectMissing, ObjectDamaged) as error:
            return replace(unjudged, outcome=FidelityOutcome.DAMAGED, reason=str(error))
        except Exception as error:  # one bad image must not stop the others
            known = isinstance(error, LatentPacsError)
            LOGGER.error("auditing %s: %s", image.sop_instance_uid, error, exc_info=not known)
            return replace(unjudged, reason=f"{type(error).__name__}: {error}")
        return self._act_on(found, image, image.rendition, why_no_original)

    def pictures(self, found: FidelityFinding) -> AuditPictures | None:
        """Pictures of an image whose original is held; None if they cannot be made. Raises Cancelled."""
        image, made = self._index.by_key(found.instance_key), self._index.rendition(found.derived_uid)
        if image is None or made is None:
            return None
        try:
            return self._decode_again(image, made, pictures=True)[0].pictures
        except LatentPacsError as error:
            LOGGER.warning("no pictures of %s: %s", image.sop_instance_uid, error)
            return None

    def _decode_again(self, image: StoredInstance, made: StoredRendition, *, pictures: bool) -> tuple[Audited, str]:
        """The worker's answer, and why it had no original to measure against; empty if it had one."""
        for digest in (made.base_digest, made.rendition_digest):
            self._store.read(digest)
        request = AuditRequest(
            self._store.held(made.base_digest),
            self._store.held(made.rendition_digest),
            model=self._models.folder(made.upscaler, made.weights_digest),
            original_digest=image.original_digest,
            thresholds=self._thresholds if made.verdict.gated else None,
            pictures=pictures,
        )
        try:
            with self._originals.borrowed(image.original_digest) as original:
                return self._ask(replace(request, original=original)), ""
        except (OriginalPurged, ObjectMissing) as error:
            return self._ask(request), str(error)
        except ObjectDamaged as error:
            return replace(self._ask(request), original_whole=False), str(error)

    def _judge(
        self, unjudged: FidelityFinding, image: StoredInstance, made: StoredRendition, answer: Audited
    ) -> FidelityFinding:
        recorded = replace(answer.recorded, **{name: getattr(made.verdict, name) for name in TRENDS[:3]})
        now = {} if answer.now is None else self._figures(answer.now)
        found = replace(unjudged, recorded=self._figures(recorded), now=now)
        same = answer.same and answer.pixel_digest == made.output_digest
        drop = self._deviations(found, worse_only=True)
        if not same and answer.numerics == answer.recorded_numerics:
            reason = f"pixel digest {answer.pixel_digest}, not {made.output_digest} as verified with the same numerics"
            return replace(found, outcome=FidelityOutcome.MISMATCH, reason=reason)
        if not answer.original_whole:
            return replace(
                found, outcome=FidelityOutcome.DAMAGED, reason=f"original {image.original_digest} is not whole"
            )
        met = found.recorded["burden"] <= 1  # a gate that is stricter now fails no rendition
        beyond = "; ".join(answer.now.failures) if answer.now is not None and made.verdict.gated and met else ""
        if beyond or (drop and not same):
            return replace(found, outcome=FidelityOutcome.WORSE, reason=beyond or drop)
        if not same:
            outcome = FidelityOutcome.NOT_HERE if answer.now is None else FidelityOutcome.OTHER_NUMERICS
            return replace(found, outcome=outcome, reason=_changed(answer))
        moved = self._deviations(found)
        return replace(found, outcome=FidelityOutcome.REMEASURED if moved else FidelityOutcome.SAME, reason=moved)

    def _figures(self, verdict: Verdict) -> dict[str, float]:
        named = {name: value for name, value in verdict.figures.items() if name in limits_of(self._thresholds)}
        trends = {"fsim_mean": verdict.fsim_mean, "fsim_p5": verdict.fsim_p5, "psnr_db": verdict.psnr_db}
        return {**trends, "burden": burden_of(named, self._thresholds), **named}

    def _deviations(self, found: FidelityFinding, *, worse_only: bool = False) -> str:
        """The figures that differ from those recorded by more than the tolerance, as text for people; empty if there
        are none, or nothing was measured."""
        if not found.now:
            return ""
        tolerance, differences = self._tolerance, []
        for name, allowed in (("fsim_mean", tolerance.fsim), ("psnr_db", tolerance.psnr_db)):
            change = found.now[name] - found.recorded[name]
            if change < -allowed or (change > allowed and not worse_only):
                differences.append(f"{name} {found.now[name]:.4f}, recorded was {found.recorded[name]:.4f}")
        shares, before = (shares_of(figures, self._thresholds) for figures in (found.now, found.recorded))
        for name, share in shares.items():
            change = share - before.get(name, share)
            if change > tolerance.gate or (change < -tolerance.gate and not worse_only):
                differences.append(f"{name} {found.now[name]:.4g}, recorded was {found.recorded[name]:.4g}")
        return "; ".join(differences)

    def _act_on(
        self, found: FidelityFinding, image: StoredInstance, made: StoredRendition, why_no_original: str
    ) -> FidelityFinding:
        """Withdraw or flag a failed rendition, or clear a flagged one that passes, and record it in the audit trail.

        A rendition is withdrawn only if its original is whole, and flagged otherwise.
        """
        flagged = image.state is InstanceState.FAILED
        if not found.outcome.failed and not (flagged and found.outcome is FidelityOutcome.SAME):
            return found
        detail = f"{found.outcome}: {found.reason}" if found.outcome.failed else "passes again"
        uids = (image.sop_instance_uid, made.derived_uid)
        entry = TrailEntry("rendition.audit", "job:audit", "image", uids, "reconstructed", detail=detail)
        if not found.outcome.failed:
            done, action = self._rows.clear(image.key, made.derived_uid, made.state, entry), "cleared"
        elif not why_no_original and not original_fault(self._originals, image):
            entry = replace(entry, action="rendition.withdraw", outcome="failure")
            done, action = self._rows.withdraw(image.key, made.derived_uid, detail, entry), "withdrawn"
        else:
            detail = f"{detail}; no original to serve instead"
            entry = replace(entry, action="rendition.flag", outcome="failure", detail=detail)
            done, action = flagged or self._rows.flag(image.key, made.derived_uid, detail, entry), "flagged"
        return replace(found, action=action if done else "changed meanwhile")

    def _ask(self, request: AuditRequest) -> Audited:
        return wait_for_result(self._pool.submit(request, Priority.REVERIFY), self._cancelled)


def _changed(answer: Audited) -> str:
    """The differences between the numerics at verification and now."""
    names = sorted({*answer.numerics, *answer.recorded_numerics})
    then, now = answer.recorded_numerics, answer.numerics
    changed = (name for name in names if then.get(name) != now.get(name))
    return ", ".join(f"{name} {now.get(name, 'none')}, then {then.get(name, 'none')}" for name in changed)
