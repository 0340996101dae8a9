"""Proves that every association request is accepted or rejected as PS3.8 says, and that each gets an answer."""

from __future__ import annotations

import logging
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydicom import DataElement, Dataset
from pydicom.config import IGNORE
from pynetdicom.fsm import InvalidEventError

from benchmarks.upper_layer import (
    ABORTED,
    ACCEPTED,
    DATA,
    IMPLICIT,
    REJECTED,
    VERIFICATION,
    ask,
    associate,
    context,
    echo,
    item,
    kinds,
    pdu,
    received,
    results,
    user_information,
)
from node.app import Node
from node.cli.logs import TextLines
from node.config import Settings
from node.dimse.associations.outgoing import DestinationUnavailable, Outgoing
from node.dimse.pynetdicom_patches.association_request import repaired_request
from node.dimse.pynetdicom_patches.association_threads import GuardedAcceptor
from node.dimse.pynetdicom_patches.command_ae_titles import strip_ae_titles
from node.dimse.pynetdicom_patches.entity import UpperLayer
from tests.conftest import settings_for, wait_for

ANSWERED = [ACCEPTED, DATA]


def settings(root: Path, **node: Any) -> Settings:
    return settings_for(
        root, node={"host": "127.0.0.1", "port": 0, "shutdown_timeout": 0, **node}, archivist={"enabled": False}
    )


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with Node(settings(tmp_path_factory.mktemp("node"))) as node:
        yield node


@pytest.fixture
def port(running: Node, caplog: pytest.LogCaptureFixture) -> Iterator[int]:
    """The port of the node. Checks that the node logs no traceback."""
    yield running.server.port
    assert not [one for one in caplog.records if one.exc_info]


# --- 1. what is not known ---


@pytest.mark.parametrize("kind", [0x00, 0x10, 0x5A, 0x59, 0xFF])
@pytest.mark.parametrize("value", [b"", b"1234"])
def test_unknown_user_information_is_ignored(port: int, kind: int, value: bytes) -> None:
    user = user_information(extra=item(kind, value))
    assert kinds(ask(port, associate(user=user), echo())) == ANSWERED


@pytest.mark.parametrize("kind", [0x52, 0x53, 0x54, 0x55, 0x56, 0x57, 0x58])
@pytest.mark.parametrize("value", [b"", b"\xff", b"\0\xff\xff\xff"])
def test_unreadable_user_information_is_ignored(port: int, kind: int, value: bytes) -> None:
    user = user_information(extra=item(kind, value))
    assert kinds(ask(port, associate(user=user), echo())) == ANSWERED


def test_unknown_items_and_sub_items_are_ignored(port: int) -> None:
    asked = context(1, VERIFICATION, IMPLICIT, extra=item(0x41, b"x"))
    assert kinds(ask(port, associate(asked, extra=item(0x60, b"abc")), echo())) == ANSWERED


def test_only_bit_0_of_the_protocol_version_counts(port: int) -> None:
    assert kinds(ask(port, associate(version=3), echo())) == ANSWERED
    (refused,) = ask(port, associate(version=2))
    assert (refused[0], *refused[7:10]) == (REJECTED, 1, 2, 2)


@pytest.mark.parametrize("name", [b"1.2.840.10008.3.1.1.2", b"1.2.840.10008.3.1.1\0\0", b"\xff" * 21, bytes(21)])
def test_another_application_is_rejected(port: int, name: bytes) -> None:
    (refused,) = ask(port, associate().replace(b"1.2.840.10008.3.1.1.1", name))
    assert (refused[0], *refused[7:10]) == (REJECTED, 1, 1, 2)


# --- 2. AE titles ---


@pytest.mark.parametrize(
    "title", [b"MODALITY".ljust(16, b"\0"), b"MODALITY \0\0", b"\0MODALITY\0", b"  MODALITY  ", b"MODALITY\0 \0"]
)
def test_padding_of_titles_is_taken_off(port: int, title: bytes) -> None:
    assert kinds(ask(port, associate(calling=title), echo())) == ANSWERED
    called = title.replace(b"MODALITY", b"ARCHIVE1")
    assert kinds(ask(port, associate(called=called), echo())) == ANSWERED


@pytest.mark.parametrize(
    "title", [b" " * 16, bytes(16), b"A\nB", b"A\0B", b"A\\B", b"\xc4RCHIV", b"\x1b[31mX", b"\x7f"]
)
def test_what_is_no_title_is_rejected(port: int, title: bytes) -> None:
    (refused,) = ask(port, associate(calling=title))
    assert (refused[0], *refused[7:10]) == (REJECTED, 1, 1, 3)
    (refused,) = ask(port, associate(called=title))
    assert (refused[0], *refused[7:10]) == (REJECTED, 1, 1, 7)


def test_the_log_of_a_forged_title_is_one_line(port: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        ask(port, associate(calling=b"X\n2026 ERROR f\0"))
    written = [TextLines().format(record) for record in caplog.records]
    assert any("not a valid calling AE title" in line for line in written)
    assert all(line.isprintable() for line in written)


# --- 3. presentation contexts ---


@pytest.mark.parametrize(
    "odd",
    [
        context(1, VERIFICATION),
        context(1, VERIFICATION, b""),
        context(1, VERIFICATION, b"no UID", b"\xff"),
        context(1, None),
        context(1, None, IMPLICIT),
        context(1, b"", IMPLICIT),
        context(1, b"1.2.3.4.5.6"),
    ],
)
def test_a_context_without_syntax_is_rejected_alone(port: int, odd: bytes) -> None:
    accepted, echoed = ask(port, associate(odd, context(3, VERIFICATION, IMPLICIT)), echo(3))
    assert results(accepted)[1] in (3, 4)
    assert results(accepted)[3] == 0
    assert echoed[0] == DATA
    (accepted,) = ask(port, associate(odd))
    assert results(accepted)[1] in (3, 4)


def test_a_context_without_a_valid_id_is_ignored(port: int) -> None:
    asked = context(2, VERIFICATION, IMPLICIT), context(3, VERIFICATION, IMPLICIT)
    accepted, echoed = ask(port, associate(*asked), echo(3))
    assert (results(accepted), echoed[0]) == ({3: 0}, DATA)


def test_padding_of_uids_is_taken_off(port: int) -> None:
    asked = context(1, VERIFICATION + b"\0", IMPLICIT + b"\0")
    assert kinds(ask(port, associate(asked), echo())) == ANSWERED


# --- 4. Maximum Length ---


@pytest.mark.parametrize(
    "user",
    [user_information(None), user_information(0), b"", item(0x50, b""), user_information(7), user_information(8)],
)
def test_no_maximum_length_is_no_limit(port: int, user: bytes) -> None:
    assert kinds(ask(port, associate(user=user), echo())) == ANSWERED


@pytest.mark.parametrize("most", [1, 5, 6])
def test_a_maximum_length_without_room_for_data_is_rejected(port: int, most: int) -> None:
    (refused,) = ask(port, associate(user=user_information(most)))
    assert (refused[0], *refused[7:10]) == (REJECTED, 1, 2, 1)


# --- what contradicts itself, and errors of ours ---


@pytest.mark.parametrize(
    "broken",
    [
        pdu(1, b""),
        pdu(1, associate()[6:40]),
        pdu(1, associate()[6:-3]),
        associate(extra=b"\x60\0\0"),
        associate(user=item(0x50, item(0x51, b"\0\1"))),
        associate(item(0x20, b"\1\0")),
        pdu(2, associate()[6:]),
        pdu(3, b"\0"),
        pdu(4, b"\0\0\0\x09\1\3abc"),
        pdu(9, b""),
    ],
)
def test_what_contradicts_itself_is_aborted(port: int, broken: bytes) -> None:
    assert kinds(ask(port, broken)) == [ABORTED]


def test_a_pdu_that_the_state_machine_has_no_place_for_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """An example is an acceptance that follows an invalid PDU, which was answered with an abort."""

    def fail() -> None:
        raise InvalidEventError("Invalid event 'Evt7' for the current state 'Sta13'")

    ours, theirs = socket.socketpair()
    layer: Any = UpperLayer.__new__(UpperLayer)
    threading.Thread.__init__(layer, target=fail)
    layer._assoc = SimpleNamespace(remote={"address": "127.0.0.1"}, get_handlers=lambda event: [])
    layer.socket = ours
    with theirs:
        layer.start()
        layer.join(300)
        theirs.settimeout(300)
        assert theirs.recv(1) == b""
    assert "not expected" in caplog.text
    assert not [one for one in caplog.records if one.exc_info]


def test_what_is_no_dicom_is_one_line(port: int, caplog: pytest.LogCaptureFixture) -> None:
    """An example is the request of a port scan, or of somebody who takes the port for a web server."""
    request = b"GET / HTTP/1.1\r\nHost: archive\r\nUser-Agent: curl/8.0\r\nAccept: */*\r\n\r\n"
    assert kinds(ask(port, request * 100)) in ([ABORTED], [])  # the abort may be lost when unread bytes reset the line
    (line,) = [one for one in caplog.records if "0x47" in one.getMessage()]
    assert not line.exc_info
    assert len(caplog.records) <= 2


def test_an_error_of_ours_leaves_nobody_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise IndexError

    with Node(settings(tmp_path, max_associations=2)) as node:
        monkeypatch.setattr("pynetdicom.acse.negotiate_as_acceptor", fail)
        for _ in range(4):
            assert kinds(ask(node.server.port, associate())) == [ABORTED]
            wait_for(
                lambda: not [one for one in threading.enumerate() if isinstance(one, GuardedAcceptor)], what="nobody"
            )
        monkeypatch.undo()
        assert kinds(ask(node.server.port, associate(), echo())) == ANSWERED


# --- associations that we open ---


def answer(listening: socket.socket, sent: bytes) -> None:
    connection, _ = listening.accept()
    with connection:
        received(connection)
        connection.sendall(sent)
        received(connection)


@pytest.mark.parametrize(
    ("sent", "taken"),
    [
        (associate(context(1, None, IMPLICIT, kind=0x21), kind=2, user=user_information(None)), True),
        (associate(context(1, None, IMPLICIT, kind=0x21), kind=2, user=b""), True),
        (associate(context(1, None, IMPLICIT, kind=0x21), kind=2, calling=bytes(16), called=b"\xff\n"), True),
        (associate(context(1, None, IMPLICIT, kind=0x21), kind=2, user=user_information(extra=item(0x7A, b"x"))), True),
        (associate(context(1, None, kind=0x21), kind=2), False),
        (associate(context(1, None, IMPLICIT, kind=0x21), kind=2, user=user_information(3)), False),
    ],
)
def test_answers_to_our_own_requests(
    running: Node, sent: bytes, taken: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from pynetdicom.presentation import build_context

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=answer, args=(listening, sent))
        thread.start()
        own = settings_for(Path("x"), listening.getsockname()[1])
        outgoing = Outgoing(running.server.entity, own)
        peer = own.peer("VIEWER")
        assert peer is not None
        contexts = [build_context(VERIFICATION.decode(), IMPLICIT.decode())]
        try:
            assoc = outgoing.associate(peer, contexts, wanted=lambda: False)
            assert taken
            assoc.abort()
        except DestinationUnavailable:
            assert not taken
        thread.join(300)
    assert not [one for one in caplog.records if one.exc_info]


def test_a_sound_request_is_left_as_it_is() -> None:
    asked = associate(context(1, VERIFICATION, IMPLICIT, b"1.2.840.10008.1.2.1"))
    assert repaired_request(asked) == (asked, None)
    assert struct.unpack(">xxI", asked[:6])[0] == len(asked) - 6


# --- titles in commands ---

MOVE = b"1.2.840.10008.5.1.4.1.2.2.2"


def move(destination: bytes) -> bytes:
    """A C-MOVE-RQ of a study that is not held."""

    def element(group: int, number: int, value: bytes) -> bytes:
        return struct.pack("<HHI", group, number, len(value)) + value

    rest = element(0, 2, MOVE + b"\0") + element(0, 0x100, b"\x21\0") + element(0, 0x110, b"\1\0")
    rest += element(0, 0x600, destination) + element(0, 0x700, b"\2\0") + element(0, 0x800, b"\0\0")
    command = bytes((1, 3)) + element(0, 0, struct.pack("<I", len(rest))) + rest
    keys = bytes((1, 2)) + element(8, 0x52, b"STUDY ") + element(0x20, 0xD, b"1.2.3\0")
    return b"".join(pdu(4, struct.pack(">I", len(one)) + one) for one in (command, keys))


@pytest.mark.parametrize(
    ("destination", "status"),
    [
        (b"VIEWER", 0x0000),
        (b"VIEWER\0\0", 0x0000),
        (b" VIEWER \0", 0x0000),
        (b"NOBODY\0\0", 0xA801),
        (b"V\nX\0", 0xA801),
        (b"\xc4X", 0xA801),
        (b"V\\X ", 0xA801),
        (b"V" * 18, 0xA801),
        (b"", 0xA801),
        (bytes(4), 0xA801),
    ],
)
def test_padding_of_a_move_destination_is_taken_off(port: int, destination: bytes, status: int) -> None:
    asked = associate(context(1, MOVE, IMPLICIT), calling=b"VIEWER\0\0")
    _, answered = ask(port, asked, move(destination))
    at = answered.index(struct.pack("<HHI", 0, 0x900, 2))
    assert struct.unpack_from("<H", answered, at + 8) == (status,)


@pytest.mark.parametrize(("sent", "taken"), [("A\0\0", "A"), (" A ", "A"), ("A\nB", None), ("", None)])
def test_a_move_originator_is_taken_without_padding(sent: str, taken: str | None) -> None:
    command = Dataset()
    command.add(DataElement("MoveOriginatorApplicationEntityTitle", "AE", sent, validation_mode=IGNORE))
    strip_ae_titles(command)
    assert command.MoveOriginatorApplicationEntityTitle == taken
