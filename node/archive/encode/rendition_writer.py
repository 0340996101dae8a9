"""Writes renditions: stores them, proves that they can be sent as whole DICOM objects, and commits their rows."""

from __future__ import annotations

import tempfile
from concurrent.futures import CancelledError
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from node.archive.model_store import ModelStore
from node.archive.serve.derived_object import DerivedParts, safe_text, write_all_but_pixels
from node.codec.encode.encode_request import EncodedRendition, EncodeResult
from node.workers.requests import Ask, ProofRequest
from storage.errors import (
    ModelMissing,
    NotReconstructable,
    ObjectDamaged,
    ObjectMissing,
    WorkerDied,
    is_of_the_machine,
)
from storage.formats.payload import Rendition, numerics_digest
from storage.index import Index
from storage.objects.store import ObjectStore
from storage.records import Claim, NewRendition, OperatingPoint, ReasonCode, StoredRendition, Tier, Trial

_UNRELATED = (WorkerDied, ModelMissing, ObjectMissing, ObjectDamaged, OSError, CancelledError)
"""Errors that, beside those of the machine, the image does not cause. Another attempt may succeed."""


class RenditionWriter:
    """Stores, proves and commits the renditions that an encoder made."""

    def __init__(self, index: Index, store: ObjectStore) -> None:
        self._index, self._store, self.models = index, store, ModelStore(index, store)

    def write(self, claim: Claim, made: EncodedRendition, result: EncodeResult, ask: Ask) -> None:
        """Store a rendition, prove that it can be sent, and make it the current one, unless the lease was lost.

        Raises NotReconstructable.
        """
        new = self.store(made, result)
        try:
            self.prove(claim.key, new, ask)
        except NotReconstructable:
            self.discard(new.base_digest, new.rendition_digest)
            raise
        self._index.finish_with(claim, new.state, new, present=self._store.has)

    def store(self, made: EncodedRendition, result: EncodeResult, *, new_base: bool = True) -> NewRendition:
        """Put the model, the base unless it is stored already, and the rendition into the store."""
        self.models.keep(made.model)
        if new_base:
            self._store.put(made.base)
        return new_rendition(
            made.rendition,
            made.point,
            base_bytes=len(made.base),
            rendition_digest=self._store.put(made.data),
            rendition_bytes=len(made.data),
            tried=result.tried,
            seconds=result.seconds,
            recipe=made.model.recipe,
        )

    def prove(self, instance_key: int, made: NewRendition | StoredRendition, ask: Ask) -> None:
        """Make the whole DICOM objects, with drawn noise and without, from what is stored, and read each back in
        explicit and in implicit VR little endian.

        Raises NotReconstructable if that fails because of the image.
        """
        instance = self._index.by_key(instance_key)
        parts = DerivedParts(
            self._store.held(made.base_digest),
            self._store.held(made.rendition_digest),
            made.payload_bytes,
            datetime.now(UTC),
            self.models.folder(made.upscaler, made.weights_digest),
            instance.amended if instance else (),
        )
        with tempfile.TemporaryDirectory(dir=self._store.spool) as folder:
            try:
                drawn = write_all_but_pixels(parts, Path(folder) / "drawn")
                plain = write_all_but_pixels(replace(parts, draw=False), Path(folder) / "plain")
                fault = ask(ProofRequest(parts.base, parts.rendition, drawn, plain, parts.model))
            except Exception as error:
                if isinstance(error, _UNRELATED) or is_of_the_machine(error):
                    raise
                reason = f"its reconstruction cannot be made as a whole: {safe_text(error)}"
                raise NotReconstructable(reason, ReasonCode.NOT_SENDABLE) from error
        if fault:
            raise NotReconstructable(f"its reconstruction cannot be sent: {fault}", ReasonCode.NOT_SENDABLE)

    def discard(self, *digests: str) -> None:
        """Mark objects as garbage; the next collection unlinks those that no row needs."""
        for digest in digests:
            self._index.garbage.mark(digest, Tier.HOT)


def new_rendition(
    made: Rendition,
    point: OperatingPoint,
    base_bytes: int,
    rendition_digest: str,
    rendition_bytes: int,
    tried: tuple[Trial, ...] = (),
    seconds: float = 0.0,
    recipe: str = "",
) -> NewRendition:
    """The row of a rendition whose two objects are stored."""
    return NewRendition(
        derived_uid=made.derived_uid,
        structure_uid=made.structure_uid,
        base_digest=made.base_digest,
        base_bytes=base_bytes,
        rendition_digest=rendition_digest,
        rendition_bytes=rendition_bytes,
        point=point,
        upscaler=made.upscaler,
        weights_digest=made.weights_digest,
        output_digest=made.output_digest,
        structure_digest=made.structure_digest,
        verdict=made.verdict,
        tried=tried,
        seconds=seconds,
        recipe=recipe,
        numerics_digest=numerics_digest(made.numerics),
    )
