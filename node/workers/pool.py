"""The worker pool: a priority queue of requests, served by worker processes; a worker that dies is replaced.

Torch is imported only in the workers, so a reconstruction never holds the GIL, which the associations need.
Viewers are served first, then the archivist, re-verification and prefetch.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import queue
import signal
import threading
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from enum import IntEnum
from typing import Any

from node.config import ReconstructSettings
from node.workers import worker
from node.workers.requests import Answer, Request
from node.workers.waiting import wait_for_result
from storage.dicom.decode_limits import DecodeLimits
from storage.errors import Cancelled, NoWorker, OutOfTime, WorkerDied


class Priority(IntEnum):
    """The smallest value is served first."""

    VIEWER = 0
    ARCHIVIST = 1
    REVERIFY = 2
    AHEAD = 3
    """Prefetch: no peer has requested the object yet."""


START_METHOD = "spawn"
"""How multiprocessing starts workers: never "fork", which copies locks that other threads hold."""

_TOO_LONG = "it took more processor time than limits.decoder_time allows for this kind of work"
"""Message of OutOfTime, which a person reads as the reason of an image."""

_NO_WORKER = (
    "no worker process can start; look at free memory, at the limits of processes and open files, and whether the "
    "program was replaced while the node runs"
)

_STOPPING = "the node is stopping"
"""Message of NoWorker for a request that a stop interrupts: nothing is known about what it concerns."""

_IDLE = 600.0
"""Default of limits.idle: seconds after which an idle worker ends."""


class WorkerPool:
    """``size`` worker processes behind one priority queue.

    A process starts with a request and ends after ``idle`` seconds without one, which returns all of its memory.
    ``nice``: increment of the nice value, as in nice(2). ``within``: limits of each process.
    """

    def __init__(
        self,
        settings: ReconstructSettings,
        *,
        size: int = 1,
        name: str = "worker",
        nice: int = worker.NICE,
        within: DecodeLimits | None = None,
        idle: float = _IDLE,
    ) -> None:
        self._settings, self._nice, self.size = settings, nice, size
        self._within, self._idle = within, idle
        self._queue: queue.PriorityQueue[tuple[int, int, Request[Any] | None, Future[Any]]] = queue.PriorityQueue()
        self._order = itertools.count()
        self._closing, self._submitting = threading.Event(), threading.Lock()
        self._alone = threading.Lock()
        self._threads = [
            threading.Thread(target=self._serve, name=f"{name}-{number}", daemon=True) for number in range(size)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, request: Request[Answer], priority: Priority) -> Future[Answer]:
        """Queue a request: a worker calls its ``answer``. The future raises what the worker raised, WorkerDied,
        NoWorker or OutOfTime. Raises NoWorker if the pool is closed."""
        future: Future[Answer] = Future()
        with self._submitting:
            if self._closing.is_set():
                raise NoWorker(_STOPPING)
            self._queue.put((priority, next(self._order), request, future))
        return future

    @property
    def idle(self) -> bool:
        """Whether no request is in progress or queued."""
        return self._queue.unfinished_tasks == 0

    def close(self) -> None:
        """End the workers. The futures of requests in progress and of queued ones raise NoWorker."""
        with self._submitting:  # nothing is queued from here on
            self._closing.set()
        for _ in self._threads:
            self._queue.put((-1, next(self._order), None, Future()))
        for thread in self._threads:
            thread.join()
        while not self._queue.empty():
            future = self._queue.get_nowait()[3]
            if future.set_running_or_notify_cancel():
                future.set_exception(NoWorker(_STOPPING))

    def _serve(self) -> None:
        executor: ProcessPoolExecutor | None = None
        while True:
            try:
                _, _, request, future = self._queue.get(timeout=self._idle if executor else None)
            except queue.Empty:
                assert executor is not None  # without one, it waits for ever
                _kill(executor)
                executor = None
                continue
            if request is None:
                break
            if future.set_running_or_notify_cancel():
                executor = self._carry_out(executor, request, future)
            self._queue.task_done()
        if executor is not None:
            _kill(executor)

    def _carry_out(
        self, executor: ProcessPoolExecutor | None, request: Request[Answer], future: Future[Answer]
    ) -> ProcessPoolExecutor | None:
        """Answer a request. Returns the executor for the next request, None if its worker died.

        If the worker dies, perhaps because of the previous request, a new one is tried, and then another one, without a
        second such request beside it: the system may have killed them because of another process's memory. A worker
        that used up its processor time is not replaced for the same request.
        """
        for lock in (nullcontext(), nullcontext(), self._alone):
            with lock:
                try:
                    executor = executor or self._new_executor()
                    future.set_result(self._ask(executor, request))
                    return executor
                except (BrokenProcessPool, CancelledError):
                    if executor is not None and _kill(executor):
                        future.set_exception(OutOfTime(_TOO_LONG))
                        return None
                    executor = None
                except BaseException as error:  # noqa: BLE001 - an error of the worker belongs to the caller
                    future.set_exception(error)
                    return executor
        future.set_exception(WorkerDied(f"the worker process ended while it worked on {type(request).__name__}"))
        return None

    def _ask(self, executor: ProcessPoolExecutor, request: Request[Answer]) -> Answer:
        try:
            return wait_for_result(executor.submit(worker.answer, request), self._closing.is_set)
        except Cancelled:
            raise NoWorker(_STOPPING) from None

    def _new_executor(self) -> ProcessPoolExecutor:
        """An executor whose worker has started. Raises NoWorker."""
        ended: Exception | None = None
        for _ in range(2):  # one may be killed while it starts
            executor = None
            try:
                executor = ProcessPoolExecutor(
                    max_workers=1,
                    mp_context=multiprocessing.get_context(START_METHOD),
                    initializer=worker.start,
                    initargs=(self._settings, self._nice, self._within),
                )
                self._await_start(executor)
                return executor
            except (OSError, RuntimeError, Cancelled) as error:  # BrokenProcessPool and "can't start new thread" too
                ended = error
                if executor is not None:
                    _kill(executor)
                if self._closing.is_set():
                    raise NoWorker(_STOPPING) from None
        raise NoWorker(f"{_NO_WORKER} ({type(ended).__name__}: {ended})") from ended

    def _await_start(self, executor: ProcessPoolExecutor) -> None:
        """Wait until the worker of an executor has started. Raises Cancelled if its manager, a thread, has ended."""
        started = executor.submit(os.getpid)
        manager: Any = executor.__dict__["_executor_manager_thread"]  # it ends silently if it can start no thread
        wait_for_result(started, lambda: self._closing.is_set() or not manager.is_alive())


def _kill(executor: ProcessPoolExecutor) -> bool:
    """End the worker of an executor. True if the system had ended it because its processor time was used up."""
    processes: dict[int, Any] = dict(getattr(executor, "_processes", None) or {})
    executor.shutdown(wait=False, cancel_futures=True)
    for process in processes.values():
        process.kill()
        process.join()
    return any(process.exitcode == -signal.SIGXCPU for process in processes.values())
