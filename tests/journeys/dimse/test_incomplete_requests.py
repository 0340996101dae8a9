"""Proves that each request is answered, or ends its association with one line in the log: no peer waits in vain."""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from pydicom import Dataset
from pydicom.uid import ImplicitVRLittleEndian, generate_uid
from pynetdicom.dsutils import encode as encode_identifier
from pynetdicom.fsm import InvalidEventError, StateMachine

from node.app import Node
from node.dimse.associations.refusals import Refusals
from node.dimse.client import Receiver
from node.dimse.sop_classes import STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE, VERIFICATION
from storage.dicom.writing import encode
from tests.conftest import Archive, settings_for, spooled, wait_for
from tests.support.raw_commands import (
    COMMAND,
    DATA_SET,
    LAST_OF_COMMAND,
    LAST_OF_DATA_SET,
    NO_DATA_SET,
    RawCaller,
    command_set,
    in_one_pdu,
    pdv,
)
from tests.support.samples import MAMMOGRAPHY, breast, mammogram

FIND, MOVE, GET = (f"1.2.840.10008.5.1.4.1.2.2.{model}" for model in (1, 2, 3))
UID = "1.2.3.1"

ECHO = {
    "AffectedSOPClassUID": VERIFICATION,
    "CommandField": 0x0030,
    "MessageID": 7,
    "CommandDataSetType": NO_DATA_SET,
}
STORE = {
    **ECHO,
    "AffectedSOPClassUID": MAMMOGRAPHY,
    "CommandField": 0x0001,
    "Priority": 0,
    "CommandDataSetType": DATA_SET,
    "AffectedSOPInstanceUID": UID,
}
QUERY = {**ECHO, "Priority": 0, "CommandDataSetType": DATA_SET}
ACTION = {
    "RequestedSOPClassUID": STORAGE_COMMITMENT,
    "CommandField": 0x0130,
    "MessageID": 7,
    "CommandDataSetType": DATA_SET,
    "RequestedSOPInstanceUID": STORAGE_COMMITMENT_INSTANCE,
    "ActionTypeID": 1,
}
REQUESTS: dict[str, dict[str, Any]] = {
    "echo": ECHO,
    "store": STORE,
    "find": {**QUERY, "AffectedSOPClassUID": FIND, "CommandField": 0x0020},
    "move": {**QUERY, "AffectedSOPClassUID": MOVE, "CommandField": 0x0021, "MoveDestination": "VIEWER"},
    "get": {**QUERY, "AffectedSOPClassUID": GET, "CommandField": 0x0010},
    "commit": ACTION,
}
PLAIN = "node.dimse."


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    """A node without an archivist for the tests of this file. It holds images of earlier tests."""
    folder = tmp_path_factory.mktemp("quiet")
    with (
        Receiver(folder) as receiver,
        Node(settings_for(folder / "archive", receiver.port, archivist={"enabled": False})) as node,
    ):
        yield Archive(node, receiver)


@pytest.fixture
def quiet_archive(running: Archive) -> Iterator[Archive]:
    """The node without associations of earlier tests, whose late log lines would reach the next test."""
    yield running
    wait_for(lambda: not running.node.server.entity.active_associations, what="the end of the associations")


def image(uid: str = UID) -> bytes:
    return encode(mammogram(breast(64, 48), SOPInstanceUID=uid), ImplicitVRLittleEndian)


def data_set_of(verb: str, uid: str = UID) -> bytes:
    if verb in ("echo", "store"):
        return image(uid) if verb == "store" else b""
    identifier = Dataset()
    identifier.QueryRetrieveLevel, identifier.StudyInstanceUID = "STUDY", "1.2.3.999"  # which is not held
    return encode_identifier(identifier, True, True) or b""


def caller_of(archive: Archive, verb: str) -> RawCaller:
    """An association with two presentation contexts: 1 for that verb, 3 for verification."""
    uid = REQUESTS[verb].get("AffectedSOPClassUID") or STORAGE_COMMITMENT
    calling = "MODALITY" if verb in ("echo", "store", "commit") else "VIEWER"
    return RawCaller(archive.address.port, str(uid), VERIFICATION, calling=calling)


def only_line(caplog: pytest.LogCaptureFixture) -> str:
    """The only line of the log. It is ours and has no traceback."""
    (record,) = [one for one in caplog.records if one.levelno >= logging.WARNING]
    assert record.name.startswith(PLAIN)
    assert record.exc_info is None
    assert "Error" not in record.getMessage()
    return record.getMessage()


LACKS = [
    *(
        (verb, "AffectedSOPClassUID", 0x0122, "Affected SOP Class UID")
        for verb in ("echo", "store", "find", "move", "get")
    ),
    ("store", "AffectedSOPInstanceUID", 0x0117, "Affected SOP Instance UID"),
    ("move", "MoveDestination", 0xA801, "Move Destination"),
    ("commit", "RequestedSOPClassUID", 0x0118, "Requested SOP Class UID"),
    ("commit", "RequestedSOPInstanceUID", 0x0117, "Requested SOP Instance UID"),
    ("commit", "ActionTypeID", 0x0123, "Action Type ID"),
]


@pytest.mark.parametrize("value", [None, ""], ids=["absent", "empty"])
@pytest.mark.parametrize(("verb", "keyword", "status", "name"), LACKS)
def test_a_request_that_lacks_an_element_is_answered(
    quiet_archive: Archive,
    caplog: pytest.LogCaptureFixture,
    verb: str,
    keyword: str,
    status: int,
    name: str,
    value: str | None,
) -> None:
    held = set(quiet_archive.node.store.digests())
    with caller_of(quiet_archive, verb) as caller, caplog.at_level(logging.WARNING):
        answer = caller.ask(command_set(**REQUESTS[verb] | {keyword: value}), data_set_of(verb))
        assert answer is not None
        assert (answer.Status, answer.ErrorComment) == (status, f"the {name} is missing")
        assert (answer.MessageIDBeingRespondedTo, answer.CommandDataSetType) == (7, NO_DATA_SET)
        assert answer.CommandField == REQUESTS[verb]["CommandField"] | 0x8000
        line = only_line(caplog)
        assert line.startswith(f"refused {verb} ")
        assert line.endswith(f" from 127.0.0.1: {status:04X}, the {name} is missing")
        again = caller.ask(command_set(**ECHO), number=3)
        assert again is not None, "the association goes on"
        assert again.Status == 0x0000
    node = quiet_archive.node
    assert set(node.store.digests()) == held
    wait_for(lambda: not spooled(node.store.spool), what="an empty spool")


@pytest.mark.parametrize("value", [None, ""], ids=["absent", "empty"])
@pytest.mark.parametrize("verb", REQUESTS)
def test_a_request_without_message_id_ends_the_association(
    quiet_archive: Archive, caplog: pytest.LogCaptureFixture, verb: str, value: str | None
) -> None:
    with caller_of(quiet_archive, verb) as caller, caplog.at_level(logging.WARNING):
        assert caller.ask(command_set(**REQUESTS[verb] | {"MessageID": value}), data_set_of(verb)) is None
    assert "request has no Message ID (0000,0110), without which it cannot be answered" in only_line(caplog)
    wait_for(lambda: not spooled(quiet_archive.node.store.spool), what="an empty spool")


@pytest.mark.parametrize("verb", REQUESTS)
@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"CommandField": None}, "it has no Command Field (0000,0100)"),
        ({"CommandField": 0x0999}, "its Command Field (0000,0100) is 2457, which is no operation"),
        ({"CommandField": 0x0100}, "it is a request N-EVENT-REPORT, and this node asked for no reports"),
        ({"CommandDataSetType": None}, "it has no Command Data Set Type (0000,0800)"),
    ],
    ids=["no operation", "unknown operation", "a report", "no type of data set"],
)
def test_what_is_no_command_ends_the_association(
    quiet_archive: Archive, caplog: pytest.LogCaptureFixture, verb: str, changed: dict[str, Any], line: str
) -> None:
    with caller_of(quiet_archive, verb) as caller, caplog.at_level(logging.WARNING):
        assert caller.ask(command_set(**REQUESTS[verb] | changed)) is None
    assert only_line(caplog).endswith(f" cannot be decoded: {line}")


@pytest.mark.parametrize("verb", ["echo", "store"])
def test_another_presentation_context_ends_the_association(
    quiet_archive: Archive, caplog: pytest.LogCaptureFixture, verb: str
) -> None:
    with caller_of(quiet_archive, verb) as caller, caplog.at_level(logging.WARNING):
        assert caller.ask(command_set(**REQUESTS[verb]), number=9) is None
    assert only_line(caplog) == "message of MODALITY cannot be decoded: presentation context 9 was not accepted"


def test_an_unreadable_element_ends_the_association(quiet_archive: Archive, caplog: pytest.LogCaptureFixture) -> None:
    command = command_set(**ECHO).replace(
        struct.pack("<HHIH", 0, 0x110, 2, 7), struct.pack("<HHI3s", 0, 0x110, 3, b"abc")
    )
    with caller_of(quiet_archive, "echo") as caller, caplog.at_level(logging.WARNING):
        assert caller.ask(command) is None
    assert only_line(caplog).endswith("an element of its command set cannot be read")


@pytest.mark.slow
@pytest.mark.parametrize("uid", ["1.2.3.4.5", "1." + "2" * 70], ids=["unknown", "too long"])
@pytest.mark.parametrize("verb", REQUESTS)
def test_a_sop_class_that_is_not_supported_is_answered(
    quiet_archive: Archive, caplog: pytest.LogCaptureFixture, verb: str, uid: str
) -> None:
    keyword = "RequestedSOPClassUID" if verb == "commit" else "AffectedSOPClassUID"
    with caller_of(quiet_archive, verb) as caller, caplog.at_level(logging.WARNING, "node"):
        answer = caller.ask(command_set(**REQUESTS[verb] | {keyword: uid}), data_set_of(verb))
        assert answer is not None
        assert answer.Status == (0x0118 if verb == "commit" else 0x0122)
        assert answer.ErrorComment == "the SOP class is not supported"
    assert [one for one in caplog.messages if "the SOP class is not supported" in one]


OPERATIONS = {"echo": 0x0030, "store": 0x0001, "find": 0x0020, "get": 0x0010, "move": 0x0021, "commit": 0x0130}


@pytest.mark.slow
@pytest.mark.parametrize("operation", [*OPERATIONS, "n-get"])
@pytest.mark.parametrize("verb", REQUESTS)
def test_an_operation_of_another_service_is_answered(
    quiet_archive: Archive, caplog: pytest.LogCaptureFixture, verb: str, operation: str
) -> None:
    """Formerly, such an operation for Verification was answered with the success of a C-ECHO."""
    if verb == operation:
        return
    uid = REQUESTS[verb].get("AffectedSOPClassUID") or STORAGE_COMMITMENT
    of_class = {"AffectedSOPClassUID": uid, "RequestedSOPClassUID": uid}
    request = STORE | REQUESTS["move"] | ACTION | of_class | {"CommandField": OPERATIONS.get(operation, 0x0110)}
    with caller_of(quiet_archive, verb) as caller, caplog.at_level(logging.WARNING):
        answer = caller.ask(command_set(**request), data_set_of(verb) or b"none")
        assert answer is not None
        assert (answer.CommandField, answer.Status) == (request["CommandField"] | 0x8000, 0x0211)
        assert answer.ErrorComment.endswith(" is no operation of this SOP class")
        assert ": 0211, " in only_line(caplog)
    wait_for(lambda: not spooled(quiet_archive.node.store.spool), what="an empty spool")


@pytest.mark.parametrize("verb", ["store", "find", "commit"])
def test_a_sop_class_of_another_context_is_answered(
    quiet_archive: Archive, caplog: pytest.LogCaptureFixture, verb: str
) -> None:
    held = set(quiet_archive.node.store.digests())
    with caller_of(quiet_archive, verb) as caller, caplog.at_level(logging.WARNING):
        answer = caller.ask(command_set(**REQUESTS[verb]), data_set_of(verb), number=3)
        assert answer is not None
        assert answer.Status == (0x0118 if verb == "commit" else 0x0122)
        assert only_line(caplog).endswith("the SOP class is not that of the context")
    assert set(quiet_archive.node.store.digests()) == held


@pytest.mark.parametrize("priority", [None, "", 7], ids=["absent", "empty", "unknown"])
@pytest.mark.parametrize("verb", ["store", "find", "move", "get"])
def test_a_priority_is_not_needed(quiet_archive: Archive, verb: str, priority: Any) -> None:
    uid = str(generate_uid())
    of_image = {"AffectedSOPInstanceUID": uid} if verb == "store" else {}
    with caller_of(quiet_archive, verb) as caller:
        request = command_set(**REQUESTS[verb] | of_image | {"Priority": priority})
        answer = caller.ask(request, data_set_of(verb, uid))
        assert answer is not None
        assert answer.Status == 0x0000


# --- several messages in one PDU ---


def test_every_message_of_a_pdu_is_answered(quiet_archive: Archive) -> None:
    echoes = [pdv(LAST_OF_COMMAND, command_set(**ECHO | {"MessageID": number})) for number in (1, 2, 3)]
    with caller_of(quiet_archive, "echo") as caller:
        caller.send(in_one_pdu(*echoes))
        answers = [caller.answer() for _ in echoes]
    assert [one and (one.Status, one.MessageIDBeingRespondedTo) for one in answers] == [(0, 1), (0, 2), (0, 3)]


@pytest.mark.parametrize("in_a_pdu", [1, 150])
def test_requests_that_wait_for_no_answer_stay_with_their_sender(
    quiet_archive: Archive, monkeypatch: pytest.MonkeyPatch, in_a_pdu: int
) -> None:
    """Each data set that has arrived has an open file, and one peer must not use up the files of all others."""
    many = 150
    folder, arrived, refuse = quiet_archive.node.store.spool, list[int](), Refusals.of_request
    note = lambda *refusal: (arrived.append(len(spooled(folder))), refuse(*refusal))  # noqa: E731
    monkeypatch.setattr(Refusals, "of_request", note)
    request = pdv(LAST_OF_COMMAND, command_set(**STORE)), pdv(LAST_OF_DATA_SET, bytes(10))
    with RawCaller(quiet_archive.address.port, MAMMOGRAPHY, calling="STRANGER") as caller:
        for _ in range(many // in_a_pdu):
            caller.send(in_one_pdu(*request * in_a_pdu))
        answers = [caller.answer() for _ in range(many)]
    assert {one and one.Status for one in answers} == {0x0124}
    assert len(arrived) == many
    assert max(arrived) <= 4  # one that is served, two that wait, one that arrives


def test_images_are_whole_wherever_the_pdus_are_cut(quiet_archive: Archive) -> None:
    """Two images and an echo are sent in fragments of commands and data sets, three fragments to a PDU."""
    pieces: list[bytes] = []
    images = {uid: image(uid) for uid in ("1.2.4.1", "1.2.4.2")}
    for number, (uid, body) in enumerate(images.items()):
        command = command_set(**STORE | {"MessageID": number, "AffectedSOPInstanceUID": uid})
        pieces += [pdv(COMMAND, command[:20]), pdv(LAST_OF_COMMAND, command[20:])]
        pieces += [pdv(0, body[:1000]), pdv(0, body[1000:2000]), pdv(LAST_OF_DATA_SET, body[2000:])]
    pieces.append(pdv(LAST_OF_COMMAND, command_set(**ECHO), 3))
    with caller_of(quiet_archive, "store") as caller:
        for at in range(0, len(pieces), 3):
            caller.send(in_one_pdu(*pieces[at : at + 3]))
        answers = [caller.answer() for _ in range(3)]
    assert [one and (one.Status, one.MessageIDBeingRespondedTo) for one in answers] == [(0, 0), (0, 1), (0, 7)]
    node = quiet_archive.node
    for uid, body in images.items():
        held = node.index.by_uid(uid)
        assert held is not None
        with node.originals.borrowed(held.original_digest) as path:
            assert path.read_bytes().endswith(body)


def test_a_cancel_in_the_pdu_of_its_request_is_honoured(quiet_archive: Archive) -> None:
    """The query has no match. The cancel must not count for a later request, and the echo is answered."""
    request, identifier = REQUESTS["find"], data_set_of("find")
    cancel = command_set(CommandField=0x0FFF, MessageIDBeingRespondedTo=7, CommandDataSetType=NO_DATA_SET)
    with caller_of(quiet_archive, "find") as caller:
        caller.send(
            in_one_pdu(
                pdv(LAST_OF_COMMAND, command_set(**request)),
                pdv(LAST_OF_DATA_SET, identifier),
                pdv(LAST_OF_COMMAND, cancel),
                pdv(LAST_OF_COMMAND, command_set(**ECHO | {"MessageID": 8}), 3),
            )
        )
        first, second = caller.answer(), caller.answer()
    assert first is not None
    assert first.Status in (0x0000, 0xFE00)
    assert second is not None
    assert (second.Status, second.MessageIDBeingRespondedTo) == (0x0000, 8)


def test_nothing_is_read_behind_a_message_that_cannot_be_decoded(
    quiet_archive: Archive, caplog: pytest.LogCaptureFixture
) -> None:
    broken = pdv(LAST_OF_COMMAND, command_set(**ECHO | {"CommandField": None}))
    with caller_of(quiet_archive, "echo") as caller, caplog.at_level(logging.WARNING):
        caller.send(in_one_pdu(broken, broken, pdv(LAST_OF_COMMAND, command_set(**ECHO))))
        assert caller.answer() is None
    assert "no Command Field" in only_line(caplog)


@pytest.mark.parametrize(
    ("pieces", "line"),
    [
        ([pdv(LAST_OF_DATA_SET, b"x")], "its command set is not before its data set"),
        ([pdv(0, b"x"), pdv(LAST_OF_COMMAND, command_set(**STORE))], "its command set is not before its data set"),
        ([pdv(LAST_OF_COMMAND, command_set(**STORE))] * 2, "its command set is not before its data set"),
        (
            [pdv(LAST_OF_COMMAND, command_set(**STORE)), pdv(LAST_OF_DATA_SET, b"x", 3)],
            "its fragments are on two presentation contexts",
        ),
        ([pdv(COMMAND, b"x"), pdv(COMMAND, b"x", 3)], "its fragments are on two presentation contexts"),
    ],
    ids=["no command", "data before", "two commands", "data elsewhere", "command elsewhere"],
)
def test_fragments_of_no_message_end_the_association(
    quiet_archive: Archive, caplog: pytest.LogCaptureFixture, pieces: list[bytes], line: str
) -> None:
    """Otherwise a second command set would leave the file of the first data set behind, as often as the peer likes."""
    with caller_of(quiet_archive, "store") as caller, caplog.at_level(logging.WARNING):
        for piece in pieces:
            caller.send(in_one_pdu(piece))
        assert caller.answer() is None
    assert only_line(caplog).endswith(f" cannot be decoded: {line}")
    wait_for(lambda: not any(quiet_archive.node.store.spool.iterdir()), what="an empty spool")


def test_an_event_that_is_not_expected_leaves_nothing_in_the_spool(
    quiet_archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An example is the answer to an earlier request, after an abort in the middle of a data set."""
    do_action = StateMachine.do_action

    def refuse(self: Any, event: str) -> None:
        if event == "Evt19":
            raise InvalidEventError
        do_action(self, event)

    monkeypatch.setattr(StateMachine, "do_action", refuse)
    with caller_of(quiet_archive, "store") as caller:
        caller.send(in_one_pdu(pdv(LAST_OF_COMMAND, command_set(**STORE)), pdv(0, b"x")))
        wait_for(lambda: spooled(quiet_archive.node.store.spool), what="a data set that arrives")
        caller.send(in_one_pdu(pdv(COMMAND, b"x")))
        assert caller.answer() is None
        wait_for(lambda: not any(quiet_archive.node.store.spool.iterdir()), timeout=20, what="an empty spool")
