"""The archivist: takes each received instance to rest, in the background, one state machine per instance.

RECEIVED ─► VERIFIED (or MEASURED under profile ``paper``), EXACT, or FAILED after several attempts. Every step can be
done again: objects are content-addressed, the row changes last, and a claim is a lease that runs out by itself.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from node.archive.encode.remake import patched_anew, remake
from node.archive.intake.annotation_regions import Box
from node.archive.intake.eligibility import why_exact
from node.archive.intake.marked_regions import MarkedRegions
from node.archive.model_store import ModelStore
from node.archive.originals.original_access import OriginalAccess
from node.archive.originals.packing import holds
from node.archive.serve.derived_object import DerivedParts, prove_object
from node.codec.encode.encode_request import EncodeRequest, EncodeResult
from node.config import Settings
from node.workers.pool import Priority, WorkerPool
from node.workers.worker import Answer
from storage.dicom.dicomfile import opened
from storage.errors import (
    LatentPacsError,
    NotReconstructable,
    ObjectDamaged,
    ObjectMissing,
    PixelError,
    WorkerDied,
)
from storage.formats.payload import Rendition, decode_base
from storage.index import Index
from storage.index.integrity import Integrity
from storage.index.lease import new_owner
from storage.objects.store import ObjectStore
from storage.records import Claim, InstanceState, NewRendition, OperatingPoint, ReasonCode, StoredInstance, Tier

LOGGER = logging.getLogger(__name__)


PER_PIXEL = 190
"""Bytes that encoding takes for each pixel at most: 2.5 GB for 13 megapixels, as measured."""


class Archivist:
    """Works through the backlog, and does a step of ``otherwise`` where there is none.

    ``run`` is meant for a thread of its own, and has ``at_once`` images in hand where there are as many; ``wake`` says
    that something arrived.
    """

    def __init__(
        self,
        index: Index,
        store: ObjectStore,
        originals: OriginalAccess,
        pool: WorkerPool,
        settings: Settings,
        named: MarkedRegions,
        otherwise: Callable[[], bool] = lambda: False,
        at_once: int = 1,
    ) -> None:
        self._index, self._store, self._originals = index, store, originals
        self._pool, self._settings, self._named, self._otherwise = pool, settings, named, otherwise
        self._models, self._at_once = ModelStore(index, store), at_once
        self._counting = threading.Lock()
        self._in_hand = 0
        self._found = False
        self._owner = new_owner()
        self._stopping = threading.Event()
        self._awake = threading.Event()

    def wake(self) -> None:
        """Something arrived: look now rather than at the next poll."""
        self._awake.set()

    def stop(self) -> None:
        """Begin nothing more; instances in workers go back undone."""
        self._stopping.set()
        self._awake.set()

    @property
    def busy(self) -> bool:
        """Whether an image is in hand, or the last look found one: what can wait lets it go first."""
        return self._found or self._in_hand > 0

    def run(self) -> None:
        """Until stopped: claim, work, wait."""
        with ThreadPoolExecutor(self._at_once, thread_name_prefix="archivist") as hands:
            while not self._stopping.is_set():
                self._awake.clear()
                if not self._begun(hands):
                    self._awake.wait(self._settings.archivist.poll)

    def step(self) -> bool:
        """Bring one instance to rest; False when there is none to work on."""
        claim = self._claim()
        if claim is not None:
            self._work(claim)
        return claim is not None

    def _begun(self, hands: ThreadPoolExecutor) -> bool:
        """Whether there may be more to begin with at once."""
        if self._in_hand >= self._at_once:
            return False
        try:
            claim = self._claim()
            if claim is None:
                return self._otherwise()
        except Exception:
            LOGGER.exception("the archivist could not reach the index")
            return False
        hands.submit(self._work_safely, claim)
        return True

    def _claim(self) -> Claim | None:
        """The next of the backlog, taken in hand."""
        self._named.look_again()
        claim = self._index.claim(self._owner, self._settings.archivist.lease)
        self._found = claim is not None
        if claim is not None:
            self._count(1)
        return claim

    def _count(self, more: int) -> None:
        with self._counting:
            self._in_hand += more

    def _work_safely(self, claim: Claim) -> None:
        try:
            self._work(claim)
        except Exception:
            LOGGER.exception("the archivist could not reach the index")
        finally:
            self._awake.set()

    def _work(self, claim: Claim) -> None:
        try:
            self._settle(claim)
        except NotReconstructable as error:
            self._index.finish(claim, InstanceState.EXACT, error.code, str(error))
        except PixelError as error:
            self._index.finish(claim, InstanceState.EXACT, ReasonCode.PIXELS, str(error))
        except Exception as error:  # noqa: BLE001 - one bad instance must not stop the backlog
            self._give_back(claim, error)
        finally:
            self._count(-1)

    def _settle(self, claim: Claim) -> None:
        held = self._index.by_key(claim.key)
        if held is None:
            return
        with self._originals.borrowed(claim.original_digest) as path:
            with opened(path) as file:
                header = file.outline()
                reason = why_exact(file, header, self._settings.eligibility)
            if reason:
                self._named.arrived(held)
                self._index.finish(claim, InstanceState.EXACT, reason)
                return
            size = int(header.Rows), int(header.Columns)
            memory = self._settings.limits.encoder_memory
            if memory and size[0] * size[1] * PER_PIXEL > memory:
                self._index.finish(claim, InstanceState.EXACT, ReasonCode.LARGE)
                return
            regions = self._named.of(held, *size)
            self._reconstruct(claim, held, path, regions)
        if self._named.of(held, *size) != regions:  # named meanwhile, by an annotation that found no rendition yet
            self._named.send_back(held)

    def _reconstruct(self, claim: Claim, held: StoredInstance, path: Path, regions: tuple[Box, ...]) -> None:
        """A rendition of an eligible image, or none."""
        gated, encode = self._settings.codec.gated, partial(self._encode, claim, path, regions)
        result = None
        if not self._lacks(held, regions):
            if remake(claim, self._index, self._store, gated, encode, partial(self._prove, claim)):
                return
        elif (result := patched_anew(claim, self._index, gated, encode)) is None:
            assert held.rendition is not None
            why = "regions named since it was made cannot be patched at its operating point"
            Integrity(self._index.engine).withdraw(held.rendition.derived_uid, why)
        result = result or encode(self._settings.codec.fixed_point, gated, "")
        if result.made is None:
            self._index.finish(claim, InstanceState.EXACT, ReasonCode.GATE, _what_missed(result))
            return
        self._keep(claim, result, result.made)

    def _lacks(self, held: StoredInstance, regions: tuple[Box, ...]) -> bool:
        """Whether the rendition is whole and lacks patches on regions; one that is not whole is made again first."""
        try:
            return self._named.lacking(held, regions)
        except (ObjectMissing, ObjectDamaged):
            return False

    def _encode(
        self,
        claim: Claim,
        path: Path,
        regions: tuple[Box, ...],
        point: OperatingPoint | None,
        gated: bool,
        upscaler: str,
    ) -> EncodeResult:
        request = EncodeRequest(
            original=path,
            original_digest=claim.original_digest,
            original_uid=claim.sop_instance_uid,
            thresholds=self._settings.thresholds if gated else None,
            point=point,
            scales=self._settings.codec.scales,
            effort=self._settings.codec.effort,
            patch_share=self._settings.gate.patches.share,
            regions=regions,
            upscaler=upscaler,
        )
        answer = self._wait(claim, self._pool.submit(request, Priority.ARCHIVIST))
        assert isinstance(answer, EncodeResult)
        return answer

    def _wait(self, claim: Claim, future: Future[Answer]) -> Answer:
        """The worker's answer, the lease renewed meanwhile."""
        renewal = time.monotonic() + self._settings.archivist.lease / 3
        while True:
            try:
                return future.result(timeout=0.5)
            except TimeoutError:
                if future.done():
                    raise
            if self._stopping.is_set():
                future.cancel()
                raise WorkerDied("the node is stopping")
            if time.monotonic() > renewal:
                self._index.renew(claim, self._settings.archivist.lease)
                renewal = time.monotonic() + self._settings.archivist.lease / 3

    def _keep(self, claim: Claim, result: EncodeResult, made: Rendition) -> None:
        assert result.model is not None
        self._models.keep(result.model)
        base_digest = self._store.put(result.base)
        rendition_digest = self._store.put(result.rendition)
        try:
            payload_bytes = len(result.base) + len(result.rendition)
            self._prove(claim, base_digest, rendition_digest, payload_bytes, (made.upscaler, made.weights_digest))
        except NotReconstructable:
            for digest in (base_digest, rendition_digest):
                self._index.originals.mark_garbage(digest, Tier.HOT)
            raise
        new = NewRendition(
            derived_uid=made.derived_uid,
            structure_uid=made.structure_uid,
            base_digest=base_digest,
            base_bytes=len(result.base),
            rendition_digest=rendition_digest,
            rendition_bytes=len(result.rendition),
            point=decode_base(result.base).point,
            upscaler=made.upscaler,
            weights_digest=made.weights_digest,
            output_digest=made.output_digest,
            structure_digest=made.structure_digest,
            verdict=made.verdict,
            tried=result.tried,
            seconds=sum(trial.seconds for trial in result.tried),
            recipe=result.model.recipe,
        )
        state = InstanceState.VERIFIED if made.verdict.passed else InstanceState.MEASURED
        if not self._index.finish_with(claim, state, new, present=holds(self._store)):
            for digest in (base_digest, rendition_digest):  # the image is another's by now, or deleted
                self._index.originals.mark_garbage(digest, Tier.HOT)

    def _prove(
        self, claim: Claim, base_digest: str, rendition_digest: str, payload_bytes: int, model: tuple[str, str]
    ) -> None:
        """The whole object, header and pixels, can be made from what is stored, and sent. Raises NotReconstructable.

        ``model``: name and digest of the weights.
        """
        held = self._index.by_key(claim.key)
        parts = DerivedParts(
            self._store.held(base_digest),
            self._store.held(rendition_digest),
            payload_bytes,
            datetime.now(UTC),
            self._models.folder(*model),
            held.amended if held else (),
        )
        prove_object(
            parts, self._store.spool, lambda request: self._wait(claim, self._pool.submit(request, Priority.ARCHIVIST))
        )

    def _give_back(self, claim: Claim, error: Exception) -> None:
        if self._stopping.is_set() and isinstance(error, WorkerDied):
            self._index.release(claim, forgive=True)
            return
        known = isinstance(error, LatentPacsError)
        LOGGER.error("instance %s: %s", claim.sop_instance_uid, error, exc_info=not known)
        if claim.attempts >= self._settings.archivist.attempts:
            said = f"{type(error).__name__}: {error}"
            self._index.finish(claim, InstanceState.FAILED, ReasonCode.OTHER, said)
        else:
            self._index.release(claim)


def _what_missed(result: EncodeResult) -> str:
    missed = (
        f"{trial.point}, {trial.payload_bytes} bytes: {', '.join(trial.failures)}"
        for trial in result.tried
        if trial.failures
    )
    return f"no operating point passed the gate: {'; '.join(missed) or 'none on a sample of the image'}"
