"""Runs a job: claims its lease, renews it while the job works, and releases it with the outcome."""

from __future__ import annotations

import logging
import threading
import time

from node.jobs.job import Job, Progress
from storage.errors import LatentPacsError
from storage.index.job_runs import Cause, JobRows, JobRun, RunState, Ticket
from storage.index.lease import new_owner

LOGGER = logging.getLogger(__name__)

_MAX_RENEWAL = 2.0
"""Most seconds between two renewals of the lease, which also publish the progress and read a cancellation."""


class Runner:
    """Runs jobs in the calling thread, under leases of ``lease`` seconds in the name of this process."""

    def __init__(self, rows: JobRows, lease: float) -> None:
        self.rows = rows
        self.owner = new_owner()
        self._lease = lease
        self._stopping = threading.Event()

    def stop(self) -> None:
        """Interrupt the runs in progress: they end at their next check of ``cancelled``."""
        self._stopping.set()

    def run(self, job: Job, cause: Cause, *, due: float = 0.0, watch: Progress | None = None) -> JobRun | None:
        """Run the job to its end; None if another process runs it, or it is not due any more.

        ``watch`` is called with the progress. An error of the job is recorded in the returned run, not raised. Raises
        JobRefused if a command finds the job running.
        """
        ticket = self.rows.begin(job.name, self.owner, self._lease, cause, due=due)
        if ticket is None:
            return None
        LOGGER.info("job %s begins (%s)", job.name, cause)
        work = _RunInProgress(self.rows, ticket, self._lease, self._stopping, watch)
        state, report, error = RunState.DONE, {}, ""
        with work:
            try:
                report = dict(job.work(work.progress, work.cancelled))
            except Exception as failure:
                of_a_file = isinstance(failure, OSError) and failure.filename is not None
                known = isinstance(failure, LatentPacsError) or of_a_file
                LOGGER.error("job %s: %s", job.name, failure, exc_info=not known)
                state, error = RunState.FAILED, str(failure) if known else f"{type(failure).__name__}: {failure}"
        if state is RunState.DONE:
            state = work.outcome
        if self.rows.end(ticket, state, report, error, done=work.done, total=work.total, text=work.text):
            LOGGER.info("job %s: %s", job.name, state)
        else:
            LOGGER.error("job %s lost its lease while it worked; its run does not count", job.name)
        return self.rows.run(ticket.run_key)


class _RunInProgress:
    """A run in progress. A thread renews its lease, since a single step of a job may take long."""

    def __init__(
        self, rows: JobRows, ticket: Ticket, lease: float, stopping: threading.Event, watch: Progress | None
    ) -> None:
        self.done, self.total, self.text = 0, 0, ""
        self._rows, self._ticket, self._lease = rows, ticket, lease
        self._stopping, self._watch = stopping, watch
        self._ended = threading.Event()
        self._cancelled = self._lost = False
        self._leased_until = time.monotonic() + lease
        self._thread = threading.Thread(target=self._renew_lease, name=f"lease-{ticket.job}", daemon=True)

    def __enter__(self) -> _RunInProgress:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def progress(self, done: int, total: int, text: str = "") -> None:
        self.done, self.total, self.text = done, total, text
        if self._watch is not None:
            self._watch(done, total, text)

    def cancelled(self) -> bool:
        # without the lease, another process may have taken the job over
        return self._cancelled or self._stopping.is_set() or self._lost or time.monotonic() > self._leased_until

    @property
    def outcome(self) -> RunState:
        """The state of a run that ended without an error."""
        if self._cancelled:
            return RunState.CANCELLED
        return RunState.INTERRUPTED if self._stopping.is_set() else RunState.DONE

    def _renew_lease(self) -> None:
        while not self._ended.wait(min(self._lease / 3, _MAX_RENEWAL)):
            now = time.monotonic()
            try:
                cancel = self._rows.heartbeat(self._ticket, self._lease, self.done, self.total, self.text)
            except Exception:
                LOGGER.exception("job %s cannot reach the index", self._ticket.job)
                continue
            self._lost = self._lost or cancel is None
            self._cancelled = self._cancelled or bool(cancel)
            self._leased_until = now + self._lease
