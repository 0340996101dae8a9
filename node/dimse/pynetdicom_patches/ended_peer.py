"""Tell a running handler that the peer has ended its association.

pynetdicom 3.0: ``Association.is_established`` stays True until the handler returns, since ``_run_reactor`` sees an
abort or a closed connection only between two requests.
Upstream: not reported.
Remove when ``is_established`` turns False at once.
"""

from __future__ import annotations

from typing import Any

from pynetdicom.pdu_primitives import A_RELEASE


def has_ended(assoc: Any) -> bool:
    """True if a peer that called us has ended its association, or its connection is closed."""
    return not assoc.is_established or assoc.acse.is_aborted() or not assoc.dul.is_alive()


def wants_release(assoc: Any) -> bool:
    """True if the peer has asked to release the association. It sends no more messages then (PS3.8 7.2)."""
    primitive = assoc.dul.peek_next_pdu()
    return isinstance(primitive, A_RELEASE) and primitive.result is None
