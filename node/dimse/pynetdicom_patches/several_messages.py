"""Take every message of a P-DATA-TF PDU that holds fragments of several (PS3.8 9.3.5, E.2).

pynetdicom 3.0: ``DIMSEMessage.decode_msg`` returns at the last fragment of a message. What follows it in the same PDU,
such as the cancel of a request or the next request, is lost.
Upstream: not reported.
Remove when the rest of a PDU is decoded too.
"""

from __future__ import annotations

from typing import Any

from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.pdu_primitives import P_DATA


class SeparateMessages(DIMSEServiceProvider):
    """The messages of one of our associations, which takes the fragments of a PDU one by one."""

    def receive_primitive(self, primitive: Any) -> None:
        """Take the fragments of a PDU, until one cannot be decoded."""
        for fragment in primitive.presentation_data_value_list:
            part = P_DATA()
            part.presentation_data_value_list.append(fragment)
            super().receive_primitive(part)
            if "Evt19" in self.dul.event_queue.queue:  # invalid PDU: the state machine is about to abort
                return
