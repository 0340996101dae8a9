"""Keep the reactor thread of an association that we opened from taking responses.

pynetdicom 3.0: ``Association._run_reactor`` polls for requests, which nobody sends to a requestor. ``send_*`` pauses
it, but between its check and its ``get_msg`` it still takes a message: on a loaded machine the response was lost, and
the sender waited for its DIMSE timeout.
Upstream: pynetdicom#351 added the pause; the gap is not reported.
Remove when the reactor of a requestor takes no message.
"""

from __future__ import annotations

from typing import Any


def keep_responses_from_reactor(assoc: Any) -> None:
    """Leave every message of an association that we opened to the ``send_*`` method that waits for it."""
    if not assoc.is_requestor:
        return  # there the reactor thread is the one that sends
    get_msg = assoc.dimse.get_msg
    assoc.dimse.get_msg = lambda block=False: get_msg(block=True) if block else (None, None)
