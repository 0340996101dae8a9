"""Damage that is met while originals are read: settled at once as a scrub would, and told to the operator."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from node.archive.audit_trail import AuditTrail
from node.jobs.scrub_repair import ScrubFinding, ScrubRepair
from storage.index import Index
from storage.index.integrity import Integrity
from storage.objects.inspection import examine
from storage.objects.store import ObjectStore
from storage.records import Tier, TrailEntry

LOGGER = logging.getLogger(__name__)

_SEND_AGAIN = "send the image again from its source"


def settle_in(
    index: Index, stores: Mapping[Tier, ObjectStore], trail: AuditTrail, replica: Path | None = None
) -> Callable[[Tier, str], None]:
    """What to do with an object that does not have its digest: moved aside, its images flagged, log and trail told.

    Nothing is raised: whoever met the damage has an answer to give.
    """
    upkeep = Integrity(index.engine)
    mending = ScrubRepair(index, upkeep, {str(tier): store for tier, store in stores.items()}, replica)

    def settle(tier: Tier, digest: str) -> None:
        try:
            look = examine(stores[tier], digest)
            if look.whole:
                return
            promises = [one for one in upkeep.expected(digest, digest + "0") if one.store == str(tier)]
            found = mending.settle(promises, look) if promises else []
            for one in found:
                LOGGER.error(
                    "original of %s is %s (%s): %s", one.sop_instance_uid, one.condition, one.detail, one.action
                )
            trail.append(
                *(
                    TrailEntry(
                        "damage",
                        "node",
                        "image",
                        (one.sop_instance_uid,),
                        "original",
                        one.action,
                        _told(one),
                    )
                    for one in found
                )
            )
            if not promises:
                LOGGER.error("object %s is %s (%s), and no image needs it", digest, look.condition, look.detail)
        except Exception:
            LOGGER.exception("damage of object %s could not be settled; run latent-pacs scrub --full", digest)

    return settle


def _told(found: ScrubFinding) -> str:
    mended = found.action == "recovered"
    return f"object {found.digest}: {found.detail}; {'it is whole again' if mended else _SEND_AGAIN}"
