"""Handles C-FIND: runs one query for a request, and responds once for each match (PS3.4 C.4.1)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

from pydicom import Dataset
from pynetdicom.events import Event

from node.archive.query.find import has_unsupported_keys
from node.archive.query.identifier import IdentifierError
from node.config import Settings
from node.dimse.associations.extended_negotiation import agreed
from node.dimse.associations.refusals import Refusals, title_of
from node.dimse.dimse_status import CANCELLED, NOT_AUTHORIZED, PENDING, QUERY_ERRORS, of_error, reason_text, response
from node.dimse.pynetdicom_patches.ended_peer import has_ended, wants_release
from node.dimse.sop_classes import ROOTS

LOGGER = logging.getLogger(__name__)

PENDING_WITHOUT_SOME_KEYS = 0xFF01
"""An optional key of the request is not supported (PS3.4 C.4.1.1.4)."""


def identifier_of(event: Any) -> Dataset:
    """The identifier of a request. Raises IdentifierError if it cannot be parsed."""
    try:
        found: Dataset = event.identifier
    except Exception as error:  # pydicom and zlib raise many kinds on hostile bytes
        raise IdentifierError(f"identifier cannot be parsed: {type(error).__name__}") from error
    return found


def handle_find(
    event: Event, *, search: Callable[..., Iterator[Dataset]], settings: Settings, refusals: Refusals
) -> Iterator[tuple[int | Dataset, Dataset | None]]:
    """Respond to a C-FIND: pending with each match, then success, cancelled, or an error.

    ``search``: runs ``find`` on the index, with the options that do not depend on the request.
    """
    cancelled = False

    def is_over() -> bool:
        nonlocal cancelled
        cancelled = cancelled or bool(event.is_cancelled) or wants_release(event.assoc)  # reading the former clears it
        return cancelled or has_ended(event.assoc)

    caller = title_of(event.assoc)
    peer = settings.caller(caller)
    if "find" not in peer.allow:
        refusals.of_request(event.assoc, "find", NOT_AUTHORIZED, f"{caller} may not query here")
        yield response(NOT_AUTHORIZED, f"{caller} may not query here"), None
        return
    try:
        identifier, root = identifier_of(event), ROOTS[event.context.abstract_syntax]
        unsupported = has_unsupported_keys(identifier, root)
        shown = {"policy": peer.rendition, "copies": peer.rewrites, "draw": settings.draws(peer)}
        for answer in search(identifier, root, **shown, **vars(agreed(event)), is_over=is_over):
            if is_over():
                break
            yield PENDING_WITHOUT_SOME_KEYS if unsupported else PENDING, answer
        if cancelled and not has_ended(event.assoc):
            yield CANCELLED, None
    except IdentifierError as error:
        refusals.of_request(event.assoc, "find", 0xA900, reason_text(error, QUERY_ERRORS))
        yield of_error(error, QUERY_ERRORS), None
    except Exception as error:
        LOGGER.exception("C-FIND failed")
        yield of_error(error, QUERY_ERRORS), None
