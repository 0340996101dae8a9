"""Packing: packs originals of finished instances, and moves those with a rendition to the cold store.

The archivist calls ``Packer.step`` while it has no image to encode. An original is claimed under a lease. Its received
bytes are removed only after the new object is durable, was proved to restore them, and is committed to the index.
"""

from __future__ import annotations

import errno
import logging
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

from node.archive.originals.original_access import OriginalAccess
from node.config import Settings
from node.workers.pool import Priority, WorkerPool
from node.workers.requests import PackRequest
from node.workers.waiting import wait_for_result
from storage.errors import (
    Cancelled,
    KeptVerbatim,
    LatentPacsError,
    PixelError,
    ProofFailed,
    StoreFull,
    WorkerDied,
    is_of_the_machine,
)
from storage.index import Index
from storage.index.lease import new_owner
from storage.objects.inspection import holds_any
from storage.records import OriginalClaim, Tier, TrailEntry

LOGGER = logging.getLogger(__name__)

_RETRY = 600.0
"""Seconds before an original that could not be packed or moved is tried again. Chosen, not measured."""
_REST = 20.0
"""Seconds to wait after a query that found no original to move, per second that the query took. It takes 0.2 s with
100,000 images that stay exact."""


class Packer:
    """Packs and moves originals, one per ``step``."""

    def __init__(self, index: Index, originals: OriginalAccess, pool: WorkerPool, settings: Settings) -> None:
        self._index, self._stores, self._originals, self._pool = index, originals.stores, originals, pool
        self._settings = settings
        self._owner = new_owner()
        self._stopping = threading.Event()
        self._look_again = 0.0

    def stop(self) -> None:
        """End the work on the original in progress, and release its claim."""
        self._stopping.set()

    def step(self) -> bool:
        """Pack or move one original; False if there is none to work on.

        Raises StoreFull, OSError if other originals would fail too.
        """
        lease, coder = self._settings.archivist.lease, self._settings.originals.coder
        claim = self._index.originals.claim_to_pack(self._owner, lease) if coder != "none" else None
        if claim is not None:
            self._attempt(claim, self._pack)
            self._look_again = 0.0  # it may be moved now
            return True
        if Tier.COLD in self._stores and (began := time.monotonic()) >= self._look_again:
            claim = self._index.originals.claim_to_move(self._owner, lease, packed_first=coder != "none")
            if claim is not None:
                self._attempt(claim, self._move)
                return True
            self._look_again = began + _REST * (time.monotonic() - began)
        self._index.garbage.collect(self._stores)
        return False

    def _attempt(self, claim: OriginalClaim, work: Callable[[OriginalClaim], None]) -> None:
        rows = self._index.originals
        try:
            work(claim)
        except ProofFailed as error:
            LOGGER.error("original of %s is not packed: %s", claim.sop_instance_uid, error)
            rows.stays_verbatim(claim, str(error), [self._failure(claim, error)])
        except (KeptVerbatim, PixelError) as error:
            rows.stays_verbatim(claim, str(error))
        except Exception as error:  # noqa: BLE001 - one bad original must not stop the others
            self._give_back(claim, error, packing=work == self._pack)
        else:
            self._index.garbage.collect(self._stores)

    def _pack(self, claim: OriginalClaim) -> None:
        hot, digest = self._stores[Tier.HOT], claim.original.original_digest
        hot.check_room(claim.original.object_bytes)
        with tempfile.TemporaryDirectory(dir=hot.spool) as folder:
            target = Path(folder) / "packed"
            with self._originals.borrowed(digest) as path:
                request = PackRequest(path, digest, target, self._settings.originals.coder)
                self._wait(self._pool.submit(request, Priority.ARCHIVIST))
            size = target.stat().st_size
            packed = hot.adopt(target)
        if not self._index.originals.commit_packed(claim, packed, size, present=hot.has):
            self._index.garbage.mark(packed, Tier.HOT)

    def _move(self, claim: OriginalClaim) -> None:
        cold, digest = self._stores[Tier.COLD], claim.original.object_digest
        if not holds_any(cold.root) and self._index.originals.totals().cold:
            # a disk that is mounted here later would hide what is moved
            what = "no object is there, though originals should be: is its disk mounted?"
            raise FileNotFoundError(errno.ENOENT, what, str(cold.root))
        cold.take_from(self._stores[Tier.HOT], digest)
        if not self._index.originals.commit_move(claim.original, Tier.COLD, present=cold.has):
            self._index.garbage.mark(digest, Tier.COLD)

    def _wait(self, future: Future[None]) -> None:
        deadline = time.monotonic() + self._settings.archivist.lease
        try:
            wait_for_result(future, lambda: self._stopping.is_set() or time.monotonic() > deadline)
        except Cancelled as error:
            raise WorkerDied("the node is stopping, or packing took longer than archivist.lease") from error

    def _give_back(self, claim: OriginalClaim, error: Exception, *, packing: bool) -> None:
        rows = self._index.originals
        if self._stopping.is_set():
            rows.release(claim)
            return
        known = isinstance(error, LatentPacsError | OSError)
        LOGGER.error("original of %s: %s", claim.sop_instance_uid, error, exc_info=not known)
        passing = isinstance(error, OSError) or is_of_the_machine(error)
        if packing and claim.attempts >= self._settings.archivist.attempts and not passing:
            rows.stays_verbatim(claim, f"{type(error).__name__}: {error}", [self._failure(claim, error)])
        else:
            rows.release(claim, wait=_RETRY)
            if isinstance(error, StoreFull | OSError):
                raise error  # the archivist pauses, since the next original would fail too

    def _failure(self, claim: OriginalClaim, error: Exception) -> TrailEntry:
        uids = (claim.sop_instance_uid,)
        return TrailEntry("original.pack", "job:archivist", "image", uids, "original", "failure", str(error))
