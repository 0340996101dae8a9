"""Taking connections where pynetdicom 3.0 would let one caller stop or fill us; undocumented, as is wire.py.

1. Its TLS handshake runs in the thread that accepts: one silent caller would lock out all others. Here it has a thread
   of its own and a time limit.
2. It reads as many bytes as a PDU announces, up to 4 GiB, into memory, and waits for them for ever. Here a PDU has a
   size and a time; so has sending to a peer that does not read.
3. Connections that never ask for an association do not count for it. Here they do, as long as they are open, in all
   and for each address.
4. Over TLS 1.3 it takes a session ticket for the beginning of a PDU, and neither sends nor receives until one comes.
5. It copies every presentation context for each association, which takes 80 ms with those of an archive.
6. Small messages wait for each other (Nagle's algorithm): an answer is a command and a data set, and with the delayed
   acknowledgement of most systems the second waits 40 ms for the first to be confirmed.
"""

from __future__ import annotations

import fcntl
import logging
import mmap
import socket
import ssl
import struct
import sys
import termios
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from pynetdicom import evt
from pynetdicom.transport import (
    AddressInformation,
    AssociationSocket,
    RequestHandler,
    ThreadedAssociationServer,
)

from node.dimse.pynetdicom_patches.upper_layer import take_over

LOGGER = logging.getLogger(__name__)

_SMALLEST_LIMIT = 2**20
"""An A-ASSOCIATE-RQ, 128 contexts with every transfer syntax there is, takes half of this."""

_LOOK = 0.1
"""Seconds between two looks whether a caller that has not asked for an association is still there."""
_CLOSED = "Sta1"
"""No connection: the state of PS3.8 9.2 that an upper layer begins and ends in."""

_WAITING = 64
"""Connections beyond the associations allowed: they are told that there are too many, by DICOM."""


class BoundedSocket(AssociationSocket):
    """A connection on which a PDU has a size and a time limit."""

    _first = b""
    """What ``ready`` has read already."""
    lost = ""
    """Why the connection was lost while sending; empty where it was not."""

    def _create_socket(self, address: AddressInformation) -> socket.socket:
        made = super()._create_socket(address)
        send_at_once(made)
        return made

    @property
    def ready(self) -> bool:
        """True where a PDU has begun to arrive. Over TLS, bytes may be there that are none: session tickets of TLS 1.3;
        reading on would wait for a PDU, and nothing could be sent meanwhile."""
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
        return True  # nothing read: the peer closed, and recv will see it too

    def recv(self, nr_bytes: int) -> bytearray:
        """That many bytes, or fewer where the peer closed, or where they are too many or too slow: pynetdicom takes the
        connection for closed then."""
        if nr_bytes > self._limit:
            LOGGER.warning("a PDU of %s bytes from %s, %s are taken at most", nr_bytes, self._peer, self._limit)
            return bytearray()
        connection: Any = self.socket
        patience = self._patience
        deadline = None if patience is None else time.monotonic() + patience
        buffer = bytearray(nr_bytes)
        read = min(len(self._first), nr_bytes)
        buffer[:read], self._first = self._first[:read], self._first[read:]
        with memoryview(buffer) as view, suppress(OSError):  # reset, or timed out
            while read < nr_bytes:
                connection.settimeout(None if deadline is None else max(deadline - time.monotonic(), 0.001))
                got = connection.recv_into(view[read:])
                if not got:
                    break
                read += got
        return buffer[:read] if read < nr_bytes else buffer

    def send(self, bytestream: bytes) -> None:
        """All of it, or the connection counts as closed."""
        connection: Any = self.socket
        try:
            connection.settimeout(self._patience)
            _send_all(connection, memoryview(bytestream))
            evt.trigger(self.assoc, evt.EVT_DATA_SENT, {"data": bytestream})
        except Exception as error:  # noqa: BLE001 - as pynetdicom's own: whatever it was, the connection is of no use
            self._count_as_closed(error)

    def send_file(self, path: Path, offset: int, context_id: int, most: int) -> None:
        """The data set from ``offset`` of a file on, as P-DATA-TF PDUs of at most ``most`` bytes (PS3.8 9.3.5)."""
        connection: Any = self.socket
        try:
            connection.settimeout(self._patience)
            with (
                path.open("rb") as file,
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
                memoryview(mapped) as whole,
            ):
                for start in range(offset, len(whole), most - 6):
                    with whole[start : start + most - 6] as part:
                        last = 0x02 if start + len(part) == len(whole) else 0x00
                        _send_both(connection, _PDV.pack(4, len(part) + 6, len(part) + 2, context_id, last), part)
        except Exception as error:  # noqa: BLE001 - as above
            self._count_as_closed(error)

    def unsent(self) -> int:
        """Bytes that the peer has not acknowledged yet; 0 where the system does not tell (other than Linux)."""
        answer = bytearray(4)
        try:
            fcntl.ioctl(self.socket.fileno(), termios.TIOCOUTQ, answer)  # type: ignore[union-attr]
        except (OSError, AttributeError, ValueError):
            return 0
        return int.from_bytes(answer, sys.byteorder)

    def cut(self) -> None:
        """End the connection at once, also under a thread that is sending or receiving."""
        if self.socket is not None:
            with suppress(OSError):
                socket.socket.shutdown(self.socket, socket.SHUT_RDWR)

    def _count_as_closed(self, error: Exception) -> None:
        slow = f"no byte taken for {self._patience:g} s (node.network_timeout)"
        self.lost = slow if isinstance(error, TimeoutError) else str(error)
        LOGGER.info("connection to %s lost while sending: %s", self._peer, self.lost)
        self.event_queue.put("Evt17")

    @property
    def _peer(self) -> str:
        return str((self.assoc.requestor if self.assoc.is_acceptor else self.assoc.acceptor).address)

    @property
    def _limit(self) -> int:
        own: Any = self.assoc.acceptor if self.assoc.is_acceptor else self.assoc.requestor
        if not self.assoc.is_established:
            return _SMALLEST_LIMIT
        return max(own.maximum_length, _SMALLEST_LIMIT) if own.maximum_length else 2**32

    @property
    def _patience(self) -> float | None:
        return self.assoc.ae.network_timeout


_PDV = struct.Struct(">BxIIBB")
"""The header of a P-DATA-TF PDU with one presentation data value: PDU type and length, PDV length, context, control."""


_PORTION = 2**16
"""Bytes that a peer may take ``node.network_timeout`` for. A whole PDU could need longer on a slow line."""


def send_at_once(connection: socket.socket) -> None:
    """Switch Nagle's algorithm off (TCP_NODELAY)."""
    with suppress(OSError):  # closed meanwhile: the next send says so
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _send_both(connection: Any, header: bytes, part: memoryview) -> None:
    """Header and data without a copy of the data, where the connection can do that."""
    if isinstance(connection, ssl.SSLSocket):
        _send_all(connection, memoryview(header + part))
        return
    sent = connection.sendmsg([header, part])
    if sent < len(header):
        connection.sendall(header[sent:])
        sent = len(header)
    _send_all(connection, part[sent - len(header) :])


def _send_all(connection: Any, data: memoryview) -> None:
    for start in range(0, len(data), _PORTION):
        connection.sendall(data[start : start + _PORTION])


class _Caller(RequestHandler):
    """One connection, in a thread of its own."""

    server: Listener

    def handle(self) -> None:
        send_at_once(self.request)
        if self.server.tls is not None and not self._secured(self.server.tls):
            return
        super().handle()

    def _secured(self, context: ssl.SSLContext) -> bool:
        connection: Any = self.request
        connection.settimeout(self.server.patience)
        try:
            with self.server.shaking_hands(self.client_address[0]):
                self.request = context.wrap_socket(connection, server_side=True)
        except (OSError, ValueError) as error:  # SSLError and TimeoutError are OSErrors
            LOGGER.warning("no TLS with %s: %s", self.client_address[0], error)
            connection.close()
            return False
        return True

    def _create_association(self) -> Any:
        assoc: Any = super()._create_association()
        assoc.acceptor.supported_contexts = self.server.offered
        # it is connected and has told the state machine so; a second one would tell it again
        assoc.dul.socket.__class__ = BoundedSocket
        assoc.called_from = self.client_address[0]
        _notice_closing(assoc)
        take_over(assoc)
        return assoc


def _notice_closing(assoc: Any) -> None:
    """Let a new connection wait for its association request only as long as it is open.

    pynetdicom waits the whole time for the request of a caller that has closed already, as port scans and load
    balancers do, and counts it meanwhile.
    """
    take, machine, begun = assoc.dul.receive_pdu, assoc.dul.state_machine, threading.Event()

    def receive(wait: bool = False, timeout: float | None = None) -> Any:
        if not wait or timeout is None:
            return take(wait, timeout)
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            primitive = take(True, min(left, _LOOK))
            if machine.current_state != _CLOSED:
                begun.set()
            closed = not assoc.dul.is_alive() or (begun.is_set() and machine.current_state == _CLOSED)
            if primitive is not None or closed:
                return primitive
        return None

    assoc.dul.receive_pdu = receive


class Listener(ThreadedAssociationServer):
    """Listens on one port, for TLS where ``tls`` is given. ``patience``: seconds for a TLS handshake."""

    daemon_threads = True  # a process need not wait at its end for a handshake

    def __init__(
        self,
        entity: Any,
        address: tuple[str, int],
        handlers: list[Any],
        tls: ssl.SSLContext | None = None,
        *,
        per_address: int = 100,
    ) -> None:
        self.tls, self.patience = tls, float(entity.acse_timeout)
        self.offered = entity.supported_contexts
        self._entity = entity
        self._lock = threading.Lock()
        self._shaking: Counter[str] = Counter()
        self._per_address = per_address
        super().__init__(entity, address, entity.ae_title, [], None, evt_handlers=handlers, request_handler=_Caller)
        entity._servers.append(self)

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def start(self) -> None:
        """Take connections, in a thread of its own."""
        threading.Thread(target=self.serve_forever, name="listener", daemon=True).start()

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """False closes the connection: there are too many to be told so by DICOM."""
        address, associations = client_address[0], self._entity.active_associations
        waiting = self._shaking.total() + len(associations)
        if waiting >= self._entity.maximum_associations + _WAITING:
            LOGGER.warning("closed a connection from %s: %s are open", address, waiting)
            return False
        own = self._shaking[address] + sum(getattr(one, "called_from", "") == address for one in associations)
        if own >= self._per_address:
            LOGGER.warning(
                "closed a connection from %s: %s from there are open (limits.connections_per_address)", address, own
            )
            return False
        return True

    def shaking_hands(self, address: str) -> _Count:
        """Counts a TLS handshake while it lasts."""
        return _Count(self, address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """socketserver would print it."""
        LOGGER.exception("connection from %s failed", client_address[0])

    def count(self, address: str, by: int) -> None:
        with self._lock:
            self._shaking[address] += by
            if not self._shaking[address]:
                del self._shaking[address]


class _Count:
    def __init__(self, listener: Listener, address: str) -> None:
        self._listener, self._address = listener, address

    def __enter__(self) -> None:
        self._listener.count(self._address, 1)

    def __exit__(self, *_: object) -> None:
        self._listener.count(self._address, -1)
