"""Deletion of images, series and studies for good, in the order: tombstones, journal, rows, objects.

Images on hold, pinned by a storage commitment, or kept by profile us-mqsa are refused. A crash after the tombstones
leaves a deletion that ``finish`` completes, at the next start or the next deletion.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from node.archive.audit_trail import AuditTrail
from node.archive.rendered_cache import forget
from node.config import Profile, Settings
from storage.errors import ChangeRefused
from storage.index import Index
from storage.index.integrity import Integrity
from storage.index.tombstones import PlannedDeletion
from storage.objects.inspection import remove_aside
from storage.objects.store import ObjectStore
from storage.records import Tier, TrailEntry

_MQSA = "is kept by profile us-mqsa"


@dataclass(frozen=True)
class DeletionReport:
    """The images that were deleted, or with ``dry_run`` those that would be deleted or refused."""

    dry_run: bool
    images: tuple[PlannedDeletion, ...]

    @property
    def refused(self) -> tuple[PlannedDeletion, ...]:
        return tuple(one for one in self.images if one.kept_because)


class Deletion:
    """Deletes images of one archive. ``rendered``: the folder of the rendered cache, which must not keep them."""

    def __init__(
        self, index: Index, stores: Mapping[Tier, ObjectStore], trail: AuditTrail, settings: Settings, rendered: Path
    ) -> None:
        self._index, self._stores, self._trail = index, stores, trail
        self._kept_by_profile = settings.codec.profile is Profile.US_MQSA
        self._rendered = rendered

    def plan(self, level: str, uid: str) -> DeletionReport:
        """A dry run of ``delete``. Raises UnknownUid."""
        found = self._index.tombstones.plan(level, uid)
        if self._kept_by_profile:
            found = [replace(one, kept_because=one.kept_because or _MQSA) for one in found]
        return DeletionReport(True, tuple(found))

    def delete(self, level: str, uid: str, *, reason: str, who: str) -> DeletionReport:
        """Delete all images, or none. Raises UnknownUid, and ChangeRefused, which the trail records."""
        self.finish()
        try:
            if self._kept_by_profile:
                raise ChangeRefused("nothing was deleted: profile us-mqsa never deletes images (MQSA)")
            found = self._index.tombstones.mark_deleted(level, uid, reason=reason, who=who)
        except ChangeRefused as error:
            detail = f"{reason}; {error}"
            self._trail.append(TrailEntry("delete.refused", who, level, (uid,), outcome="refused", detail=detail))
            raise
        self.finish()
        return DeletionReport(False, tuple(found))

    def allow_return(self, level: str, uid: str, *, reason: str, who: str) -> list[str]:
        """Allow deleted images to be received again. Returns their UIDs. Raises UnknownUid, ChangeRefused."""
        self.finish()
        return self._index.tombstones.allow_return(level, uid, reason=reason, who=who)

    def finish(self) -> None:
        """Complete the deletion of all marked images, from any step."""
        digests = self._index.tombstones.digests_to_delete()
        forget(self._rendered, digests)
        self._remove_damaged(digests)  # rows still name these digests: after a crash, this is repeated
        self._index.tombstones.delete_rows()
        forget(self._rendered, digests)  # a reader may have rendered them meanwhile
        self._index.garbage.collect(self._stores)
        self._remove_damaged(digests)

    def _remove_damaged(self, digests: list[str]) -> None:
        """Remove files that a scrub moved aside, unless another image needs an object of that digest."""
        integrity, deleted = Integrity(self._index.engine), self._index.tombstones.keys_to_delete()
        for digest in digests:
            if all(one.instance_key in deleted for one in integrity.expected_at(digest)):
                for store in self._stores.values():
                    remove_aside(store, digest)
