"""The archivist: takes each received instance to rest, in the background, one state machine per instance.

RECEIVED ─► VERIFIED (or MEASURED under profile ``paper``), EXACT, or FAILED after several attempts. Every step can be
done again: objects are content-addressed, the row changes last, and a claim is a lease that runs out by itself.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from concurrent.futures import Future
from functools import partial

from node.archive.models import ModelShelf
from node.archive.policy import why_exact
from node.archive.remake import remake
from node.config import Settings
from node.reconstruct.encoding import EncodeRequest, EncodeResult
from node.reconstruct.pool import Priority, WorkerPool
from node.reconstruct.worker import Answer
from storage.dicomfile import opened
from storage.errors import LatentPacsError, NotReconstructable, PixelError, WorkerDied
from storage.index import Index
from storage.objects import ObjectStore
from storage.payload import Rendition
from storage.records import Claim, InstanceState, NewRendition, Rung

LOGGER = logging.getLogger(__name__)


class Archivist:
    """Works through the backlog. ``run`` is meant for a thread of its own; ``wake`` says that something arrived."""

    def __init__(self, index: Index, store: ObjectStore, pool: WorkerPool, settings: Settings) -> None:
        self._index, self._store, self._pool, self._settings = index, store, pool, settings
        self._models = ModelShelf(index, store)
        self.busy = False
        """Whether the last look found work: what can wait lets it go first."""
        self._owner = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._stopping = threading.Event()
        self._awake = threading.Event()

    def wake(self) -> None:
        """Something arrived: look now rather than at the next poll."""
        self._awake.set()

    def stop(self) -> None:
        """Finish no more than the step at hand; an instance in the worker goes back undone."""
        self._stopping.set()
        self._awake.set()

    def run(self) -> None:
        """Until stopped: claim, work, wait."""
        while not self._stopping.is_set():
            self._awake.clear()
            if not self._step_safely():
                self._awake.wait(self._settings.archivist.poll)

    def step(self) -> bool:
        """Bring one instance to rest; False when there is none to work on."""
        claim = self._index.claim(self._owner, self._settings.archivist.lease)
        self.busy = claim is not None
        if claim is None:
            return False
        try:
            self._settle(claim)
        except (NotReconstructable, PixelError) as error:
            self._index.finish(claim, InstanceState.EXACT, str(error))
        except Exception as error:  # noqa: BLE001 - one bad instance must not stop the backlog
            self._give_back(claim, error)
        return True

    def _step_safely(self) -> bool:
        try:
            return self.step()
        except Exception:
            LOGGER.exception("the archivist could not reach the index")
            return False

    def _settle(self, claim: Claim) -> None:
        path = self._store.held(claim.original_digest)
        with opened(path) as file:
            reason = why_exact(file, file.header(), self._settings.eligibility)
        if reason:
            self._index.finish(claim, InstanceState.EXACT, reason)
            return
        codec = self._settings.codec
        if remake(claim, self._index, self._store, codec, partial(self._encode, claim)):
            return
        result = self._encode(claim, codec.rungs, codec.gated)
        if result.made is None:
            self._index.finish(claim, InstanceState.EXACT, _no_rung(result))
            return
        self._keep(claim, result, result.made)

    def _encode(self, claim: Claim, ladder: tuple[Rung, ...], gated: bool) -> EncodeResult:
        request = EncodeRequest(
            original=self._store.path(claim.original_digest),
            original_digest=claim.original_digest,
            original_uid=claim.sop_instance_uid,
            ladder=ladder,
            thresholds=self._settings.thresholds if gated else None,
            patch_share=self._settings.gate.patches.share,
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
        new = NewRendition(
            derived_uid=made.derived_uid,
            base_digest=base_digest,
            base_bytes=len(result.base),
            rendition_digest=rendition_digest,
            rendition_bytes=len(result.rendition),
            rung=made.tried[-1].rung,
            upscaler=made.upscaler,
            weights_digest=made.weights_digest,
            output_digest=made.output_digest,
            verdict=made.verdict,
            tried=made.tried,
            seconds=sum(outcome.seconds for outcome in made.tried),
            recipe=result.model.recipe,
        )
        state = InstanceState.VERIFIED if made.verdict.passed else InstanceState.MEASURED
        self._index.finish_with(claim, state, new)

    def _give_back(self, claim: Claim, error: Exception) -> None:
        if self._stopping.is_set() and isinstance(error, WorkerDied):
            self._index.release(claim, forgive=True)
            return
        known = isinstance(error, LatentPacsError)
        LOGGER.error("instance %s: %s", claim.sop_instance_uid, error, exc_info=not known)
        if claim.attempts >= self._settings.archivist.attempts:
            self._index.finish(claim, InstanceState.FAILED, f"{type(error).__name__}: {error}")
        else:
            self._index.release(claim)


def _no_rung(result: EncodeResult) -> str:
    missed = "; ".join(f"{outcome.rung}: {', '.join(outcome.verdict.failures)}" for outcome in result.tried)
    return f"no rung passed the gate: {missed}"
