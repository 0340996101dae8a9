"""Proves that a worker keeps freed memory while it works and gives it back afterwards (node/workers/memory.py)."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest

from node.config import ReconstructSettings
from node.workers.pool import Priority, WorkerPool
from node.workers.requests import CheckRequest
from tests.conftest import wait_for

COUNTED = """
import resource, sys
import numpy as np
from node.workers.memory import give_back, keep_freed
if sys.argv[1] == "kept":
    keep_freed()
held = lambda: int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
def work():
    image = np.ones((4096, 2048), dtype=np.float32)
    return float((image * 2).sum())
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    work()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
full = held()
give_back()
print(faults, full - held())
"""


def counted(how: str) -> tuple[int, int]:
    """Page faults of ten rounds that need 64 MB each, and the bytes that were returned to the system afterwards."""
    done = subprocess.run([sys.executable, "-c", COUNTED, how], capture_output=True, text=True, check=True)
    faults, given = done.stdout.split()
    return int(faults), int(given)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's")
def test_freed_memory_is_kept_and_returned() -> None:
    kept, given = counted("kept")
    plain, _ = counted("plain")
    assert kept < plain / 4
    assert given > 48 << 20


def test_an_idle_worker_ends_and_another_starts() -> None:
    """Only the end of a process returns all of its memory."""
    pool = WorkerPool(ReconstructSettings(upscaler="bicubic", threads=1, device="cpu"), idle=0.2)
    before = set(multiprocessing.active_children())

    def workers() -> set[object]:
        return set(multiprocessing.active_children()) - before

    try:
        for _ in range(2):
            with pytest.raises(FileNotFoundError):
                pool.submit(CheckRequest(Path("/nowhere/at/all")), Priority.VIEWER).result(timeout=300)
            wait_for(lambda: not workers(), what="no worker")
    finally:
        pool.close()
