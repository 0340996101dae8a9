"""Proves that a job runs once at a time, once for many missed times, and is taken over from a node that died."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from node.app import Node
from node.cli.commands.jobs import jobs as jobs_app
from node.cli.main import app
from node.config import When, load, parse, parse_when
from node.config.job_sections import JobSettings
from node.jobs import schedule
from node.jobs.job import Job, Progress
from node.jobs.runner import Runner
from node.jobs.schedule import Planned, Schedule, following, latest
from storage.errors import ConfigError, JobRefused, LatentPacsError
from storage.index import Index, job_runs, lease
from storage.index.job_runs import Cause, JobRows, RunState
from tests.conftest import wait_for
from tests.support.commands import run as command
from tests.support.holdings import filled
from tests.support.node_process import NodeProcess
from tests.support.paths import ROOT

MINUTE = "every 1m"


class Task:
    """A job that runs until it is told to end, and counts its runs."""

    name, summary = "task", "a task"

    def __init__(self, *, at_once: bool = False) -> None:
        self.runs, self.ended = 0, threading.Event()
        if at_once:
            self.ended.set()

    def work(self, progress: Progress, cancelled: Callable[[], bool]) -> dict[str, Any]:
        self.runs += 1
        while not (self.ended.wait(0.02) or cancelled()):
            progress(3, 10, "in the middle")
        progress(7, 10, "at the end")
        return {"runs": self.runs}


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    opened = Index.open(f"sqlite:///{tmp_path / 'index.sqlite'}")
    yield opened
    opened.close()


@pytest.fixture
def rows(index: Index) -> JobRows:
    made = JobRows(index.engine)
    made.ensure(["task"])
    return made


class Clock:
    """The time of day, which a test sets."""

    def __init__(self) -> None:
        self.now = time.time()

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    moved = Clock()
    for module in (job_runs, lease):
        monkeypatch.setattr(module, "time", moved)
    return moved


@contextmanager
def scheduled(rows: JobRows, task: Task, when: str | None = MINUTE, lease: float = 3.0) -> Iterator[Schedule]:
    settings = JobSettings(enabled=when is not None, when=when or MINUTE)
    schedule = Schedule([Planned(task, settings)], Runner(rows, lease), 0.1)
    schedule.start()
    try:
        yield schedule
    finally:
        schedule.stop()


def states(rows: JobRows) -> list[tuple[str, RunState]]:
    return [(run.cause, run.state) for run in rows.history("task")]


def overdue(rows: JobRows, index: Index) -> None:
    """Set the job's last scheduled time to long ago."""
    with index.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE job SET due_at = 1000000000")


# --- when ---

RULE = "CET-1CEST,M3.5.0,M10.5.0/3"
"""The zone of Berlin as a rule (POSIX), which no data base of zones has."""


@pytest.fixture
def live_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Sets the zone of this process, until the test ends."""

    def set_zone(zone: str) -> None:
        monkeypatch.setenv("TZ", zone)
        time.tzset()

    yield set_zone
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("text", "now", "before", "after"),
    [
        ("daily 02:30", "2026-03-04 02:30", "2026-03-04 02:30", "2026-03-04 02:30"),
        ("daily 02:30", "2026-03-04 02:29", "2026-03-03 02:30", "2026-03-04 02:30"),
        ("mon,thu 23:05", "2026-03-04 12:00", "2026-03-02 23:05", "2026-03-05 23:05"),
        ("Sun 00:00", "2026-03-07 23:59", "2026-03-01 00:00", "2026-03-08 00:00"),
        ("every 6h", "2026-03-04 17:59", "2026-03-04 12:00", "2026-03-04 18:00"),
        ("every 90m", "2026-03-04 01:31", "2026-03-04 01:30", "2026-03-04 03:00"),
        ("every 2d", "2026-03-04 01:31", "2026-03-04 00:00", "2026-03-06 00:00"),
    ],
)
def test_scheduled_times(text: str, now: str, before: str, after: str, live_in: Callable[[str], None]) -> None:
    live_in("UTC")
    when = parse_when(text)
    moment, expected_before, expected_after = (
        datetime.fromisoformat(one).replace(tzinfo=UTC) for one in (now, before, after)
    )
    assert latest(when, moment) == expected_before
    assert following(when, moment) == expected_after


def test_every_command_has_help_and_is_documented() -> None:
    manual = (ROOT / "docs/OPERATIONS.md").read_text(encoding="utf-8")
    names = [one.name or one.callback.__name__ for one in jobs_app.registered_commands if one.callback]
    assert names == ["list", "run", "pause", "resume", "cancel", "history"]
    for one, name in zip(jobs_app.registered_commands, names, strict=True):
        assert one.callback is not None
        assert one.callback.__doc__
        assert "--json" in CliRunner().invoke(app, ["jobs", name, "--help"]).output
        assert f"latent-pacs jobs {name}" in manual


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "right/UTC", RULE])
def test_the_times_of_a_year_have_no_gap_longer_than_said(zone: str, live_in: Callable[[str], None]) -> None:
    live_in(zone)
    for text in ("daily 02:30", "daily 01:30", "tue,wed 02:30", "sat 13:00", "every 7h"):
        when = parse_when(text)
        moment = datetime(2026, 1, 1, tzinfo=UTC)
        while moment.year == 2026:
            found = following(when, moment + timedelta(seconds=1))
            assert latest(when, found) == found
            assert (found - moment).total_seconds() <= when.gap + 3601
            moment = found


@pytest.mark.parametrize("zone", ["Europe/Berlin", RULE])
def test_an_hour_that_a_change_to_winter_time_repeats_ends_the_search(
    zone: str, live_in: Callable[[str], None]
) -> None:
    """Formerly, the second 02:30 of that night was found repeatedly, for three days."""
    live_in(zone)
    when = parse_when("daily 02:30")
    first, second = datetime(2026, 10, 25, 0, 30, tzinfo=UTC), datetime(2026, 10, 25, 1, 30, tzinfo=UTC)
    assert latest(when, first) == first
    assert latest(when, second) == latest(when, second + timedelta(hours=20)) == second
    assert following(when, second + timedelta(hours=1)) == datetime(2026, 10, 26, 1, 30, tzinfo=UTC)


def test_a_clock_that_is_set_back_stops_no_job(rows: JobRows, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by NTP after a start with a wrong clock: nothing would run, not even on request, until that time had come."""
    ahead = timedelta(days=365)

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + ahead

    monkeypatch.setattr(schedule, "datetime", Clock)
    ended = [("schedule", RunState.DONE)]
    with scheduled(rows, Task(at_once=True), "every 1d"):
        wait_for(lambda: states(rows) == ended, what="the run of the wrong year")
        ahead = timedelta()
        wait_for(lambda: states(rows) == ended * 2, what="the run of this year")
        rows.request("task")
        wait_for(lambda: states(rows) == [("request", RunState.DONE), *ended * 2], what="a run on request")


@pytest.mark.parametrize(
    "text",
    ["02:30", "daily", "daily 24:00", "daily 2", "mo 02:30", "mon thu 02:30", "every", "every 30s", "every x", ""],
)
def test_schedules_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match=r"jobs\.scrub\.when: .*(daily 02:30|every|duration|1m)"):
        parse({"jobs": {"scrub": {"when": text}}}, "test.yaml")


def test_jobs_in_the_configuration() -> None:
    scrub = parse({"jobs": {"scrub": {"when": "every 12h", "period": "7d", "orphan_grace": 90}}}, "t").jobs.scrub
    assert (scrub.schedule, scrub.period, scrub.orphan_grace) == (When(every=43200), 7 * 86400, 90)
    assert parse({"jobs": {"scrub": {"enabled": False}}}, "t").jobs.scrub.schedule is None
    with pytest.raises(ConfigError, match="'soon' is not a duration"):
        parse({"jobs": {"scrub": {"period": "soon"}}}, "t")
    with pytest.raises(ConfigError, match="did you mean scrub"):
        parse({"jobs": {"scrubb": {}}}, "t")


# --- rows and leases ---


def test_one_at_a_time_and_each_due_time_once(rows: JobRows, clock: Clock) -> None:
    due = clock.now + 60
    clock.now += 61
    ticket = rows.begin("task", "a", 10, Cause.SCHEDULE, due=due)
    assert ticket is not None
    assert rows.begin("task", "b", 10, Cause.SCHEDULE, due=due) is None
    with pytest.raises(JobRefused, match="running on a"):
        rows.begin("task", "b", 10, Cause.COMMAND)
    with pytest.raises(JobRefused, match="running on a"):
        rows.request("task")
    rows.end(ticket, RunState.DONE, {}, "", done=0, total=0, text="")
    assert rows.begin("task", "b", 10, Cause.SCHEDULE, due=due) is None, "that time was dealt with"
    assert rows.begin("task", "b", 10, Cause.SCHEDULE, due=due + 60) is not None


def test_a_job_does_not_wait_for_a_clock_that_was_set_back(rows: JobRows, clock: Clock) -> None:
    clock.now += 20 * 365 * 86400
    ticket = rows.begin("task", "a", 10, Cause.SCHEDULE, due=clock.now)
    assert ticket is not None
    rows.end(ticket, RunState.DONE, {}, "", done=0, total=0, text="")
    clock.now -= 20 * 365 * 86400
    ticket = rows.begin("task", "b", 10, Cause.SCHEDULE, due=clock.now - 5)
    assert ticket is not None
    rows.end(ticket, RunState.DONE, {}, "", done=0, total=0, text="")
    assert rows.begin("task", "b", 10, Cause.SCHEDULE, due=clock.now - 5) is None, "that time was dealt with"


def test_a_lease_that_ran_out(rows: JobRows, clock: Clock) -> None:
    first = rows.begin("task", "a", 10, Cause.SCHEDULE, due=clock.now + 1)
    assert first is not None
    clock.now += 9
    assert rows.heartbeat(first, 10, 1, 2, "x") is False
    clock.now += 9
    assert rows.begin("task", "b", 10, Cause.TAKEOVER) is None, "renewed"
    clock.now += 2
    assert states(rows) == [("schedule", RunState.LOST)], "seen by whoever looks, before anybody takes it over"
    second = rows.begin("task", "b", 10, Cause.TAKEOVER)
    assert second is not None
    assert rows.heartbeat(first, 10, 1, 2, "x") is None
    assert not rows.end(first, RunState.DONE, {}, "", done=2, total=2, text="")
    assert states(rows) == [("takeover", RunState.RUNNING), ("schedule", RunState.LOST)]
    clock.now += 11
    assert rows.begin("task", "c", 10, Cause.TAKEOVER) is None, "what was lost twice waits for its schedule"
    assert states(rows) == [("takeover", RunState.LOST), ("schedule", RunState.LOST)]


def test_a_command_that_was_killed_is_not_taken_over(rows: JobRows, clock: Clock) -> None:
    assert rows.begin("task", "a", 10, Cause.COMMAND) is not None
    clock.now += 11
    assert rows.begin("task", "b", 10, Cause.TAKEOVER) is None
    assert states(rows) == [("command", RunState.LOST)]
    assert rows.begin("task", "b", 10, Cause.COMMAND) is not None


def test_a_paused_job_does_not_make_up_for_the_pause(rows: JobRows, clock: Clock) -> None:
    rows.pause("task", paused=True)
    assert rows.begin("task", "a", 10, Cause.SCHEDULE, due=clock.now + 1) is None
    rows.pause("task", paused=False)
    assert rows.begin("task", "a", 10, Cause.SCHEDULE, due=clock.now + 1) is None
    assert rows.begin("task", "a", 10, Cause.SCHEDULE, due=clock.now + 2) is not None


def test_unknown_jobs_are_refused(rows: JobRows) -> None:
    for refused in (rows.request, rows.cancel, lambda name: rows.pause(name, paused=True)):
        with pytest.raises(JobRefused, match="there are: task"):
            refused("tusk")


def test_history_is_bounded(rows: JobRows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_runs, "_KEPT", 3)
    runner, task = Runner(rows, 10), Task(at_once=True)
    for _ in range(5):
        runner.run(task, Cause.COMMAND)
    assert [run.report["runs"] for run in rows.history("task")] == [5, 4, 3]


# --- running ---


def test_reports_progress_and_failures(rows: JobRows) -> None:
    runner, seen = Runner(rows, 10), []
    done = runner.run(Task(at_once=True), Cause.COMMAND, watch=lambda *now: seen.append(now))
    assert done is not None
    assert (done.state, done.report, done.done, done.total, done.text) == (
        RunState.DONE,
        {"runs": 1},
        7,
        10,
        "at the end",
    )
    assert seen == [(7, 10, "at the end")]

    def fail(progress: Any, cancelled: Any) -> dict[str, Any]:
        progress(1, 2)
        raise OSError("the disk went away")

    failed = runner.run(Job("task", "fails", fail), Cause.COMMAND)
    assert failed is not None
    assert (failed.state, failed.error, failed.done) == (RunState.FAILED, "OSError: the disk went away", 1)
    assert not rows.all()[0].running


@pytest.mark.slow
def test_a_busy_job_keeps_its_lease(rows: JobRows) -> None:
    """The job makes one long step without reporting progress, and another thread renews the lease."""
    lease, over = 5.0, threading.Event()
    task = Job("task", "busy", lambda *_: {"waited": over.wait(300)})
    thread = threading.Thread(target=Runner(rows, lease).run, args=(task, Cause.COMMAND))
    thread.start()
    wait_for(lambda: states(rows), what="a run")
    began = time.monotonic()
    while time.monotonic() - began < 1.2 * lease:
        assert Runner(rows, lease).run(task, Cause.TAKEOVER) is None
        thread.join(0.2)
    over.set()
    thread.join(300)
    assert states(rows) == [("command", RunState.DONE)]


def test_missed_times_are_made_up_for_once(rows: JobRows, index: Index) -> None:
    overdue(rows, index)
    task = Task(at_once=True)
    with scheduled(rows, task, "every 1d"):
        wait_for(lambda: states(rows) == [("schedule", RunState.DONE)], what="the run that was missed")
    with scheduled(rows, task, "every 1d") as schedule:
        rows.request("task")
        wait_for(lambda: [state for _, state in states(rows)] == [RunState.DONE] * 2, what="the run that was asked for")
        assert schedule is not None
    assert states(rows) == [("request", RunState.DONE), ("schedule", RunState.DONE)], "the start made up for nothing"


def test_a_time_for_which_no_thread_could_start_is_handled_at_the_next_check(
    rows: JobRows, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Formerly, the job waited for its next scheduled time."""
    overdue(rows, index)
    start, refused = threading.Thread.start, ["job_0"]

    def start_unless_refused(thread: threading.Thread) -> None:
        if thread.name in refused:
            refused.clear()
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_unless_refused)
    with scheduled(rows, Task(at_once=True), "every 1d"):
        wait_for(lambda: states(rows) == [("schedule", RunState.DONE)], what="the run")
    assert not refused
    assert len(states(rows)) == 1


def test_a_new_job_waits_for_its_first_time(rows: JobRows) -> None:
    with scheduled(rows, Task(at_once=True), "every 1d"):
        rows.request("task")
        wait_for(lambda: states(rows), what="the run that was asked for")
    assert [cause for cause, _ in states(rows)] == ["request"]


def test_cancelled_while_it_runs(rows: JobRows) -> None:
    task = Task()
    with scheduled(rows, task, None):
        rows.request("task")
        wait_for(lambda: [run.text for run in rows.history()] == ["in the middle"], what="progress in the row")
        assert rows.all()[0].running
        assert rows.cancel("task")
        wait_for(lambda: states(rows) == [("request", RunState.CANCELLED)], what="the end")
        assert not rows.cancel("task")
    assert task.runs == 1


def test_a_request_can_be_withdrawn(rows: JobRows) -> None:
    rows.request("task")
    assert rows.cancel("task")
    with scheduled(rows, Task(at_once=True), None):
        rows.pause("task", paused=True)
        rows.request("task")
        wait_for(lambda: states(rows), what="a run: a pause is for the schedule only")
    assert len(states(rows)) == 1


@pytest.mark.parametrize("cause", ["schedule", "request"])
def test_a_stopped_node_begins_again(rows: JobRows, index: Index, cause: str) -> None:
    overdue(rows, index) if cause == "schedule" else rows.request("task")
    when = MINUTE if cause == "schedule" else None
    task = Task()
    with scheduled(rows, task, when):
        wait_for(lambda: task.runs, what="the run")
    assert states(rows) == [(cause, RunState.INTERRUPTED)]
    task.ended.set()
    with scheduled(rows, task, when):
        wait_for(lambda: states(rows)[0] == (cause, RunState.DONE), what="the second run")


def test_a_command_that_was_interrupted_is_not_run_by_a_node(rows: JobRows) -> None:
    """A person who presses Ctrl-C, as during a purge, wants the job to end."""
    task, runner = Task(), Runner(rows, 60)
    running = threading.Thread(target=runner.run, args=(task, Cause.COMMAND))
    running.start()
    wait_for(lambda: task.runs, what="the run")
    runner.stop()
    running.join()
    assert states(rows) == [("command", RunState.INTERRUPTED)]
    assert not rows.cancel("task"), "it is not requested"


# --- processes ---

COMPETITOR = """
import sys, time
from pathlib import Path
from node.jobs.job import Job
from node.jobs import schedule
from node.jobs.runner import Runner
from storage.index import Index
from storage.index.job_runs import Cause, JobRows

folder, name = Path(sys.argv[1]), sys.argv[2]

def work(progress, cancelled):
    (folder / "inside").mkdir()  # fails where another one is inside
    with (folder / "runs").open("a") as out:
        out.write(name + "\\n")
    time.sleep(0.01)
    (folder / "inside").rmdir()
    return {}

rows = JobRows(Index.open(f"sqlite:///{folder / 'index.sqlite'}").engine)
runner = Runner(rows, 60)
(folder / f"ready-{name}").touch()
while not (folder / "go").exists():
    time.sleep(0.001)
for number in range(20):
    if runner.run(Job("task", "", work), Cause.SCHEDULE, due=4e9 + number) is None:
        time.sleep(0.03)
"""


def spawn(code: str, *arguments: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-W", "ignore", "-c", code, *arguments], env=environment)


@pytest.mark.slow
def test_processes_that_compete_run_each_time_once(rows: JobRows, tmp_path: Path) -> None:
    """Three processes compete for twenty scheduled times. No runs overlap, and no time is run twice."""
    names = ["a", "b", "c"]
    processes = [spawn(COMPETITOR, str(tmp_path), name) for name in names]
    for name in names:
        wait_for((tmp_path / f"ready-{name}").exists, what=f"process {name}")
    (tmp_path / "go").touch()
    assert [process.wait(timeout=300) for process in processes] == [0, 0, 0]
    ran = (tmp_path / "runs").read_text().split()
    assert 1 <= len(ran) <= 20
    assert len(rows.history("task", 100)) == len(ran)
    assert {state for _, state in states(rows)} == {RunState.DONE}


VICTIM = """
import sys, time
from node.jobs.job import Job
from node.jobs import schedule
from node.jobs.runner import Runner
from storage.index import Index
from storage.index.job_runs import Cause, JobRows

rows = JobRows(Index.open(sys.argv[1]).engine)
rows.request("task")
Runner(rows, 2).run(Job("task", "", lambda *_: time.sleep(600) or {}), Cause.REQUEST)
"""


@pytest.mark.slow
def test_a_killed_process_loses_its_run_to_another(rows: JobRows, tmp_path: Path) -> None:
    victim = spawn(VICTIM, f"sqlite:///{tmp_path / 'index.sqlite'}")
    wait_for(lambda: states(rows) == [("request", RunState.RUNNING)], what="the first run")
    task = Task(at_once=True)
    with scheduled(rows, task, None):
        victim.kill()
        victim.wait()
        wait_for(lambda: len(states(rows)) == 2, what="the takeover")
        wait_for(lambda: states(rows)[0] == ("takeover", RunState.DONE), what="its end")
    assert states(rows)[1] == ("request", RunState.LOST)
    assert "killed" in rows.history("task")[1].error


def jobs(config: Path, *arguments: str, fails: bool = False) -> Any:
    """The JSON output of ``latent-pacs jobs``, or the error with which it ends."""
    done = CliRunner().invoke(app, ["jobs", *arguments, "-c", str(config), "--json"])
    if fails:
        assert isinstance(done.exception, LatentPacsError)
        return str(done.exception)
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_a_node_killed_in_the_middle_of_a_scrub(tmp_path: Path) -> None:
    """After SIGKILL and a new start, the scrub is taken over. The history shows a lost run, and then a finished one."""
    root = tmp_path / "archive"
    root.mkdir()
    held = filled(root, 40)
    rows, served = JobRows(held.index.engine), NodeProcess(tmp_path)
    raw = yaml.safe_load(served.config.read_text())
    raw["jobs"] = {"lease": 2, "poll": 0.1, "scrub": {"period": "1h"}}
    served.config.write_text(yaml.safe_dump(raw))
    slow = sorted(held.objects)[60]
    with held.store.path(slow).open("wb") as out:
        out.truncate(50_000_000_000)  # a hole that takes a minute to read
    try:
        served.start()
        assert jobs(served.config, "run", "scrub") == {"job": "scrub", "state": "requested"}
        wait_for(lambda: [run.done for run in rows.history()] == [60], what="a scrub in the middle")
        assert "running on" in jobs(served.config, "run", "scrub", fails=True)
        served.signal(signal.SIGKILL)
        served.ended()
        held.restore(slow)
        served.start()
        wait_for(lambda: len(rows.history()) == 2, what="the takeover")
        ended = wait_for(lambda: rows.history()[0].state is RunState.DONE and rows.history(), what="its end")
        assert [(run.cause, run.state) for run in ended] == [("takeover", RunState.DONE), ("request", RunState.LOST)]
        assert ended[0].report["clean"]
        assert ended[0].report["checked"] >= 60
        assert [run["state"] for run in jobs(served.config, "history", "scrub")] == ["done", "lost"]
        served.signal(signal.SIGTERM)
        assert served.ended() == 0
    finally:
        if served.process is not None and served.process.poll() is None:
            served.process.kill()
            served.process.wait()
        served.log.close()
        held.index.close()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_scrub_that_is_stopped(tmp_path: Path, number: signal.Signals) -> None:
    """After a signal, the command ends between two objects, reports that, and releases its lease."""
    held = filled(tmp_path, 40)
    config, rows = tmp_path / "config.yaml", JobRows(held.index.engine)
    config.write_text(yaml.safe_dump({"storage": {"root": str(tmp_path)}}))
    with held.store.path(sorted(held.objects)[0]).open("wb") as out:
        out.truncate(2_000_000_000)
    code = "import sys; from node.cli.main import run; sys.argv[0] = 'latent-pacs'; run()"
    process = spawn(code, "scrub", "--full", "-c", str(config))
    wait_for(rows.history, what="a run")
    process.send_signal(number)
    assert process.wait(timeout=300) == 4
    (ended,) = rows.history()
    assert (ended.state, ended.report["finished"]) == (RunState.INTERRUPTED, False)
    assert not rows.all()[0].running
    held.index.close()


@pytest.mark.slow
def test_the_commands_on_a_running_node_and_without_one(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    raw = {
        "node": {"host": "127.0.0.1", "port": 0},
        "storage": {"root": str(tmp_path / "a"), "min_free": 0},
        "archivist": {"enabled": False},
        "jobs": {"poll": 0.1, "scrub": {"when": "mon 03:00"}},
    }
    config.write_text(yaml.safe_dump(raw))
    with Node(load(config)):
        listed = {each["name"]: each for each in jobs(config, "list")}
        assert set(listed) == {"audit", "purge", "replicate", "replicate-peer", "reverify", "scrub", "validation"}
        one = listed["scrub"]
        assert (one["name"], one["when"], one["now"], one["last"]) == ("scrub", "mon 03:00", "idle", None)
        assert one["next"]
        done = jobs(config, "run", "scrub", "--wait")
        assert (done["state"], done["cause"], done["report"]["clean"]) == ("done", "request", True)
        assert jobs(config, "pause", "scrub") == {"job": "scrub", "paused": True}
        one = {each["name"]: each for each in jobs(config, "list")}["scrub"]
        assert (one["now"], one["next"], one["last"]["state"]) == ("paused", None, "done")
        assert jobs(config, "cancel", "scrub") == {"job": "scrub", "cancelled": False}
        assert "there is no job 'scrap'" in jobs(config, "run", "scrap", fails=True)
    assert jobs(config, "resume", "scrub") == {"job": "scrub", "paused": False}
    done = jobs(config, "run", "scrub")
    assert (done["state"], done["cause"]) == ("done", "command")
    assert [run["cause"] for run in jobs(config, "history")] == ["command", "request"]
    for words in (["list"], ["history"], ["pause", "scrub"], ["run", "scrub"]):
        done = command("jobs", *words, "-c", str(config))
        assert (done.returncode, "scrub" in done.stdout) == (0, True), done.stderr
