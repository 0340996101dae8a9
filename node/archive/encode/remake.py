"""Restores a lost base or rendition from its original, bit for bit if possible, and adds exact patches to a rendition.

The pixels under a derived UID must never change. So the original is encoded at exactly the operating point of the lost
base. The same version of the coder gives the same bytes, which the digest proves. If the rendition is lost too, its
side information must be the same again, which its UID and the digests of its pixels prove; its figures are taken from
its row. If only the bytes of the rendition differ, because it records a library's version, its row gets the new object
under the same UID. If the base differs, the rendition is withdrawn: its UID still leads to the image, which is encoded
like a new one.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import replace

from node.archive.encode.rendition_writer import RenditionWriter, new_rendition
from node.archive.intake.marked_regions import MarkedRegions
from node.codec.encode.encode_request import EncodeRequest, EncodeResult
from node.workers.requests import Ask
from storage.errors import NotReconstructable, ObjectDamaged, ObjectMissing
from storage.formats.payload import Rendition, encode_rendition
from storage.index import Index
from storage.index.integrity import Integrity
from storage.objects.store import ObjectStore
from storage.records import Claim, NewRendition, StoredInstance, StoredRendition

LOGGER = logging.getLogger(__name__)


class Remake:
    """Restores renditions of claimed instances, and adds exact patches to them."""

    def __init__(self, index: Index, store: ObjectStore, writer: RenditionWriter, regions: MarkedRegions) -> None:
        self._index, self._store, self._writer, self._regions = index, store, writer, regions
        self._rows = Integrity(index.engine)

    def restored_or_encoded(
        self, claim: Claim, instance: StoredInstance, request: EncodeRequest, ask: Ask
    ) -> EncodeResult | None:
        """Restore the rendition that an instance had, or add patches to it.

        Returns None if the rendition is restored and the claim has ended. Otherwise it returns the result of an
        encoding, which the caller stores. Raises NotReconstructable if the former rendition, which is withdrawn then,
        cannot be sent.
        """
        try:
            lacks_patches = self._regions.lacks_patches(instance, request.regions)
        except (ObjectMissing, ObjectDamaged):  # the rendition is made again first
            lacks_patches = False
        if lacks_patches:
            return self._with_patches(instance, request, ask) or ask(request)
        return None if self._restored(claim, instance, request, ask) else ask(request)

    def finish_with_former(self, claim: Claim, instance: StoredInstance) -> bool:
        """End the claim of an instance whose former rendition is whole, without encoding; False if none is whole.

        This is for an image whose original was purged: it cannot be encoded again.
        """
        made = instance.rendition
        if made is None or not (self._intact(made.base_digest) and self._intact(made.rendition_digest)):
            return False
        self._index.finish(claim, made.state)
        return True

    def _restored(self, claim: Claim, instance: StoredInstance, request: EncodeRequest, ask: Ask) -> bool:
        """Restore the former rendition of an instance and end its claim; False if it is withdrawn instead."""
        lost = instance.rendition
        assert lost is not None
        state = lost.state
        if self._intact(lost.base_digest) and self._intact(lost.rendition_digest):
            self._prove_or_withdraw(claim, lost, lost, ask)
            self._index.finish(claim, state)
            return True
        # the rendition passed an earlier gate and keeps those figures: if today's gate fails it, none is applied
        for thresholds in dict.fromkeys((request.thresholds, None)):
            again = replace(request, point=lost.point, upscaler=lost.upscaler, thresholds=thresholds)
            result = ask(again)
            made = result.made
            if made is None or hashlib.sha256(made.base).hexdigest() != lost.base_digest:
                continue
            self._store.put(made.base)
            if self._intact(lost.rendition_digest):
                self._prove_or_withdraw(claim, lost, lost, ask)
                if not self._index.finish(claim, state):
                    self._writer.discard(lost.base_digest)
                return True
            if _promise(made.rendition) == _promise(lost):
                new = self._with_former_figures(lost, made.rendition)
                self._prove_or_withdraw(claim, lost, new, ask)
                self._index.finish_with(claim, state, new, present=self._store.has)
                return True
        LOGGER.warning("rendition %s cannot be made again; its image is encoded again", lost.derived_uid)
        self._rows.withdraw(lost.derived_uid, "its objects were lost, and the present coder or model makes other ones")
        return False

    def _with_patches(self, instance: StoredInstance, request: EncodeRequest, ask: Ask) -> EncodeResult | None:
        """Encode at the operating point of the current rendition, with patches. If that fails, withdraw the rendition,
        and return None."""
        current = instance.rendition
        assert current is not None
        result = ask(replace(request, point=current.point, upscaler=current.upscaler))
        if result.made is not None:
            return result
        self._rows.withdraw(
            current.derived_uid, "regions marked since it was made cannot be patched at its operating point"
        )
        return None

    def _prove_or_withdraw(
        self, claim: Claim, lost: StoredRendition, made: StoredRendition | NewRendition, ask: Ask
    ) -> None:
        try:
            self._writer.prove(claim.key, made, ask)
        except NotReconstructable as error:
            self._rows.withdraw(lost.derived_uid, str(error))
            self._writer.discard(made.base_digest, made.rendition_digest)
            raise

    def _with_former_figures(self, lost: StoredRendition, made: Rendition) -> NewRendition:
        """Store a rendition with the figures of its former row, and return its new row."""
        made = replace(made, verdict=lost.verdict)
        data = encode_rendition(made)
        point, digest = lost.point, self._store.put(data)
        return new_rendition(made, point, lost.base_bytes, digest, len(data), lost.tried, lost.seconds)

    def _intact(self, digest: str) -> bool:
        try:
            self._store.read(digest)
        except (ObjectMissing, ObjectDamaged):
            return False
        return True


def _promise(made: Rendition | StoredRendition) -> tuple[str, str, str]:
    """What must not change under a derived UID: the UID itself, and the digests of both kinds of pixels."""
    return made.derived_uid, made.output_digest, made.structure_digest
