"""Proves that busy, slow and broken move destinations and cancelled requests are reported completely.

Four small images, no archivist; each test starts the destination that it needs on a port of its own.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import generate_uid
from pynetdicom import AE, build_role, evt
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import Verification

from benchmarks.ingest import free_port
from node.app import Node
from node.dimse import client, pynetdicom_patches
from node.dimse.client import Receiver
from tests.conftest import Archive, settings_for, wait_for
from tests.support import samples
from tests.support.peers import Ran, movescu, storescp, storescu

MOVE, GET = "1.2.840.10008.5.1.4.1.2.2.2", "1.2.840.10008.5.1.4.1.2.2.3"
MG = "1.2.840.10008.5.1.4.1.1.1.2"

# pynetdicom leaves the socket of an association that was refused or broke to the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")


@contextmanager
def archive_of_four(folder: Path, port: int, *, limit: int = 0, **node: Any) -> Iterator[tuple[Archive, Dataset]]:
    """A node with a study of four images and the peer VIEWER on a port, and the identifier of that study."""
    viewer = {"ae_title": "VIEWER", "host": "127.0.0.1", "port": port, "allow": ["move", "get"]}
    peers = [{"ae_title": "MODALITY", "allow": ["store"]}, {**viewer, "max_associations_to": limit}]
    usual = {"host": "127.0.0.1", "port": 0, "shutdown_timeout": 0, "keep_alive": 0.3}
    study = generate_uid()
    images = [samples.mammogram(samples.breast(64, 48), StudyInstanceUID=study, InstanceNumber=n) for n in range(4)]
    files = [samples.write(ds, folder / f"{ds.InstanceNumber}.dcm") for ds in images]
    storing, settings = (
        settings_for(folder / "archive", peers=peers, node=changes, archivist={"enabled": False})
        for changes in (usual, usual | node)
    )
    with Node(storing) as running:  # on a busy machine, images arrive more slowly than the timeouts of a test allow
        assert storescu(files, Archive(running, Receiver(folder)).address).statuses == [0] * 4
    with Node(settings) as running:
        identifier = client.image_identifier(study)
        identifier.SOPInstanceUID = [ds.SOPInstanceUID for ds in images]  # for the tests: not a key at this level
        yield Archive(running, Receiver(folder)), identifier
    gc.collect()


@pytest.fixture(scope="module")
def port() -> int:
    """The port of the destinations of most tests."""
    return free_port()


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory, port: int) -> Iterator[tuple[Archive, Dataset]]:
    """A node with its study, for the tests that need no settings of their own."""
    with archive_of_four(tmp_path_factory.mktemp("four"), port) as made:
        yield made


Four = tuple[Archive, Dataset]


def moved(archive: Archive, identifier: Dataset) -> Ran:
    return movescu(archive.address, "-S", "STUDY", f"StudyInstanceUID={identifier.StudyInstanceUID}", calling="VIEWER")


def requested(archive: Archive, *contexts: Any, **options: Any) -> Any:
    """An association that VIEWER requests."""
    pynetdicom_patches.install()
    entity, to = AE("VIEWER"), archive.address
    assoc = entity.associate(to.host, to.port, contexts=list(contexts), ae_title=to.ae_title, **options)
    assert assoc.is_established
    return assoc


def study_of(identifier: Dataset) -> Dataset:
    return client.image_identifier(identifier.StudyInstanceUID)


@pytest.mark.parametrize("priority", [1, 2], ids=["high", "low"])
def test_images_have_the_priority_of_their_request(four: Four, port: int, priority: int) -> None:
    """Tested for a C-MOVE, which the images name as their originator, and for a C-GET (PS3.7 9.1.1.1, 9.1.3.1,
    9.1.4.1)."""
    archive, identifier = four
    found: list[Any] = []

    def handle(event: Any) -> int:
        request = event.request
        originator = request.MoveOriginatorApplicationEntityTitle, request.MoveOriginatorMessageID
        found.append((request.Priority, *originator))
        return 0

    entity, handlers = AE("VIEWER"), [(evt.EVT_C_STORE, handle)]
    entity.add_supported_context(MG)
    server = entity.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers)
    assert server is not None
    contexts = [build_context(MOVE), build_context(GET), build_context(MG)]
    roles = [build_role(MG, scp_role=True)]
    assoc = requested(archive, *contexts, ext_neg=roles, evt_handlers=handlers)
    try:
        list(assoc.send_c_move(study_of(identifier), "VIEWER", MOVE, msg_id=7, priority=priority))
        list(assoc.send_c_get(study_of(identifier), GET, priority=priority))
        assoc.release()
    finally:
        server.shutdown()
    assert found == [(priority, "VIEWER", 7)] * 4 + [(priority, None, None)] * 4


# --- faults, by every switch of storescp's ---


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["--refuse", "--abort-after", "--abort-during"])
def test_what_a_destination_did_not_take_is_in_the_failed_list(
    four: Four, port: int, tmp_path: Path, fault: str
) -> None:
    archive, identifier = four
    with storescp(tmp_path / "scp", port, fault):
        assert_all_failed(moved(archive, identifier), identifier)


def test_one_that_accepts_no_presentation_context(four: Four, port: int, caplog: pytest.LogCaptureFixture) -> None:
    """The move ends at once, although another association of ours is open there, and the log names the cause."""
    archive, identifier = four
    node = archive.node
    peer = node.settings.peer("VIEWER")
    assert peer is not None
    entity = AE("VIEWER")
    entity.add_supported_context(Verification)
    server = entity.start_server(("127.0.0.1", port), block=False)
    assert server is not None
    try:
        other = node.server.outgoing.associate(peer, [build_context(Verification)])
        assert_all_failed(moved(archive, identifier), identifier)
        assert other.is_established
        other.release()
    finally:
        server.shutdown()
    assert "accepted the association, but none of its presentation contexts" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "taken"), [("--sleep-during", 0), ("--sleep-after", 1)])
def test_one_that_sleeps_beyond_the_dimse_timeout(tmp_path: Path, fault: str, taken: int) -> None:
    """Images that the destination answered in time count as sent. If an answer is late, nobody can know."""
    port = free_port()
    with (
        archive_of_four(tmp_path, port, dimse_timeout=1, network_timeout=1) as (archive, identifier),
        storescp(tmp_path / "scp", port, fault, 4),
    ):
        ran = moved(archive, identifier)
    assert (ran.status, ran.counts) == (0xB000 if taken else 0xA702, (taken, 4 - taken, 0)), ran.said
    assert len(ran.failed_uids) == 4 - taken


def test_an_answer_to_another_message_is_none_to_this(four: Four, port: int, caplog: pytest.LogCaptureFixture) -> None:
    """The destination answers the first image twice, and accepts no other."""
    archive, identifier = four
    taken: list[str] = []

    def store(event: Any) -> int:
        taken.append(event.request.AffectedSOPInstanceUID)
        if len(taken) > 1:
            return 0xA700
        again: Any = C_STORE()
        again.MessageIDBeingRespondedTo, again.Status = event.request.MessageID, 0x0000
        again.AffectedSOPClassUID, again.AffectedSOPInstanceUID = MG, taken[0]
        event.assoc.dimse.send_msg(again, event.context.context_id)
        return 0x0000

    entity = AE("VIEWER")
    entity.add_supported_context(MG)
    server = entity.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
    assert server is not None
    try:
        ran = moved(archive, identifier)
    finally:
        server.shutdown()
    assert (ran.status, ran.counts) == (0xB000, (1, 3, 0)), ran.said
    assert ran.failed_uids == set(taken[1:])
    assert "answers message 1 with C-STORE, while message 2 waits for its answer" in caplog.text


def assert_all_failed(ran: Ran, identifier: Dataset) -> None:
    assert (ran.status, ran.counts) == (0xA702, (0, 4, 0)), ran.said
    assert ran.failed_uids == set(identifier.SOPInstanceUID)


HABITS = [
    *(pytest.param((switch,), id=switch) for switch in ("--reject", "--bit-preserving", "-B", "--fork")),
    *(pytest.param((switch, 1), id=switch, marks=pytest.mark.slow) for switch in ("--sleep-after", "--sleep-during")),
]


@pytest.mark.parametrize("habit", HABITS)
def test_habits_that_are_no_faults(four: Four, port: int, tmp_path: Path, habit: tuple[object, ...]) -> None:
    """``--reject`` concerns callers without an implementation class UID. The other switches only cause delays."""
    archive, identifier = four
    with storescp(tmp_path / "scp", port, *habit) as scp:
        ran = moved(archive, identifier)
        assert (ran.status, ran.counts) == (0x0000, (4, 0, 0)), ran.said
        assert {str(dcmread(file).SOPInstanceUID) for file in scp.files()} == set(identifier.SOPInstanceUID)


ANSWERS = [0x0000, 0xB007, 0xA700, 0xC123]
"""Success, a warning, out of resources, cannot understand: an SCP's answers in turn."""


def test_the_counts_of_a_move_are_what_the_destination_answered(four: Four, port: int) -> None:
    (archive, identifier), asked = four, []
    with choosy(port, asked):
        ran = moved(archive, identifier)
    assert (ran.status, ran.counts) == (0xB000, (1, 2, 1)), ran.said
    assert ran.failed_uids == set(asked[2:])


def test_the_counts_of_a_get_are_what_the_requester_answered(four: Four) -> None:
    (archive, identifier), asked = four, []
    assoc = requested(
        *(archive, build_context(GET), build_context(MG)),
        ext_neg=[build_role(MG, scp_role=True)],
        evt_handlers=[(evt.EVT_C_STORE, lambda event: answered(event, asked))],
    )
    *_, (final, failed) = assoc.send_c_get(study_of(identifier), GET)
    assoc.release()
    assert final.Status == 0xB000
    assert final.NumberOfCompletedSuboperations == 1
    assert (final.NumberOfFailedSuboperations, final.NumberOfWarningSuboperations) == (2, 1)
    assert set(failed.FailedSOPInstanceUIDList) == set(asked[2:])


@contextmanager
def choosy(port: int, asked: list[str], *, at_once: int = 10) -> Iterator[None]:
    """A Storage SCP that gives ``ANSWERS`` in turn."""
    entity = AE("VIEWER")
    entity.maximum_associations = at_once
    entity.add_supported_context(MG)
    entity.add_supported_context(Verification)
    handlers: Any = [(evt.EVT_C_STORE, lambda event: answered(event, asked))]
    server: Any = entity.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers)
    try:
        yield
    finally:
        server.shutdown()


def answered(event: Any, asked: list[str]) -> int:
    asked.append(str(event.request.AffectedSOPInstanceUID))
    return ANSWERS[(len(asked) - 1) % len(ANSWERS)]


# --- destinations that serve one at a time ---


@pytest.mark.slow
@pytest.mark.parametrize("limit", [1, 0], ids=["configured", "found out"])
def test_moves_to_a_destination_of_one_association_wait_for_each_other(tmp_path: Path, limit: int) -> None:
    """DCMTK's storescp in its single-process mode does not answer other callers meanwhile."""
    port = free_port()
    with (
        archive_of_four(tmp_path, port, limit=limit, network_timeout=4) as (archive, identifier),
        storescp(tmp_path / "scp", port, "--sleep-after", 1),
        ThreadPoolExecutor(2) as both,
    ):
        for ran in both.map(lambda _: moved(archive, identifier), range(2)):
            assert (ran.status, ran.counts) == (0x0000, (4, 0, 0)), ran.said


@contextmanager
def occupied(port: int) -> Iterator[None]:
    """Somebody else's association with a destination that accepts only one."""
    assoc = AE("OTHER").associate("127.0.0.1", port, contexts=[build_context(Verification)])
    assert assoc.is_established
    try:
        yield
    finally:
        assoc.release()


def test_a_destination_whose_local_limit_is_exceeded_is_asked_again(four: Four, port: int) -> None:
    """The requester gets pending responses meanwhile."""
    (archive, identifier), asked = four, []
    with choosy(port, asked, at_once=1):
        assoc = requested(archive, build_context(MOVE))
        with occupied(port):
            answers = assoc.send_c_move(study_of(identifier), "VIEWER", MOVE)
            assert [next(answers)[0].NumberOfRemainingSuboperations for _ in range(3)] == [4, 4, 4]
            assert asked == []
        *_, (final, _) = answers
        assoc.release()
    assert (final.Status, final.NumberOfCompletedSuboperations) == (0xB000, 1)
    assert len(asked) == 4


# --- cancelled ---


@pytest.mark.parametrize("verb", ["move", "get"])
def test_a_cancel_is_honoured_while_an_image_is_being_made(
    four: Four, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (archive, identifier), go_on = four, threading.Event()
    make = archive.node.retrieve.make
    monkeypatch.setattr(archive.node.retrieve, "make", lambda *of: go_on.wait(300) and make(*of))
    assoc = requested(
        *(archive, build_context(MOVE), build_context(GET), build_context(MG)),
        ext_neg=[build_role(MG, scp_role=True)],
    )
    if verb == "move":
        answers = assoc.send_c_move(study_of(identifier), "VIEWER", MOVE, msg_id=7)
    else:
        answers = assoc.send_c_get(study_of(identifier), GET, msg_id=7)
    assert_cancelled(assoc, answers, MOVE if verb == "move" else GET)
    go_on.set()
    wait_for(lambda: not list(archive.node.store.root.rglob("lent/*")), what="files given back")


def test_a_cancel_is_honoured_while_the_destination_is_busy(four: Four, port: int) -> None:
    (archive, identifier), asked = four, []
    with choosy(port, asked, at_once=1), occupied(port):
        assoc = requested(archive, build_context(MOVE))
        assert_cancelled(assoc, assoc.send_c_move(study_of(identifier), "VIEWER", MOVE, msg_id=7), MOVE)
    assert asked == []


def test_a_cancel_right_behind_its_request_is_honoured(four: Four, port: int) -> None:
    """The cancel arrives before the request is served. Cancels of earlier requests, however many, do not count."""
    (archive, identifier), asked = four, []
    with choosy(port, asked, at_once=1), occupied(port):
        assoc = requested(archive, build_context(MOVE))
        (serving,) = archive.node.server.entity.active_associations
        for earlier in (7, *range(20, 40)):
            assoc.send_c_cancel(earlier, query_model=MOVE)
        serving._reactor_checkpoint.clear()
        wait_for(lambda: serving._is_paused, what="a node that serves nothing")
        answers = assoc.send_c_move(study_of(identifier), "VIEWER", MOVE, msg_id=7)
        wait_for(serving.dimse.msg_queue.qsize, what="the request")
        assert 7 not in serving.dimse.cancel_req
        assoc.send_c_cancel(7, query_model=MOVE)
        wait_for(lambda: 7 in serving.dimse.cancel_req, what="the cancel")
        serving._reactor_checkpoint.set()
        *_, (final, _) = answers
        assert (final.Status, final.NumberOfRemainingSuboperations) == (0xFE00, 4)
        assoc.release()
    assert asked == []


def assert_cancelled(assoc: Any, answers: Any, model: str) -> None:
    """Cancel the request after the first pending response. It must end at once, and report the remaining
    sub-operations."""
    assert next(answers)[0].Status == 0xFF00
    began = time.monotonic()
    assoc.send_c_cancel(7, query_model=model)
    *_, (final, _) = answers
    assert time.monotonic() - began < 100  # what is being made, and the destination, take 300 s
    assert (final.Status, final.NumberOfRemainingSuboperations) == (0xFE00, 4)
    assert (final.NumberOfCompletedSuboperations, final.NumberOfFailedSuboperations) == (0, 0)
    assoc.release()


@pytest.mark.slow
def test_movescu_cancels_between_images(four: Four, port: int, tmp_path: Path) -> None:
    """Images that were sent count, and no further image is sent after the cancel has arrived."""
    archive, identifier = four
    with storescp(tmp_path / "scp", port, "--sleep-after", 1) as scp:
        ran = movescu(
            *(archive.address, "-S", "STUDY", f"StudyInstanceUID={identifier.StudyInstanceUID}"),
            calling="VIEWER",
            options="--cancel 1",
        )
        sent = len(scp.files())
    assert ran.status == 0xFE00, ran.said
    assert sent <= 2  # on a busy machine a pending response, and so the cancel, may come before the first image
    assert ran.counts == (sent, 0, 0)


@pytest.mark.slow
def test_a_requester_that_hangs_up_ends_the_wait(four: Four, port: int) -> None:
    archive, identifier = four
    with choosy(port, [], at_once=1), occupied(port):
        assoc = requested(archive, build_context(MOVE))
        next(assoc.send_c_move(study_of(identifier), "VIEWER", MOVE))
        assoc.abort()
        wait_for(lambda: not archive.node.server.entity.active_associations, what="no association left")
