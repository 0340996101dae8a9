"""Let the process exit while a connection thread still sends.

pynetdicom 3.0: ``DULServiceProvider`` is not a daemon thread, so a process waits at its exit for a thread that sends
to a peer that does not read.
Upstream: not reported.
Remove when the thread is a daemon, or ends with ``AE.shutdown``.
"""

from __future__ import annotations

from typing import Any


def make_connection_thread_daemon(assoc: Any) -> None:
    """Let the process exit without waiting for the thread; call this before the association starts."""
    assoc.dul.daemon = True
