"""``latent-pacs jobs``: see, start, pause and end scheduled work, on a running node or without one.

Everything goes through rows of the index, so it works from another process, and on any node of a group.
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

from node.cli.commands.status import open_index
from node.cli.console import Console
from node.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption, print_json
from node.cli.progress import bar
from node.config import Settings, load
from storage.errors import JobRefused

if TYPE_CHECKING:
    from node.jobs.job import Job
    from node.jobs.schedule import Planned
    from storage.index import Index
    from storage.index.job_runs import JobRows, JobRun, StoredJob

jobs = typer.Typer(help="Scheduled work: list, run, pause, resume, cancel, history.", no_args_is_help=True)

NameArgument = Annotated[str, typer.Argument(help="The job, as `jobs list` names it.", metavar="NAME")]

_PICKED_UP_WITHIN = 30.0


@jobs.command("list")
def list_jobs(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Every job: when it runs, what it does now, and how its last run ended."""
    with _opened(config) as (_, planned, rows):
        stored = {row.name: row for row in rows.all()}
    listed = [_listed(one, stored[name]) for name, one in planned.items()]
    if as_json:
        print_json(listed)
        return
    table = Table("job", "when", "next", "now", "last run")
    for one in listed:
        table.add_row(one["name"], one["when"], one["next"] or "-", one["now"], _last_text(one["last"]))
    console = Console()
    console.print(table)
    for one in listed:
        console.print(f"{one['name']}: {one['summary']}")


@jobs.command()
def run(
    name: NameArgument,
    wait: Annotated[bool, typer.Option("--wait", help="Stay until it has ended, and show its progress.")] = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Run a job now: on the node that runs here, or in this process where none does.

    Exit code 0: begun, or with --wait done; 1: it failed or was lost; 3: it was cancelled or interrupted.
    """
    ended = run_job(name, config, wait=wait)
    if ended is None:
        _say({"job": name, "state": "requested"}, f"{name}: the node begins it in a moment", as_json=as_json)
        return
    _report(ended, as_json=as_json)
    raise typer.Exit(exit_code(ended))


@jobs.command()
def pause(name: NameArgument, config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Start a job no more on schedule, until `resume`. A run in progress goes on; `jobs run` still works."""
    with _opened(config) as (_, planned, rows):
        rows.pause(_known(planned, name).job.name, paused=True)
    _say({"job": name, "paused": True}, f"{name} is paused", as_json=as_json)


@jobs.command()
def resume(name: NameArgument, config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Let a paused job run on schedule again, from its next time on."""
    with _opened(config) as (_, planned, rows):
        rows.pause(_known(planned, name).job.name, paused=False)
    _say({"job": name, "paused": False}, f"{name} runs on schedule", as_json=as_json)


@jobs.command()
def cancel(name: NameArgument, config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """End the run in progress at its next safe point, wherever it runs, or withdraw a request."""
    with _opened(config) as (_, planned, rows):
        found = rows.cancel(_known(planned, name).job.name)
    text = f"{name} ends at its next safe point" if found else f"{name} is not running"
    _say({"job": name, "cancelled": found}, text, as_json=as_json)


@jobs.command()
def history(
    name: Annotated[str, typer.Argument(help="Only this job.", metavar="[NAME]")] = "",
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many runs.")] = 20,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Runs, newest first; --json has their reports too."""
    with _opened(config) as (_, planned, rows):
        if name:
            _known(planned, name)
        runs = rows.history(name, limit)
    if as_json:
        print_json([run_json(one) for one in runs])
        return
    table = Table("job", "began", "took", "why", "state", "how far", "note")
    for one in runs:
        took = "-" if one.ended_at is None else f"{one.ended_at - one.started_at:.1f} s"
        far = f"{one.done}/{one.total}" if one.total else "-"
        table.add_row(one.job, _clock(one.started_at), took, one.cause, one.state, far, one.error or one.text)
    Console().print(table)


def run_job(name: str, config: Path, *, wait: bool) -> JobRun | None:
    """Run a job where its node runs, or here; None where a node was asked and nobody waits. Raises JobRefused."""
    from node.app import runs_here

    with _opened(config) as (settings, planned, rows):
        job = _known(planned, name).job
        if not runs_here(settings.storage.root):
            with open_index(config) as index:
                return run_in_this_process(job, index, settings)
        before = _latest_key(rows, name)
        rows.request(name)
        return _follow(rows, name, before) if wait else None


def exit_code(run: JobRun) -> int:
    """0 for done, 3 for cancelled or interrupted, else 1."""
    return {"done": 0, "cancelled": 3, "interrupted": 3}.get(run.state.value, 1)


def run_in_this_process(job: Job, index: Index, settings: Settings) -> JobRun:
    """Run a job here, with a progress bar; Ctrl-C or SIGTERM ends it at its next safe point. Raises JobRefused."""
    from node.jobs.runner import Runner
    from storage.index.job_runs import Cause, JobRows

    rows = JobRows(index.engine)
    rows.ensure([job.name])
    runner = Runner(rows, settings.jobs.lease)
    with bar(Console(stderr=True), "") as progress, _signals_stop(runner.stop):
        task = progress.add_task(job.name, total=None, note="")

        def watch(done: int, total: int, text: str) -> None:
            progress.update(task, completed=done, total=total, note=text)

        ended = runner.run(job, Cause.COMMAND, watch=watch)
    assert ended is not None, "a command is refused or gets its run"
    return ended


def run_json(run: JobRun) -> dict[str, Any]:
    """A run for programs; times in ISO 8601, UTC."""
    return {
        "job": run.job,
        "state": run.state.value,
        "cause": run.cause,
        "owner": run.owner,
        "began": _iso(run.started_at),
        "ended": None if run.ended_at is None else _iso(run.ended_at),
        "done": run.done,
        "total": run.total,
        "text": run.text,
        "error": run.error,
        "report": run.report,
    }


@contextmanager
def _opened(config: Path) -> Iterator[tuple[Settings, dict[str, Planned], JobRows]]:
    from node.app import plan_jobs, services
    from storage.index.job_runs import JobRows

    settings = load(config)
    with services(settings) as archive:
        planned = {one.job.name: one for one in plan_jobs(settings, archive)}
        rows = JobRows(archive.index.engine)
        rows.ensure(planned)
        yield settings, planned, rows


@contextmanager
def _signals_stop(stop: Any) -> Iterator[None]:
    before = {number: signal.signal(number, lambda *_: stop()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _known(planned: dict[str, Planned], name: str) -> Planned:
    if name not in planned:
        raise JobRefused(f"there is no job {name!r}; there are: {', '.join(planned)}")
    return planned[name]


def _latest_key(rows: JobRows, name: str) -> int:
    return max((one.key for one in rows.history(name, 1)), default=0)


def _follow(rows: JobRows, name: str, before: int) -> JobRun:
    """Watch the run that answers our request until it has ended. Raises JobRefused where none begins."""
    patience = time.monotonic() + _PICKED_UP_WITHIN
    with bar(Console(stderr=True), "") as progress:
        task = progress.add_task(name, total=None, note="requested")
        while True:
            found = next((one for one in rows.history(name, 1) if one.key > before), None)
            if found is None and time.monotonic() > patience:
                rows.cancel(name)
                raise JobRefused(f"the node did not take {name} up within {_PICKED_UP_WITHIN:g} s; its log may say why")
            if found is not None:
                progress.update(task, completed=found.done, total=found.total or None, note=found.text)
                if found.state != "running":
                    return found
            time.sleep(0.2)


def _listed(planned: Planned, row: StoredJob) -> dict[str, Any]:
    from node.jobs.schedule import following

    upcoming = None if row.paused else planned.when
    return {
        "name": row.name,
        "summary": planned.job.summary,
        "when": planned.text if planned.when else "on request",
        "next": following(upcoming, datetime.now(UTC)).isoformat(timespec="minutes") if upcoming else None,
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
    return "paused" if row.paused else "waits"


def _last_text(last: dict[str, Any] | None) -> str:
    return "never" if last is None else f"{last['state']} {last['began']}"


def _report(run: JobRun, *, as_json: bool) -> None:
    if as_json:
        print_json(run_json(run))
        return
    console = Console()
    console.print(f"{run.job}: {run.state}{': ' + run.error if run.error else ''}")
    for name, value in run.report.items():
        if not isinstance(value, (list, dict)):
            console.print(f"  {name}: {value}")


def _say(report: dict[str, Any], text: str, *, as_json: bool) -> None:
    print_json(report) if as_json else Console().print(text)


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _clock(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")
