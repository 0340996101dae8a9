"""Handles C-STORE (PS3.4 Annex B): ingests a spooled data set, and responds when it is durable."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from pydicom import Dataset

from node.archive.intake.ingest import Ingest
from node.config import Settings
from node.dimse.associations.refusals import Refusals, title_of
from node.dimse.dimse_status import (
    NOT_AUTHORIZED,
    PIXELS_NOT_SOUND,
    STORE_ERRORS,
    SUCCESS,
    of_error,
    reason_text,
    response,
)
from storage.errors import LatentPacsError, Unparseable
from storage.records import TrailEntry

LOGGER = logging.getLogger(__name__)


def handle_store(
    event: Any,
    ingest: Ingest,
    settings: Settings,
    refusals: Refusals,
    stopping_since: Callable[[], float] = lambda: float("inf"),
) -> Dataset:
    """Handle C-STORE: call ingest once, record one entry in the audit trail, and return one status.

    ``stopping_since``: the monotonic time (s) at which the node began to stop. A data set that began to arrive later is
    refused, and the sender may send it again; one that began earlier is accepted.
    """
    caller, uids = title_of(event.assoc), (str(event.request.AffectedSOPInstanceUID)[:64],)
    if "store" not in settings.caller(caller).allow:
        refusals.of_request(event.assoc, "store", NOT_AUTHORIZED, f"{caller} may not store here", uids)
        return response(NOT_AUTHORIZED, f"{caller} may not store here")
    arrived = event.request._dataset_file
    if arrived is not None and arrived.began > stopping_since():
        event.assoc.stop_refusals += 1
        refusals.of_request(event.assoc, "store", 0xA700, "the node is stopping", uids)
        return response(0xA700, "the archive is stopping; send it again later")
    try:
        if arrived is None:
            raise Unparseable("the request has no data set")
        arrived.flush()
        if arrived.refused is not None:
            raise arrived.refused
        receipt = ingest.receive(
            event.dataset_path,
            sop_class=str(event.request.AffectedSOPClassUID),
            sop_instance=str(event.request.AffectedSOPInstanceUID),
            calling_aet=caller,
        )
    except Exception as error:
        if not isinstance(error, (LatentPacsError, OSError)):
            LOGGER.exception("store from %s failed", caller)
        answer, text = of_error(error, STORE_ERRORS), reason_text(error, STORE_ERRORS)
        if isinstance(error, FileNotFoundError) and not event.dataset_path.parent.exists():
            text = "the association ended before the image was stored"  # and its spool was removed
        refusals.of_request(event.assoc, "store", int(answer.Status), text, uids)
        return answer
    refusals.record(TrailEntry("store", caller, "image", (receipt.sop_instance_uid,), "original", detail=receipt.note))
    if receipt.warning:
        return response(PIXELS_NOT_SOUND, receipt.warning)
    return response(SUCCESS)
