"""Jobs as rows: what is due, who runs it under which lease, how far it is, and what became of every run.

The commands act through these rows too, so they work on a running node from another process. Times are seconds since
the epoch, of the clock of whoever writes; nodes in a group need clocks that agree within a lease.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Engine, Row, delete, insert, select, update

from storage.errors import JobRefused
from storage.index.connection import writing
from storage.index.tables import job, job_run

_KEPT = 1000
"""Runs remembered per job."""


class Cause(StrEnum):
    """Why a run began."""

    SCHEDULE = "schedule"
    REQUEST = "request"
    """Somebody asked a running node for it."""
    COMMAND = "command"
    """A command runs it in its own process."""
    TAKEOVER = "takeover"
    """The node that ran it before went away in the middle."""


class RunState(StrEnum):
    """Where a run is. Only RUNNING has an end to come."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"
    """The node was stopped meanwhile; the run begins again at the next start."""
    LOST = "lost"
    """Its lease ran out: the process was killed or cut off."""


@dataclass(frozen=True)
class Ticket:
    """The right to run a job until the lease runs out. ``due_before``: what to go back to if the run never happened."""

    job: str
    run_key: int
    owner: str
    cause: Cause
    due_before: float


@dataclass(frozen=True)
class JobRun:
    """One run of a job."""

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
    """One job, with its latest run where there was one. ``abandoned``: its lease ran out in the middle of a run."""

    name: str
    paused: bool
    requested: bool
    due_at: float
    running: bool
    abandoned: bool
    last: JobRun | None


@dataclass(frozen=True)
class Pulse:
    """The answer to a sign of life: whether the lease is still ours, and whether somebody wants the run to end."""

    held: bool
    cancelled: bool


class JobRows:
    """The jobs in one index. Safe to share between threads and processes."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def ensure(self, names: Iterable[str]) -> None:
        """Rows for those jobs; one that is new is due from now on, not for the time before it existed."""
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
            leases = {row.name: row for row in rows}
            runs = {run.key: _run_of(run, leases[run.job]) for run in found}
        return [_job_of(row, runs.get(row.run_key)) for row in rows]

    def get(self, name: str) -> StoredJob | None:
        """One job."""
        return next((one for one in self.all() if one.name == name), None)

    def history(self, name: str = "", limit: int = 50) -> list[JobRun]:
        """Runs, newest first, of one job or of all."""
        query = select(job_run).order_by(job_run.c.key.desc()).limit(limit)
        with self._engine.connect() as connection:
            leases = {row.name: row for row in connection.execute(select(job))}
            rows = connection.execute(query.where(job_run.c.job == name) if name else query).all()
        return [_run_of(row, leases.get(row.job)) for row in rows]

    def run(self, key: int) -> JobRun | None:
        """One run."""
        with self._engine.connect() as connection:
            row = connection.execute(select(job_run).where(job_run.c.key == key)).first()
            if row is None:
                return None
            return _run_of(row, connection.execute(select(job).where(job.c.name == row.job)).first())

    # --- what people ask for ---

    def pause(self, name: str, *, paused: bool) -> None:
        """Stop or go on starting a job on schedule; a run in progress goes on."""
        with writing(self._engine) as connection:
            _locked(connection, name)
            connection.execute(update(job).where(job.c.name == name).values(paused=int(paused)))

    def request(self, name: str) -> None:
        """Ask for a run as soon as possible. Raises JobRefused while one is in progress."""
        with writing(self._engine) as connection:
            row = _locked(connection, name)
            _refuse_while_running(row)
            connection.execute(update(job).where(job.c.name == name).values(requested_at=time.time()))

    def cancel(self, name: str) -> bool:
        """Ask the run in progress to end, or withdraw a request; False where there is neither."""
        with writing(self._engine) as connection:
            row = _locked(connection, name)
            connection.execute(update(job).where(job.c.name == name).values(requested_at=None))
            if not _leased(row):
                return row.requested_at is not None
            connection.execute(update(job_run).where(job_run.c.key == row.run_key).values(cancel=1))
            return True

    # --- running ---

    def begin(self, name: str, owner: str, lease: float, cause: Cause, *, due: float = 0.0) -> Ticket | None:
        """Take the lease and open a run; None where somebody else has, or where there is nothing to run any more.

        ``due``: the scheduled time that the run is for. A run that is found abandoned is noted as lost.
        """
        now = time.time()
        with writing(self._engine) as connection:
            row = _locked(connection, name)
            if not _may_begin(connection, row, cause, due):
                dealt_with = max(row.due_at, due)
                connection.execute(update(job).where(job.c.name == name).values(due_at=dealt_with))
                return None
            _note_lost(connection, name)
            opened = insert(job_run).values(
                job=name,
                owner=owner,
                cause=cause,
                state=RunState.RUNNING,
                started_at=now,
                done=0,
                total=0,
                text="",
                cancel=0,
                report={},
                error="",
            )
            key = connection.execute(opened.returning(job_run.c.key)).scalar_one()
            connection.execute(
                update(job)
                .where(job.c.name == name)
                .values(
                    lease_owner=owner,
                    lease_until=now + lease,
                    run_key=key,
                    requested_at=None,
                    due_at=max(row.due_at, due),
                )
            )
            _forget_oldest(connection, name)
        return Ticket(name, key, owner, cause, row.due_at)

    def beat(self, ticket: Ticket, lease: float, done: int, total: int, text: str) -> Pulse:
        """Extend the lease, and note how far the run is."""
        with writing(self._engine) as connection:
            held = connection.execute(
                update(job).where(*_owned(ticket)).values(lease_until=time.time() + lease)
            ).rowcount
            if not held:
                return Pulse(False, True)
            connection.execute(
                update(job_run).where(job_run.c.key == ticket.run_key).values(done=done, total=total, text=text)
            )
            cancel = connection.execute(select(job_run.c.cancel).where(job_run.c.key == ticket.run_key)).scalar_one()
        return Pulse(True, bool(cancel))

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
        """Close a run and give the lease back; False where the lease was lost, and the run is noted so already."""
        with writing(self._engine) as connection:
            free: dict[str, Any] = {"lease_owner": None, "lease_until": None}
            if state is RunState.INTERRUPTED:  # as if it had not begun: the next start finds it due, or asked for
                free |= {"due_at": ticket.due_before}
                free |= {"requested_at": time.time()} if ticket.cause is not Cause.SCHEDULE else {}
            if not connection.execute(update(job).where(*_owned(ticket)).values(**free)).rowcount:
                return False
            closed = {"state": state, "ended_at": time.time(), "report": dict(report), "error": error}
            connection.execute(
                update(job_run)
                .where(job_run.c.key == ticket.run_key)
                .values(done=done, total=total, text=text, **closed)
            )
        return True

    # --- what a job keeps between its runs ---

    def memory(self, name: str) -> dict[str, Any]:
        """What ``remember`` was last given."""
        with self._engine.connect() as connection:
            return dict(connection.execute(select(job.c.memory).where(job.c.name == name)).scalar() or {})

    def remember(self, name: str, memory: Mapping[str, Any]) -> None:
        with writing(self._engine) as connection:
            connection.execute(update(job).where(job.c.name == name).values(memory=dict(memory)))


def _locked(connection: Connection, name: str) -> Row[Any]:
    """The row, ours to change until the transaction ends. Raises JobRefused where there is no such job."""
    row = connection.execute(select(job).where(job.c.name == name).with_for_update()).first()
    if row is None:
        known = ", ".join(connection.execute(select(job.c.name).order_by(job.c.name)).scalars())
        raise JobRefused(f"there is no job {name!r}; there are: {known or 'none yet'}")
    return row


def _leased(row: Row[Any]) -> bool:
    return row.lease_until is not None and row.lease_until >= time.time()


def _refuse_while_running(row: Row[Any]) -> None:
    if _leased(row):
        raise JobRefused(f"job {row.name} is running on {row.lease_owner}; wait for it, or cancel it")


def _may_begin(connection: Connection, row: Row[Any], cause: Cause, due: float) -> bool:
    if cause is Cause.COMMAND:
        _refuse_while_running(row)
        return True
    if _leased(row):
        return False
    if cause is Cause.SCHEDULE:
        return due > row.due_at and not row.paused
    if cause is Cause.REQUEST:
        return row.requested_at is not None
    lost = _note_lost(connection, row.name)
    # a run that was lost twice may be what ends its node: then its next scheduled time has to do
    return not row.paused and lost in (Cause.SCHEDULE, Cause.REQUEST)


def _note_lost(connection: Connection, name: str) -> str | None:
    """Close what still says running, though nobody holds the lease; the cause of that run."""
    open_run = (job_run.c.job == name, job_run.c.state == RunState.RUNNING)
    cause = connection.execute(select(job_run.c.cause).where(*open_run).order_by(job_run.c.key.desc())).scalar()
    error = "the process that ran it was killed or cut off; its lease ran out"
    connection.execute(update(job_run).where(*open_run).values(state=RunState.LOST, ended_at=time.time(), error=error))
    connection.execute(update(job).where(job.c.name == name).values(lease_owner=None, lease_until=None))
    return None if cause is None else str(cause)


def _forget_oldest(connection: Connection, name: str) -> None:
    newest = select(job_run.c.key).where(job_run.c.job == name).order_by(job_run.c.key.desc())
    oldest_kept = newest.offset(_KEPT - 1).limit(1).scalar_subquery()
    connection.execute(delete(job_run).where(job_run.c.job == name, job_run.c.key < oldest_kept))


def _owned(ticket: Ticket) -> tuple[Any, ...]:
    return (job.c.name == ticket.job, job.c.lease_owner == ticket.owner, job.c.run_key == ticket.run_key)


def _run_of(row: Row[Any], lease: Row[Any] | None) -> JobRun:
    """A run as it is: one that says running is lost where nobody holds its lease."""
    values = {field.name: getattr(row, field.name) for field in fields(JobRun)}
    state = RunState(row.state)
    if state is RunState.RUNNING and (lease is None or lease.run_key != row.key or not _leased(lease)):
        state = RunState.LOST
    return JobRun(**{**values, "state": state})


def _job_of(row: Row[Any], last: JobRun | None) -> StoredJob:
    return StoredJob(
        name=row.name,
        paused=bool(row.paused),
        requested=row.requested_at is not None,
        due_at=row.due_at,
        running=_leased(row),
        abandoned=row.lease_owner is not None and not _leased(row),
        last=last,
    )
