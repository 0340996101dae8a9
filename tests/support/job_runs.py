"""Runs a job without the job runner, a scrub without a node, and the job reverify as a node runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from unittest.mock import Mock

from node.app import Node, plan_jobs
from node.jobs.job import Progress
from node.jobs.runner import Runner
from node.jobs.scrub_job import Scrub, ScrubPlan
from node.jobs.scrub_repair import ScrubRepair
from storage.index import Index
from storage.index.index_trust import IndexStanding
from storage.index.job_runs import Cause, JobRows, RunState
from storage.objects.store import ObjectStore


class CountedRun:
    """Runs a job's work once, and can cancel it after a number of steps."""

    def __init__(self, steps: int = 10**9) -> None:
        self.steps, self.last = steps, (0, 0, "")

    def of(self, work: Callable[[Progress, Callable[[], bool]], dict[str, Any]]) -> dict[str, Any]:
        return work(self._progress, lambda: self.steps <= 0)

    def _progress(self, done: int, total: int, text: str = "") -> None:
        self.steps -= 1
        self.last = (done, total, text)


def scrub_in(index: Index, stores: Mapping[str, ObjectStore], plan: ScrubPlan) -> Scrub:
    """A scrub that does not doubt the index, and that takes no object for one that a rebuild would recover."""
    rows = JobRows(index.engine)
    rows.ensure(["scrub"])
    sound = Mock(IndexStanding, doubt=lambda: "", damage=list)
    return Scrub(rows, ScrubRepair(index, stores), plan, sound, lambda *_: False)


def reverified(node: Node) -> dict[str, Any]:
    """Run the job as the node's schedule would."""
    (job,) = [one.job for one in plan_jobs(node.archive) if one.job.name == "reverify"]
    rows = JobRows(node.index.engine)
    rows.ensure(["reverify"])
    run = Runner(rows, 60).run(job, Cause.COMMAND)
    assert run is not None
    assert run.state is RunState.DONE, run.error
    return run.report
