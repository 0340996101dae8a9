"""Jobs as rows: which job is due, which process runs it under a lease, its progress, and the result of every run.

Commands use these rows too, and so control a running node from another process. Times are seconds since the epoch by
the clock of the process that writes.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, delete, insert, select, update

from storage.errors import JobRefused
from storage.index import lease
from storage.index.connection import writing
from storage.index.lease import FREE, is_leased, leased_to, owned
from storage.index.reading import IndexPart, record_of, value_of
from storage.index.tables import job, job_run

_KEPT = 1000
"""Maximum number of runs that are kept of each job. Chosen, not measured."""


class Cause(StrEnum):
    """Why a run began."""

    SCHEDULE = "schedule"
    REQUEST = "request"
    """A person requested it from a running node."""
    COMMAND = "command"
    """A command runs it in its own process."""
    TAKEOVER = "takeover"
    """The node that ran it died during the run."""


class RunState(StrEnum):
    """The state of a run. All but RUNNING are final."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"
    """The node was stopped; the run begins again at the next start."""
    LOST = "lost"
    """Its lease expired: the process was killed, or lost its connection to the index."""


@dataclass(frozen=True)
class Ticket:
    """A lease on a job. ``due_before``: the job's ``due_at`` before this run, restored if the run is interrupted."""

    job: str
    run_key: int
    owner: str
    cause: Cause
    due_before: float


@dataclass(frozen=True)
class JobRun:
    key: int
    job: str
    owner: str
    cause: str
    state: RunState
    started_at: float
    ended_at: float | None
    done: int
    total: int
    text: str
    report: dict[str, Any]
    error: str


@dataclass(frozen=True)
class StoredJob:
    """One job, with its latest run if there was one. ``abandoned``: its lease expired during a run."""

    name: str
    paused: bool
    requested: bool
    running: bool
    abandoned: bool
    last: JobRun | None


class JobRows(IndexPart):
    def ensure(self, names: Iterable[str]) -> None:
        """Insert missing rows for those jobs. A new job is due for scheduled times from now on."""
        with writing(self._engine) as connection:
            known = set(connection.execute(select(job.c.name)).scalars())
            for name in set(names) - known:
                connection.execute(insert(job).values(name=name, paused=0, due_at=time.time(), memory={}))

    def all(self) -> list[StoredJob]:
        """Every job, by name."""
        with self._engine.connect() as connection:
            rows = connection.execute(select(job).order_by(job.c.name)).all()
            keys = [row.run_key for row in rows if row.run_key is not None]
            found = connection.execute(select(job_run).where(job_run.c.key.in_(keys)))
            holders = {row.name: row for row in rows}
            runs = {run.key: _run_of(run, holders[run.job]) for run in found}
        return [_job_of(row, runs.get(row.run_key)) for row in rows]

    def history(self, name: str = "", limit: int = 50) -> list[JobRun]:
        """Runs, newest first, of one job or of all; at most ``limit``, 0 for all."""
        query = select(job_run).order_by(job_run.c.key.desc()).limit(limit or None)
        with self._engine.connect() as connection:
            holders = {row.name: row for row in connection.execute(select(job))}
            rows = connection.execute(query.where(job_run.c.job == name) if name else query).all()
        return [_run_of(row, holders.get(row.job)) for row in rows]

    def run(self, key: int) -> JobRun | None:
        with self._engine.connect() as connection:
            row = connection.execute(select(job_run).where(job_run.c.key == key)).first()
            if row is None:
                return None
            return _run_of(row, connection.execute(select(job).where(job.c.name == row.job)).first())

    # --- control ---

    def pause(self, name: str, *, paused: bool) -> None:
        """Stop or resume starting a job on schedule; a run in progress continues."""
        with writing(self._engine) as connection:
            _row_of(connection, name)
            connection.execute(update(job).where(job.c.name == name).values(paused=int(paused)))

    def request(self, name: str) -> None:
        """Request a run as soon as possible. Raises JobRefused while one is in progress."""
        with writing(self._engine) as connection:
            row = _row_of(connection, name)
            _refuse_while_running(row)
            connection.execute(update(job).where(job.c.name == name).values(requested_at=time.time()))

    def cancel(self, name: str) -> bool:
        """Cancel the run in progress, or withdraw a request; False if there is neither."""
        with writing(self._engine) as connection:
            row = _row_of(connection, name)
            connection.execute(update(job).where(job.c.name == name).values(requested_at=None))
            if not is_leased(row):
                return row.requested_at is not None
            connection.execute(update(job_run).where(job_run.c.key == row.run_key).values(cancel=1))
            return True

    # --- running ---

    def begin(self, name: str, owner: str, lease_seconds: float, cause: Cause, *, due: float = 0.0) -> Ticket | None:
        """Take the lease and insert a run; None if another process runs the job, or if it is not due any more.

        ``due``: the scheduled time that the run is for. An abandoned run is set to LOST. Raises JobRefused if there is
        no such job, or if a command finds it running.
        """
        now = time.time()
        with writing(self._engine) as connection:
            row = _row_of(connection, name)
            # a due time in the future was written before the clock was set back: nothing would be due until then
            dealt_with = row.due_at if row.due_at <= max(now, due) + lease.LONGEST else 0.0
            if not _may_begin(connection, row, cause, due, dealt_with):
                connection.execute(update(job).where(job.c.name == name).values(due_at=max(dealt_with, due)))
                return None
            _note_lost(connection, name)
            run = {"job": name, "owner": owner, "cause": cause, "state": RunState.RUNNING, "started_at": now}
            blank = {"done": 0, "total": 0, "text": "", "cancel": 0, "report": {}, "error": ""}
            opened = insert(job_run).values(**run, **blank).returning(job_run.c.key)
            key = connection.execute(opened).scalar_one()
            taken = {"run_key": key, "requested_at": None, "due_at": max(dealt_with, due)}
            begun = update(job).where(job.c.name == name).values(**leased_to(owner, lease_seconds), **taken)
            connection.execute(begun)
            _forget_oldest(connection, name)
        return Ticket(name, key, owner, cause, dealt_with)

    def heartbeat(self, ticket: Ticket, lease_seconds: float, done: int, total: int, text: str) -> bool | None:
        """Extend the lease, and store the progress. Returns whether to cancel the run; None if the lease was lost."""
        with writing(self._engine) as connection:
            if not lease.renew(connection, job, _owned(ticket), lease_seconds):
                return None
            mine = update(job_run).where(job_run.c.key == ticket.run_key).values(done=done, total=total, text=text)
            return bool(connection.execute(mine.returning(job_run.c.cancel)).scalar_one())

    def end(
        self,
        ticket: Ticket,
        state: RunState,
        report: Mapping[str, Any],
        error: str,
        *,
        done: int,
        total: int,
        text: str,
    ) -> bool:
        """Close a run and release the lease. Returns False if the lease was lost, and the run may be LOST already."""
        with writing(self._engine) as connection:
            undone: dict[str, Any] = {}
            if state is RunState.INTERRUPTED:  # as if it had not begun: at the next start it is due, or requested
                undone = {"due_at": ticket.due_before}
                # a person who interrupts a command does not want a node to run it
                undone |= {"requested_at": time.time()} if ticket.cause is Cause.REQUEST else {}
            if not lease.change_and_release(connection, job, _owned(ticket), **undone):
                return False
            closed = {"state": state, "ended_at": time.time(), "report": dict(report), "error": error}
            mine = update(job_run).where(job_run.c.key == ticket.run_key)
            connection.execute(mine.values(done=done, total=total, text=text, **closed))
        return True

    # --- state that a job keeps between its runs ---

    def memory(self, name: str) -> dict[str, Any]:
        """The state that ``remember`` stored last."""
        return dict(value_of(self._engine, select(job.c.memory).where(job.c.name == name)) or {})

    def remember(self, name: str, memory: Mapping[str, Any]) -> None:
        with writing(self._engine) as connection:
            connection.execute(update(job).where(job.c.name == name).values(memory=dict(memory)))


def _row_of(connection: Connection, name: str) -> Row[Any]:
    """The row of a job. Raises JobRefused if there is no such job."""
    row = connection.execute(select(job).where(job.c.name == name)).first()
    if row is None:
        known = ", ".join(connection.execute(select(job.c.name).order_by(job.c.name)).scalars())
        raise JobRefused(f"there is no job {name!r}; there are: {known or 'none yet'}")
    return row


def _refuse_while_running(row: Row[Any]) -> None:
    if is_leased(row):
        raise JobRefused(f"job {row.name} is running on {row.lease_owner}; wait for it, or cancel it")


def _may_begin(connection: Connection, row: Row[Any], cause: Cause, due: float, dealt_with: float) -> bool:
    if cause is Cause.COMMAND:
        _refuse_while_running(row)
        return True
    if is_leased(row):
        return False
    if cause is Cause.SCHEDULE:
        return due > dealt_with and not row.paused
    if cause is Cause.REQUEST:
        return row.requested_at is not None
    lost = _note_lost(connection, row.name)
    # a run that was lost twice may be what kills its node: it waits for its next scheduled time
    return not row.paused and lost in (Cause.SCHEDULE, Cause.REQUEST)


def _note_lost(connection: Connection, name: str) -> str | None:
    """Set the run of a job without a lease that is still RUNNING to LOST. Returns the cause of that run, if any."""
    open_run = (job_run.c.job == name, job_run.c.state == RunState.RUNNING)
    cause = connection.execute(select(job_run.c.cause).where(*open_run).order_by(job_run.c.key.desc())).scalar()
    error = "the process that ran it was killed or lost the index; its lease expired"
    connection.execute(update(job_run).where(*open_run).values(state=RunState.LOST, ended_at=time.time(), error=error))
    connection.execute(update(job).where(job.c.name == name).values(**FREE))
    return None if cause is None else str(cause)


def _forget_oldest(connection: Connection, name: str) -> None:
    newest = select(job_run.c.key).where(job_run.c.job == name).order_by(job_run.c.key.desc())
    oldest_kept = newest.offset(_KEPT - 1).limit(1).scalar_subquery()
    connection.execute(delete(job_run).where(job_run.c.job == name, job_run.c.key < oldest_kept))


def _owned(ticket: Ticket) -> ColumnElement[bool]:
    return owned(job, ticket.owner, name=ticket.job, run_key=ticket.run_key)


def _run_of(row: Row[Any], holder: Row[Any] | None) -> JobRun:
    """The record of a run. If its row says RUNNING and its lease has expired, the record says LOST."""
    state = RunState(row.state)
    if state is RunState.RUNNING and (holder is None or holder.run_key != row.key or not is_leased(holder)):
        state = RunState.LOST
    return record_of(JobRun, row, state=state)


def _job_of(row: Row[Any], last: JobRun | None) -> StoredJob:
    return StoredJob(
        name=row.name,
        paused=bool(row.paused),
        requested=row.requested_at is not None,
        running=is_leased(row),
        abandoned=row.lease_owner is not None and not is_leased(row),
        last=last,
    )
