"""A base or rendition that was lost is made again from its original: as it was, bit for bit, wherever that works.

A derived UID is a promise of pixels. So the original is encoded at exactly the operating point of the lost base. The
coder gives the same bytes again under the same version, and the digest says whether it did. Where the rendition is lost
too, its side information has to come out as it was, which UID and digests of its pixels say; what was measured then is
taken from its row. Where only the rendition's bytes differ, because a library's version is recorded in it, the row
takes the new object under the same UID. Where even the base comes out otherwise, the rendition is withdrawn: its UID
keeps leading to the image, and the image is encoded like a new one.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import replace

from node.archive.originals.packing import holds
from node.codec.encode.encode_request import EncodeResult
from storage.errors import NotReconstructable, ObjectDamaged, ObjectMissing
from storage.formats.payload import Rendition, encode_rendition
from storage.index import Index
from storage.index.integrity import Integrity
from storage.objects.store import ObjectStore
from storage.records import Claim, NewRendition, OperatingPoint, StoredRendition, Tier

LOGGER = logging.getLogger(__name__)

Encode = Callable[[OperatingPoint | None, bool, str], EncodeResult]
"""What becomes of the claimed original at an operating point, or by a search for one; whether the gate decides; and
with which upscaler, by name, or any."""


Prove = Callable[[str, str, int, tuple[str, str]], None]
"""That the object of a rendition can be made and sent: digests of base and rendition, their bytes, and the model's name
and digest. Raises NotReconstructable."""


def remake(claim: Claim, index: Index, store: ObjectStore, gated: bool, encode: Encode, prove: Prove) -> bool:
    """Whether the claimed instance is at rest with the rendition it had; False for one that never had any.

    Raises NotReconstructable where that rendition cannot be sent; it is withdrawn then.
    """
    held = index.by_key(claim.key)
    lost = held.rendition if held is not None else None
    if lost is None:
        return False
    upkeep = Integrity(index.engine)

    def prove_or_withdraw(base_digest: str, rendition_digest: str, payload_bytes: int) -> None:
        try:
            prove(base_digest, rendition_digest, payload_bytes, (lost.upscaler, lost.weights_digest))
        except NotReconstructable as error:
            upkeep.withdraw(lost.derived_uid, str(error))
            raise

    state = upkeep.state_with(lost.derived_uid)
    if _intact(store, lost.base_digest) and _intact(store, lost.rendition_digest):
        prove_or_withdraw(lost.base_digest, lost.rendition_digest, lost.payload_bytes)
        index.finish(claim, state)
        return True
    # it passed the gate of its day, and its figures stay those: where today's lets it through no more, none decides
    for gate in dict.fromkeys((gated, False)):
        result = encode(lost.point, gate, lost.upscaler)
        if result.made is None or hashlib.sha256(result.base).hexdigest() != lost.base_digest:
            continue
        store.put(result.base)
        if _intact(store, lost.rendition_digest):
            prove_or_withdraw(lost.base_digest, lost.rendition_digest, lost.payload_bytes)
            if not index.finish(claim, state):
                index.originals.mark_garbage(lost.base_digest, Tier.HOT)
            return True
        if _promise(result.made) == _promise(lost):
            new = _as_it_was(lost, result.made, store)
            prove_or_withdraw(new.base_digest, new.rendition_digest, new.base_bytes + new.rendition_bytes)
            if not index.finish_with(claim, state, new, present=holds(store)):
                for digest in (new.base_digest, new.rendition_digest):
                    index.originals.mark_garbage(digest, Tier.HOT)
            return True
    LOGGER.warning("rendition %s cannot be made again; its image is encoded anew", lost.derived_uid)
    upkeep.withdraw(lost.derived_uid, "its objects were lost, and today's coder or model makes others")
    return False


def _promise(made: Rendition | StoredRendition) -> tuple[str, str, str]:
    return made.derived_uid, made.output_digest, made.structure_digest


def _as_it_was(lost: StoredRendition, made: Rendition, store: ObjectStore) -> NewRendition:
    """The rendition with the figures of its row, stored."""
    data = encode_rendition(replace(made, verdict=lost.verdict))
    return NewRendition(
        derived_uid=lost.derived_uid,
        structure_uid=lost.structure_uid,
        base_digest=lost.base_digest,
        base_bytes=lost.base_bytes,
        rendition_digest=store.put(data),
        rendition_bytes=len(data),
        point=lost.point,
        upscaler=lost.upscaler,
        weights_digest=lost.weights_digest,
        output_digest=lost.output_digest,
        structure_digest=lost.structure_digest,
        verdict=lost.verdict,
        tried=lost.tried,
        seconds=lost.seconds,
    )


def patched_anew(claim: Claim, index: Index, gated: bool, encode: Encode) -> EncodeResult | None:
    """What the operating point of the current rendition comes to with patches on regions named since it was made.

    None where it passes no more.
    """
    held = index.by_key(claim.key)
    if held is None or held.rendition is None:
        return None
    result = encode(held.rendition.point, gated, held.rendition.upscaler)
    return None if result.made is None else result


def _intact(store: ObjectStore, digest: str) -> bool:
    try:
        store.read(digest)
    except (ObjectMissing, ObjectDamaged):
        return False
    return True
