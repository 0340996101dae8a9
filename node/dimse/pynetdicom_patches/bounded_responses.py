"""Make responses no faster than the peer takes them.

pynetdicom 3.0: ``DIMSEServiceProvider.send_msg`` puts messages into a queue without a limit. All answers to a C-FIND of
a slow or stuck peer are in memory at once.
Upstream: not reported.
Remove when ``send_msg`` waits for room in the queue.
"""

from __future__ import annotations

import time
from typing import Any

from pynetdicom.dimse import DIMSEServiceProvider

from node.dimse.pynetdicom_patches.ended_peer import has_ended

_MOST = 64
"""PDUs that wait to be sent. Chosen, not measured."""
_POLL = 0.001
"""Seconds between two looks at the queue."""


class BoundedResponses(DIMSEServiceProvider):
    """The messages of one of our associations; one that is sent waits for those before it."""

    def send_msg(self, primitive: Any, context_id: int) -> None:
        """Send a message. Called in other threads than the one that owns the connection, which empties the queue."""
        while self.dul.to_provider_queue.qsize() >= _MOST and not has_ended(self.assoc):
            time.sleep(_POLL)
        super().send_msg(primitive, context_id)
