"""Proves that a peer that asks for release while it is served is answered at once, and with no wrong success."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

from pydicom import Dataset
from pydicom.uid import ImplicitVRLittleEndian, generate_uid
from sqlalchemy import event

from benchmarks.upper_layer import ABORTED, IMPLICIT, associate, context, item, pdu, received, user_information
from node.dimse import client
from node.dimse.client import image_identifier
from node.dimse.pynetdicom_patches.ended_peer import wants_release
from storage.dicom.writing import encode
from tests.conftest import Archive, wait_for
from tests.support.raw_commands import (
    DATA_SET,
    LAST_OF_COMMAND,
    LAST_OF_DATA_SET,
    RawCaller,
    command_set,
    in_one_pdu,
    pdv,
)
from tests.support.samples import MAMMOGRAPHY, breast, mammogram, write

FIND, GET = "1.2.840.10008.5.1.4.1.2.2.1", "1.2.840.10008.5.1.4.1.2.2.3"
RELEASE, RELEASED = pdu(5, bytes(4)), 6


def filled(archive: Archive, folder: Path, images: int = 3) -> str:
    """Store images, and return their Study Instance UID."""
    study = generate_uid()
    made = [mammogram(breast(64, 64), StudyInstanceUID=study, SOPInstanceUID=generate_uid()) for _ in range(images)]
    files = [write(ds, folder / f"{ds.SOPInstanceUID}.dcm") for ds in made]
    client.store(files, archive.address, calling="MODALITY", each=lambda *_: None)
    return study


def request(field: int, sop_class: str, identifier: Dataset) -> bytes:
    command = command_set(
        AffectedSOPClassUID=sop_class, CommandField=field, MessageID=1, Priority=0, CommandDataSetType=DATA_SET
    )
    data = encode(identifier, ImplicitVRLittleEndian)
    return in_one_pdu(pdv(LAST_OF_COMMAND, command), pdv(LAST_OF_DATA_SET, data))


def test_a_query_that_is_left_ends_as_cancelled(quiet_archive: Archive, tmp_path: Path) -> None:
    """The peer does not want the remaining answers. The status must not say that it has received all of them."""
    identifier, node, seen = image_identifier(filled(quiet_archive, tmp_path)), quiet_archive.node, threading.Event()

    def wait_for_release(*_: object) -> None:
        """Let the node read the index for the query only after it has received the release, so that no answer is
        faster."""
        associations = node.server.entity.active_associations
        wait_for(lambda: seen.is_set() or any(map(wants_release, associations)), what="the release")
        seen.set()

    with RawCaller(quiet_archive.address.port, FIND, calling="EXACTVIEW") as caller:
        event.listen(node.index.engine, "before_cursor_execute", wait_for_release)
        caller.send(request(0x0020, FIND, identifier) + RELEASE)
        answer = caller.answer()
        seen.set()  # if the release came first, the index was not read
        assert answer is not None
        assert answer.Status == 0xFE00
        assert received(caller._connection)[0] == RELEASED


def test_a_get_that_is_left_without_an_answer_ends_at_once(quiet_archive: Archive, tmp_path: Path) -> None:
    """No answer to the image can follow a request for release (PS3.8 7.2)."""
    study = filled(quiet_archive, tmp_path)
    role = item(0x54, bytes((0, len(MAMMOGRAPHY))) + MAMMOGRAPHY.encode() + b"\1\1")
    contexts = [context(1, GET.encode(), IMPLICIT), context(3, MAMMOGRAPHY.encode(), IMPLICIT)]
    with socket.create_connection(("127.0.0.1", quiet_archive.address.port), 50) as connection:
        connection.sendall(associate(*contexts, calling=b"EXACTVIEW", user=user_information(0, role)))
        received(connection)
        connection.sendall(request(0x0010, GET, image_identifier(study)))
        received(connection)
        connection.sendall(RELEASE)
        kinds = [4]
        while kinds[-1] == 4:
            kinds.append(received(connection)[0])
    assert kinds[-1] == ABORTED
    server = quiet_archive.node.server
    wait_for(lambda: not server.entity.active_associations, what="the end of the association")
