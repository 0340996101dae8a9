"""Keep a request to release an association until the handler of a C-FIND has returned.

pynetdicom 3.0: ``ServiceClass._wrap_handler`` takes an A-RELEASE-RQ from the queue, answers the C-FIND with success
whatever is left to send, and never answers the release. The peer waits until the network timeout.
Upstream: not reported.
Remove when ``_wrap_handler`` leaves the request in the queue.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from pynetdicom.service_class import ServiceClass

from node.dimse.pynetdicom_patches.ended_peer import has_ended
from node.dimse.pynetdicom_patches.entity import ArchiveEntity


def install() -> None:
    """For our entity, let the handler decide what a request for release means."""
    service: Any = ServiceClass
    original = service._wrap_handler

    def wrapped(self: Any, handler: Any) -> Any:
        return _results(self.assoc, handler) if isinstance(self.assoc.ae, ArchiveEntity) else original(self, handler)

    service._wrap_handler = wrapped


def _results(assoc: Any, handler: Any) -> Iterator[tuple[Any, Any]]:
    """What the handler yields, or the error that ends it, as ``_wrap_handler`` returns them."""
    try:
        for result in handler:
            if has_ended(assoc):
                return
            yield result, None
    except Exception:  # noqa: BLE001 - pynetdicom answers with a failure
        yield None, sys.exc_info()
