"""The archivist: encodes received instances in the background until each is VERIFIED, EXACT or FAILED.

RECEIVED ─► VERIFIED (MEASURED under profile ``paper``), EXACT, or FAILED after several attempts. Every step can be
repeated: objects are content-addressed, the row changes last, and a claim is a lease that expires.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

from node.archive.encode.remake import Remake
from node.archive.encode.rendition_writer import RenditionWriter
from node.archive.intake.annotation_regions import Box, Sources, sources_of
from node.archive.intake.eligibility import why_exact
from node.archive.intake.marked_regions import MarkedRegions
from node.archive.originals.original_access import OriginalAccess
from node.codec.encode.encode_request import EncodeRequest
from node.config import Settings
from node.workers.pool import Priority, WorkerPool
from node.workers.requests import Answer, Request
from node.workers.waiting import wait_for_result
from storage.dicom.dicomfile import opened
from storage.errors import (
    Cancelled,
    LatentPacsError,
    NotReconstructable,
    NoWorker,
    PixelError,
    StoreFull,
    WorkerDied,
    is_of_the_machine,
)
from storage.index import Index
from storage.index.lease import new_owner
from storage.objects.store import ObjectStore
from storage.records import Claim, InstanceState, ReasonCode, Trial

LOGGER = logging.getLogger(__name__)

_PAUSE = 60.0
"""Seconds before an image is tried again after a fault of the machine. Chosen, not measured."""
_BYTES_PER_PIXEL = 190
"""Most memory that encoding takes per pixel, in bytes, as measured: 2.5 GB for 13 megapixels."""


class Archivist:
    """Encodes the backlog, as many images at once as ``pool`` has workers, and calls ``when_idle`` while it is empty.

    ``run`` is meant for a thread of its own.
    """

    def __init__(
        self,
        index: Index,
        store: ObjectStore,
        originals: OriginalAccess,
        pool: WorkerPool,
        settings: Settings,
        regions: MarkedRegions,
        when_idle: Callable[[], bool],
    ) -> None:
        self._index, self._originals, self._pool, self._settings = index, originals, pool, settings
        self._regions, self._when_idle = regions, when_idle
        self._writer = RenditionWriter(index, store)
        self._remake = Remake(index, store, self._writer, regions)
        self._in_progress: list[Future[None]] = []
        self._found_work = False
        self._not_given_back: list[Claim] = []
        self._owner = new_owner()
        self._stopping = threading.Event()
        self._woken = threading.Event()

    def wake(self) -> None:
        """Check the backlog now instead of at the next poll."""
        self._woken.set()

    def stop(self) -> None:
        """Start no further image, and release the claims of images in workers."""
        self._stopping.set()
        self._woken.set()

    @property
    def busy(self) -> bool:
        """Whether an image is being encoded, or the last check of the backlog found one."""
        return self._found_work or not all(one.done() for one in self._in_progress)

    def run(self) -> None:
        with ThreadPoolExecutor(self._pool.size, thread_name_prefix="archivist") as threads:
            while not self._stopping.is_set():
                self._woken.clear()
                worked = False
                try:
                    self._in_progress = [one for one in self._in_progress if not one.done()]
                    if len(self._in_progress) < self._pool.size:
                        claim = self._claim()
                        if claim is not None:
                            work = threads.submit(self._work, claim)
                            work.add_done_callback(lambda _: self._woken.set())
                            self._in_progress.append(work)
                        worked = claim is not None or self._when_idle()
                except (StoreFull, OSError) as error:
                    LOGGER.error("the archivist waits for %.0f s: %s", _PAUSE, error)
                    self._woken.wait(_PAUSE)
                except Exception:
                    LOGGER.exception("the archivist failed between two images")
                if not worked:
                    self._woken.wait(self._settings.archivist.poll)

    def _claim(self) -> Claim | None:
        """The next RECEIVED image, under a lease."""
        self._regions.reload_file()
        while self._not_given_back:
            self._index.release(self._not_given_back[0], forgive=True)
            del self._not_given_back[0]
        claim = self._index.claim(self._owner, self._settings.archivist.lease)
        self._found_work = claim is not None
        return claim

    def _work(self, claim: Claim) -> None:
        """Encode a claimed instance, and end its claim whatever happens."""
        try:
            if claim.attempts > self._settings.archivist.attempts:  # the last one did not end its claim
                reason = f"the node ended during attempt {claim.attempts - 1} to encode this image, the last one"
                LOGGER.error("instance %s: %s", claim.sop_instance_uid, reason)
                self._index.finish(claim, InstanceState.FAILED, ReasonCode.OTHER, reason)
                return
            try:
                self._encode(claim)
            except NotReconstructable as error:
                self._index.finish(claim, InstanceState.EXACT, error.code, str(error))
            except PixelError as error:
                self._index.finish(claim, InstanceState.EXACT, ReasonCode.PIXELS, str(error))
            except Exception as error:  # noqa: BLE001 - one bad instance must not stop the backlog
                self._give_back(claim, error)
        except Exception as error:
            if is_of_the_machine(error):
                self._not_given_back.append(claim)
            where = "the result of an image cannot be recorded; the image is tried again once the index can be written"
            LOGGER.error("%s: %s", where, error, exc_info=not is_of_the_machine(error))

    def _encode(self, claim: Claim) -> None:
        """Encode the original of a claimed instance. Raises NotReconstructable if it may only be kept bit-exact."""
        instance = self._index.by_key(claim.key)
        if instance is None:
            return
        if instance.purged and self._remake.keep_of_purged(claim, instance):
            return
        ask = partial(self._ask_worker, claim)
        with self._originals.borrowed(claim.original_digest) as path:
            reason, rows, columns, sources = self._eligibility_of(path)
            if reason:
                self._regions.send_back_if_annotation(instance)
                raise NotReconstructable(reason.sentence, reason)
            regions = self._regions.on_image(instance, rows, columns, sources)
            if not self._remake.kept(claim, instance, regions, ask):
                result = ask(self._request(claim, path, regions))  # a worker calls EncodeRequest.answer
                if result.made is None:
                    self._remake.give_up(instance)
                    self._index.finish(claim, InstanceState.EXACT, ReasonCode.GATE, _why_none_passed(result.tried))
                else:
                    self._writer.write(claim, result.made, result, ask)
        if self._regions.on_image(instance, rows, columns, sources) != regions:  # an annotation arrived meanwhile
            self._regions.send_back(instance)

    def _eligibility_of(self, path: Path) -> tuple[ReasonCode, int, int, Sources]:
        """Why an object may only be kept bit-exact (NONE if it may be encoded), and its rows, columns and sources."""
        with opened(path) as file:
            header = file.outline()
            reason = why_exact(file, header, self._settings.eligibility)
        if reason:
            return reason, 0, 0, {}
        rows, columns = int(header.Rows), int(header.Columns)
        memory = self._settings.limits.encoder_memory
        large = memory and rows * columns * _BYTES_PER_PIXEL > memory
        return ReasonCode.LARGE if large else ReasonCode.NONE, rows, columns, sources_of(header)

    def _request(self, claim: Claim, path: Path, regions: tuple[Box, ...]) -> EncodeRequest:
        """A search, or the one operating point of profile ``paper``."""
        codec = self._settings.codec
        return EncodeRequest(
            original=path,
            original_digest=claim.original_digest,
            original_uid=claim.sop_instance_uid,
            thresholds=self._settings.thresholds if codec.gated else None,
            point=codec.fixed_point,
            scales=codec.scales,
            effort=codec.effort,
            patch_share=self._settings.gate.patches.share,
            regions=regions,
        )

    def _ask_worker(self, claim: Claim, request: Request[Answer]) -> Answer:
        """A worker's answer; the lease is renewed meanwhile. Raises Cancelled when the node stops."""
        lease = self._settings.archivist.lease
        renew = partial(self._index.renew, claim, lease)
        future = self._pool.submit(request, Priority.ARCHIVIST)
        return wait_for_result(future, self._stopping.is_set, renew=renew, every=lease / 3)

    def _give_back(self, claim: Claim, error: Exception) -> None:
        if self._stopping.is_set() and isinstance(error, Cancelled | WorkerDied | NoWorker):
            self._index.release(claim, forgive=True)
            return
        if is_of_the_machine(error):
            LOGGER.error("instance %s: %s; it is tried again in %.0f s", claim.sop_instance_uid, error, _PAUSE)
            self._index.release(claim, forgive=True, wait=_PAUSE)
            return
        known = isinstance(error, LatentPacsError)
        LOGGER.error("instance %s: %s", claim.sop_instance_uid, error, exc_info=not known)
        if claim.attempts >= self._settings.archivist.attempts:
            reason = f"{type(error).__name__}: {error}"
            self._index.finish(claim, InstanceState.FAILED, ReasonCode.OTHER, reason)
        else:
            self._index.release(claim)


def _why_none_passed(tried: tuple[Trial, ...]) -> str:
    failed = (
        f"{trial.point}{' on a sample' * trial.sample}, {trial.payload_bytes} bytes: {', '.join(trial.failures)}"
        for trial in tried
        if trial.failures
    )
    return f"no operating point passed the gate: {'; '.join(failed)}"
