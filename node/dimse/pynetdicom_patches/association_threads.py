"""End an association when an error ends its thread.

pynetdicom 3.0: an exception in ``Association.run`` leaves the thread that owns the connection running: the caller gets
no answer, its connection stays open, and ``maximum_associations`` no longer counts it.
Upstream: pynetdicom#180 (closed unmerged).
Remove when an association aborts after an exception in its thread.
"""

from __future__ import annotations

import logging

from pynetdicom.association import Association

LOGGER = logging.getLogger(__name__)


class GuardedAcceptor(Association):
    """An association that a peer opens; it is aborted if its thread fails."""

    def run(self) -> None:
        try:
            super().run()
        except Exception:
            LOGGER.exception("association with %s failed", self.requestor.address)
        finally:
            if self.dul.is_alive():
                self.abort()
