"""End all associations within a time limit.

pynetdicom 3.0: ``AE.shutdown`` calls ``Association.abort`` for one association after the other, and each blocks while
the thread of its connection waits for the rest of a PDU or for a peer that does not read.
Upstream: pynetdicom#194 (closed) is the case of a peer that does not close.
Remove when ``AE.shutdown`` has a time limit.
"""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from typing import Any

from pynetdicom import AE


def end_associations(entity: AE, within: float) -> None:
    """Abort every association; close the connections of those that have not ended after half of ``within`` seconds."""
    for end in (_abort, close_connection):
        left: list[Any] = [assoc for assoc in entity.active_associations if assoc.dul.is_alive()]
        for assoc in left:
            end(assoc)
        deadline = time.monotonic() + within / 2
        while any(assoc.dul.is_alive() for assoc in left) and time.monotonic() < deadline:
            time.sleep(0.02)


def close_connection(assoc: Any) -> None:
    """Shut the connection of an association down at once, even while another thread sends or receives on it."""
    connection = getattr(assoc.dul.socket, "socket", None)
    if connection is not None:
        with suppress(OSError):
            socket.socket.shutdown(connection, socket.SHUT_RDWR)


def _abort(assoc: Any) -> None:
    if assoc.is_established:
        assoc.abort(block=False)
    else:  # nothing to abort yet
        close_connection(assoc)
