"""A listening port of our entity: pynetdicom's server with the patches for connections that peers open."""

from __future__ import annotations

import logging
import ssl
import threading
import time
from typing import Any

from node.dimse.pynetdicom_patches.closed_before_request import wait_only_while_open
from node.dimse.pynetdicom_patches.connection_limits import LimitedServer
from node.dimse.pynetdicom_patches.entity import ArchiveSocket, use_patched_classes
from node.dimse.pynetdicom_patches.shared_contexts import SharedContexts
from node.dimse.pynetdicom_patches.tcp_nodelay import set_no_delay
from node.dimse.pynetdicom_patches.tls_handshake import TlsHandler

LOGGER = logging.getLogger(__name__)

_QUEUE = 128
"""Connections that may wait to be accepted. The 5 of socketserver are too few for ten simultaneous senders: the kernel
drops further connections, and a caller tries again after one second."""


class _Handler(TlsHandler, SharedContexts):
    """Serves one connection, in a thread of its own."""

    def handle(self) -> None:
        set_no_delay(self.request)
        self.connected_at = time.monotonic()
        super().handle()

    def _create_association(self) -> Any:
        assoc = super()._create_association()
        # the class is replaced, since a new object would report the connection to the state machine a second time
        assoc.dul.socket.__class__ = ArchiveSocket
        assoc.caller, assoc.connected_at = self.client_address, self.connected_at
        wait_only_while_open(assoc)
        use_patched_classes(assoc)
        return assoc


class Listener(LimitedServer):
    """Listens on one port, for TLS if ``tls`` is given."""

    request_queue_size = _QUEUE
    daemon_threads = True  # the process need not wait at its exit for a handshake

    def __init__(
        self,
        entity: Any,
        address: tuple[str, int],
        handlers: list[Any],
        tls: ssl.SSLContext | None = None,
        *,
        per_address: int = 100,
    ) -> None:
        self.tls, self.handshake_timeout = tls, float(entity.acse_timeout)
        self.offered = entity.supported_contexts
        options: dict[str, Any] = {"evt_handlers": handlers, "request_handler": _Handler}
        super().__init__(entity, address, entity.ae_title, [], None, per_address=per_address, **options)
        entity._servers.append(self)

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def start(self) -> None:
        """Accept connections, in a thread of its own."""
        threading.Thread(target=self.serve_forever, name="listener", daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log the exception; socketserver would print it."""
        LOGGER.exception("connection from %s failed", client_address[0])
