"""Limit the number of open connections, in all and for each address.

pynetdicom 3.0: ``maximum_associations`` is checked when a caller asks for an association. ``AssociationServer``
accepts any number of connections that ask for nothing, two threads each.
Upstream: pynetdicom#669 (closed) cured only a leak after them.
Remove when the server refuses connections beyond a limit.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pynetdicom.transport import ThreadedAssociationServer

LOGGER = logging.getLogger(__name__)

_WAITING = 64
"""Connections accepted beyond ``maximum_associations``; they are rejected by DICOM (PS3.8 table 9-21)."""


class LimitedServer(ThreadedAssociationServer):
    """Accepts a limited number of connections. ``per_address``: connections from one address."""

    def __init__(self, *arguments: Any, per_address: int, **options: Any) -> None:
        self._lock = threading.Lock()
        self._handshakes: Counter[str] = Counter()
        self._per_address = per_address
        super().__init__(*arguments, **options)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """False closes the connection, if there are too many for a rejection by DICOM."""
        address, associations = client_address[0], self.ae.active_associations
        waiting = self._handshakes.total() + len(associations)
        if waiting >= self.ae.maximum_associations + _WAITING:
            LOGGER.warning("closed a connection from %s: %s are open", address, waiting)
            return False
        own = self._handshakes[address] + sum(getattr(one, "caller_address", "") == address for one in associations)
        if own >= self._per_address:
            LOGGER.warning(
                "closed a connection from %s: %s from there are open (limits.connections_per_address)", address, own
            )
            return False
        return True

    @contextmanager
    def count_handshake(self, address: str) -> Iterator[None]:
        """Count a TLS handshake with that address as an open connection while it lasts."""
        with self._lock:
            self._handshakes[address] += 1
        try:
            yield
        finally:
            with self._lock:
                self._handshakes[address] -= 1
                if not self._handshakes[address]:
                    del self._handshakes[address]
