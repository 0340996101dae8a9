"""Leases: the right of one worker to work on a row until a time, for any table with ``lease_columns``.

A worker claims a row, renews the lease while it works, and releases it. The lease of a killed worker expires, and
another worker may claim the row. A lease that ends later than twice ``LONGEST`` from now was made before the clock was
set back, and counts as expired. A claim is identified by its owner and by further columns of the row, such as the
number of attempts, so that a worker that lost its lease changes nothing.
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Connection, Engine, Row, Table, or_, update

from storage.index.connection import writing

Claimed = TypeVar("Claimed")

LONGEST = 3600.0
"""Maximum seconds of a lease; ``archivist.lease`` and ``jobs.lease`` allow no more. Chosen, not measured."""
_BEYOND = 2 * LONGEST
"""Seconds from now beyond which no lease can end, unless the clock was set back since: such a lease counts as expired.
The clocks of nodes may differ by less than an hour."""

FREE: dict[str, Any] = {"lease_owner": None, "lease_until": None}
"""Values of the lease columns of a row that nobody works on."""


def new_owner() -> str:
    """A name for one worker: host, process, and a random part."""
    return f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"


def leased_to(owner: str | None, seconds: float) -> dict[str, Any]:
    """Values of the lease columns from now on. ``owner``: None if nobody may claim the row until then."""
    return {"lease_owner": owner, "lease_until": time.time() + seconds}


def is_free(table: Table) -> ColumnElement[bool]:
    """Whether nobody works on the row, the lease has expired, or the clock was set back since."""
    until, now = table.c.lease_until, time.time()
    return or_(until.is_(None), until < now, until > now + _BEYOND)


def is_leased(row: Row[Any]) -> bool:
    """Whether a fetched row has a lease for which ``is_free`` is false."""
    return row.lease_until is not None and 0 <= row.lease_until - time.time() <= _BEYOND


def owned(table: Table, owner: str, **row: Any) -> ColumnElement[bool]:
    """Whether the row with those values is leased to ``owner``, whether expired or not."""
    held = table.c.lease_owner == owner
    for name, value in row.items():
        held &= table.c[name] == value
    return held


def claim(
    connection: Connection, table: Table, wanted: ColumnElement[bool], owner: str, seconds: float, **changes: Any
) -> Row[Any] | None:
    """Lease the wanted row and return it as changed; None if it does not exist or another worker was faster."""
    taken = update(table).where(wanted, is_free(table)).values(**leased_to(owner, seconds), **changes)
    return connection.execute(taken.returning(table)).first()


def claimed(
    engine: Engine, take: Callable[[Connection], Claimed | None], release: Callable[[Claimed], object]
) -> Claimed | None:
    """Run ``take`` in a write transaction, and return what it claims. If the transaction fails, the claim is released.

    The claim may be committed nevertheless, if only the journal could not be written. Then nobody could work on the row
    until the lease ends. Errors of ``release`` are ignored: it fails in the same way, after its own commit.
    """
    made = None
    try:
        with writing(engine) as connection:
            made = take(connection)
    except Exception:
        if made is not None:
            with suppress(Exception):
                release(made)
        raise
    return made


def renew(connection: Connection, table: Table, mine: ColumnElement[bool], seconds: float) -> bool:
    """Extend the lease on the row that ``owned`` names; False if it was lost."""
    return change(connection, table, mine, lease_until=time.time() + seconds)


def change_and_release(connection: Connection, table: Table, mine: ColumnElement[bool], **changes: Any) -> bool:
    """Change the row and release its lease. Returns False if the lease was lost, and nothing was changed."""
    return change(connection, table, mine, **{**FREE, **changes})


def change(connection: Connection, table: Table, mine: ColumnElement[bool], **changes: Any) -> bool:
    """Change the row under the lease. Returns False if the lease was lost, and nothing was changed."""
    return bool(connection.execute(update(table).where(mine).values(**changes)).rowcount)
