"""The schedule: starts jobs that are due, and those that another process requested.

The clock is read at each check: it may be set forward or back. The newest scheduled time that was handled is stored in
the index, so that a node knows at its start whether runs were missed. One run replaces them all.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

from node.config import When
from node.config.job_sections import JobSettings
from node.jobs.job import Job
from node.jobs.runner import Runner
from storage.index.job_runs import Cause

LOGGER = logging.getLogger(__name__)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DAYS = range(-1, 9)
"""Days from today on which the next time of day may be."""


@dataclass(frozen=True)
class Planned:
    """A job and its section of config.yaml."""

    job: Job
    settings: JobSettings


class Schedule:
    """Starts jobs that are due, requested, or abandoned by a node that died. ``poll``: seconds between two checks."""

    def __init__(self, planned: Sequence[Planned], runner: Runner, poll: float) -> None:
        self._planned = {one.job.name: one for one in planned}
        self._runner, self._poll = runner, poll
        self._handled: dict[str, datetime] = {}
        self._begun: dict[tuple[str, Cause], Future[None]] = {}
        self._stopping = threading.Event()
        self._threads = ThreadPoolExecutor(2 * len(planned) + 1, thread_name_prefix="job")
        self._thread = threading.Thread(target=self._watch, name="schedule", daemon=True)

    def start(self) -> None:
        self._runner.rows.ensure(self._planned)
        self._thread.start()

    def stop(self) -> None:
        """Interrupt the runs in progress, and wait for them."""
        self._stopping.set()
        self._runner.stop()
        if self._thread.is_alive():
            self._thread.join()
        self._threads.shutdown()

    def _watch(self) -> None:
        while not self._stopping.is_set():
            try:
                self._start_due()
                self._check_rows()
            except Exception:
                self._handled.clear()  # perhaps no thread could start; the rows still say which times were handled
                LOGGER.exception("the jobs could not be checked; they are checked again in %g s", self._poll)
            self._stopping.wait(self._poll)

    def _start_due(self) -> None:
        for name, one in self._planned.items():
            when = one.settings.schedule
            due = latest(when, datetime.now(UTC)) if when is not None else None
            if due is not None and due != self._handled.get(name):
                self._handled[name] = due  # before the run, which forgets it if it fails
                self._threads.submit(self._run, name, Cause.SCHEDULE, due.timestamp())

    def _check_rows(self) -> None:
        """Start jobs that another process requested or abandoned."""
        for row in self._runner.rows.all():
            if row.name not in self._planned or row.running:
                continue
            if row.requested:
                self._now(row.name, Cause.REQUEST)
            elif row.abandoned:
                self._now(row.name, Cause.TAKEOVER)

    def _now(self, name: str, cause: Cause) -> None:
        before = self._begun.get((name, cause))
        if before is None or before.done():
            self._begun[name, cause] = self._threads.submit(self._run, name, cause)

    def _run(self, name: str, cause: Cause, due: float = 0.0) -> None:
        try:
            self._runner.run(self._planned[name].job, cause, due=due)
        except Exception:
            self._handled.pop(name, None)
            LOGGER.exception("job %s could not be run; it is tried again at the next check", name)


def latest(when: When, now: datetime) -> datetime:
    """The newest scheduled time that is not in the future."""
    # twice the gap, since a day on which the clocks are set back is longer
    found = following(when, now - timedelta(seconds=2 * when.gap))
    while (after := following(when, found + timedelta(microseconds=1))) <= now:
        found = after
    return found


def following(when: When, now: datetime) -> datetime:
    """The next scheduled time, in UTC. Times of day are in this machine's zone; intervals are counted from the epoch,
    so all nodes agree on them."""
    if when.every:
        every = timedelta(seconds=when.every)
        return _EPOCH - (_EPOCH - now) // every * every
    today = now.astimezone().date()
    times = (one for days in _DAYS for one in _times_on(when, today + timedelta(days)))
    return next(one for one in times if one >= now)


def _times_on(when: When, day: date) -> list[datetime]:
    """The times, in UTC, at which the clocks here show the time of day: two if they are set back over it. If they are
    set forward over it, the time by the clocks before.

    Here the C library knows the zone, which may be a rule, such as CET-1CEST,M3.5.0,M10.5.0/3, and no name.
    """
    if not when.on(day.weekday()):
        return []
    shown = datetime.combine(day, time(when.hour, when.minute))
    times = [shown.replace(fold=fold).astimezone(UTC) for fold in (0, 1)]
    return [one for one in times if one.astimezone().replace(tzinfo=None) == shown] or times[:1]
