"""Logs each association when it is accepted and when it ends, for ``serve --verbose``."""

from __future__ import annotations

import logging
from typing import Any

from node.dimse.associations.refusals import address_of

LOGGER = logging.getLogger(__name__)


def accepted(event: Any) -> None:
    """Handle pynetdicom's EVT_ACCEPTED."""
    _log(event, "accepted")


def released(event: Any) -> None:
    """Handle EVT_RELEASED."""
    _log(event, "released")


def aborted(event: Any) -> None:
    """Handle EVT_ABORTED."""
    _log(event, "aborted")


def _log(event: Any, what: str) -> None:
    if event.assoc.is_acceptor:
        LOGGER.info(
            "Association of %s from %s %s", str(event.assoc.requestor.ae_title).strip(), address_of(event.assoc), what
        )
