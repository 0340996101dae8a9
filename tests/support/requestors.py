"""Keeps tests that use pynetdicom as their client from losing a response on a busy machine."""

from __future__ import annotations

from typing import Any

from pynetdicom import AE, evt

from node.dimse.pynetdicom_patches.requestor_responses import keep_responses_from_reactor


def keep_responses_of_all_requestors() -> None:
    """From now on, ``AE.associate`` makes associations whose responses go to the waiting ``send_*`` method.

    Associations that handle N-EVENT-REPORT are not changed, since only the reactor thread receives that request.
    """
    associate = AE.associate

    def patched(self: AE, *args: Any, **options: Any) -> Any:
        assoc = associate(self, *args, **options)
        if evt.EVT_N_EVENT_REPORT not in [event for event, *_ in options.get("evt_handlers") or ()]:
            keep_responses_from_reactor(assoc)
        return assoc

    AE.associate = patched  # type: ignore[method-assign]
