"""Start the time for a response when the last byte of the request has been sent.

pynetdicom 3.0: ``DIMSEServiceProvider.get_msg`` counts ``dimse_timeout`` from when the request was queued, so a large
image on a slow line always times out.
Upstream: pynetdicom#792 (closed: set ``dimse_timeout`` to None).
Remove when ``dimse_timeout`` excludes the time that sending takes.
"""

from __future__ import annotations

import fcntl
import queue
import sys
import termios
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from node.dimse.pynetdicom_patches.ended_peer import wants_release
from node.dimse.pynetdicom_patches.matched_responses import answers_another

_POLL = 0.1
"""Seconds between two checks whether the peer still acknowledges bytes."""


def time_responses(assoc: Any, sent: threading.Event, awaited: Callable[[], int | None]) -> None:
    """Count ``dimse_timeout`` from when ``sent`` is set and the peer has stopped acknowledging bytes.

    ``awaited``: the Message ID of the C-STORE that waits for its response.
    """
    get_msg = assoc.dimse.get_msg
    assoc.dimse.get_msg = lambda block=False: _response(assoc, sent, awaited()) if block else get_msg(block=False)


def reason_for_no_response(assoc: Any) -> str:
    """Why no response came to the last request of an association, for people."""
    lost = getattr(assoc.dul.socket, "lost", "")
    if lost:
        return f"the connection was lost while sending: {lost}"
    if wants_release(assoc):
        return "receiver released the association instead of answering"
    if assoc._sent_abort:  # by pynetdicom, after the timeout
        return f"receiver did not answer within {assoc.dimse_timeout:g} s of the last byte (node.dimse_timeout)"
    return "receiver aborted the association, or closed the connection"


def _response(assoc: Any, sent: threading.Event, awaited: int | None) -> tuple[Any, Any]:
    """The next message, or (None, None) if none came within the DIMSE timeout or before the peer asked for release."""
    timeout = assoc.dimse_timeout or float("inf")
    deadline, unsent = time.monotonic() + timeout, 0
    while assoc.dul.is_alive() and time.monotonic() < deadline:
        is_last = wants_release(assoc)  # asked first: a message that came before it is in the queue
        with suppress(queue.Empty):
            context_id, message = assoc.dimse.msg_queue.get(timeout=_POLL)
            if not answers_another(assoc, message, awaited):
                return context_id, message
            continue
        if is_last:
            break
        before, unsent = unsent, _unacknowledged(assoc.dul.socket) if sent.is_set() else -1
        if unsent < 0 or unsent != before:
            deadline = time.monotonic() + timeout
    return None, None


def _unacknowledged(connection: Any) -> int:
    """Bytes that the peer has not acknowledged; 0 if the system does not say (other than Linux)."""
    answer = bytearray(4)
    try:
        fcntl.ioctl(connection.socket.fileno(), termios.TIOCOUTQ, answer)
    except (OSError, AttributeError, ValueError):
        return 0
    return int.from_bytes(answer, sys.byteorder)
