"""Quarantine: objects received under a UID that is held with other content, or was deleted; people decide on them.

Accepting an object replaces the held original, and the image is encoded again. The former original goes to quarantine,
so that nothing is lost until it is rejected; its reconstructions are withdrawn. A held original whose object is missing
or damaged is first repaired as by a scrub; if that is impossible, it is replaced and its loss is recorded.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from node.archive.deletion import Deletion
from node.archive.originals.original_access import OriginalAccess
from node.config import Profile, Settings
from storage.dicom.content import Difference, differences
from storage.errors import ChangeRefused, ObjectDamaged, ObjectMissing, OriginalPurged, UnknownUid
from storage.index import Index
from storage.index.quarantined import Former
from storage.index.rewritten_annotations import copy_of_uid
from storage.objects.inspection import Condition, examine
from storage.records import HeldOriginal, NewInstance, Quarantined, StoredInstance, Tier, TrailEntry

Examine = Callable[[Path, str], NewInstance]
"""Makes the row of a file (path, AE title of the sender), as ingest does. Raises DataSetError."""


@dataclass(frozen=True)
class Compared:
    """One object in quarantine, and its differences from the held original with its UID.

    ``deleted``: whether the UID was deleted here. ``lost``: whether the object of the held original is missing or
    damaged, so that nothing could be compared.
    """

    quarantined: Quarantined
    held: StoredInstance | None
    deleted: bool
    differences: tuple[Difference, ...]
    lost: bool = False


class QuarantineReview:
    """Carries out decisions on quarantined objects, and records each in the audit trail."""

    def __init__(
        self, index: Index, originals: OriginalAccess, deletion: Deletion, settings: Settings, examine: Examine
    ) -> None:
        self._index, self._store, self._originals = index, originals.stores[Tier.HOT], originals
        self._deletion, self._examine = deletion, examine
        self._kept_by_profile = settings.codec.profile is Profile.US_MQSA

    def find(self, digest: str) -> Quarantined:
        """The one object in quarantine whose digest begins with ``digest``. Raises UnknownUid if none or several do."""
        found = [one for one in self._index.quarantine.all() if one.digest.startswith(digest)]
        if len(found) != 1 or not digest:
            how_many = "no digest in quarantine begins" if not found else f"{len(found)} digests in quarantine begin"
            decided = self._decided(digest) if digest and not found else "see `latent-pacs quarantine list`"
            raise UnknownUid(f"{how_many} with {digest!r}; {decided}")
        return found[0]

    def _decided(self, digest: str) -> str:
        """What became of an object that has left the quarantine, as text for people."""
        record = self._index.trail.newest_of(("quarantine.accept", "quarantine.reject"), f"object {digest}")
        if record is None:
            return "see `latent-pacs quarantine list`"
        verb = record.entry.action.removeprefix("quarantine.")
        return f"{record.entry.who} {verb}ed it at {record.at}: {record.entry.detail}"

    def compare(self, digest: str) -> Compared:
        """Compare an object with the held original. Raises UnknownUid."""
        one = self.find(digest)
        held = self._index.by_uid(one.sop_instance_uid)
        deleted = self._index.tombstones.in_force(one.sop_instance_uid) is not None
        found: tuple[Difference, ...] = ()
        lost = False
        if held is not None and not held.purged:
            quarantined = self._store.held(one.digest)
            try:
                with self._originals.borrowed(held.original_digest) as path:
                    found = differences(path, quarantined)
            except (ObjectMissing, ObjectDamaged):
                lost = True
        return Compared(one, held, deleted, found, lost)

    def reject(self, digest: str, *, reason: str, who: str) -> Quarantined:
        """Delete an object from quarantine. Raises UnknownUid, ChangeRefused."""
        one = self.find(digest)
        if not self._index.quarantine.reject(one, _entry("quarantine.reject", one, reason, who)):
            raise ChangeRefused(f"{one.digest} was accepted or rejected meanwhile; see `latent-pacs quarantine list`")
        self._deletion.finish()
        return one

    def accept(self, digest: str, *, reason: str, who: str, allow_return: bool = False) -> Quarantined:
        """Make an object the original of its UID. Raises UnknownUid, ChangeRefused, DataSetError, StoreFull.

        ``allow_return``: whether an object whose UID was deleted may be accepted.
        """
        one = self.find(digest)
        held = self._index.by_uid(one.sop_instance_uid)
        self._check(one, held, allow_return)
        new = replace(self._examine(self._whole(one), one.calling_aet), original_digest=one.digest)
        former = self._former(held) if held is not None else Former()
        if self._index.tombstones.in_force(one.sop_instance_uid) is not None:
            self._deletion.allow_return("image", one.sop_instance_uid, reason=reason, who=who)
        entry = _entry("quarantine.accept", one, reason, who)
        if former.lost is not None:
            entry = replace(entry, detail=f"{entry.detail}; the former original was missing or damaged")
        try:
            if not self._index.quarantine.accept(new, former, entry, self._store.has):
                raise ChangeRefused(f"{one.sop_instance_uid} changed meanwhile; compare it again before you accept it")
        finally:
            if former.verbatim:  # unlinked unless a row needs it
                self._index.garbage.mark(former.verbatim, Tier.HOT)
            self._deletion.finish()
        return one

    def _check(self, one: Quarantined, held: StoredInstance | None, allow_return: bool) -> None:
        uid = one.sop_instance_uid
        stone = self._index.tombstones.in_force(uid)
        if stone is not None and stone.original_uid != uid:
            raise ChangeRefused(f"{uid} is the UID of a reconstruction of {stone.original_uid}, which was deleted")
        if stone is not None and not allow_return:
            raise ChangeRefused(f"{uid} was deleted here; --allow-return accepts it again")
        if held is not None and held.sop_instance_uid != uid:
            raise ChangeRefused(f"{uid} is the UID of a reconstruction of {held.sop_instance_uid}; nothing replaces it")
        copy = copy_of_uid(self._index.engine, uid)
        annotation = self._index.by_key(copy.instance_key) if copy is not None else None
        if annotation is not None and annotation.held is not None and self._originals.whole(annotation.held):
            raise ChangeRefused(f"{uid} is the UID of a copy of {annotation.sop_instance_uid}; nothing replaces it")
        if held is not None and self._kept_by_profile:
            raise ChangeRefused("profile us-mqsa: originals are never replaced (MQSA)")

    def _whole(self, one: Quarantined) -> Path:
        """The path of an object in quarantine. Raises ChangeRefused if it cannot become an original."""
        if not examine(self._store, one.digest).whole:
            raise ChangeRefused(
                f"object {one.digest} in quarantine is missing or damaged; let {one.calling_aet} send "
                f"{one.sop_instance_uid} again, and reject this one"
            )
        return self._store.held(one.digest)

    def _former(self, held: StoredInstance) -> Former:
        """What is left of the held original. If its object is missing or damaged, a repair is tried first.

        Raises ChangeRefused.
        """
        try:
            return Former(self._verbatim(held.original_digest))
        except OriginalPurged:
            return Former()
        except (ObjectMissing, ObjectDamaged):
            row = self._lost_row(held)
        self._originals.damaged(row.tier, row.object_digest)
        if self._originals.whole(row):
            return Former(self._verbatim(held.original_digest))
        if self._originals.condition(row) is not Condition.MISSING:
            raise ChangeRefused(
                f"the original of {held.sop_instance_uid} is damaged and was not moved aside; run `latent-pacs scrub "
                "--full`, and accept this one afterwards"
            )
        return Former(lost=row)

    def _lost_row(self, held: StoredInstance) -> HeldOriginal:
        """The row of an original whose object is missing or damaged. Raises ChangeRefused if it may be whole."""
        uid, row = held.sop_instance_uid, self._index.originals.of_digest(held.original_digest)
        if row is None or row.purged or self._originals.whole(row):
            raise ChangeRefused(f"{uid} changed meanwhile; compare it again before you accept it")
        condition = self._originals.condition(row)
        if condition is None:
            raise ChangeRefused(
                f"the original of {uid} is in the {row.tier} store, which holds no object at all: set originals.path "
                "or mount its disk, and accept this one afterwards"
            )
        if condition is Condition.UNREADABLE:
            raise ChangeRefused(
                f"the original of {uid} may be sound, but cannot be read: correct the permissions of object "
                f"{row.object_digest} in the {row.tier} store, and accept this one afterwards"
            )
        return row

    def _verbatim(self, original_digest: str) -> str:
        """Store a held original verbatim in the hot store, and return its digest. Raises as ``OriginalAccess.lend``."""
        with (
            self._originals.borrowed(original_digest) as path,
            tempfile.TemporaryDirectory(dir=self._store.spool) as folder,
        ):
            return self._store.adopt(shutil.copyfile(path, Path(folder) / "original"))


def _entry(action: str, one: Quarantined, reason: str, who: str) -> TrailEntry:
    detail = f"object {one.digest} from {one.calling_aet}: {reason}"
    return TrailEntry(action, who, "image", (one.sop_instance_uid,), "original", detail=detail)
