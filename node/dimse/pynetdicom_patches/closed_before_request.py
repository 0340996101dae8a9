"""Stop waiting for an association request when the connection has closed.

pynetdicom 3.0: ``Association.run_reactor`` waits for the whole ``acse_timeout``, by default 30 s, for the request of a
caller that has closed, as port scans and load balancers do. Meanwhile, it counts the caller as an association.
Upstream: pynetdicom#669 (closed) cured only the leak.
Remove when the thread of such an association ends at once.
"""

from __future__ import annotations

import threading
import time
from typing import Any

_POLL = 0.1
"""Seconds between two checks whether the connection is open."""
_IDLE = "Sta1"
"""No connection: the state in which an upper layer begins and ends (PS3.8 table 9-5)."""


def wait_only_while_open(assoc: Any) -> None:
    """Let a new association wait for its request only while its connection is open."""
    receive_pdu, machine, begun = assoc.dul.receive_pdu, assoc.dul.state_machine, threading.Event()

    def receive(wait: bool = False, timeout: float | None = None) -> Any:
        if not wait or timeout is None:
            return receive_pdu(wait, timeout)
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            primitive = receive_pdu(True, min(left, _POLL))
            if machine.current_state != _IDLE:
                begun.set()
            closed = not assoc.dul.is_alive() or (begun.is_set() and machine.current_state == _IDLE)
            if primitive is not None or closed:
                return primitive
        return None

    assoc.dul.receive_pdu = receive
