"""Tell, while a handler runs, that the peer has ended its association.

pynetdicom 3.0: ``Association.is_established`` stays True until the handler returns, since ``_run_reactor`` sees an
abort or a closed connection only between two requests.
Upstream: not reported.
Remove when ``is_established`` turns False at once.
"""

from __future__ import annotations

from typing import Any


def has_ended(assoc: Any) -> bool:
    """True if a peer that called us has ended its association, or its connection is closed."""
    return not assoc.is_established or assoc.acse.is_aborted() or not assoc.dul.is_alive()
