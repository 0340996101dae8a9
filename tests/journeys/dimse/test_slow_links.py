"""Proves that objects arrive over slow connections, that waiting peers are informed, and that a stop ends in time."""

from __future__ import annotations

import gc
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset
from pydicom.uid import UID, ImplicitVRLittleEndian, generate_uid
from pynetdicom import AE, build_role, evt
from pynetdicom.presentation import build_context

from node.app import Node
from node.dimse import client, pynetdicom_patches
from node.dimse.client import Address
from node.dimse.pynetdicom_patches.file_sending import FileSendingSocket, send_files_directly
from storage.dicom.dicomfile import file_meta, write_preamble
from storage.dicom.writing import encode
from tests.conftest import SECONDARY_CAPTURE, settings_for, wait_for

FIND, MOVE, GET = (f"1.2.840.10008.5.1.4.1.2.2.{service}" for service in (1, 2, 3))
FAILED, CANCELLED, PENDING, SUCCESS = 0xA702, 0xFE00, 0xFF00, 0x0000

# pynetdicom leaves the socket of an association that was refused or broke to the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")


_BUFFER = 16384
"""Bytes that a side of the line holds: a sender hears of every 32 KB (the system doubles it), five times a second."""


class Line:
    """A destination behind a line of ``rate`` bytes a second. With 0, it accepts the association and reads nothing
    more.

    ``to``: the port of an SCP that is called over this line instead, and whose answers are slow.
    """

    def __init__(self, rate: float, answers: Any, to: int = 0) -> None:
        self.rate, self.received, self.connected, self._over = rate, 0, threading.Event(), threading.Event()
        entity = AE("VIEWER")
        entity.add_supported_context(SECONDARY_CAPTURE, ImplicitVRLittleEndian)
        entity.network_timeout = entity.dimse_timeout = None
        self._scp: Any = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, answers)])
        self._to, self._slow_back = ("127.0.0.1", to) if to else self._scp.server_address, bool(to)
        self._listening = socket.socket()
        self._listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        self._listening.bind(("127.0.0.1", 0))
        self._listening.listen()
        self.port = int(self._listening.getsockname()[1])
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._serve)]
        self._threads[0].start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                caller, _ = self._listening.accept()
                scp = socket.socket()
                self._sockets += [caller, scp]
                scp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
                scp.connect(self._to)
                scp.sendall(caller.recv(65536))
                caller.sendall(scp.recv(65536))
                self.connected.set()
                rates = (float("inf"), self.rate) if self._slow_back else (self.rate, float("inf"))
                for way in ((caller, scp, rates[0]), (scp, caller, rates[1])):
                    self._threads.append(threading.Thread(target=self._pass_on, args=way))
                    self._threads[-1].start()

    def _pass_on(self, one: socket.socket, other: socket.socket, rate: float) -> None:
        due = time.monotonic()
        with suppress(OSError):
            while rate and not self._over.is_set() and (data := one.recv(16384)):
                due = max(due, time.monotonic() - 1) + len(data) / rate  # makes up for a second of a busy machine
                self._over.wait(max(0.0, due - time.monotonic()))
                other.sendall(data)
                self.received += len(data)
            if rate:
                other.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._over.set()
        self._scp.shutdown()
        for one in (self._listening, *self._sockets):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(300)
        for one in (self._listening, *self._sockets):
            one.close()


@contextmanager
def line(rate: float, answers: Any = lambda event: 0, to: int = 0) -> Iterator[Line]:
    made = Line(rate, answers, to)
    try:
        yield made
    finally:
        made.close()
        gc.collect()


@contextmanager
def archive(folder: Path, port: int, size: int = 3_000_000, **node: Any) -> Iterator[tuple[Node, Dataset]]:
    """A node with one object of ``size`` bytes, and the identifier of the object. VIEWER is on that port."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = SECONDARY_CAPTURE, generate_uid()
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.Modality = generate_uid(), generate_uid(), "OT"
    ds.PatientID, ds.PatientName, ds.EncapsulatedDocument = "S1", "Slow^Line", bytes(size)
    path = folder / "object.dcm"
    with path.open("wb") as out:
        write_preamble(out, file_meta(ds.SOPClassUID, ds.SOPInstanceUID, ImplicitVRLittleEndian))
        out.write(encode(ds, ImplicitVRLittleEndian))
    changes = {"host": "127.0.0.1", "port": 0, "shutdown_timeout": 0, "keep_alive": 0.3, **node}
    with Node(settings_for(folder / "archive", port, node=changes, archivist={"enabled": False})) as running:
        statuses: list[int] = []
        client.store([path], address(running), calling="MODALITY", each=lambda _, status, __: statuses.append(status))
        assert statuses == [0]
        identifier = client.image_identifier(ds.StudyInstanceUID)
        yield running, identifier


def address(node: Node) -> Address:
    return Address("127.0.0.1", node.server.port, "LATENTPACS")


@contextmanager
def viewer(node: Node, model: str) -> Iterator[Any]:
    pynetdicom_patches.install()
    entity = AE("VIEWER")
    entity.dimse_timeout = entity.network_timeout = 120
    assoc = entity.associate("127.0.0.1", node.server.port, contexts=[build_context(model)])
    assert assoc.is_established
    try:
        yield assoc
    finally:
        if assoc.is_established:
            assoc.release()


def moved(node: Node, identifier: Dataset) -> list[int]:
    with viewer(node, MOVE) as assoc:
        return [int(status.get("Status", -1)) for status, _ in assoc.send_c_move(identifier, "VIEWER", MOVE)]


@pytest.mark.slow
def test_a_large_object_over_a_slow_line_arrives(tmp_path: Path) -> None:
    """It takes three times the DIMSE timeout and the network timeout, and the requester gets pending responses all the
    time."""
    with line(1.5e5) as destination, archive(tmp_path, destination.port, dimse_timeout=6, network_timeout=6) as made:
        *pending, last = moved(*made)
        assert last == SUCCESS
        assert set(pending) == {PENDING}
        assert len(pending) >= 4


@pytest.mark.slow
def test_a_large_object_comes_back_over_a_slow_line(tmp_path: Path) -> None:
    """A C-GET that takes three times the DIMSE timeout and the network timeout."""
    pynetdicom_patches.install()
    came: list[str] = []
    entity = AE("EXACTVIEW")
    entity.maximum_pdu_size = 0
    entity.dimse_timeout = entity.network_timeout = 120
    contexts = [build_context(GET), build_context(SECONDARY_CAPTURE, ImplicitVRLittleEndian)]
    roles: list[Any] = [build_role(UID(SECONDARY_CAPTURE), scp_role=True)]
    handlers: list[Any] = [(evt.EVT_C_STORE, lambda event: came.append(event.request.AffectedSOPInstanceUID) or 0)]
    with (
        archive(tmp_path, 1, dimse_timeout=6, network_timeout=6) as (node, identifier),
        line(1.5e5, to=node.server.port) as way,
    ):
        assoc = entity.associate("127.0.0.1", way.port, contexts=contexts, ext_neg=roles, evt_handlers=handlers)
        statuses = [int(status.get("Status", -1)) for status, _ in assoc.send_c_get(identifier, GET)]
        assoc.release()
    assert (statuses[-1], len(came)) == (SUCCESS, 1)


@pytest.mark.slow
def test_a_cancel_is_honoured_while_an_object_is_sent(tmp_path: Path) -> None:
    with line(3e4) as destination, archive(tmp_path, destination.port) as (node, identifier):
        with viewer(node, MOVE) as assoc:
            answers = assoc.send_c_move(identifier, "VIEWER", MOVE, msg_id=7)
            next(answers)
            began = time.monotonic()
            assoc.send_c_cancel(7, query_model=MOVE)
            last = [status for status, _ in answers][-1]
            assert time.monotonic() - began < 50  # 100 s would be the whole object
        assert int(last.Status) == CANCELLED
        counts = last.NumberOfRemainingSuboperations, last.NumberOfFailedSuboperations
        assert counts == (0, 1)
        assert destination.received < 3_000_000


@pytest.mark.slow
def test_one_that_reads_no_more_is_named_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The timeout is short only for this object, since associations are idle for longer on a busy machine."""
    send = FileSendingSocket.send_file

    def impatient(self: FileSendingSocket, *of: Any) -> None:
        self.assoc.ae.network_timeout = 1
        send(self, *of)

    monkeypatch.setattr(FileSendingSocket, "send_file", impatient)
    with line(0) as destination, archive(tmp_path, destination.port, 30_000_000) as made:
        assert moved(*made)[-1] == FAILED
    assert "lost while sending: no byte taken for 1 s (node.network_timeout)" in caplog.text


@pytest.mark.slow
def test_one_that_does_not_answer_is_named_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    over = threading.Event()

    def late(event: Any) -> int:
        over.wait(300)
        return 0

    with line(1e7, late) as destination, archive(tmp_path, destination.port, dimse_timeout=1) as made:
        assert moved(*made)[-1] == FAILED
        over.set()
    assert "did not answer within 1 s of the last byte (node.dimse_timeout)" in caplog.text


@pytest.mark.slow
def test_one_that_aborts_is_named_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with (
        line(1e7, lambda event: event.assoc.abort()) as destination,
        archive(tmp_path, destination.port) as made,
    ):
        assert moved(*made)[-1] == FAILED
    assert "receiver aborted the association, or closed the connection" in caplog.text


def stop(node: Node) -> float:
    began = time.monotonic()
    node.server.stop()
    return time.monotonic() - began


@pytest.mark.slow
def test_a_drain_is_kept_with_a_stuck_destination(tmp_path: Path) -> None:
    with (
        line(0) as destination,
        archive(tmp_path, destination.port, 30_000_000, shutdown_timeout=1) as (node, identifier),
    ):
        thread = threading.Thread(target=moved, args=(node, identifier))
        thread.start()
        assert destination.connected.wait(300)
        wait_for(lambda: sending(node), what="an object on its way")
        assert 0.9 < stop(node) < 25  # 30 s and more would be the timeouts
        thread.join(300)
        assert not sending(node)


def sending(node: Node) -> bool:
    return any(assoc.is_requestor and assoc.dul.is_alive() for assoc in node.server.entity.active_associations)


def test_a_drain_is_kept_with_a_destination_that_says_nothing(tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        archive(tmp_path, silent.getsockname()[1], 1000, shutdown_timeout=1) as (node, identifier),
    ):
        thread = threading.Thread(target=moved, args=(node, identifier))
        thread.start()
        connection, _ = silent.accept()
        assert 0.9 < stop(node) < 25  # 30 s and more would be the timeouts
        connection.close()
        thread.join(300)


def test_a_drain_is_kept_with_a_caller_that_sends_half_a_pdu(tmp_path: Path) -> None:
    with (
        archive(tmp_path, 1, 1000, shutdown_timeout=1) as (node, _),
        socket.create_connection(("127.0.0.1", node.server.port)) as caller,
    ):
        caller.sendall(b"\x01\0\0\0\xff\xff")
        wait_for(lambda: node.server.entity.active_associations, what="a caller")
        assert stop(node) < 25


@pytest.mark.slow
def test_small_messages_do_not_wait_for_each_other(tmp_path: Path) -> None:
    """TCP_NODELAY is set on connections of callers, and on those that we open."""
    with line(1e7) as destination, archive(tmp_path, destination.port, 1000) as (node, identifier):
        with viewer(node, FIND):
            opened = [one for assoc in node.server.entity.active_associations if (one := assoc.dul.socket.socket)]
            assert opened
            assert all(one.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for one in opened)
        seen: list[int] = []

        def look(assoc: Any) -> None:
            seen.append(assoc.dul.socket.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            send_files_directly(assoc)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("node.dimse.associations.sender.send_files_directly", look)
            assert moved(node, identifier)[-1] == SUCCESS
        assert seen
        assert all(seen)
