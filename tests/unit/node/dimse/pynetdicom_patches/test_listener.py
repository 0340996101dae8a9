"""Proves that connections that arrive at one moment wait in a queue until they are accepted."""

from __future__ import annotations

import socket
from contextlib import ExitStack

from pynetdicom import AE

from node.dimse.pynetdicom_patches.listener import Listener


def test_a_hundred_connections_at_one_moment_are_queued() -> None:
    """Found by benchmarks.load: beside ten senders, a C-ECHO took a second, because its connection had been dropped."""
    entity = AE("LATENTPACS")
    entity.add_supported_context("1.2.840.10008.1.1")
    listener = Listener(entity, ("127.0.0.1", 0), [])  # it is not started, as if it had no time to accept
    try:
        with ExitStack() as connections:
            for _ in range(100):
                connections.enter_context(socket.create_connection(("127.0.0.1", listener.port), 5))
    finally:
        listener.server_close()
