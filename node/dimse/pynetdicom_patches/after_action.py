"""Call ``ArchiveEntity.after_action`` when the response to an N-ACTION has been sent.

pynetdicom 3.0: ``StorageCommitmentServiceClass.SCP`` sends the response after the handler of EVT_N_ACTION and triggers
nothing then, but a commitment may be reported on the same association only after the response (PS3.4 J.3.3).
Upstream: pynetdicom#617 (closed) asks how to do it.
Remove when an event follows the response.
"""

from __future__ import annotations

from typing import Any

from pynetdicom.service_class_n import StorageCommitmentServiceClass

from node.dimse.pynetdicom_patches.entity import ArchiveEntity


def install() -> None:
    """Call ``after_action`` of our entity after each response."""
    service: Any = StorageCommitmentServiceClass
    original = service.SCP

    def serve(self: Any, request: Any, context: Any) -> None:
        original(self, request, context)
        if isinstance(self.assoc.ae, ArchiveEntity):
            self.assoc.ae.after_action(self.assoc)

    service.SCP = serve
