"""Keep a cancel that arrives right behind its request (PS3.7 9.3.2.3, 9.3.3.3, 9.3.4.3).

pynetdicom 3.0: ``Association._serve_request`` forgets all cancels when it begins to serve a request, which may be after
the cancel of that request has arrived. The eleventh cancel that it has not forgotten ends the association.
Upstream: not reported.
Remove when only cancels that arrived before their request are forgotten.
"""

from __future__ import annotations

from typing import Any

from pydicom import Dataset
from pynetdicom.dimse import DIMSEServiceProvider

_CANCEL = 0x0FFF
"""Command Field of a C-CANCEL-RQ (PS3.7 E.1)."""
_MOST = 10
"""Most cancels that pynetdicom holds."""


class KeptCancels(DIMSEServiceProvider):
    """The messages of one of our associations. ``cancel_req``: the cancels that are not older than their request."""

    @property
    def cancel_req(self) -> dict[int, Any]:
        """The cancels by Message ID."""
        cancels: dict[int, Any] = vars(self).setdefault("_cancels", {})
        return cancels

    @cancel_req.setter
    def cancel_req(self, forgotten: dict[int, Any]) -> None:
        """Forget nothing: ``forget_older_cancel`` has removed the cancels that are older than their request."""


def forget_older_cancel(assoc: Any, command: Dataset) -> None:
    """Forget an older cancel when one of our associations has received a request."""
    cancels = assoc.dimse.cancel_req
    if command.CommandField != _CANCEL:
        cancels.pop(command.get("MessageID"), None)
    elif len(cancels) >= _MOST:
        cancels.clear()  # of requests that had been answered
