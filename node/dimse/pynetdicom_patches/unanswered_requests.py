"""Answer a request that lacks an element, or end the association if it lacks its Message ID (PS3.7 9.3, 10.3, C).

pynetdicom 3.0: ``Association._serve_request`` ignores a request without a mandatory element, and the peer waits for an
answer. It aborts a request of a SOP class that it does not know, and answers any request for Verification with success.
Upstream: not reported.
Remove when such requests are answered with a status.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from pydicom.datadict import dictionary_description
from pydicom.uid import UID
from pynetdicom.association import Association
from pynetdicom.service_class import (
    QueryRetrieveServiceClass,
    ServiceClass,
    StorageServiceClass,
    VerificationServiceClass,
)
from pynetdicom.service_class_n import StorageCommitmentServiceClass
from pynetdicom.sop_class import uid_to_service_class

LOGGER = logging.getLogger(__name__)

CLASS_NOT_SUPPORTED = 0x0122
NO_SUCH_CLASS = 0x0118
STATUS = {
    "AffectedSOPInstanceUID": 0x0117,
    "RequestedSOPInstanceUID": 0x0117,
    "MoveDestination": 0xA801,
    "ActionTypeID": 0x0123,
}
"""The status of a request that lacks this element. For a missing SOP class UID, it depends on the service."""
PROCESSING_FAILURE = 0x0110
UNRECOGNIZED_OPERATION = 0x0211

_OPERATIONS: dict[Any, tuple[str, ...]] = {
    VerificationServiceClass: ("C-ECHO",),
    StorageServiceClass: ("C-STORE",),
    StorageCommitmentServiceClass: ("N-ACTION",),
}
_QUERY_RETRIEVE = {"Find": "C-FIND", "Move": "C-MOVE", "Get": "C-GET"}
"""The operation by the end of the keyword of a SOP class."""

_VERBS = {
    "C-ECHO": "echo",
    "C-STORE": "store",
    "C-FIND": "find",
    "C-MOVE": "move",
    "C-GET": "get",
    "N-ACTION": "commit",
}


class AnsweringAcceptor(Association):
    """An association that a peer opens; each request on it is answered, or ends it."""

    def _serve_request(self, msg: Any, context_id: int) -> None:
        context = self._accepted_cx.get(context_id)
        fault = None
        if context is not None and not self._sent_release:
            fault = _fault_of(self, msg, cast(UID, context.abstract_syntax))
        if fault is None or context is None:
            super()._serve_request(msg, context_id)
            return
        _discard(msg)
        if msg.MessageID is None:
            peer = str(self.requestor.ae_title).strip()
            LOGGER.warning(
                "association of %s from %s ended: a %s request has no Message ID (0000,0110), without which it "
                "cannot be answered",
                *(peer, self.requestor.address, msg.msg_type),
            )
            self.abort()
            return
        status, why = fault
        instance = str(getattr(msg, "AffectedSOPInstanceUID", None) or "")
        entity: Any = self.ae
        entity.refused(self, _VERBS.get(msg.msg_type, msg.msg_type), status, why, (instance,) if instance else ())
        response: Any = type(msg)()
        response.MessageIDBeingRespondedTo = msg.MessageID
        response.AffectedSOPClassUID = context.abstract_syntax
        if instance:
            response.AffectedSOPInstanceUID = instance
        response.Status, response.ErrorComment = status, why
        self.dimse.send_msg(response, context_id)


def _fault_of(assoc: Any, request: Any, agreed: UID) -> tuple[int, str] | None:
    """Status and Error Comment of a request that cannot be served; None for one that can, and for a response.

    ``agreed``: the abstract syntax of its presentation context.
    """
    if request.MessageIDBeingRespondedTo is not None:
        return None
    of_class = NO_SUCH_CLASS if request.msg_type.startswith("N-") else CLASS_NOT_SUPPORTED
    for keyword in request.REQUEST_KEYWORDS:
        if getattr(request, keyword) is None:
            status = of_class if keyword.endswith("SOPClassUID") else STATUS.get(keyword, PROCESSING_FAILURE)
            return status, f"the {dictionary_description(keyword)} is missing"
    uid = getattr(request, "AffectedSOPClassUID", None) or request.RequestedSOPClassUID
    uid = assoc.acceptor.accepted_common_extended.get(uid, (uid,))[0]
    service = uid_to_service_class(uid)
    if service is ServiceClass:
        return of_class, "the SOP class is not supported"
    if service is not uid_to_service_class(agreed):
        return of_class, "the SOP class is not that of the context"
    operations = _operations(service, agreed)
    if operations and request.msg_type not in operations:
        return UNRECOGNIZED_OPERATION, f"{request.msg_type} is no operation of this SOP class"
    return None


def _operations(service: Any, agreed: UID) -> tuple[str, ...]:
    """The operations of a service on a presentation context; empty if they are not known here."""
    if service is QueryRetrieveServiceClass:
        return tuple(one for end, one in _QUERY_RETRIEVE.items() if agreed.keyword.endswith(end))
    return _OPERATIONS.get(service, ())


def _discard(request: Any) -> None:
    """Remove the spooled data set of a request that is not served."""
    if request._dataset_file:
        request._dataset_file.close()
        with suppress(OSError):
            Path(request._dataset_file.name).unlink()
