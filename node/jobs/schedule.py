"""The schedule: when a job is due, and that a request from another process is seen. The only user of APScheduler.

APScheduler keeps nothing: its jobs are made from config.yaml at every start. What must outlive a restart, the newest
scheduled time that was dealt with, is a row of ours, and from it a start tells what was missed. However many times
were missed, one run makes up for them.
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
from node.jobs.job import Job
from node.jobs.runner import Runner
from storage.index.job_runs import Cause

LOGGER = logging.getLogger(__name__)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Planned:
    """A job and when it runs; None: on request only."""

    job: Job
    text: str
    """``when`` as config.yaml has it."""
    when: When | None


class Schedule:
    """Starts jobs when they are due, asked for, or left behind by a node that died. ``poll``: seconds between looks."""

    def __init__(self, planned: Sequence[Planned], runner: Runner, poll: float) -> None:
        self._planned = {one.job.name: one for one in planned}
        self._runner, self._poll = runner, poll
        logging.getLogger("apscheduler").setLevel(logging.ERROR)  # it warns of what coalescing is there for
        self._scheduler = BackgroundScheduler(job_defaults={"misfire_grace_time": None, "coalesce": True})

    def start(self) -> None:
        self._runner.rows.ensure(self._planned)
        for name, one in self._planned.items():
            if one.when is not None:
                self._scheduler.add_job(self._when_due, trigger_of(one.when), args=[name], id=f"due {name}")
                self._scheduler.add_job(self._when_due, args=[name], id=f"missed {name}")
        self._scheduler.add_job(self._look, IntervalTrigger(seconds=self._poll), id="look")
        self._scheduler.start()

    def stop(self) -> None:
        """Interrupt what runs, and wait for it."""
        self._runner.stop()
        if self._scheduler.running:
            self._scheduler.remove_all_jobs()  # nothing becomes due any more while the executor goes away
            self._scheduler.shutdown(wait=True)

    def _when_due(self, name: str) -> None:
        one = self._planned[name]
        assert one.when is not None
        due = latest(one.when, datetime.now(UTC)).timestamp()
        self._run(name, Cause.SCHEDULE, due)

    def _look(self) -> None:
        """What other processes want, and what they left behind."""
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
            LOGGER.exception("job %s could not be run; the next look tries again", name)


def trigger_of(when: When) -> BaseTrigger:
    """Times of day are of this machine's zone. Intervals are counted from the epoch: the same times on every node."""
    if when.every:
        return IntervalTrigger(seconds=int(when.every), start_date=_EPOCH, timezone=UTC)
    return CronTrigger(day_of_week=",".join(when.days) or "*", hour=when.hour, minute=when.minute)


def latest(when: When, now: datetime) -> datetime:
    """The newest scheduled time that is not in the future."""
    trigger = trigger_of(when)
    # a change to summer time may swallow one time of day: look back far enough to find the one before
    found: datetime = trigger.get_next_fire_time(None, now - timedelta(seconds=3 * when.gap))
    while (after := trigger.get_next_fire_time(found, found + timedelta(microseconds=1))) <= now:
        found = after
    return found


def following(when: When, now: datetime) -> datetime:
    """The next scheduled time."""
    found: datetime = trigger_of(when).get_next_fire_time(None, now)
    return found
