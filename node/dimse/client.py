"""A DICOM client for demo and tests: a modality that stores, and a viewer that queries and retrieves."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydicom import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian
from pynetdicom import AE, build_role, evt
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext, build_context

from node.archive.query.identifier import Root
from node.dimse import pynetdicom_patches
from node.dimse.pynetdicom_patches.alike_contexts import add_alike_contexts
from node.dimse.pynetdicom_patches.requestor_responses import keep_responses_from_reactor
from node.dimse.pynetdicom_patches.tcp_nodelay import set_no_delay
from node.dimse.sop_classes import (
    FIND,
    GET,
    MOVE,
    STORAGE_CLASSES,
    TRANSFER_SYNTAXES,
    query_retrieve,
    register_storage_classes,
)
from storage.dicom.dicomfile import opened
from storage.errors import LatentPacsError

_RESPONSE = 600.0
"""Seconds to wait for a response: an archive may decode, reconstruct or unpack before it answers. Chosen, not
measured."""
_FIND, _MOVE, _GET = (query_retrieve(Root.STUDY, service) for service in (FIND, MOVE, GET))


class PeerRefused(LatentPacsError):
    """The other node did not accept the association, or answered with a failure."""


@dataclass(frozen=True)
class Address:
    """Host, port and AE title of a node."""

    host: str
    port: int
    ae_title: str


@dataclass
class Receiver:
    """A Storage SCP on a free port that writes each received data set unchanged into ``folder``."""

    folder: Path
    ae_title: str = "VIEWER"
    received: dict[str, Path] = field(default_factory=dict)
    """SOP Instance UID to file."""

    def __enter__(self) -> Receiver:
        entity = AE(self.ae_title)
        entity.maximum_pdu_size = 0
        register_storage_classes()
        add_alike_contexts(entity, STORAGE_CLASSES, TRANSFER_SYNTAXES)
        self._server: Any = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=self.handlers())
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def handlers(self) -> list[Any]:
        return [(evt.EVT_C_STORE, self._store)]

    def _store(self, event: Any) -> int:
        uid = str(event.request.AffectedSOPInstanceUID)
        path = self.folder / f"{len(self.received):04d}.dcm"
        path.write_bytes(event.encoded_dataset())
        self.received[uid] = path
        return 0x0000


def store(files: Sequence[Path], to: Address, *, calling: str, each: Callable[[Path, int, float], None]) -> None:
    """Send the bytes of files unchanged by C-STORE; calls ``each(file, status, seconds)``. Raises PeerRefused."""
    pynetdicom_patches.install()
    contexts = {}
    for path in files:
        with opened(path) as file:
            sop_class = str(file.outline().SOPClassUID)
            contexts[sop_class, str(file.transfer_syntax)] = build_context(UID(sop_class), file.transfer_syntax)
    with _associated(calling, to, list(contexts.values())) as assoc:
        for path in files:
            began = time.monotonic()
            status = assoc.send_c_store(path)
            each(path, int(status.get("Status", 0xC000)), time.monotonic() - began)


def find(identifier: Dataset, to: Address, *, calling: str) -> list[Dataset]:
    """The matches of a C-FIND, Study Root. Raises PeerRefused."""
    found = []
    with _associated(calling, to, [build_context(_FIND)]) as assoc:
        for status, answer in assoc.send_c_find(identifier, _FIND):
            code = int(status.get("Status", 0xC000))
            if code in (0xFF00, 0xFF01) and answer is not None:
                found.append(answer)
            elif code != 0:
                raise PeerRefused(f"C-FIND ended with status 0x{code:04X}")
    return found


def move(identifier: Dataset, to: Address, *, calling: str, destination: str) -> Dataset:
    """The status data set of the final response to a C-MOVE, Study Root; empty without one. Raises PeerRefused."""
    with _associated(calling, to, [build_context(_MOVE)]) as assoc:
        return _last(assoc.send_c_move(identifier, destination, _MOVE))


def get(identifier: Dataset, to: Address, *, calling: str, sop_classes: Sequence[str], receiver: Receiver) -> Dataset:
    """The status data set of the final response to a C-GET into ``receiver``, Study Root. Raises PeerRefused."""
    contexts = [build_context(_GET), *(build_context(one, ExplicitVRLittleEndian) for one in sop_classes)]
    roles: list[Any] = [build_role(sop_class, scp_role=True) for sop_class in sop_classes]
    with _associated(calling, to, contexts, ext_neg=roles, evt_handlers=receiver.handlers()) as assoc:
        return _last(assoc.send_c_get(identifier, _GET))


def image_identifier(study: str, series: str = "", image: str = "") -> Dataset:
    """An identifier of Study Root: at IMAGE level if ``series`` is given, with ``image``; else at STUDY level."""
    identifier = Dataset()
    identifier.StudyInstanceUID = study
    identifier.QueryRetrieveLevel = "IMAGE" if image or series else "STUDY"
    if series:
        identifier.SeriesInstanceUID = series
        identifier.SOPInstanceUID = image
    return identifier


@contextmanager
def _associated(
    calling: str, to: Address, contexts: list[PresentationContext], **options: Any
) -> Iterator[Association]:
    """An association that is released at the end. Raises PeerRefused."""
    entity = AE(calling)
    entity.dimse_timeout = _RESPONSE
    assoc = entity.associate(to.host, to.port, contexts, to.ae_title, **options)
    if not assoc.is_established:
        raise PeerRefused(f"{to.ae_title} at {to.host}:{to.port} did not accept the association")
    connection: Any = assoc.dul.socket
    set_no_delay(connection.socket)
    keep_responses_from_reactor(assoc)
    try:
        yield assoc
    finally:
        assoc.release()


def _last(responses: Any) -> Dataset:
    final = Dataset()
    for status, _ in responses:
        if "Status" in status:
            final = status
    return final
