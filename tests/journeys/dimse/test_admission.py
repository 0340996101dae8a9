"""Proves which callers are admitted, how many at once, for how long and with how many bytes."""

from __future__ import annotations

import errno
import gc
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.transport import ThreadedAssociationServer

from node.app import Node
from node.dimse.client import Address, store
from node.dimse.pynetdicom_patches import listener
from node.dimse.spool import Allowance, SpoolFile
from storage.errors import InstanceTooLarge, StoreFull
from tests.conftest import settings_for, spooled, wait_for
from tests.support import samples
from tests.support.peers import storescu

# pynetdicom leaves the socket of an association that was refused or broke to the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. <s:pytest.PytestUnraisableExceptionWarning")

VERIFICATION = "1.2.840.10008.1.1"


@contextmanager
def node(root: Path, **changes: Any) -> Iterator[Node]:
    with Node(settings_for(root / "archive", archivist={"enabled": False}, **changes)) as running:
        yield running
    gc.collect()


def address(running: Node) -> Address:
    return Address("127.0.0.1", running.server.port, running.settings.node.ae_title)


def associate(running: Node, calling: str, called: str = "LATENTPACS") -> Any:
    entity = AE(calling)
    entity.add_requested_context(VERIFICATION)
    entity.add_requested_context(samples.MAMMOGRAPHY, ExplicitVRLittleEndian)
    return entity.associate("127.0.0.1", running.server.port, ae_title=called)


def rejection(assoc: Any) -> tuple[int, int, int]:
    """Result, source and reason of an A-ASSOCIATE-RJ."""
    assert assoc.is_rejected
    answer = assoc.acceptor.primitive
    return answer.result, answer.result_source, answer.diagnostic


def echoes(running: Node, calling: str, called: str = "LATENTPACS") -> bool:
    assoc = associate(running, calling, called)
    if not assoc.is_established:
        return False
    answered = assoc.send_c_echo().get("Status") == 0
    assoc.release()
    return answered


CALLING_NOT_RECOGNIZED, CALLED_NOT_RECOGNIZED, LIMIT = (1, 1, 3), (1, 1, 7), (2, 3, 2)


def test_titles_and_networks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    peers = [
        {"ae_title": "HERE", "allow": ["echo"], "from": ["127.0.0.0/8", "10.1.2.3"]},
        {"ae_title": "ELSEWHERE", "allow": ["echo"], "from": ["10.0.0.0/8", "2001:db8::/32"]},
    ]
    settings = {"peers": peers, "unknown_peers": {"allow": []}, "node": {"require_called_ae_title": True}}
    with node(tmp_path, **settings) as running:
        assert echoes(running, "HERE")
        assert rejection(associate(running, "ELSEWHERE")) == CALLING_NOT_RECOGNIZED
        assert rejection(associate(running, "NOBODY")) == CALLING_NOT_RECOGNIZED
        assert rejection(associate(running, "HERE", called="OTHER")) == CALLED_NOT_RECOGNIZED
    assert "rejected an association of ELSEWHERE from 127.0.0.1: not from its networks" in caplog.text
    assert "rejected an association of HERE from 127.0.0.1: it called OTHER, not LATENTPACS" in caplog.text
    assert "rejected an association of NOBODY from 127.0.0.1: no such peer" in caplog.text


def test_a_caller_that_cannot_be_judged_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("broken on purpose")

    with node(tmp_path) as running:
        monkeypatch.setattr("node.dimse.associations.admission._mismatch", broken)
        assert rejection(associate(running, "MODALITY")) == CALLING_NOT_RECOGNIZED


@pytest.mark.slow
def test_associations_at_once(tmp_path: Path) -> None:
    peers = [{"ae_title": "BUSY", "allow": ["echo"], "max_associations": 2}, {"ae_title": "OTHER", "allow": ["echo"]}]
    settings = {"peers": peers, "node": {"max_associations_per_peer": 1}}
    with node(tmp_path, **settings) as running:
        first = [associate(running, "BUSY"), associate(running, "BUSY")]
        assert all(assoc.is_established for assoc in first)
        assert rejection(associate(running, "BUSY")) == LIMIT
        stranger = associate(running, "STRANGER")
        assert stranger.is_established
        assert rejection(associate(running, "STRANGE2")) == LIMIT, "unknown titles count as one"
        other = associate(running, "OTHER")
        assert other.is_established
        first.pop().release()
        wait_for(lambda: echoes(running, "BUSY"), what="the place of an ended association is free")
        for assoc in (*first, stranger, other):
            assoc.release()


@pytest.mark.slow
def test_an_association_ends_in_time(tmp_path: Path) -> None:
    with node(tmp_path, node={"max_association_time": 0.5}) as running:
        assoc = associate(running, "MODALITY")
        wait_for(lambda: assoc.is_aborted, what="association aborted")
        assert echoes(running, "MODALITY")


def mammogram(path: Path, pixels: int = 1024) -> Path:
    return samples.write(samples.mammogram(samples.breast(pixels, pixels)), path)


@pytest.mark.slow
def test_an_instance_too_large_is_refused_while_it_arrives(tmp_path: Path) -> None:
    large, small = mammogram(tmp_path / "large.dcm"), mammogram(tmp_path / "small.dcm", 256)
    sizes: list[int] = []
    with node(tmp_path, node={"max_instance": 1_000_000}) as running:
        original = SpoolFile.close

        def measured(self: SpoolFile) -> None:
            original(self)
            sizes.append(Path(self.name).stat().st_size if Path(self.name).exists() else 0)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(SpoolFile, "close", measured)
            ran = storescu([large, small], address(running))
        assert ran.statuses[0] == 0xA701, ran.said
        assert "larger than the 1000000 bytes" in ran.output
        assert sizes[0] == 0
        seen: list[int] = []
        store([small], address(running), calling="MODALITY", each=lambda _, status, __: seen.append(status))
        assert seen == [0]
        assert spooled(running.store.spool) == []
        assert len(list(running.store.digests())) == 1


@pytest.mark.slow
def test_who_may_not_store_fills_no_disk(tmp_path: Path) -> None:
    file = mammogram(tmp_path / "image.dcm")
    written: list[int] = []
    with node(tmp_path) as running, pytest.MonkeyPatch.context() as patch:
        original = SpoolFile.flush
        patch.setattr(SpoolFile, "flush", lambda self: (original(self), written.append(Path(self.name).stat().st_size)))
        seen: list[int] = []
        store([file], address(running), calling="VIEWER", each=lambda _, status, __: seen.append(status))
        assert seen == [0x0124]
        assert max(written, default=0) <= 5000


def test_a_disk_that_fills_while_an_instance_arrives(tmp_path: Path) -> None:
    def full() -> None:
        raise StoreFull("no room")

    arriving = SpoolFile(tmp_path, Allowance(10**9, full))
    for _ in range(16):
        arriving.write(bytes(2**20))
    assert isinstance(arriving.refused, StoreFull)
    assert Path(arriving.name).stat().st_size == 0
    arriving.write(b"more")
    arriving.close()
    assert Path(arriving.name).stat().st_size == 0


def test_a_spool_file_counts_what_the_peer_sends(tmp_path: Path) -> None:
    arriving = SpoolFile(tmp_path, Allowance(10_000, lambda: None))
    arriving.write(bytes(14_096))
    assert arriving.refused is None, "preamble and file meta information are ours"
    arriving.write(b"1")
    assert isinstance(arriving.refused, InstanceTooLarge)
    arriving.close()


def test_a_spool_file_that_is_dropped_is_closed(tmp_path: Path) -> None:
    """An association that ends while its message is decoded drops its file. A ResourceWarning would fail this test."""
    arriving = SpoolFile(tmp_path, Allowance(10_000, lambda: None))
    arriving.write(b"half of a data set")
    name = Path(arriving.name)
    del arriving
    gc.collect()
    assert name.read_bytes() == b"half of a data set"


# --- bytes that no AE would send ---


def ended(connection: socket.socket) -> bool:
    """Read until the node closes the connection."""
    connection.settimeout(300)
    try:
        while connection.recv(65536):
            pass
    except ConnectionError:
        pass
    return True


@pytest.mark.slow
@pytest.mark.parametrize("kind", [1, 4])
def test_a_pdu_of_four_gigabytes_is_not_awaited(tmp_path: Path, kind: int) -> None:
    with node(tmp_path) as running, socket.create_connection(("127.0.0.1", running.server.port)) as caller:
        caller.sendall(struct.pack(">BBI", kind, 0, 2**32 - 1) + bytes(1000))
        assert ended(caller)
        assert echoes(running, "MODALITY")


@pytest.mark.slow
def test_half_a_pdu_does_not_hold_a_place(tmp_path: Path) -> None:
    """The rest of the PDU never arrives. pynetdicom alone would wait for ever."""
    with node(tmp_path, node={"network_timeout": 1, "max_associations_per_peer": 1}) as running:
        assoc = associate(running, "MODALITY")
        assoc.dul.socket.socket.sendall(struct.pack(">BBI", 4, 0, 5000) + bytes(100))
        wait_for(lambda: echoes(running, "MODALITY"), what="the place is free again")
        assoc.abort()


@pytest.mark.slow
def test_an_endless_identifier_is_not_collected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.dimse.pynetdicom_patches.message_limits._MOST_QUERY", 100_000)
    with node(tmp_path) as running:
        for title, size, expected in (
            ("VIEWER", 1_000, 0x0000),
            ("VIEWER", 90_000, 0x0000),
            ("VIEWER", 1_000_000, None),
            ("STRANGER", 1_000, 0x0124),
            ("STRANGER", 90_000, None),
        ):
            entity = AE(title)
            entity.add_requested_context("1.2.840.10008.5.1.4.1.2.2.1")
            assoc = entity.associate("127.0.0.1", running.server.port)
            identifier = Dataset()
            identifier.QueryRetrieveLevel = "STUDY"
            identifier.StudyInstanceUID = ""
            identifier.add_new(0x00091001, "OB", bytes(size))
            statuses = [
                status.get("Status")
                for status, _ in assoc.send_c_find(identifier, entity.requested_contexts[0].abstract_syntax)
            ]
            assert statuses[-1] == expected
            if expected is not None:
                assoc.release()


@pytest.mark.slow
def test_connections_that_ask_for_nothing_keep_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """They are not associations, and the oldest is closed. Formerly, such connections of three addresses kept every
    peer out for 30 s."""
    monkeypatch.setattr("node.dimse.pynetdicom_patches.connection_limits.WAITING", 2)
    with node(tmp_path, node={"max_associations": 2}) as running:
        idle = [socket.create_connection(("127.0.0.1", running.server.port)) for _ in range(4)]
        opened = running.server._listeners[0]._opened
        wait_for(lambda: len(running.server.entity.active_associations) == 4, what="all four wait")
        first = associate(running, "MODALITY")
        assert first.is_established
        assert ended(idle[0])
        [line] = [one.getMessage() for one in caplog.records if "closed a connection" in one.getMessage()]
        assert "from 127.0.0.1, which had asked for nothing for" in line
        wait_for(lambda: len(opened()) == 4, what="the oldest is gone")
        second = associate(running, "MODALITY")
        assert second.is_established
        wait_for(lambda: len(opened()) == 4, what="the second one is gone")
        assert rejection(associate(running, "MODALITY")) == LIMIT
        assert "the limit of 2 associations is reached" in caplog.text
        for assoc in (first, second):
            assoc.release()
        for connection in idle:
            connection.close()
        wait_for(lambda: not running.server.entity.active_associations, what="they are gone")
        assert echoes(running, "MODALITY")


@pytest.mark.slow
def test_more_connections_at_one_moment_than_can_give_way_are_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of threads is limited, however fast connections arrive."""
    monkeypatch.setattr("node.dimse.pynetdicom_patches.connection_limits.WAITING", 2)
    monkeypatch.setattr("node.dimse.pynetdicom_patches.connection_limits._one_gives_way", lambda _: False)
    with node(tmp_path, node={"max_associations": 2, "network_timeout": 2}) as running:
        idle = [socket.create_connection(("127.0.0.1", running.server.port)) for _ in range(4)]
        wait_for(lambda: len(running.server.entity.active_associations) == 4, what="all four wait")
        with socket.create_connection(("127.0.0.1", running.server.port)) as fifth:
            assert ended(fifth)
        for connection in idle:
            connection.close()
        wait_for(lambda: not running.server.entity.active_associations, what="they are gone")


@pytest.mark.slow
def test_without_a_file_descriptor_a_connection_that_asks_for_nothing_gives_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As under a limit of open files that is too low for the connections of config.yaml."""
    accept, missing = ThreadedAssociationServer.get_request, threading.Event()

    def get_request(server: Any) -> Any:
        if missing.is_set():
            raise OSError(errno.EMFILE, "Too many open files")
        return accept(server)

    monkeypatch.setattr(ThreadedAssociationServer, "get_request", get_request)
    with node(tmp_path) as running, socket.create_connection(("127.0.0.1", running.server.port)) as idle:
        wait_for(lambda: running.server.entity.active_associations, what="the silent one waits")
        missing.set()
        with socket.create_connection(("127.0.0.1", running.server.port)):
            assert ended(idle)
            missing.clear()
        assert "connections wait, because Too many open files" in caplog.text
        assert echoes(running, "MODALITY")


@pytest.mark.slow
@pytest.mark.parametrize(
    "sent", [b"", b"\x01\x00" + bytes(100), b"GET / HTTP/1.0\r\n\r\n" + bytes(40), b"\x07\0\0\0\0\4\0\0\0\0"]
)
def test_connections_that_were_closed_do_not_count(tmp_path: Path, sent: bytes) -> None:
    """Port scans and load balancers make such connections. They end at once, whatever they have sent, long before a
    timeout."""
    began = time.monotonic()
    with node(tmp_path) as running:
        for _ in range(10):
            with socket.create_connection(("127.0.0.1", running.server.port)) as connection:
                connection.sendall(sent)
        wait_for(lambda: not running.server.entity.active_associations, what="they are gone")
        assert time.monotonic() - began < 25  # 30 s would be the timeout
        assert echoes(running, "MODALITY")


@pytest.mark.slow
def test_one_address_does_not_lock_out_others(tmp_path: Path) -> None:
    with node(tmp_path, limits={"connections_per_address": 3}) as running:
        idle = [socket.create_connection(("127.0.0.1", running.server.port)) for _ in range(3)]
        wait_for(lambda: len(running.server.entity.active_associations) == 3, what="all three wait")
        with socket.create_connection(("127.0.0.1", running.server.port)) as fourth:
            assert ended(fourth)
        other = socket.create_connection(("127.0.0.1", running.server.port), source_address=("127.0.0.2", 0))
        wait_for(lambda: len(running.server.entity.active_associations) == 4, what="one from elsewhere is let in")
        for connection in (*idle, other):
            connection.close()
        wait_for(lambda: not running.server.entity.active_associations, what="they are gone")


def test_connections_count_before_they_have_a_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Formerly, if many arrived at one moment, each was accepted until the associations of the earlier ones had
    begun."""
    go_on, create = threading.Event(), listener._Handler._create_association

    def late(self: Any) -> Any:
        assert go_on.wait(60)
        return create(self)

    monkeypatch.setattr(listener._Handler, "_create_association", late)
    with node(tmp_path, limits={"connections_per_address": 3}) as running:
        opened = [socket.create_connection(("127.0.0.1", running.server.port)) for _ in range(9)]
        assert [ended(one) for one in opened[3:]] == [True] * 6
        go_on.set()
        wait_for(lambda: len(running.server.entity.active_associations) == 3, what="three are served")
        for connection in opened:
            connection.close()


@pytest.mark.slow
def test_an_idle_association_is_ended(tmp_path: Path) -> None:
    ended_by_node = threading.Event()
    entity = AE("MODALITY")
    entity.add_requested_context(VERIFICATION)
    with node(tmp_path, node={"network_timeout": 1}) as running:
        told = [(evt.EVT_CONN_CLOSE, lambda _: ended_by_node.set())]
        assoc = entity.associate("127.0.0.1", running.server.port, evt_handlers=told)
        assert assoc.is_established
        assert ended_by_node.wait(timeout=300)
        # on a busy machine another association may be idle for a second, too
        wait_for(lambda: echoes(running, "MODALITY"), what="the node answers")
