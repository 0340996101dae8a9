"""A base or rendition that was lost is made again from its original: as it was, bit for bit, wherever that works.

A derived UID is a promise of pixels. So the rung of the lost base is tried, alone, with the map of its coarseness from
the index; where the rendition is lost too, the way down the ladder before that. The coders and zlib give the same bytes
again under the same versions, and the digest says whether they did. A rendition's bytes hold what was
measured when it was made, seconds too; those come from its row, and so it may come out bit for bit as well. Where
only its bytes differ, because a library's version is recorded in it, its pixels still must not: then the row takes
the new object under the same UID. Where even the base comes out otherwise, the rendition is withdrawn: its UID keeps
leading to the image, and the image goes down today's ladder like a new one.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import replace

from node.archive.custodian import holds
from node.codec.encoding import EncodeResult
from node.config import FORMER_RUNGS, CodecSettings, Profile
from storage.errors import NotReconstructable, ObjectDamaged, ObjectMissing
from storage.index import Index
from storage.index.upkeep import Upkeep
from storage.objects import ObjectStore
from storage.payload import Rendition, encode_rendition
from storage.records import Claim, NewRendition, Rung, RungOutcome, StoredRendition, Tier

LOGGER = logging.getLogger(__name__)

Encode = Callable[[tuple[Rung, ...], bool, str], EncodeResult]
"""What the ladder makes of the claimed original; then: whether the gate decides, and the coarseness of one rung."""


Prove = Callable[[str, str, int, tuple[str, str]], None]
"""That the object of a rendition can be made and sent: digests of base and rendition, their bytes, and the model's name
and digest. Raises NotReconstructable."""


def remake(claim: Claim, index: Index, store: ObjectStore, codec: CodecSettings, encode: Encode, prove: Prove) -> bool:
    """Whether the claimed instance is at rest with the rendition it had; False for one that never had any.

    Raises NotReconstructable where that rendition cannot be sent; it is withdrawn then.
    """
    held = index.by_key(claim.key)
    lost = held.rendition if held is not None else None
    if lost is None:
        return False
    upkeep = Upkeep(index.engine)

    def prove_or_withdraw(base_digest: str, rendition_digest: str, payload_bytes: int) -> None:
        try:
            prove(base_digest, rendition_digest, payload_bytes, (lost.upscaler, lost.weights_digest))
        except NotReconstructable as error:
            upkeep.withdraw(lost.derived_uid, str(error))
            raise

    state = upkeep.state_with(lost.derived_uid)
    if _intact(store, lost.base_digest) and _intact(store, lost.rendition_digest):
        prove_or_withdraw(lost.base_digest, lost.rendition_digest, lost.payload_bytes)
        index.finish(claim, state, "")
        return True
    coarseness = _coarseness(upkeep, lost)
    ladders: list[tuple[tuple[Rung, ...], bool, str]] = [
        ((rung,), gated, coarseness) for rung, gated in _attempts(codec, lost.rung)
    ]
    if not _intact(store, lost.rendition_digest):  # what the encoder told of the image rests on the way it took
        ladders.insert(0, (codec.rungs, codec.gated, ""))
    for ladder in ladders:
        result = encode(*ladder)
        if result.made is None or hashlib.sha256(result.base).hexdigest() != lost.base_digest:
            continue
        store.put(result.base)
        if _intact(store, lost.rendition_digest):
            prove_or_withdraw(lost.base_digest, lost.rendition_digest, lost.payload_bytes)
            if not index.finish(claim, state, ""):
                index.custody.doom(lost.base_digest, Tier.HOT)
            return True
        if (result.made.derived_uid, result.made.output_digest) == (lost.derived_uid, lost.output_digest):
            new = _as_it_was(lost, result.made, upkeep.tried(lost.derived_uid), store)
            prove_or_withdraw(new.base_digest, new.rendition_digest, new.base_bytes + new.rendition_bytes)
            if not index.finish_with(claim, state, new, present=holds(store)):
                for digest in (new.base_digest, new.rendition_digest):
                    index.custody.doom(digest, Tier.HOT)
            return True
    LOGGER.warning("rendition %s cannot be made again; its image is encoded anew", lost.derived_uid)
    upkeep.withdraw(lost.derived_uid, "its objects were lost, and today's coder or model makes others")
    return False


def _as_it_was(
    lost: StoredRendition, made: Rendition, tried: tuple[RungOutcome, ...], store: ObjectStore
) -> NewRendition:
    """The rendition with the figures of its row, stored."""
    verdict = tried[-1].verdict
    data = encode_rendition(replace(made, tried=tried, verdict=verdict))
    return NewRendition(
        derived_uid=lost.derived_uid,
        base_digest=lost.base_digest,
        base_bytes=lost.base_bytes,
        rendition_digest=store.put(data),
        rendition_bytes=len(data),
        rung=lost.rung,
        upscaler=lost.upscaler,
        weights_digest=lost.weights_digest,
        output_digest=lost.output_digest,
        verdict=verdict,
        tried=tried,
        seconds=lost.seconds,
    )


def patched_anew(claim: Claim, index: Index, codec: CodecSettings, encode: Encode) -> EncodeResult | None:
    """What the rung of the current rendition comes to with patches on regions that were named since it was made.

    What was tried for that one is told of the new one too. None where that rung passes no more.
    """
    held = index.by_key(claim.key)
    if held is None or held.rendition is None:
        return None
    upkeep = Upkeep(index.engine)
    before, coarseness = upkeep.tried(held.rendition.derived_uid)[:-1], _coarseness(upkeep, held.rendition)
    for rung in _rungs(codec, held.rendition.rung):
        result = encode((rung,), codec.gated, coarseness)
        if result.made is not None:
            made = replace(result.made, tried=(*before, *result.tried))
            return replace(result, made=made, tried=made.tried, rendition=encode_rendition(made))
    return None


def _coarseness(upkeep: Upkeep, held: StoredRendition) -> str:
    """Of the base, from the rendition's row; empty where it has none."""
    tried = upkeep.tried(held.derived_uid)
    return tried[-1].coarseness if tried else ""


def _attempts(codec: CodecSettings, name: str) -> list[tuple[Rung, bool]]:
    """Rungs of that name with today's gate and without: it passed the gate of its day, and its figures stay those."""
    return [(rung, gated) for rung in _rungs(codec, name) for gated in dict.fromkeys((codec.gated, False))]


def _rungs(codec: CodecSettings, name: str) -> list[Rung]:
    """Rungs of that name, of today's ladder, of those that come with the profiles, and of former ones."""
    of_profiles = (rung for profile in Profile for rung in CodecSettings(profile=profile).rungs)
    known = [*codec.rungs, *of_profiles, *FORMER_RUNGS]
    return [rung for rung in dict.fromkeys(known) if str(rung) == name]


def _intact(store: ObjectStore, digest: str) -> bool:
    try:
        store.read(digest)
    except (ObjectMissing, ObjectDamaged):
        return False
    return True
