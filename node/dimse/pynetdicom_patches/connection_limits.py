"""Limit the number of open connections, in all and for each address.

pynetdicom 3.0: ``maximum_associations`` is checked when a caller asks for an association. ``AssociationServer``
accepts any number of connections that ask for nothing, two threads each.
Upstream: pynetdicom#669 (closed) cured only a leak after them.
Remove when the server refuses connections beyond a limit.
"""

from __future__ import annotations

import errno
import logging
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from pynetdicom.transport import ThreadedAssociationServer

LOGGER = logging.getLogger(__name__)

WAITING = 64
"""Connections that may be open, beyond the allowed associations, without having asked for one. As many more may be
closing. Chosen, not measured."""

_PAUSE = 0.1
"""Seconds until a connection is accepted again that waited for a file descriptor. Chosen."""


@dataclass(eq=False)
class Opening:
    """A connection that has no thread of an association yet, as during its TLS handshake. ``connection``: its socket,
    which TLS wraps."""

    caller: Any
    connection: Any
    connected_at: float = field(default_factory=time.monotonic)
    gave_way: bool = False


class LimitedServer(ThreadedAssociationServer):
    """Accepts ``maximum_associations`` connections less ``WAITING``, and ``per_address`` from one address.

    Beyond the first limit, the connection that has waited longest without asking for an association gives way to a new
    one, so that silent callers cannot keep others out.
    """

    def __init__(self, *arguments: Any, per_address: int, **options: Any) -> None:
        self._lock = threading.Lock()
        self._opening: dict[Any, Opening] = {}  # by the socket as it was accepted
        self._per_address = per_address
        super().__init__(*arguments, **options)

    def get_request(self) -> Any:
        """Accept a connection. If the process has no descriptor for it, one that has asked for nothing gives way."""
        try:
            return super().get_request()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                LOGGER.error("connections wait, because %s (ulimit -n, LimitNOFILE of systemd)", error.strerror)
                _one_gives_way(self._opened())
                time.sleep(_PAUSE)  # the listener would try again at once, for ever
            raise

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """False closes the connection. An accepted one counts from now on."""
        opened, most = self._opened(), self.ae.maximum_associations
        address, own = client_address[0], sum(_address(one) == client_address[0] for one in opened)
        if own >= self._per_address:
            LOGGER.warning(
                "closed a connection from %s: %s from there are open (limits.connections_per_address)", address, own
            )
            return False
        if len(opened) >= most - WAITING and (len(opened) >= most or not _one_gives_way(opened)):
            LOGGER.warning("closed a connection from %s: %s are open", address, len(opened))
            return False
        with self._lock:
            self._opening[request] = Opening(client_address, request)
        return True

    def process_request(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._forget(request)
            raise

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection until its association has a thread, which counts from then on."""
        try:
            super().finish_request(request, client_address)
        finally:
            self._forget(request)

    def opening(self, request: Any) -> Opening:
        """The connection with that accepted socket, which has no association yet."""
        with self._lock:
            return self._opening[request]

    def _forget(self, request: Any) -> None:
        with self._lock:
            self._opening.pop(request, None)

    def _opened(self) -> list[Any]:
        """Every open connection once: as its association, if that has a thread."""
        with self._lock:
            opened = {one.caller: one for one in self._opening.values()}
        return list((opened | {getattr(one, "caller", one): one for one in self.ae.active_associations}).values())


def _address(opened: Any) -> str:
    """The address of a caller; empty for an association that we opened."""
    caller = getattr(opened, "caller", None)
    return str(caller[0]) if caller else ""


def _one_gives_way(opened: list[Any]) -> bool:
    """Close the connection that has waited the longest without an association; False if there is none."""
    silent = [one for one in opened if not getattr(one, "gave_way", True) and not getattr(one, "admitted_at", 0.0)]
    if not silent:
        return False
    oldest = min(silent, key=lambda one: one.connected_at)
    oldest.gave_way = True
    LOGGER.warning(
        "closed a connection from %s, which had asked for nothing for %.1f s, for a new one: %s are open",
        *(_address(oldest), time.monotonic() - oldest.connected_at, len(opened)),
    )
    with suppress(OSError, AttributeError, TypeError):  # it has ended at this moment
        connection = oldest.connection if isinstance(oldest, Opening) else oldest.dul.socket.socket
        socket.socket.shutdown(connection, socket.SHUT_RDWR)  # an SSLSocket would forget its handshake
    return True
