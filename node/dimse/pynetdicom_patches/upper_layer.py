"""Threads of one association where those of pynetdicom 3.0 would outlive it; undocumented, as is wire.py.

1. An error in the thread of an association leaves the one that owns its connection alone: the caller is neither
   answered nor closed, and no limit counts it. Here the association ends with either thread.
2. A PDU that cannot be decoded prints a traceback that quotes it. Here it is one line, and the association is aborted.
3. A PDU that comes while the answer to a request is made ends the thread with a traceback. Here that is one line.
4. A process waits at its end for threads that are sending to a peer that does not read. Here it does not.
"""

from __future__ import annotations

import logging
from typing import Any

from pynetdicom.association import Association
from pynetdicom.dul import DULServiceProvider
from pynetdicom.fsm import InvalidEventError
from pynetdicom.pdu import A_ABORT_RQ

from node.dimse.pynetdicom_patches.negotiation import ANSWER, REQUEST, Refusal, checked_request

LOGGER = logging.getLogger(__name__)


class UpperLayer(DULServiceProvider):
    """The provider of the upper layer service; it owns the connection."""

    refusal: Refusal | None = None
    """Why the association that was asked for is to be refused."""

    def run(self) -> None:
        """Until the connection has ended, however it does."""
        try:
            super().run()
        except InvalidEventError:  # such as an invalid PDU behind a request, while the answer to that is made
            LOGGER.warning("association with %s ended: a PDU arrived that it had no place for", self._peer)
            if self.socket is not None:
                self.socket.close()

    def _decode_pdu(self, bytestream: bytearray) -> Any:
        try:
            if bytestream[0] in (REQUEST, ANSWER):
                mended, self.refusal = checked_request(bytes(bytestream))
                pdu, event = super()._decode_pdu(bytearray(mended))
                pdu.to_primitive()  # the state machine does this, and would die of what it raises
                return pdu, event
            return super()._decode_pdu(bytestream)
        except Exception as error:  # noqa: BLE001 - a peer's PDU may be broken in any way
            # what a ValueError of ours says quotes no values; pynetdicom's errors may
            why = error if type(error) is ValueError and bytestream[0] in (REQUEST, ANSWER) else type(error).__name__
            LOGGER.warning("PDU of type %02X from %s cannot be decoded: %s", bytestream[0], self._peer, why)
            return A_ABORT_RQ(), "Evt19"  # invalid PDU: the state machine aborts, and looks at no PDU

    @property
    def _peer(self) -> str:
        return str((self.assoc.requestor if self.assoc.is_acceptor else self.assoc.acceptor).address)


class Caller(Association):
    """An association that a peer opens."""

    def run(self) -> None:
        """Until the association has ended, however it does."""
        try:
            super().run()
        except Exception:
            LOGGER.exception("association with %s failed", self.requestor.address)
        finally:
            if self.dul.is_alive():
                self.abort()


def take_over(assoc: Any) -> None:
    """Make these classes those of an association that was built, and has not begun."""
    assoc.dul.__class__ = UpperLayer
    assoc.dul.daemon = True
    if assoc.is_acceptor:
        assoc.__class__ = Caller
