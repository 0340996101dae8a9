"""Logs each association when it is accepted and when it ends, for ``serve --verbose``."""

from __future__ import annotations

import logging
from typing import Any

from node.dimse.associations.refusals import address_of, title_of

LOGGER = logging.getLogger(__name__)


def log_association(event: Any, what: str) -> None:
    """Handle pynetdicom's EVT_ACCEPTED, EVT_RELEASED or EVT_ABORTED; ``what`` is the past participle to log."""
    LOGGER.info("Association of %s from %s %s", title_of(event.assoc), address_of(event.assoc), what)
