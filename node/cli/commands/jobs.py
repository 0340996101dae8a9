"""``latent-pacs jobs``: lists, runs, pauses and cancels scheduled work, on a running node or without one.

Commands and nodes communicate through rows of the index, so a command reaches all nodes that share the index.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from node.cli.exit_codes import DONE, FAILED, UNFINISHED, UsageError
from node.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption, LimitOption, UtcOption, archive, say
from node.cli.progress import progress
from node.cli.stop_signals import heeded_signals
from node.cli.times import time_json, time_text
from storage.errors import JobRefused

if TYPE_CHECKING:
    from node.app import Services
    from node.jobs.job import Job
    from node.jobs.schedule import Planned
    from storage.index.job_runs import JobRows, JobRun, StoredJob

jobs = typer.Typer(help="List, run, pause, resume and cancel scheduled work.", no_args_is_help=True)

NameArgument = Annotated[str, typer.Argument(help="The name of the job, from `jobs list`.", metavar="NAME")]

_PICKED_UP_WITHIN = 30.0
"""Seconds within which a node must start a requested job."""


@jobs.command("list")
def list_jobs(utc: UtcOption = False, config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """List all jobs: when each runs, its state, and how its last run ended."""
    with _opened(config) as (_, planned, rows):
        stored = {row.name: row for row in rows.all()}
    listed = [_listed(one, stored[name]) for name, one in planned.items()]
    table = Table("job", "when", "next", "now", "last run")
    for one in listed:
        upcoming = time_text(one["next"], utc=utc) if one["next"] else "-"
        last = f"{one['last']['state']} {time_text(one['last']['began'], utc=utc)}" if one["last"] else "never"
        table.add_row(one["name"], one["when"], upcoming, one["now"], last)
    say(listed, table, *(f"{one['name']}: {one['summary']}" for one in listed), as_json=as_json)


@jobs.command()
def run(
    name: NameArgument,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the run has ended, and show its progress.")] = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Run a job now: on the running node, or in this process if none runs.

    Exit code 0: requested, or with --wait done; 1: the run failed; 4: it was cancelled or interrupted.
    """
    ended = run_job(name, config, wait=wait)
    if ended is None:
        text = f"{name}: requested; the node starts it within seconds"
        say({"job": name, "state": "requested"}, text, as_json=as_json)
        return
    _report(ended, as_json=as_json)
    raise typer.Exit(exit_code(ended))


@jobs.command()
def pause(name: NameArgument, config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Suspend the schedule of a job until `jobs resume`. A run in progress continues, and `jobs run` still works."""
    with _opened(config, name) as (_, _, rows):
        rows.pause(name, paused=True)
    say({"job": name, "paused": True}, f"{name} is paused", as_json=as_json)


@jobs.command()
def resume(name: NameArgument, config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Resume the schedule of a paused job."""
    with _opened(config, name) as (_, _, rows):
        rows.pause(name, paused=False)
    say({"job": name, "paused": False}, f"{name} runs on schedule", as_json=as_json)


@jobs.command()
def cancel(name: NameArgument, config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Cancel a run at its next safe point, on whichever node it runs, or withdraw a request."""
    with _opened(config, name) as (_, _, rows):
        found = rows.cancel(name)
    text = f"{name} ends at its next safe point" if found else f"{name} is not running"
    say({"job": name, "cancelled": found}, text, as_json=as_json)


@jobs.command()
def history(
    name: Annotated[str, typer.Argument(help="Only this job.", metavar="NAME")] = "",
    limit: LimitOption = 20,
    utc: UtcOption = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """List runs, newest first. --json includes their reports."""
    with _opened(config, name or None) as (_, _, rows):
        runs = rows.history(name, limit)
    table = Table("job", "began", "took", "cause", "state", "progress", "note")
    for one in runs:
        took = "-" if one.ended_at is None else f"{one.ended_at - one.started_at:.1f} s"
        far = f"{one.done}/{one.total}" if one.total else "-"
        table.add_row(
            one.job, time_text(one.started_at, utc=utc), took, one.cause, one.state, far, one.error or one.text
        )
    say([run_json(one) for one in runs], table, as_json=as_json)


def run_job(name: str, config: Path, *, wait: bool) -> JobRun | None:
    """Run a job on the running node, or in this process; None if a node was asked and ``wait`` is False.

    Raises UsageError, JobRefused.
    """
    from node.archive.index_opening import runs_here

    with _opened(config, name) as (services, planned, rows):
        job = planned[name].job
        if not runs_here(services.settings.storage.root):
            return run_in_this_process(job, services)
        before = max((one.key for one in rows.history(name, 1)), default=0)
        rows.request(name)
        return _follow(rows, name, before) if wait else None


def exit_code(run: JobRun) -> int:
    return {"done": DONE, "cancelled": UNFINISHED, "interrupted": UNFINISHED}.get(run.state.value, FAILED)


def run_in_this_process(job: Job, services: Services) -> JobRun:
    """Run a job and show its progress. A signal ends it at its next safe point. Raises JobRefused."""
    from node.jobs.runner import Runner
    from storage.index.job_runs import Cause, JobRows

    rows = JobRows(services.index.engine)
    rows.ensure([job.name])
    runner = Runner(rows, services.settings.jobs.lease)
    with progress(job.name) as report, _signals_stop(runner.stop):
        ended = runner.run(job, Cause.COMMAND, watch=report)
    assert ended is not None, "a run that is refused raises JobRefused"
    return ended


def run_json(run: JobRun) -> dict[str, Any]:
    return {
        "job": run.job,
        "state": run.state.value,
        "cause": run.cause,
        "owner": run.owner,
        "began": time_json(run.started_at),
        "ended": None if run.ended_at is None else time_json(run.ended_at),
        "done": run.done,
        "total": run.total,
        "text": run.text,
        "error": run.error,
        "report": run.report,
    }


@contextmanager
def _opened(config: Path, name: str | None = None) -> Iterator[tuple[Services, dict[str, Planned], JobRows]]:
    """The services, all jobs, and their rows. Raises UsageError if no job has that name."""
    from node.app import plan_jobs
    from storage.index.job_runs import JobRows

    with archive(config) as services:
        planned = {one.job.name: one for one in plan_jobs(services)}
        if name is not None and name not in planned:
            raise UsageError(f"there is no job {name!r}; the jobs are: {', '.join(planned)}")
        rows = JobRows(services.index.engine)
        rows.ensure(planned)
        yield services, planned, rows


@contextmanager
def _signals_stop(stop: Any) -> Iterator[None]:
    before = {number: signal.signal(number, lambda *_: stop()) for number in heeded_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _follow(rows: JobRows, name: str, before: int) -> JobRun:
    """Watch the requested run until it has ended. Raises JobRefused if no node starts it."""
    deadline = time.monotonic() + _PICKED_UP_WITHIN
    with progress(name) as report:
        while True:
            found = next((one for one in rows.history(name, 1) if one.key > before), None)
            if found is None and time.monotonic() > deadline:
                rows.cancel(name)
                raise JobRefused(f"the node did not start {name} within {_PICKED_UP_WITHIN:g} s; its log may say why")
            if found is not None:
                report(found.done, found.total, found.text)
                if found.state != "running":
                    return found
            time.sleep(0.2)


def _listed(planned: Planned, row: StoredJob) -> dict[str, Any]:
    from node.jobs.schedule import following

    when = planned.settings.schedule
    return {
        "name": row.name,
        "summary": planned.job.summary,
        "when": planned.settings.when if when else "on request",
        "next": time_json(following(when, datetime.now(UTC))) if when and not row.paused else None,
        "now": _now_text(row),
        "paused": row.paused,
        "requested": row.requested,
        "running": row.running,
        "last": run_json(row.last) if row.last else None,
    }


def _now_text(row: StoredJob) -> str:
    if row.running and row.last is not None:
        return f"running {row.last.done}/{row.last.total} {row.last.text}".rstrip()
    if row.requested:
        return "requested"
    return "paused" if row.paused else "idle"


def _report(run: JobRun, *, as_json: bool) -> None:
    ended = f"{run.job}: {run.state}{': ' + run.error if run.error else ''}"
    figures = [(name, value) for name, value in run.report.items() if not isinstance(value, (list, dict))]
    say(run_json(run), ended, *(f"  {name}: {value}" for name, value in figures), as_json=as_json)
