"""Take every message of a P-DATA-TF PDU that holds several (PS3.8 9.3.5, E.2), and let few messages wait.

pynetdicom 3.0: ``DIMSEMessage.decode_msg`` returns at the last fragment of a message. What follows it in the same PDU,
such as the cancel of a request or the next request, is lost. ``msg_queue`` has no limit: a peer that does not wait for
answers fills the memory, and with C-STORE requests, each of which has an open file, the table of open files.
Upstream: not reported.
Remove when the rest of a PDU is decoded too, and nothing is read while several requests wait.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any

from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dul import DULServiceProvider
from pynetdicom.pdu_primitives import P_DATA

_MOST = 2
"""Most messages that wait to be served. No asynchronous operations are negotiated, so 1 would do (PS3.7 D.3.3.3)."""
_PAUSE = 0.001
"""Seconds between two checks of whether a message was served."""


class SeparateMessages(DIMSEServiceProvider):
    """The messages of one of our associations, which takes the fragments of a PDU one by one."""

    def receive_primitive(self, primitive: Any) -> None:
        """Take the fragments of a PDU. While ``_MOST`` messages wait, the fragments of further ones are kept."""
        self._left.extend(primitive.presentation_data_value_list)
        self.take_fragments()

    def take_fragments(self) -> bool:
        """Take the fragments that were kept, until one cannot be decoded; False while ``_MOST`` messages wait."""
        while self._left and self.msg_queue.qsize() < _MOST:
            part = P_DATA()
            part.presentation_data_value_list.append(self._left.popleft())
            super().receive_primitive(part)
            if "Evt19" in self.dul.event_queue.queue:  # invalid PDU: the state machine is about to abort
                self._left.clear()
        return self.msg_queue.qsize() < _MOST

    @property
    def _left(self) -> deque[Any]:
        left: deque[Any] = vars(self).setdefault("_fragments", deque())
        return left


class PacedReceive(DULServiceProvider):
    """The thread that owns a connection; it reads nothing while ``_MOST`` messages wait."""

    def _is_transport_event(self) -> bool:
        messages: Any = self.assoc.dimse
        if self.state_machine.current_state != "Sta6" or messages.take_fragments():  # Sta6: data transfer (PS3.8 9.2)
            return super()._is_transport_event()
        time.sleep(_PAUSE)
        return False
