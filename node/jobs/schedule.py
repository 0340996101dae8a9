"""The schedule: starts jobs that are due, and those that another process requested. No other module uses APScheduler.

APScheduler stores nothing: its jobs are built from config.yaml at every start. The newest scheduled time that was
handled is stored in the index, so that a node knows at its start whether runs were missed. One run replaces them all.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.interval import IntervalTrigger

from node.config import When
from node.config.job_sections import JobSettings
from node.jobs.job import Job
from node.jobs.runner import Runner
from storage.index.job_runs import Cause

LOGGER = logging.getLogger(__name__)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Planned:
    """A job and its section of config.yaml."""

    job: Job
    settings: JobSettings


class Schedule:
    """Starts jobs that are due, requested, or abandoned by a node that died. ``poll``: seconds between two checks of
    the index for requested and abandoned jobs."""

    def __init__(self, planned: Sequence[Planned], runner: Runner, poll: float) -> None:
        self._planned = {one.job.name: one for one in planned}
        self._runner, self._poll = runner, poll
        logging.getLogger("apscheduler").setLevel(logging.ERROR)  # it warns of runs that are coalesced on purpose
        self._scheduler = BackgroundScheduler(job_defaults={"misfire_grace_time": None, "coalesce": True})

    def start(self) -> None:
        self._runner.rows.ensure(self._planned)
        for name, one in self._planned.items():
            when = one.settings.schedule
            if when is not None:
                self._scheduler.add_job(self._when_due, trigger_of(when), args=[name, when], id=f"due {name}")
                self._scheduler.add_job(self._when_due, args=[name, when], id=f"missed {name}")
        self._scheduler.add_job(self._check_rows, IntervalTrigger(seconds=self._poll), id="check")
        self._scheduler.start()

    def stop(self) -> None:
        """Interrupt the runs in progress, and wait for them."""
        self._runner.stop()
        if self._scheduler.running:
            self._scheduler.remove_all_jobs()  # no job becomes due while the executor shuts down
            self._scheduler.shutdown(wait=True)

    def _when_due(self, name: str, when: When) -> None:
        self._run(name, Cause.SCHEDULE, latest(when, datetime.now(UTC)).timestamp())

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
        self._scheduler.add_job(self._run, args=[name, cause], id=f"{cause} {name}", replace_existing=True)

    def _run(self, name: str, cause: Cause, due: float = 0.0) -> None:
        try:
            self._runner.run(self._planned[name].job, cause, due=due)
        except Exception:
            LOGGER.exception("job %s could not be run; it is tried again at the next check", name)


def trigger_of(when: When) -> BaseTrigger:
    """The APScheduler trigger of a schedule.

    Times of day are in this machine's time zone. Intervals are counted from the epoch, so all nodes agree on them.
    """
    if when.every:
        return IntervalTrigger(seconds=int(when.every), start_date=_EPOCH, timezone=UTC)
    return CronTrigger(day_of_week=",".join(when.days) or "*", hour=when.hour, minute=when.minute)


def latest(when: When, now: datetime) -> datetime:
    """The newest scheduled time that is not in the future."""
    # a change to summer time may skip one scheduled time: go back far enough to find the one before it
    found = following(when, now - timedelta(seconds=3 * when.gap))
    while (after := following(when, found + timedelta(microseconds=1))) <= now:
        found = after
    return found


def following(when: When, now: datetime) -> datetime:
    """The next scheduled time, in UTC, in which the hour that a change to winter time repeats is not ambiguous."""
    found: datetime = trigger_of(when).get_next_fire_time(None, now)
    return found.astimezone(UTC)
