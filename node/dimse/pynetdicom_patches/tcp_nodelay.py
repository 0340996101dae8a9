"""Switch Nagle's algorithm off (TCP_NODELAY).

pynetdicom 3.0: ``AssociationSocket`` leaves it on. A response is a command set and a data set in two small PDUs; with
the delayed acknowledgement of most systems the second waits 40 ms until the first is confirmed.
Upstream: not reported (#701 asks why pynetdicom is slower than DCMTK).
Remove when both ends set TCP_NODELAY.
"""

from __future__ import annotations

import socket
from contextlib import suppress

from pynetdicom.transport import AddressInformation, AssociationSocket


class NoDelaySocket(AssociationSocket):
    """A connection that we open, with TCP_NODELAY."""

    def _create_socket(self, address: AddressInformation) -> socket.socket:
        made = super()._create_socket(address)
        set_no_delay(made)
        return made


def set_no_delay(connection: socket.socket) -> None:
    """Send small messages without waiting for acknowledgements."""
    with suppress(OSError):  # closed meanwhile: the next send reports it
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
