"""Each test shows a fault of pynetdicom's own services and messages. If one fails, remove the patch that it names."""

from __future__ import annotations

import re
import socket
import struct
import tempfile
import threading
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset
from pydicom.uid import UID, ImplicitVRLittleEndian
from pynetdicom import AE, _config, association, dimse_messages, dsutils, evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_ECHO, C_MOVE, C_STORE
from pynetdicom.pdu_primitives import A_RELEASE, P_DATA
from pynetdicom.presentation import build_context
from pynetdicom.service_class import ServiceClass

from benchmarks.upper_layer import (
    ACCEPTED,
    DATA,
    IMPLICIT,
    VERIFICATION,
    ask,
    associate,
    context,
    echo,
    item,
    kinds,
    pdu,
    received,
    user_information,
)
from node.dimse.pynetdicom_patches import install
from node.dimse.sop_classes import STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE
from storage.dicom import dicomfile
from storage.dicom.dicomfile import file_meta, write_preamble
from tests.conftest import SECONDARY_CAPTURE, wait_for
from tests.support.raw_commands import LAST_OF_COMMAND, NO_DATA_SET, command_set
from tests.unit.node.dimse.pynetdicom_patches.plain import LONG_ENOUGH, plain_server

pytestmark = [
    pytest.mark.filterwarnings("ignore:Exception ignored in. <s:pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]

PATCHES = Path("node/dimse/pynetdicom_patches")
GET = "1.2.840.10008.5.1.4.1.2.2.3"


def test_every_patch_says_why_and_has_a_test() -> None:
    combining = {"__init__", "entity", "listener", "decoder"}
    names = {path.stem for path in PATCHES.glob("*.py")} - combining
    written = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    assert set(re.findall(r"def test_(\w+)_is_still_needed", written)) == names
    listed = (PATCHES / "__init__.py").read_text()
    for name in names:
        head = (PATCHES / f"{name}.py").read_text().split('"""')[1]
        assert re.search(r"(?ms)^pynetdicom 3\.0: .*^Upstream: .*^Remove when ", head), name
        assert name in listed


def test_patching_twice_changes_nothing() -> None:
    install()
    before = dimse_messages.DIMSEMessage.decode_msg
    install()
    assert dimse_messages.DIMSEMessage.decode_msg is before


# --- negotiation ---


@pytest.mark.parametrize(
    "request_pdu",
    [
        pytest.param(associate(user=user_information(extra=item(0x5A, b"1234"))), id="unknown item"),
        pytest.param(associate(user=user_information(extra=item(0x54, b"\xff"))), id="unreadable item"),
        pytest.param(associate(calling=b"MODALITY".ljust(16, b"\0")), id="title padded with NUL"),
        pytest.param(associate(context(3, VERIFICATION, b"\xff"), context(1, VERIFICATION, IMPLICIT)), id="no syntax"),
        pytest.param(associate(user=user_information(None)), id="no maximum length"),
        pytest.param(associate(version=3), id="another bit of the version"),
    ],
)
def test_association_request_is_still_needed(request_pdu: bytes) -> None:
    """pynetdicom does not accept a request that the standard allows, or aborts when it is to answer an echo."""
    with plain_server() as server:
        assert kinds(ask(server.port, request_pdu, echo())) != [ACCEPTED, DATA]


# --- messages ---


def test_command_ae_titles_is_still_needed() -> None:
    """A move destination that is padded with NUL causes an error."""
    with pytest.raises(ValueError, match="Move Destination"):
        C_MOVE().MoveDestination = "VIEWER\0\0"


@pytest.mark.filterwarnings("ignore:The value length")
def test_command_uids_is_still_needed() -> None:
    """An instance UID of 65 characters causes an error."""
    with pytest.raises(ValueError, match="Affected SOP Instance UID"):
        C_STORE().AffectedSOPInstanceUID = "1." + "2" * 63


def test_invalid_commands_is_still_needed() -> None:
    """A command without Command Field causes an error that does not name the missing element."""
    with pytest.raises(AttributeError):
        dimse_messages.DIMSEMessage().decode_msg(_in_one(command_set(MessageID=7)))


def test_unanswered_requests_is_still_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request without SOP class gets no response, and does not end the association."""
    assoc: Any = Association(AE("PLAIN"), "acceptor")
    told: list[Any] = []
    monkeypatch.setattr(assoc.dimse, "send_msg", lambda *given: told.append(given))
    monkeypatch.setattr(assoc, "abort", lambda: told.append("abort"))
    request = C_ECHO()
    request.MessageID = 7
    assoc._serve_request(request, 1)
    assert told == []


def test_several_messages_is_still_needed() -> None:
    """Of two requests in one PDU only the first arrives."""
    assoc: Any = Association(AE("PLAIN"), "acceptor")
    echo_command = command_set(
        AffectedSOPClassUID=VERIFICATION.decode(), CommandField=0x0030, MessageID=7, CommandDataSetType=NO_DATA_SET
    )
    assoc.dimse.receive_primitive(_in_one(echo_command, echo_command))
    assert assoc.dimse.msg_queue.qsize() == 1
    for number in range(2, 100):  # and as many wait as come
        assoc.dimse.receive_primitive(_in_one(echo_command))
        assert assoc.dimse.msg_queue.qsize() == number


def test_early_cancel_is_still_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cancel that arrived before its request is served is forgotten."""
    assoc: Any = Association(AE("PLAIN"), "acceptor")
    agreed = build_context(VERIFICATION.decode(), ImplicitVRLittleEndian)
    agreed.context_id = 1
    assoc._accepted_cx, assoc.is_established = {1: agreed}, True
    assoc.dimse.cancel_req = {7: "cancel"}
    known: list[list[int]] = []
    monkeypatch.setattr(assoc.dimse, "send_msg", lambda *_: known.append(list(assoc.dimse.cancel_req)))
    request: Any = C_ECHO()
    request.MessageID, request.AffectedSOPClassUID = 7, UID(VERIFICATION.decode())
    assoc._serve_request(request, 1)
    assert known == [[]]


def test_message_limits_is_still_needed() -> None:
    """An identifier of more than 16 MiB is collected in memory."""
    message: Any = dimse_messages.DIMSEMessage()
    for _ in range(5):
        data = P_DATA()
        data.presentation_data_value_list = [[1, b"\0" + bytes(2**22)]]
        assert not message.decode_msg(data)
    assert len(message.data_set.getvalue()) == 5 * 2**22


def test_association_spool_is_still_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a data set stays in the system's temporary folder when the peer has gone."""
    monkeypatch.setattr(dimse_messages, "_config", _config)
    monkeypatch.setattr(_config, "STORE_RECV_CHUNKED_DATASET", True)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with plain_server(sop_classes=[SECONDARY_CAPTURE]) as server:
        with socket.create_connection(("127.0.0.1", server.port), 20) as caller:
            caller.sendall(associate(context(1, SECONDARY_CAPTURE.encode(), IMPLICIT)))
            received(caller)
            caller.sendall(_fragment(3, _store_command()) + _fragment(0, bytes(1000)))
            wait_for(lambda: [one for one in tmp_path.iterdir() if one.stat().st_size > 1000], what="half a data set")
            (assoc,) = server.associations
        wait_for(lambda: not server.associations, timeout=20, what="the end of the association")
        assert list(tmp_path.iterdir())
        assoc.dimse.message._data_set_file.close()


def test_file_sending_is_still_needed(tmp_path: Path) -> None:
    """The whole file is queued before the first byte is sent."""
    path = tmp_path / "file.dcm"
    path.write_bytes(bytes(10_000_000))
    assoc: Any = Association(AE("PLAIN"), "requestor")
    assoc.acceptor.maximum_length = 16384
    store: Any = C_STORE()
    store.MessageID, store.Priority = 1, 2
    store.AffectedSOPClassUID, store.AffectedSOPInstanceUID = UID(SECONDARY_CAPTURE), UID("1.2.3")
    store._dataset_path = (path, 0)
    assoc.dimse.send_msg(store, 1)
    queued = [primitive.presentation_data_value_list for primitive in assoc.dul.to_provider_queue.queue]
    assert sum(len(data) for values in queued for _, data in values) > 10_000_000


def test_meta_length_is_still_needed(tmp_path: Path) -> None:
    """File meta information at the beginning of a data set counts as that of the file."""
    path = tmp_path / "file.dcm"
    with path.open("wb") as out:
        write_preamble(out, file_meta(SECONDARY_CAPTURE, "1.2.3", ImplicitVRLittleEndian))
        start = out.tell()
        out.write(struct.pack("<HH2sH", 2, 0x16, b"AE", 4) + b"ECHO" + struct.pack("<HHI", 8, 0x60, 2) + b"MG")
    assert dsutils.split_dataset(path)[1] == start + 12


def test_file_meta_information_is_parsed_once_for_each_image_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install()
    path, parsed = tmp_path / "file.dcm", []
    meta = file_meta(SECONDARY_CAPTURE, "1.2.3", ImplicitVRLittleEndian)
    with path.open("wb") as out:
        write_preamble(out, meta)
        start = out.tell()
        out.write(struct.pack("<HHI", 8, 0x60, 2) + b"MG")
    original = dicomfile.read_dataset
    monkeypatch.setattr(dicomfile, "read_dataset", lambda *given: (parsed.append(given), original(*given))[1])
    found, offset = association.split_dataset(path)  # type: ignore[attr-defined]
    assert (found.MediaStorageSOPInstanceUID, found.TransferSyntaxUID) == ("1.2.3", ImplicitVRLittleEndian)
    assert (offset, len(parsed)) == (start, 1)


def test_bounded_responses_is_still_needed() -> None:
    """The number of messages that wait to be sent has no limit."""
    assoc: Any = Association(AE("PLAIN"), "acceptor")
    assoc.requestor.maximum_length = 16384
    response: Any = C_ECHO()
    response.MessageIDBeingRespondedTo, response.Status = 1, 0x0000
    for _ in range(1000):
        assoc.dimse.send_msg(response, 1)
    assert assoc.dul.to_provider_queue.qsize() == 1000


def test_response_timeout_is_still_needed() -> None:
    """The DIMSE timeout runs out although the request has not been sent."""
    assoc: Any = Association(AE("PLAIN"), "requestor")
    assoc.dimse_timeout = 0.2
    assoc.dul.to_provider_queue.put(P_DATA())
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(assoc.dimse.get_msg(block=True)), daemon=True)
    thread.start()
    thread.join(LONG_ENOUGH)
    assert got == [(None, None)]


def test_matched_responses_is_still_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The response to message 6 is taken for that to message 7."""
    assoc: Any = Association(AE("PLAIN"), "requestor")
    agreed = build_context(SECONDARY_CAPTURE, ImplicitVRLittleEndian)
    agreed.context_id, agreed._as_scu = 1, True
    assoc._accepted_cx, assoc.is_established, assoc._is_paused = {1: agreed}, True, True
    monkeypatch.setattr(assoc.dimse, "send_msg", lambda primitive, context_id: None)
    response = C_STORE()
    response.MessageIDBeingRespondedTo, response.Status = 6, 0x0000
    assoc.dimse.msg_queue.put((1, response))
    image = Dataset()
    image.SOPClassUID, image.SOPInstanceUID = SECONDARY_CAPTURE, "1.2.3"
    image.file_meta = file_meta(SECONDARY_CAPTURE, "1.2.3", ImplicitVRLittleEndian)
    assert assoc.send_c_store(image, msg_id=7).Status == 0x0000


def test_kept_release_is_still_needed() -> None:
    """A request for release is taken from the queue, and the remaining answers are not sent."""
    assoc: Any = Association(AE("PLAIN"), "acceptor")
    assoc.dul.to_user_queue.put(A_RELEASE())
    service: Any = ServiceClass(assoc)
    assert list(service._wrap_handler(iter([1, 2]))) == []
    assert assoc.dul.to_user_queue.empty()


def test_requestor_responses_is_still_needed() -> None:
    """The reactor of a requestor takes a message from the queue."""
    assoc: Any = Association(AE("PLAIN"), "requestor")
    taken: list[Any] = []
    assoc._serve_request = lambda message, context_id: taken.append(message)
    assoc.dimse.msg_queue.put((1, "response"))
    assoc._run_reactor()
    assert taken == ["response"]


def test_event_report_is_still_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that arrives before the response to a report is lost, and the association aborted."""
    assoc: Any = Association(AE("PLAIN"), "acceptor")
    agreed = build_context(STORAGE_COMMITMENT, ImplicitVRLittleEndian)
    agreed.context_id = 1
    assoc._accepted_cx, assoc.is_established, assoc._is_paused = {1: agreed}, True, True
    aborted: list[bool] = []
    monkeypatch.setattr(assoc, "abort", lambda: aborted.append(True))
    monkeypatch.setattr(assoc.dimse, "send_msg", lambda primitive, context_id: None)
    request = C_ECHO()
    request.MessageID = 7
    assoc.dimse.msg_queue.put((1, request))
    assoc.send_n_event_report(Dataset(), 1, STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE)
    assert aborted
    assert assoc.dimse.msg_queue.empty()


# --- services ---


def test_retrieve_responses_is_still_needed() -> None:
    """An image for which the handler has no data set, as while it is being made, counts as success."""

    def handle(event: Any) -> Any:
        yield 1
        yield 0xFF00, None

    with plain_server([(evt.EVT_C_GET, handle)], sop_classes=[GET]) as server:
        assoc = AE("CALLER").associate("127.0.0.1", server.port, contexts=[build_context(GET)])
        identifier = Dataset()
        identifier.QueryRetrieveLevel = "STUDY"
        statuses = [status.get("Status") for status, _ in assoc.send_c_get(identifier, GET)]
        assoc.release()
    assert statuses[-1] == 0x0000


def test_served_requests_is_still_needed() -> None:
    """No event is triggered in the association's thread after the response to an N-ACTION was handed over."""
    seen: list[tuple[str, bool]] = []

    def note(event: Any) -> None:
        if threading.current_thread() is event.assoc and acted:
            seen.append((event.event.name, event.assoc.dul.to_provider_queue.empty()))

    def act(event: Any) -> tuple[int, None]:
        acted.append(True)
        return 0x0000, None

    acted: list[bool] = []
    handlers = [(event, note) for event in evt._NOTIFICATION_EVENTS]
    with plain_server([*handlers, (evt.EVT_N_ACTION, act)], sop_classes=[STORAGE_COMMITMENT]) as server:
        assoc = AE("CALLER").associate("127.0.0.1", server.port, contexts=[build_context(STORAGE_COMMITMENT)])
        action = Dataset()
        action.TransactionUID = "1.2.3"
        status, _ = assoc.send_n_action(action, 1, STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE)
        assert status.Status == 0x0000
        assert seen == [("EVT_DIMSE_SENT", True)]
        assoc.release()


def _in_one(*commands: bytes) -> P_DATA:
    data = P_DATA()
    for command in commands:
        data.presentation_data_value_list.append((1, bytes((LAST_OF_COMMAND,)) + command))
    return data


def _fragment(control: int, data: bytes) -> bytes:
    return pdu(4, struct.pack(">IBB", len(data) + 2, 1, control) + data)


def _store_command() -> bytes:
    store: Any = C_STORE()
    store.MessageID, store.Priority, store.DataSet = 1, 2, BytesIO(b"x")
    store.AffectedSOPClassUID, store.AffectedSOPInstanceUID = UID(SECONDARY_CAPTURE), UID("1.2.3")
    message: Any = dimse_messages.C_STORE_RQ()
    message.primitive_to_message(store)
    command: P_DATA = next(message.encode_msg(1, 16384))
    return command.presentation_data_value_list[0][1][1:]
