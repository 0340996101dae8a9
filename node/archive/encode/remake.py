"""Decides what becomes of the former rendition of an image that the archivist encodes again.

A whole rendition is kept, after it was proved again. If an object of it is lost, or if regions were marked that it does
not hold exactly, the image is encoded like a new one. The encoder is deterministic: with the same settings and the same
libraries it makes the same objects under the same derived UID, whose row is used again. Otherwise the new rendition has
a UID of its own, and that of a lost rendition, which is withdrawn, leads to the original.
"""

from __future__ import annotations

from node.archive.encode.rendition_writer import RenditionWriter
from node.archive.intake.annotation_regions import Box
from node.archive.intake.marked_regions import MarkedRegions
from node.workers.requests import Ask
from storage.errors import NotReconstructable, ObjectDamaged, ObjectMissing
from storage.index import Index
from storage.index.integrity import Integrity
from storage.objects.store import ObjectStore
from storage.records import Claim, StoredInstance, StoredRendition


class Remake:
    """Keeps or withdraws the renditions of claimed instances."""

    def __init__(self, index: Index, store: ObjectStore, writer: RenditionWriter, regions: MarkedRegions) -> None:
        self._index, self._store, self._writer, self._regions = index, store, writer, regions
        self._rows = Integrity(index.engine)

    def kept(self, claim: Claim, instance: StoredInstance, regions: tuple[Box, ...], ask: Ask) -> bool:
        """Keep the former rendition of an instance, and end its claim. False if there is none, or if it is lost, which
        withdraws it, or lacks patches on ``regions``.

        Raises NotReconstructable if the former rendition, which is withdrawn then, cannot be sent.
        """
        former = instance.rendition
        if former is None:
            return False
        if not self._is_whole(former):
            self._rows.withdraw(former.derived_uid, "an object of it was lost, and its image was encoded again")
            return False
        if self._regions.lacks_patches(instance, regions):
            return False
        try:
            self._writer.prove(claim.key, former, ask)
        except NotReconstructable as error:
            self._rows.withdraw(former.derived_uid, str(error))
            raise
        self._index.finish(claim, former.state)
        return True

    def keep_of_purged(self, claim: Claim, instance: StoredInstance) -> bool:
        """End the claim of an instance whose original was purged, and which cannot be encoded; False if its rendition
        is not whole."""
        former = instance.rendition
        if former is None or not self._is_whole(former):
            return False
        self._index.finish(claim, former.state)
        return True

    def give_up(self, instance: StoredInstance) -> None:
        """Withdraw the rendition that an instance still has: it lacks patches, and no encoding with them passed."""
        now = self._index.by_key(instance.key)
        if now is not None and now.rendition is not None:
            self._rows.withdraw(
                now.rendition.derived_uid, "no encoding passed with the regions marked since it was made"
            )

    def _is_whole(self, made: StoredRendition) -> bool:
        """Whether both objects of a rendition are whole, read now."""
        try:
            for digest in (made.base_digest, made.rendition_digest):
                self._store.read(digest)
        except (ObjectMissing, ObjectDamaged):
            return False
        return True
