"""Handles a damaged original at the moment it is read: repairs it as a scrub would, and reports it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from node.archive.audit_trail import AuditTrail
from node.jobs.scrub_repair import ScrubFinding, ScrubRepair
from storage.index import Index
from storage.objects.inspection import examine
from storage.objects.store import ObjectStore
from storage.records import Tier, TrailEntry

LOGGER = logging.getLogger(__name__)


def damage_handler(
    index: Index, stores: Mapping[Tier, ObjectStore], trail: AuditTrail, replica: Path | None = None
) -> Callable[[Tier, str], None]:
    """A handler for a damaged object: it repairs the object or flags its images, and writes the log and audit trail.

    The handler raises nothing, because the reader that found the damage must still answer its request.
    """
    repair = ScrubRepair(index, {str(tier): store for tier, store in stores.items()}, replica)

    def settle(tier: Tier, digest: str) -> None:
        try:
            examined = examine(stores[tier], digest)
            if examined.whole:
                return
            promises = [one for one in repair.integrity.expected_at(digest) if one.store == str(tier)]
            found = repair.settle(promises, examined) if promises else []
            for one in found:
                LOGGER.error(
                    "original of %s is %s (%s): %s", one.sop_instance_uid, one.condition, one.detail, one.action
                )
            trail.append(*map(_entry, found))
            if not promises:
                LOGGER.error("object %s is %s (%s), and no image needs it", digest, examined.condition, examined.detail)
        except Exception:
            LOGGER.exception("damage of object %s could not be handled; run latent-pacs scrub --full", digest)

    return settle


def _entry(found: ScrubFinding) -> TrailEntry:
    outcome = "repaired" if found.action == "recovered" else "send the image again from its source"
    detail = f"object {found.digest}: {found.detail}; {outcome}"
    return TrailEntry("damage", "node", "image", (found.sop_instance_uid,), "original", found.action, detail)
