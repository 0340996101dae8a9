"""Limit the size of a PDU and the time it may take to arrive.

pynetdicom 3.0: ``AssociationSocket.recv`` collects as many bytes as a PDU announces, up to 4 GiB, in memory, and waits
for them without a time limit. One caller can fill the memory, and one that stops in the middle of a PDU holds a place
for ever.
Upstream: not reported.
Remove when ``recv`` enforces the negotiated maximum length and ``AE.network_timeout``.
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from typing import Any

from pynetdicom.transport import AssociationSocket

LOGGER = logging.getLogger(__name__)

_SMALLEST_LIMIT = 2**20
"""Limit in bytes before an association is established, and the least afterwards. An A-ASSOCIATE-RQ with 128 contexts
and every transfer syntax takes half of this."""


class LimitedReceive(AssociationSocket):
    """A connection that receives PDUs of limited size within limited time."""

    def recv(self, nr_bytes: int) -> bytearray:
        """The bytes asked for, or fewer if the peer closed the connection, or the PDU is too large or too slow.

        pynetdicom treats fewer bytes as a closed connection.
        """
        if nr_bytes > self._limit:
            peer = self.assoc.remote["address"]
            LOGGER.warning("a PDU of %s bytes from %s, %s are taken at most", nr_bytes, peer, self._limit)
            return bytearray()
        connection: Any = self.socket
        timeout = self.assoc.ae.network_timeout
        deadline = None if timeout is None else time.monotonic() + timeout
        buffer, read = bytearray(nr_bytes), 0
        with memoryview(buffer) as view, suppress(OSError):  # reset, or timed out
            while read < nr_bytes:
                connection.settimeout(None if deadline is None else max(deadline - time.monotonic(), 0.001))
                got = connection.recv_into(view[read:])
                if not got:
                    break
                read += got
        return buffer[:read] if read < nr_bytes else buffer

    @property
    def _limit(self) -> int:
        own: Any = self.assoc.acceptor if self.assoc.is_acceptor else self.assoc.requestor
        if not self.assoc.is_established:
            return _SMALLEST_LIMIT
        return max(own.maximum_length, _SMALLEST_LIMIT) if own.maximum_length else 2**32
