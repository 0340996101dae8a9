"""Proves that a pool of workers outlives a machine that cannot start a process."""

from __future__ import annotations

import errno
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from node.config import parse
from node.workers.pool import Priority, WorkerPool
from node.workers.requests import CheckRequest


@pytest.mark.slow
def test_a_request_for_which_no_process_can_start_fails_and_the_next_one_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = WorkerPool(parse({}, "test").reconstruct, size=1, name="decode")
    start = WorkerPool._new_executor
    errors = [OSError(errno.EMFILE, "Too many open files")]

    def refused(pool: WorkerPool) -> ProcessPoolExecutor:
        if errors:
            raise errors.pop()
        return start(pool)

    monkeypatch.setattr(WorkerPool, "_new_executor", refused)
    request = CheckRequest(tmp_path / "absent")
    try:
        with pytest.raises(OSError, match="Too many open files"):
            pool.submit(request, Priority.VIEWER).result(timeout=60)
        with pytest.raises(FileNotFoundError):
            pool.submit(request, Priority.VIEWER).result(timeout=120)
    finally:
        pool.close()
