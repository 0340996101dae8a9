"""End the connection, in one log line, when a PDU arrives that the state machine does not expect.

pynetdicom 3.0: ``StateMachine.do_action`` raises ``InvalidEventError`` when a PDU comes while the response to a
request is made. The thread of the connection dies with a traceback and leaves the connection open, and no
EVT_CONN_CLOSE follows.
Upstream: pynetdicom#204, #538 (both closed) are cases of it.
Remove when the thread closes the connection itself.
"""

from __future__ import annotations

import logging

from pynetdicom import evt
from pynetdicom.dul import DULServiceProvider
from pynetdicom.fsm import InvalidEventError

LOGGER = logging.getLogger(__name__)


class UnexpectedPduClosing(DULServiceProvider):
    """The thread that owns a connection; it closes the connection after an unexpected PDU."""

    def run(self) -> None:
        try:
            super().run()
        except InvalidEventError:  # such as an invalid PDU behind a request, while the response to that is made
            LOGGER.warning(
                "association with %s ended: it sent a PDU that is not expected", self.assoc.remote["address"]
            )
            if self.socket is not None:
                self.socket.close()
            evt.trigger(self.assoc, evt.EVT_CONN_CLOSE, {"address": self.assoc.remote["address"]})
