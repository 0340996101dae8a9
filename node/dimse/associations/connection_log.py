"""Who is connected, for ``serve --verbose``: each association when it is accepted, and how it ended."""

from __future__ import annotations

import logging
from typing import Any

from node.dimse.associations.refusals import address_of

LOGGER = logging.getLogger(__name__)


def accepted(event: Any) -> None:
    """Bound to pynetdicom's EVT_ACCEPTED."""
    _tell(event, "accepted")


def released(event: Any) -> None:
    """Bound to EVT_RELEASED."""
    _tell(event, "released")


def aborted(event: Any) -> None:
    """Bound to EVT_ABORTED."""
    _tell(event, "aborted")


def _tell(event: Any, what: str) -> None:
    if event.assoc.is_acceptor:
        LOGGER.info(
            "Association of %s from %s %s", str(event.assoc.requestor.ae_title).strip(), address_of(event.assoc), what
        )
