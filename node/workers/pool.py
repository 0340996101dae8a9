"""The worker pool: requests by priority, each worker in a process of its own, a dead worker replaced.

Torch is imported only in the workers, so a reconstruction never holds the interpreter lock that associations need.
Viewers go before the archivist, the archivist before re-verification, and that before what is only made ahead. The
interface is small, so that another engine can stand behind it.
"""

from __future__ import annotations

import itertools
import multiprocessing
import queue
import threading
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from enum import IntEnum
from typing import Any

from node.config import ReconstructSettings
from node.workers import worker
from node.workers.worker import Answer, Request
from storage.dicom.decode_limits import DecodeLimits
from storage.errors import WorkerDied


class Priority(IntEnum):
    """Smaller goes first."""

    VIEWER = 0
    ARCHIVIST = 1
    REVERIFY = 2
    AHEAD = 3
    """What nobody has asked for yet."""


START_METHOD = "spawn"
"""How multiprocessing starts workers: never "fork", which copies locks that other threads hold."""

_IDLE = 600.0
"""Seconds after which an idle worker ends, where config.yaml does not say (limits.idle)."""


class WorkerPool:
    """``size`` worker processes behind one priority queue. Processes start with a request, and end when none has come
    for ``idle`` seconds: what a process has taken goes back to the system only with it.

    ``nice``: how much they leave to others, as of nice(2). ``within``: their limits.
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
        self._queue: queue.PriorityQueue[tuple[int, int, Request | None, Future[Answer]]] = queue.PriorityQueue()
        self._order = itertools.count()
        self._closing = threading.Event()
        self._alone = threading.Lock()
        self._threads = [
            threading.Thread(target=self._serve, name=f"{name}-{number}", daemon=True) for number in range(size)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, request: Request, priority: Priority) -> Future[Answer]:
        """Queue a request. Its future raises what the worker raised, or WorkerDied."""
        if self._closing.is_set():
            raise WorkerDied("the worker pool is closed")
        future: Future[Answer] = Future()
        self._queue.put((priority, next(self._order), request, future))
        return future

    def alone(self, request: Request) -> Answer:
        """Ask in a new process that has no other work, one such request at a time: for a request whose workers died,
        which may have been killed for what others asked of the machine. Raises what ``submit``'s future raises."""
        with self._alone:
            executor = self._new_executor()
            try:
                return self._ask(executor, request)
            except (BrokenProcessPool, CancelledError) as error:
                raise WorkerDied(f"a process that had only {type(request).__name__} to work on ended") from error
            finally:
                _kill(executor)

    @property
    def idle(self) -> bool:
        """True where nothing is being worked on, and nothing waits."""
        return self._queue.unfinished_tasks == 0

    def close(self) -> None:
        """End the workers. A request in progress is abandoned; queued ones are cancelled."""
        self._closing.set()
        for _ in self._threads:
            self._queue.put((-1, next(self._order), None, Future()))
        for thread in self._threads:
            thread.join()
        while not self._queue.empty():
            self._queue.get_nowait()[3].cancel()

    def _serve(self) -> None:
        executor: ProcessPoolExecutor | None = None
        while True:
            try:
                _, _, request, future = self._queue.get(timeout=self._idle if executor else None)
            except queue.Empty:
                if executor is not None:
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
        self, executor: ProcessPoolExecutor | None, request: Request, future: Future[Answer]
    ) -> ProcessPoolExecutor | None:
        """Settle the future; the executor to go on with. A worker that died is replaced, and asked once more.

        It may have died of the request before; a request that ends two workers is given up.
        """
        for attempt in (1, 2):
            executor = executor or self._new_executor()
            try:
                future.set_result(self._ask(executor, request))
                return executor
            except (BrokenProcessPool, CancelledError, WorkerDied):
                _kill(executor)
                executor = None
                if self._closing.is_set() or attempt == 2:
                    future.set_exception(
                        WorkerDied(f"the worker process ended while it worked on {type(request).__name__}")
                    )
                    return None
            except BaseException as error:  # noqa: BLE001 - whatever the worker raised belongs to whoever asked
                future.set_exception(error)
                return executor
        return None

    def _ask(self, executor: ProcessPoolExecutor, request: Request) -> Answer:
        inner = executor.submit(worker.answer, request)
        while True:
            try:
                return inner.result(timeout=0.2)
            except TimeoutError:
                if inner.done():  # the worker itself raised TimeoutError
                    raise
                if self._closing.is_set():
                    raise WorkerDied("the node is stopping") from None

    def _new_executor(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            max_workers=1,
            mp_context=multiprocessing.get_context(START_METHOD),
            initializer=worker.start,
            initargs=(self._settings, self._nice, self._within),
        )


def _kill(executor: ProcessPoolExecutor) -> None:
    processes: dict[int, Any] = dict(getattr(executor, "_processes", None) or {})
    executor.shutdown(wait=False, cancel_futures=True)
    for process in processes.values():
        process.kill()
        process.join()
