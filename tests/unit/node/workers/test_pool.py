"""Proves that a pool of workers outlives a machine that cannot start a process, and the end of a terminal."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from node.archive.intake.ingest import examine
from node.config import parse
from node.workers import worker
from node.workers.pool import Priority, WorkerPool
from node.workers.requests import CheckRequest
from storage.errors import NoWorker
from tests.conftest import wait_for
from tests.support.samples import breast, mammogram, rle_file


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


@pytest.mark.slow
def test_the_end_of_a_terminal_leaves_the_workers_to_their_parent(tmp_path: Path) -> None:
    """The system sends SIGHUP to the whole group, and the node still finishes its requests."""
    pool, request = WorkerPool(parse({}, "test").reconstruct, size=1, name="decode"), CheckRequest(tmp_path / "absent")
    others, served_by = multiprocessing.active_children(), []
    try:
        for _ in range(2):
            with pytest.raises(FileNotFoundError):
                pool.submit(request, Priority.VIEWER).result(timeout=120)
            (process,) = [one for one in multiprocessing.active_children() if one not in others]
            served_by.append(process.pid or 0)
            os.kill(served_by[-1], signal.SIGHUP)
        assert len(set(served_by)) == 1
    finally:
        pool.close()


def _end(*_: object) -> None:
    os._exit(1)


@pytest.fixture
def pool_without_program(monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkerPool]:
    """Its processes end at once, as after an upgrade that replaced the program of a running node."""
    monkeypatch.setattr(worker, "start", _end)
    pool = WorkerPool(parse({}, "test").reconstruct, size=1, name="decode")
    yield pool
    pool.close()


class Busy(ProcessPoolExecutor):
    """A worker that never answers."""

    def submit(self, *_: object, **__: object) -> Any:
        return Future()


def test_a_stop_ends_the_requests_in_progress_and_those_that_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing was found out about their files, and a peer may send them again (A700)."""
    monkeypatch.setattr(WorkerPool, "_new_executor", lambda _: Busy(1))
    pool = WorkerPool(parse({}, "test").reconstruct, size=1, name="decode")
    asked = [pool.submit(CheckRequest(tmp_path / "absent"), Priority.VIEWER) for _ in range(2)]
    wait_for(asked[0].running, what="the first request is in progress")
    pool.close()
    assert [str(one.exception(timeout=0)) for one in asked] == ["the node is stopping"] * 2
    assert all(isinstance(one.exception(), NoWorker) for one in asked)


def test_a_process_that_ends_before_its_first_request_is_a_fault_of_the_machine(
    pool_without_program: WorkerPool, tmp_path: Path
) -> None:
    with pytest.raises(NoWorker, match="no worker process can start"):
        pool_without_program.submit(CheckRequest(tmp_path / "absent"), Priority.VIEWER).result(timeout=60)


def test_a_codestream_is_not_judged_without_a_decoder(pool_without_program: WorkerPool, tmp_path: Path) -> None:
    """It would be answered with B007, and never be encoded."""
    path = rle_file(mammogram(breast(64, 48)), tmp_path / "rle.dcm", [b"\0\0", b"\0\0"])
    with pytest.raises(NoWorker, match="no worker process can start"):
        examine(path, "MODALITY", pool_without_program)
