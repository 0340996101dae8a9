"""Log a PDU that cannot be decoded in one line without its content, and abort the association.

pynetdicom 3.0: ``DULServiceProvider._read_pdu_data`` logs two lines and a traceback that quotes the value. An error in
``to_primitive``, which the state machine calls, ends the thread and leaves the connection open. What is no DICOM, such
as an HTTP request, is logged once for each six bytes, which it takes for the beginning of a PDU.
Upstream: pynetdicom#963 (closed) shows such a log.
Remove when the log quotes no value, ``to_primitive`` is guarded, and nothing is read after an invalid PDU.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Any

from pynetdicom.dul import DULServiceProvider
from pynetdicom.pdu import A_ABORT_RQ

from node.dimse.pynetdicom_patches.association_request import MalformedPdu

LOGGER = logging.getLogger(__name__)

_DISCARDED = 2**16
"""Bytes that are discarded at once after an invalid PDU."""
_DISCARD_TIME = 1.0
"""Seconds to wait for them; the connection has reported that some are there."""


class UndecodablePduAbort(DULServiceProvider):
    """The thread that owns a connection; it aborts after a PDU that cannot be decoded."""

    _desynchronised = False
    """True after an invalid PDU: nobody knows where the next one begins."""

    def _read_pdu_data(self) -> None:
        if not self._desynchronised:
            super()._read_pdu_data()
            self._desynchronised = "Evt19" in self.event_queue.queue
            return
        connection: Any = self.socket
        with suppress(OSError):
            connection.socket.settimeout(_DISCARD_TIME)
            if connection.socket.recv(_DISCARDED):
                return
        self.event_queue.put("Evt17")  # transport connection closed

    def _decode_pdu(self, bytestream: bytearray) -> Any:
        try:
            return super()._decode_pdu(bytestream)
        except Exception as error:  # noqa: BLE001 - a peer's PDU may be broken in any way
            reason = error if isinstance(error, MalformedPdu) else type(error).__name__  # others may quote a value
            peer = self.assoc.remote["address"]
            LOGGER.warning("PDU of type %02X from %s cannot be decoded: %s", bytestream[0], peer, reason)
            return A_ABORT_RQ(), "Evt19"  # invalid PDU: the state machine aborts, and looks at no PDU
