"""Count an association as idle from the end of a handler, not from the request.

pynetdicom 3.0: ``DULServiceProvider._idle_timer`` restarts only when bytes arrive. An association whose handler worked
longer than the network timeout is aborted as soon as the handler ends.
Upstream: not reported.
Remove when the idle timer restarts when a handler ends.
"""

from __future__ import annotations

from typing import Any


def restart_idle_timer(assoc: Any) -> None:
    """Count the idle time of an association from now."""
    assoc.dul._idle_timer.restart()
