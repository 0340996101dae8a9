"""Each test shows a fault of pynetdicom's own connections. If one fails, remove the patch that it names."""

from __future__ import annotations

import select
import socket
import ssl
import struct
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import AssociationSocket

from benchmarks.upper_layer import ABORTED, ACCEPTED, DATA, associate, echo, kinds, received
from node.dimse.pynetdicom_patches import prompt_receive
from node.dimse.pynetdicom_patches.alike_contexts import add_alike_contexts
from node.dimse.sop_classes import TRANSFER_SYNTAXES
from tests.conftest import wait_for
from tests.support.certificates import Authority
from tests.unit.node.dimse.pynetdicom_patches.plain import (
    LONG_ENOUGH,
    VERIFICATION,
    is_blocked,
    plain_connection,
    plain_server,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:Exception ignored in. <s:pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]


def test_pdu_limits_is_still_needed() -> None:
    """recv waits without a time limit for a PDU of 4 GiB that has stopped."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"x")
        assert is_blocked(plain_connection(ours).recv, 2**32 - 1)


def test_send_timeout_is_still_needed() -> None:
    """send waits without a time limit for a peer that does not read."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert is_blocked(plain_connection(ours).send, bytes(2**24))


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """TLS contexts for a server and for its caller."""
    authority = Authority(tmp_path_factory.mktemp("certificates"))
    own = authority.sign("localhost")
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(own.certificate, own.key)
    return serving, ssl.create_default_context(cafile=str(authority.file))


def test_tls_session_tickets_is_still_needed(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    """ready is True although no byte of a PDU has been sent."""
    ours, theirs = socket.socketpair()
    served: list[ssl.SSLSocket] = []
    handshake = threading.Thread(target=lambda: served.append(contexts[0].wrap_socket(theirs, server_side=True)))
    handshake.start()
    with contexts[1].wrap_socket(ours, server_hostname="localhost") as client:
        handshake.join(20)
        assert client.version() == "TLSv1.3"
        assert select.select([client], [], [], 20)[0]
        assert plain_connection(client).ready
    served[0].close()


def test_tls_handshake_is_still_needed(contexts: tuple[ssl.SSLContext, ssl.SSLContext], tmp_path: Path) -> None:
    """While one caller is silent, the handshake of another is not answered."""
    serving, calling = contexts
    with (
        plain_server(tls=serving, network_timeout=0.2, acse_timeout=0.2) as server,
        socket.create_connection(("127.0.0.1", server.port)),
        socket.create_connection(("127.0.0.1", server.port), timeout=LONG_ENOUGH) as second,
        pytest.raises(TimeoutError),
    ):
        calling.wrap_socket(second, server_hostname="localhost")


def test_tcp_nodelay_is_still_needed() -> None:
    """Neither a connection that was accepted nor one that was opened has TCP_NODELAY."""
    with plain_server() as server:
        assoc: Any = AE("CALLER").associate("127.0.0.1", server.port, contexts=_verification())
        assert assoc.is_established
        accepted = wait_for(lambda: [one for one in server.associations if one.is_acceptor], what="an association")[0]
        ends = [assoc.dul.socket.socket, accepted.dul.socket.socket]
        assert not any(end.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for end in ends)
        assoc.release()


def test_connection_limits_is_still_needed() -> None:
    """Three connections that ask for nothing have threads, with a maximum of one association."""
    with plain_server(maximum_associations=1) as server:
        silent = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(3)]
        wait_for(lambda: len(server.associations) == 3, timeout=20, what="three threads")
        for one in silent:
            one.close()


def test_closed_before_request_is_still_needed() -> None:
    """The association of a caller that has closed lives on."""
    with plain_server(acse_timeout=20 * LONG_ENOUGH) as server:
        with socket.create_connection(("127.0.0.1", server.port)):
            (assoc,) = wait_for(lambda: server.associations, timeout=20, what="an association")
            state = assoc.dul.state_machine
            wait_for(lambda: state.current_state == "Sta2", timeout=20, what="the connection")
        wait_for(lambda: state.current_state == "Sta1", timeout=20, what="the end of the connection")
        assoc.join(LONG_ENOUGH)
        assert assoc.is_alive()


def test_shared_contexts_is_still_needed() -> None:
    """An association has copies of the server's presentation contexts."""
    with plain_server() as server, socket.create_connection(("127.0.0.1", server.port)):
        (assoc,) = wait_for(lambda: server.associations, timeout=20, what="an association")
        supported = wait_for(lambda: assoc.acceptor.supported_contexts, timeout=20, what="its contexts")
        assert supported[0] is not assoc._server.contexts[0]


def test_alike_contexts_is_still_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each transfer syntax is checked anew for each SOP class."""
    checks: list[str] = []
    plainly = PresentationContext.add_transfer_syntax
    monkeypatch.setattr(
        PresentationContext, "add_transfer_syntax", lambda of, syntax: (checks.append(syntax), plainly(of, syntax))
    )
    classes, syntaxes = [f"1.2.{number}" for number in range(10)], list(TRANSFER_SYNTAXES)
    plain, ours = AE("PLAIN"), AE("OURS")
    for sop_class in classes:
        plain.add_supported_context(sop_class, syntaxes, scu_role=True, scp_role=True)
    assert len(checks) == len(classes) * len(syntaxes)
    checks.clear()
    add_alike_contexts(ours, classes, syntaxes, both_roles=True)
    assert len(checks) == len(syntaxes)
    roles = [[(one.scu_role, one.scp_role) for one in entity.supported_contexts] for entity in (ours, plain)]
    assert (ours.supported_contexts, roles[0]) == (plain.supported_contexts, roles[1])


def test_alike_contexts_keep_what_is_supported() -> None:
    entity = AE("OURS")
    entity.add_supported_context("1.2.2", "1.2.840.10008.1.2")
    add_alike_contexts(entity, ("1.2.1", "1.2.2", "1.2.3", "1.2.3"), ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2.5"))
    added = ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2.5"]
    syntaxes = [(one.abstract_syntax, one.transfer_syntax) for one in entity.supported_contexts]
    assert syntaxes == [("1.2.1", added), ("1.2.2", ["1.2.840.10008.1.2", *added]), ("1.2.3", added)]


def test_association_threads_is_still_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """After an error in the thread of an association, the caller gets no answer, and the connection stays open."""

    def fail(*_: object) -> None:
        raise IndexError

    monkeypatch.setattr("pynetdicom.acse.negotiate_as_acceptor", fail)
    with plain_server() as server, socket.create_connection(("127.0.0.1", server.port), LONG_ENOUGH) as caller:
        caller.sendall(associate())
        with pytest.raises(TimeoutError):
            received(caller)


def test_daemon_threads_is_still_needed() -> None:
    """A process waits for the thread of a connection."""
    assert not Association(AE("PLAIN"), "requestor").dul.daemon


def test_unexpected_pdu_is_still_needed() -> None:
    """The thread ends with an unexpected event, and the connection stays open."""
    ours, theirs = socket.socketpair()
    assoc: Any = Association(AE("PLAIN"), "acceptor")
    assoc.set_socket(AssociationSocket(assoc, client_socket=ours))
    assoc.dul.event_queue.put("Evt7")  # an acceptance, before there was a request
    with ours, theirs:
        assoc.dul.start()
        assoc.dul.join(20)
        assert not assoc.dul.is_alive()
        theirs.settimeout(0.2)
        with pytest.raises(TimeoutError):
            theirs.recv(1)


def test_undecodable_pdu_is_still_needed(caplog: pytest.LogCaptureFixture) -> None:
    """The log quotes what the peer sent, in a traceback."""
    with plain_server() as server, socket.create_connection(("127.0.0.1", server.port), 20) as caller:
        caller.sendall(associate(calling=b"A\\SECRET"))
        received(caller)
    quoting = [one for one in caplog.records if "SECRET" in one.getMessage()]
    assert [one for one in quoting if one.exc_info]


@pytest.mark.parametrize("module", ["pynetdicom.dul", "pynetdicom.association"])
def test_prompt_receive_is_still_needed(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both threads of a silent association sleep for a fixed time."""
    slept: list[float] = []
    clock = SimpleNamespace(sleep=lambda seconds: (slept.append(seconds), time.sleep(seconds)))
    monkeypatch.setattr(f"{module}.time", clock)
    with plain_server() as server, socket.create_connection(("127.0.0.1", server.port), 20) as caller:
        caller.sendall(associate())
        assert kinds([received(caller)]) == [ACCEPTED]
        wait_for(lambda: slept.count(0.001) > 10, what="ten sleeps")


def test_a_wait_ends_when_bytes_arrive() -> None:
    ours, theirs = socket.socketpair()
    connection = SimpleNamespace(socket=ours, _is_connected=True)
    with ours, theirs:
        began = time.monotonic()
        threading.Timer(0.2, theirs.sendall, (b"\4",)).start()
        prompt_receive._wait_for_bytes(connection, 300.0)
        assert 0.1 < time.monotonic() - began < 100


@pytest.mark.parametrize("connection", [None, SimpleNamespace(socket=None), SimpleNamespace(socket=1, _is_connected=0)])
def test_a_wait_without_a_connection_is_a_short_sleep(connection: Any) -> None:
    """Without the sleep, the thread would spin until its association has ended."""
    began = time.monotonic()
    prompt_receive._wait_for_bytes(connection, 0.0)
    assert time.monotonic() - began >= prompt_receive._SHORTEST


@pytest.fixture
def assoc() -> Any:
    entity = AE("TEST")
    made = Association(entity, "acceptor")
    made.dul.__class__ = prompt_receive.PromptReceive
    prompt_receive.receive_promptly(made)
    return made


@pytest.mark.parametrize(("since", "patience"), [(0.0, 0.001), (1.0, 0.02), (600.0, 0.1)])
def test_a_silent_association_is_looked_at_less_often(
    assoc: Any, since: float, patience: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_receive, "time", SimpleNamespace(monotonic=lambda: assoc.dul.active_at + since))
    assert assoc.dul.patience == pytest.approx(patience)


def test_the_reactor_goes_on_at_once_when_something_has_arrived(assoc: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_receive, "_SHORTEST", 300.0)
    monkeypatch.setattr(prompt_receive, "_LONGEST", 300.0)
    began = time.monotonic()
    threading.Timer(0.2, assoc.dul.arrived.set).start()
    assert assoc._reactor_checkpoint.wait()
    assert 0.1 < time.monotonic() - began < 100
    assoc.dimse.msg_queue.put((1, None))
    assert assoc._reactor_checkpoint.wait(), "a message that waits is not waited for"


def test_a_reactor_that_is_paused_while_it_waits_does_not_go_on(assoc: Any) -> None:
    """``send_*`` pauses it to take the response to its own request."""
    assoc.dul.active_at = float("-inf")
    passed: list[bool] = []
    reactor = threading.Thread(target=lambda: passed.append(assoc._reactor_checkpoint.wait()))
    assoc._reactor_checkpoint.clear()
    reactor.start()
    reactor.join(0.3)
    assert passed == []
    assoc._reactor_checkpoint.set()
    reactor.join(20)
    assert passed == [True]


def test_association_shutdown_is_still_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """AE.shutdown waits for the rest of a PDU."""
    waiting, recv = threading.Event(), AssociationSocket.recv

    def noted(self: AssociationSocket, nr_bytes: int) -> bytearray:
        if nr_bytes == 5000:
            waiting.set()
        return recv(self, nr_bytes)

    monkeypatch.setattr(AssociationSocket, "recv", noted)
    with plain_server() as server, socket.create_connection(("127.0.0.1", server.port), 20) as caller:
        caller.sendall(associate())
        received(caller)
        caller.sendall(struct.pack(">BxI", 4, 5000) + bytes(100))
        assert waiting.wait(20)
        wait_for(lambda: [one for one in server.associations if one.is_established], what="an association to abort")
        assert is_blocked(server.entity.shutdown)


def test_the_idle_timer_does_not_know_of_handlers() -> None:
    """An association is aborted when a handler that worked longer than the network timeout has ended."""

    def work(event: Any) -> int:
        event.assoc.network_timeout = 0.1  # not before: on a busy machine, the request comes late
        threading.Event().wait(0.2)
        return 0x0000

    with (
        plain_server([(evt.EVT_C_ECHO, work)]) as server,
        socket.create_connection(("127.0.0.1", server.port), 20) as caller,
    ):
        caller.sendall(associate())
        answers = [received(caller)]
        caller.sendall(echo())
        answers += [received(caller), received(caller)]
        assert kinds(answers) == [ACCEPTED, DATA, ABORTED]


def test_ended_peer_is_still_needed() -> None:
    """is_established is True in a handler although the peer has aborted."""
    seen: list[bool] = []

    def handle(event: Any) -> int:
        caller.sendall(struct.pack(">BxIxxBB", 7, 4, 0, 0))
        wait_for(event.assoc.acse.is_aborted, timeout=20, what="the abort")
        seen.append(event.assoc.is_established)
        return 0x0000

    with (
        plain_server([(evt.EVT_C_ECHO, handle)]) as server,
        socket.create_connection(("127.0.0.1", server.port), 20) as caller,
    ):
        caller.sendall(associate())
        received(caller)
        caller.sendall(echo())
        wait_for(lambda: seen, timeout=20, what="the handler")
    assert seen == [True]


def _verification() -> list[Any]:
    from pynetdicom.presentation import build_context

    return [build_context(VERIFICATION, ImplicitVRLittleEndian)]
