"""A storage client that sends any bytes as a data set."""

from __future__ import annotations

from io import BytesIO
from typing import Any

from pydicom import Dataset
from pydicom.config import IGNORE
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE

from tests.conftest import Archive, wait_for
from tests.support.samples import MAMMOGRAPHY

SYNTAXES = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless)


class RawSender:
    """An association that sends any bytes as the data set of a C-STORE."""

    def __init__(self, archive: Archive, calling: str = "MODALITY", syntaxes: tuple[str, ...] = SYNTAXES) -> None:
        entity = AE(calling)
        for syntax in syntaxes:
            entity.add_requested_context(MAMMOGRAPHY, syntax)
        self.assoc: Association = entity.associate("127.0.0.1", archive.address.port)
        assert self.assoc.is_established

    def send(
        self,
        body: bytes | None,
        *,
        sop_instance: str,
        sop_class: str = MAMMOGRAPHY,
        syntax: str = ExplicitVRLittleEndian,
    ) -> Dataset:
        """Send a C-STORE and return its status. Without a ``body``, the request announces no data set."""
        context = next(c for c in self.assoc.accepted_contexts if c.transfer_syntax[0] == syntax)
        request: Any = C_STORE()
        request.MessageID, request.Priority = 1, 2
        request.AffectedSOPClassUID = sop_class
        request._affected_sop_instance_uid = UID(sop_instance, IGNORE)  # the property checks its length
        request.DataSet = None if body is None else BytesIO(body)
        self.assoc._reactor_checkpoint.clear()  # as send_c_store does: or the reactor takes the answer
        wait_for(lambda: self.assoc._is_paused, what="a paused reactor")
        self.assoc.dimse.send_msg(request, context.context_id)
        _, answer = self.assoc.dimse.get_msg(block=True)
        self.assoc._reactor_checkpoint.set()
        status = Dataset()
        status.Status = answer.Status
        status.ErrorComment = answer.ErrorComment or ""
        return status
