"""Do the TLS handshake in the thread of the connection, with a time limit.

pynetdicom 3.0: ``AssociationServer.get_request`` does it in the thread that accepts connections: one silent caller
locks out all others.
Upstream: not reported (fo-dicom had it too: fo-dicom#1766).
Remove when the handshake has a thread or a time limit.
"""

from __future__ import annotations

import logging
import ssl
from typing import Any

from pynetdicom.transport import RequestHandler

LOGGER = logging.getLogger(__name__)


class TlsHandler(RequestHandler):
    """Serves one connection, after the handshake if the server has a ``tls`` context."""

    server: Any

    def handle(self) -> None:
        """Serve the connection until its association has started; close it if the handshake fails."""
        if self.server.tls is None or self._handshake(self.server.tls):
            super().handle()

    def _handshake(self, context: ssl.SSLContext) -> bool:
        connection: Any = self.request
        connection.settimeout(self.server.handshake_timeout)
        address = self.client_address[0]
        try:
            with self.server.count_handshake(address):
                self.request = context.wrap_socket(connection, server_side=True)
        except (OSError, ValueError) as error:  # SSLError and TimeoutError are OSErrors
            LOGGER.warning("no TLS with %s: %s", address, error)
            connection.close()
            return False
        return True
