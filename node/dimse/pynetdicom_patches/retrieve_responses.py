"""Let the handlers of C-GET and C-MOVE send their own sub-operations and responses.

pynetdicom 3.0: ``QueryRetrieveServiceClass._get_scp`` and ``_move_scp`` re-encode every data set, count an image
without a data set as success, and cannot send a pending response while an image is being made.
Upstream: not reported (#577, closed, fixed another wrong status).
Remove when a handler can yield bare responses.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from pydicom import Dataset
from pynetdicom import evt
from pynetdicom.dimse_primitives import C_GET, C_MOVE
from pynetdicom.dsutils import encode
from pynetdicom.service_class import QueryRetrieveServiceClass

from node.dimse.pynetdicom_patches.entity import ArchiveEntity

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class RetrieveResponse:
    """One C-GET or C-MOVE response: a status and the counts of sub-operations (PS3.7 9.1.3.1, 9.1.4.1)."""

    status: int
    remaining: int | None = None
    completed: int = 0
    failed: int = 0
    warning: int = 0
    failed_uids: tuple[str, ...] = ()
    comment: str = ""


def install() -> None:
    """For our entity, send each ``RetrieveResponse`` that the handler of EVT_C_GET or EVT_C_MOVE yields."""
    for name, event in (("_get_scp", evt.EVT_C_GET), ("_move_scp", evt.EVT_C_MOVE)):
        setattr(QueryRetrieveServiceClass, name, _service(event, getattr(QueryRetrieveServiceClass, name)))


def _service(event: Any, original: Callable[..., None]) -> Callable[..., None]:
    def serve(self: Any, request: Any, context: Any) -> None:
        if not isinstance(self.assoc.ae, ArchiveEntity):
            original(self, request, context)
            return
        attributes = {"request": request, "context": context.as_tuple, "_is_cancelled": self.is_cancelled}
        try:
            responses: Any = evt.trigger(self.assoc, event, attributes)
            for response in responses:
                if not self.assoc.is_established:
                    return
                self.dimse.send_msg(_message(request, response, context), context.context_id)
        except Exception:
            LOGGER.exception("retrieve failed")
            failure = RetrieveResponse(0xC000, comment="internal error, see the node's log")
            self.dimse.send_msg(_message(request, failure, context), context.context_id)

    return serve


def _message(request: Any, response: RetrieveResponse, context: Any) -> Any:
    message: Any = C_MOVE() if isinstance(request, C_MOVE) else C_GET()
    message.MessageIDBeingRespondedTo = request.MessageID
    message.AffectedSOPClassUID = request.AffectedSOPClassUID
    message.Status = response.status
    if response.remaining is not None:
        message.NumberOfRemainingSuboperations = response.remaining
    message.NumberOfCompletedSuboperations = response.completed
    message.NumberOfFailedSuboperations = response.failed
    message.NumberOfWarningSuboperations = response.warning
    if response.comment:
        message.ErrorComment = response.comment[:64]
    if response.failed_uids:
        identifier = Dataset()
        identifier.FailedSOPInstanceUIDList = list(response.failed_uids)
        syntax = context.transfer_syntax[0]
        encoded = encode(identifier, syntax.is_implicit_VR, syntax.is_little_endian, syntax.is_deflated)
        message.Identifier = BytesIO(encoded or b"")
    return message
