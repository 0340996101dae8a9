"""Unpacks packed originals on a few threads of the node, so that the first one does not wait for a process to start.

The coders release the GIL while they decode. They decode only codestreams of our own encoder, after the checksum of the
object was checked. Large files go to a worker process, and so does RLE, whose encoder is written in Python.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from node.workers.memory import give_back
from node.workers.pool import Priority, WorkerPool
from node.workers.requests import RestoreRequest
from storage.formats.packed_original import is_light, restore_original


class Unpacker:
    """Writes the received bytes of packed originals, up to ``threads`` at once; others are queued.

    When no file is left to unpack, free memory is returned to the system.
    """

    def __init__(self, workers: WorkerPool, threads: int) -> None:
        self._workers = workers
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="unpack")
        self._lock = threading.Lock()
        self._waiting = 0

    def close(self) -> None:
        """Wait for the files in progress; queued ones are cancelled."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def restore(self, packed: Path, original_digest: str, target: Path) -> None:
        """Write the received file to ``target``. Raises PayloadError, ObjectDamaged, WorkerDied, NoWorker."""
        if not is_light(packed):
            self._workers.submit(RestoreRequest(packed, original_digest, target), Priority.VIEWER).result()
            return
        with self._lock:
            self._waiting += 1
        try:
            self._threads.submit(restore_original, packed, original_digest, target).result()
        finally:
            with self._lock:
                self._waiting -= 1
                over = not self._waiting
            if over:
                give_back()
