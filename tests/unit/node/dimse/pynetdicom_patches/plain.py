"""pynetdicom without our patches: a server of its own, and a connection of its own."""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from socketserver import BaseServer
from types import SimpleNamespace
from typing import Any

from pynetdicom import AE
from pynetdicom.dul import DULServiceProvider
from pynetdicom.transport import AssociationSocket

VERIFICATION = "1.2.840.10008.1.1"
LONG_ENOUGH = 1.0
"""Seconds after which a thread that still runs is taken for blocked. The timeouts that it ignores are 0.2 s."""


@dataclass(frozen=True)
class PlainServer:
    """A server of pynetdicom's, and its port."""

    entity: AE
    port: int

    @property
    def associations(self) -> list[Any]:
        return self.entity.active_associations


@contextmanager
def plain_server(
    handlers: Sequence[Any] = (), sop_classes: Sequence[str] = (VERIFICATION,), **attributes: Any
) -> Iterator[PlainServer]:
    """A server with these attributes of its AE; its threads are ended afterwards, even those that are blocked."""
    entity = AE("PLAIN")
    for sop_class in sop_classes:
        entity.add_supported_context(sop_class)
    tls = attributes.pop("tls", None)
    for name, value in attributes.items():
        setattr(entity, name, value)
    server: Any = entity.start_server(
        ("127.0.0.1", 0), block=False, ssl_context=tls, evt_handlers=list(handlers), ae_title="PLAIN"
    )
    try:
        yield PlainServer(entity, int(server.server_address[1]))
    finally:
        BaseServer.shutdown(server)
        server.server_close()
        for thread in threading.enumerate():
            if isinstance(thread, DULServiceProvider) and thread.assoc.ae is entity:
                thread.assoc._kill = True
                thread.kill_dul()
                if thread.socket is not None and thread.socket.socket is not None:
                    with suppress(OSError):
                        thread.socket.socket.shutdown(socket.SHUT_RDWR)
                if thread.ident is not None:  # the server was stopped before it has started
                    thread.join(10)


def plain_connection(connection: socket.socket, timeout: float = 0.2) -> AssociationSocket:
    """pynetdicom's wrapper of a connection, for an association with that network timeout."""
    entity = SimpleNamespace(network_timeout=timeout)
    ends = SimpleNamespace(maximum_length=16384)
    association: Any = SimpleNamespace(
        ae=entity,
        network_timeout=timeout,
        is_acceptor=True,
        is_established=True,
        acceptor=ends,
        requestor=ends,
        dul=SimpleNamespace(event_queue=queue.Queue()),
        get_handlers=lambda event: [],
    )
    return AssociationSocket(association, client_socket=connection)


def is_blocked(work: Any, *arguments: Any) -> bool:
    """True if a call does not return in time. The caller then ends what the call waits for."""
    thread = threading.Thread(target=work, args=arguments, daemon=True)
    thread.start()
    thread.join(LONG_ENOUGH)
    return thread.is_alive()
