"""Send an N-EVENT-REPORT on an association that a peer opened, without losing its requests.

pynetdicom 3.0: ``Association.send_n_event_report`` takes the next message for the response. A request that the peer
sends meanwhile is lost, and the association aborted.
Upstream: not reported.
Remove when it leaves other messages in the queue.
"""

from __future__ import annotations

import queue
import time
from io import BytesIO
from typing import Any

from pydicom import Dataset
from pydicom.uid import UID
from pynetdicom.dimse_primitives import N_EVENT_REPORT
from pynetdicom.dsutils import encode

_MOST_OTHERS = 4
"""Most requests that may arrive before the response; after that many, the response is no longer awaited."""


def report_event(assoc: Any, event_type: int, sop_class: str, sop_instance: str, information: Dataset) -> int | None:
    """Send the report from the association's own thread and return the peer's status.

    None if the peer did not respond, responded without a status, or wants to release. Requests that arrive meanwhile
    stay in the queue.
    """
    context = next(one for one in assoc.accepted_contexts if one.abstract_syntax == sop_class)
    syntax = context.transfer_syntax[0]
    message: Any = N_EVENT_REPORT()
    message.MessageID = 1
    message.AffectedSOPClassUID, message.AffectedSOPInstanceUID = UID(sop_class), UID(sop_instance)
    message.EventTypeID = event_type
    encoded = encode(information, syntax.is_implicit_VR, syntax.is_little_endian, syntax.is_deflated)
    message.EventInformation = BytesIO(encoded or b"")
    assoc.dimse.send_msg(message, context.context_id)
    others: list[Any] = []
    status = _response(assoc, others)
    arrived = assoc.dimse.msg_queue
    with arrived.mutex:
        arrived.queue.extendleft(reversed(others))
    return status


def _response(assoc: Any, others: list[Any]) -> int | None:
    deadline = time.monotonic() + (assoc.dimse_timeout or 60)
    while time.monotonic() < deadline and assoc.dul.is_alive() and len(others) < _MOST_OTHERS:
        try:
            entry = assoc.dimse.msg_queue.get(timeout=0.1)
        except queue.Empty:
            if assoc.dul.peek_next_pdu() is not None:  # a release or an abort
                return None
            continue
        if isinstance(entry[1], N_EVENT_REPORT) and entry[1].MessageIDBeingRespondedTo is not None:
            status = entry[1].Status
            return None if status is None else int(status)
        others.append(entry)
    return None
