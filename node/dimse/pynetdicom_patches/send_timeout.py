"""Limit the time that a peer may take to read what is sent to it.

pynetdicom 3.0: ``AssociationSocket.send`` blocks as long as the peer does not read; ``AE.network_timeout`` does not
apply. The thread and its association never end.
Upstream: not reported (pynetdicom#565, closed unmerged, sets a timeout for connecting only).
Remove when ``send`` gives up after ``AE.network_timeout``.
"""

from __future__ import annotations

import logging
from typing import Any

from pynetdicom import evt
from pynetdicom.transport import AssociationSocket

LOGGER = logging.getLogger(__name__)

_PORTION = 2**16
"""Bytes that a peer must take within ``node.network_timeout``; a whole PDU could take longer on a slow line."""


class TimedSend(AssociationSocket):
    """A connection that counts as closed when the peer takes no bytes for ``AE.network_timeout``."""

    lost = ""
    """Why the connection was lost while sending; empty if it was not."""

    def send(self, bytestream: bytes) -> None:
        """Send all bytes, or treat the connection as closed."""
        connection: Any = self.socket
        try:
            connection.settimeout(self.assoc.ae.network_timeout)
            send_all(connection, memoryview(bytestream))
            evt.trigger(self.assoc, evt.EVT_DATA_SENT, {"data": bytestream})
        except Exception as error:  # noqa: BLE001 - as pynetdicom: after any error the connection is of no use
            self._treat_as_closed(error)

    def _treat_as_closed(self, error: Exception) -> None:
        slow = f"no byte taken for {self.assoc.ae.network_timeout:g} s (node.network_timeout)"
        self.lost = slow if isinstance(error, TimeoutError) else str(error)
        LOGGER.info("connection to %s lost while sending: %s", self.assoc.remote["address"], self.lost)
        self.event_queue.put("Evt17")


def send_all(connection: Any, data: memoryview) -> None:
    """Send in portions, each with the timeout of the connection."""
    for start in range(0, len(data), _PORTION):
        connection.sendall(data[start : start + _PORTION])
