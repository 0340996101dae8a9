"""Wait for a peer's next bytes instead of sleeping for a fixed time.

pynetdicom 3.0: ``DULServiceProvider.run_reactor`` sleeps ``_run_loop_delay``, 1 ms, whenever nothing has arrived at the
moment it looks. An image of 17 MB is 130 PDUs of 128 KiB, and most of them come after such a look.
Upstream: pynetdicom#701 asks why it is slower than DCMTK.
Remove when ``run_reactor`` waits for the socket.
"""

from __future__ import annotations

import select
import time
from typing import Any

from pynetdicom.dul import DULServiceProvider

_WAIT = 0.001
"""Longest wait in seconds, after which the queue of what other threads send is checked."""


class PromptReceive(DULServiceProvider):
    """The thread that owns a connection; it goes on as soon as bytes arrive."""

    def _is_transport_event(self) -> bool:
        if super()._is_transport_event():
            return True
        if self.event_queue.empty() and self.to_provider_queue.empty():
            _wait_for_bytes(self.socket)
        return False


def receive_promptly(assoc: Any) -> None:
    """Leave waiting to ``PromptReceive``, which must be a base of the association's thread."""
    assoc.dul._run_loop_delay = 0


def _wait_for_bytes(connection: Any) -> None:
    if connection is None or connection.socket is None or not connection._is_connected:
        time.sleep(_WAIT)
        return
    try:
        select.select([connection.socket], [], [], _WAIT)
    except (OSError, ValueError):  # closed meanwhile: the next look reports it
        time.sleep(_WAIT)
