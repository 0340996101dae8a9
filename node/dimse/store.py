"""C-STORE (PS3.4 Annex B): a spooled data set goes to ingest; the answer is sent when it is durable."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from pydicom import Dataset

from node.archive.ingest import Ingest
from node.dimse.peers import Peers
from node.dimse.status import NOT_AUTHORIZED, PIXELS_NOT_SOUND, STORE_ERRORS, SUCCESS, for_log, of_error, response
from storage.errors import LatentPacsError
from storage.records import TrailEntry

LOGGER = logging.getLogger(__name__)


Record = Callable[[TrailEntry], None]
"""Hands an entry to the audit trail, and does not wait for it."""


def handle_store(event: Any, ingest: Ingest, peers: Peers, record: Record) -> Dataset:
    """One C-STORE request to one ingest call to one status, and one entry in the trail."""
    caller = peers.calling(event)
    if not peers.may(caller, "store"):
        return response(NOT_AUTHORIZED, f"{caller} may not store here")
    arrived = event.request._dataset_file
    arrived.flush()
    try:
        if arrived.refused is not None:
            raise arrived.refused
        receipt = ingest.receive(
            event.dataset_path,
            sop_class=str(event.request.AffectedSOPClassUID),
            sop_instance=str(event.request.AffectedSOPInstanceUID),
            calling_aet=caller,
        )
    except LatentPacsError as error:
        LOGGER.warning("refused an object from %s: %s", caller, for_log(error))
        record(TrailEntry("store", caller, outcome=f"refused: {type(error).__name__}"))
        return of_error(error, STORE_ERRORS)
    except Exception as error:
        LOGGER.exception("store from %s failed", caller)
        record(TrailEntry("store", caller, outcome=f"failed: {type(error).__name__}"))
        return of_error(error, STORE_ERRORS)
    record(TrailEntry("store", caller, "image", (receipt.sop_instance_uid,), "original"))
    if receipt.warning:
        return response(PIXELS_NOT_SOUND, receipt.warning)
    return response(SUCCESS)
