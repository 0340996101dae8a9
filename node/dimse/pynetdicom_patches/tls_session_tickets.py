"""Do not take a TLS 1.3 session ticket for the beginning of a PDU.

pynetdicom 3.0: ``AssociationSocket.ready`` asks ``select`` whether bytes have arrived. A session ticket counts, so the
thread of the connection blocks in ``recv`` and neither sends nor receives until a PDU comes.
Upstream: pynetdicom#364 (closed: use TLS 1.2), #528.
Remove when ``ready`` is False while only a ticket has arrived.
"""

from __future__ import annotations

import ssl
from typing import Any

from pynetdicom.transport import AssociationSocket


class TicketTolerantSocket(AssociationSocket):
    """A connection that is ready only when the first byte of a PDU is there, or the end of the connection."""

    _first = b""
    """The byte that ``ready`` has read."""

    @property
    def ready(self) -> bool:
        """True if a PDU has begun to arrive, or if the peer has closed the connection."""
        if self._first:
            return True
        arrived = super().ready
        connection: Any = self.socket
        if not arrived or not isinstance(connection, ssl.SSLSocket) or connection.pending():
            return arrived
        try:
            connection.settimeout(0)
            self._first = connection.recv(1)
        except ssl.SSLWantReadError:
            return False
        except OSError:
            self.event_queue.put("Evt17")
            return False
        return True  # nothing read: the peer closed the connection, and recv will see it too

    def recv(self, nr_bytes: int) -> bytearray:
        """The byte that ``ready`` has read, and those after it."""
        if not self._first or not nr_bytes:
            return super().recv(nr_bytes)
        first, self._first = self._first, b""
        return bytearray(first) + super().recv(nr_bytes - 1)
