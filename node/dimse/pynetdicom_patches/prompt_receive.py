"""Let the two threads of an association wait for what they need, instead of checking a thousand times a second.

pynetdicom 3.0: ``DULServiceProvider.run_reactor`` sleeps ``_run_loop_delay``, 1 ms, whenever nothing has arrived at the
moment it looks. An image of 17 MB is 130 PDUs of 128 KiB, and most of them come after such a look.
``Association._run_reactor`` looks for messages as often. Ten associations on which nothing happens take half a core.
Upstream: pynetdicom#701 asks why it is slower than DCMTK.
Remove when ``run_reactor`` waits for the socket, and ``_run_reactor`` for a message.
"""

from __future__ import annotations

import select
import threading
import time
from typing import Any

from pynetdicom.dul import DULServiceProvider

_SHORTEST, _LONGEST = 0.001, 0.1
"""Shortest and longest wait in seconds, after which flags and queues are checked that other threads set."""
_SHARE = 0.02
"""Wait in between as a share of the time since something last happened on the connection. What another thread sends
after a pause is late by at most this share of the pause. Chosen, not measured."""


class PromptReceive(DULServiceProvider):
    """The thread that owns a connection; it goes on as soon as bytes arrive."""

    active_at: float
    """The monotonic time (s) at which something was last sent or received."""
    arrived: threading.Event
    """Set once what was received has been processed."""
    _processing = False

    @property
    def patience(self) -> float:
        """How long to wait now, in seconds."""
        return min(max(_SHARE * (time.monotonic() - self.active_at), _SHORTEST), _LONGEST)

    def _process_recv_primitive(self) -> bool:
        sends = super()._process_recv_primitive()
        if sends:
            self._note_activity()
        return sends

    def _is_transport_event(self) -> bool:
        if self._processing:  # the reactor has processed the last event before this look
            self._processing = False
            self.arrived.set()
        if super()._is_transport_event():
            self._note_activity()
            return True
        if not self.event_queue.empty():
            self._note_activity()
        elif self.to_provider_queue.empty():
            _wait_for_bytes(self.socket, self.patience)
        return False

    def _note_activity(self) -> None:
        self.active_at, self._processing = time.monotonic(), True


class _Checkpoint(threading.Event):
    """The event at which ``Association._run_reactor`` stops before each look for a message; it also waits for one."""

    def __init__(self, assoc: Any) -> None:
        super().__init__()
        self._assoc = assoc
        self.set()

    def wait(self, timeout: float | None = None) -> bool:
        while super().wait(timeout):
            dul = self._assoc.dul
            if self._assoc.dimse.msg_queue.empty() and dul.to_user_queue.empty():
                dul.arrived.wait(dul.patience)
            dul.arrived.clear()
            if self.is_set():
                return True
        return False


def receive_promptly(assoc: Any) -> None:
    """Leave waiting to ``PromptReceive``, which must be a base of the association's thread. Called before it starts."""
    assoc.dul._run_loop_delay = 0
    assoc.dul.active_at, assoc.dul.arrived = time.monotonic(), threading.Event()
    assoc._reactor_checkpoint = _Checkpoint(assoc)


def _wait_for_bytes(connection: Any, seconds: float) -> None:
    if connection is None or connection.socket is None or not connection._is_connected:
        time.sleep(_SHORTEST)
        return
    try:
        select.select([connection.socket], [], [], seconds)
    except (OSError, ValueError):  # closed meanwhile: the next look reports it
        time.sleep(_SHORTEST)
