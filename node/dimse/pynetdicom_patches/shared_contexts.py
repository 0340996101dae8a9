"""Share the supported presentation contexts between associations instead of copying them.

pynetdicom 3.0: ``RequestHandler._create_association`` deep-copies them for each connection, in the thread that serves
it: 80 ms with those of an archive.
Upstream: not reported (#16 calls the negotiation slow).
Remove when they are no longer copied.
"""

from __future__ import annotations

from typing import Any

from pynetdicom.transport import RequestHandler


class SharedContexts(RequestHandler):
    """Serves one connection with the server's own ``offered`` contexts; its ``contexts`` must be empty."""

    server: Any

    def _create_association(self) -> Any:
        assoc: Any = super()._create_association()
        assoc.acceptor.supported_contexts = self.server.offered
        return assoc
