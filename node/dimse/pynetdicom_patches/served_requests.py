"""Know when a request is being served, and when its response has been sent.

pynetdicom 3.0: ``Association._serve_request`` triggers no event after the response to a request. A commitment may be
reported on the same association only after it (PS3.4 J.3.3), and a node that stops waits for it. The idle timer
restarts only when bytes arrive: an association whose handler worked longer than the network timeout is aborted at once.
Upstream: pynetdicom#617 (closed) asks how to do the first.
Remove when events begin and end the service of a request, and the idle timer restarts after it.
"""

from __future__ import annotations

import time
from typing import Any

from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_ECHO, N_ACTION


class ServingAcceptor(Association):
    """An association that a peer opens; it notes when its requests are served. Echoes do not count."""

    operating = False
    """Whether a request is served."""
    operated_at = float("-inf")
    """The monotonic time (s) at which the last request had been served."""

    def _serve_request(self, msg: Any, context_id: int) -> None:
        if isinstance(msg, C_ECHO):
            super()._serve_request(msg, context_id)
            return
        self.operating = True
        try:
            super()._serve_request(msg, context_id)
        finally:
            self.operated_at, self.operating = time.monotonic(), False  # in this order: other threads read both
            self.dul._idle_timer.restart()
        if isinstance(msg, N_ACTION):
            entity: Any = self.ae
            entity.after_action(self)
