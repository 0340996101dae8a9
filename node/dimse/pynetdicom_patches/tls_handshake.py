"""Do the TLS handshake in the thread of the connection, with a time limit.

pynetdicom 3.0: ``AssociationServer.get_request`` does it in the thread that accepts connections: one silent caller
locks out all others.
Upstream: not reported (fo-dicom had it too: fo-dicom#1766).
Remove when the handshake has a thread or a time limit.
"""

from __future__ import annotations

import logging
import socket
import ssl
import time
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
        address, seconds = self.client_address[0], self.server.handshake_timeout
        opening = self.server.opening(connection)
        connection.settimeout(seconds)
        try:
            if not _sends_anything(connection):
                connection.close()
                return False
            connection.settimeout(max(0.1, opening.connected_at + seconds - time.monotonic()))
            self.request = context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
            opening.connection = self.request
            self.request.do_handshake()
            self.request.settimeout(seconds)
        except (OSError, ValueError) as error:  # SSLError and TimeoutError are OSErrors
            if not opening.gave_way:
                LOGGER.warning("no TLS with %s: %s", address, _cause(error))
            self.request.close()
            return False
        return True


def _sends_anything(connection: socket.socket) -> bool:
    """Whether a caller sends a byte before it closes, unlike port scans and load balancers. Raises TimeoutError."""
    try:
        return bool(connection.recv(1, socket.MSG_PEEK))
    except ConnectionError:
        return False


def _cause(error: Exception) -> str:
    """Why there is no TLS, in words that name the side to correct."""
    reason = getattr(error, "reason", "") or ""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is refused: {error.verify_message}"
    if isinstance(error, TimeoutError):
        return "the handshake was not complete in time"
    if isinstance(error, ConnectionError) or reason == "UNEXPECTED_EOF_WHILE_READING":
        return "it closed the connection during the handshake"
    if "_ALERT_" in reason:
        return f"it refused the handshake: {reason.partition('_ALERT_')[2].replace('_', ' ').lower()}"
    return _CAUSES.get(reason, str(error))


_CAUSES = {
    "WRONG_VERSION_NUMBER": "it does not speak TLS",
    "HTTP_REQUEST": "it does not speak TLS",
    "UNSUPPORTED_PROTOCOL": "it offers no version of TLS that tls.minimum allows",
    "NO_SHARED_CIPHER": "it offers no cipher suite that is allowed here",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it has no certificate (tls.clients)",
}
"""Causes by OpenSSL's name of the error."""
