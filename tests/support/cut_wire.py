"""A TCP connection that stops carrying bytes, and can be cut."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from dataclasses import dataclass, field


@dataclass
class CutWire:
    """A TCP relay to ``port`` that stops carrying bytes in one direction after ``limit`` of them.

    ``upstream``: the direction that is limited is the one to the server. ``stalled`` is set when the limit is
    reached; both sides stay connected until ``cut``.
    """

    port: int
    limit: int
    upstream: bool = True
    stalled: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> CutWire:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()
        for thread in self._threads:
            thread.join(300)
        self.cut()  # what was accepted meanwhile

    @property
    def listening(self) -> int:
        return int(self._listener.getsockname()[1])

    def cut(self) -> None:
        """End the connection on both sides at once."""
        for one in (self._listener, *self._sockets):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        with suppress(OSError):
            client, _ = self._listener.accept()
            self._sockets.append(client)  # it is closed even if there is no server
            server = socket.create_connection(("127.0.0.1", self.port), timeout=300)
            self._sockets.append(server)
            for source, sink, limited in ((client, server, self.upstream), (server, client, not self.upstream)):
                carry = threading.Thread(target=self._carry, args=(source, sink, limited), daemon=True)
                self._threads.append(carry)
                carry.start()

    def _carry(self, source: socket.socket, sink: socket.socket, limited: bool) -> None:
        left = self.limit if limited else 1 << 62
        with suppress(OSError):
            while left and (data := source.recv(min(left, 65536))):
                sink.sendall(data)
                left -= len(data)
        if not left:
            self.stalled.set()
