"""Proves that associations answer while a full-field image is reconstructed, and that a slow image keeps its requester
informed.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset
from pynetdicom import AE
from pynetdicom.dimse_primitives import C_ECHO
from pynetdicom.sop_class import Verification
from rich.console import Console

from benchmarks.find import fill
from node.app import Node
from node.dimse import client
from node.dimse.client import Receiver
from node.dimse.pynetdicom_patches.requestor_responses import keep_responses_from_reactor
from node.dimse.pynetdicom_patches.send_timeout import TimedSend
from node.workers.pool import Priority, WorkerPool
from node.workers.requests import CheckRequest, ReconstructRequest
from storage.errors import NoWorker
from tests.conftest import Archive, settings_for, wait_for
from tests.support.samples import breast, mammogram, write

FIND = "1.2.840.10008.5.1.4.1.2.2.1"


def stored(archive: Archive, ds: Dataset, folder: Path) -> Dataset:
    path = write(ds, folder / f"{ds.SOPInstanceUID}.dcm")
    statuses: list[int] = []
    client.store([path], archive.address, calling="MODALITY", each=lambda _, status, __: statuses.append(status))
    assert statuses == [0x0000]
    return client.image_identifier(ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID)


@pytest.mark.very_slow
def test_echo_while_a_13_megapixel_image_is_made(archive: Archive, tmp_path: Path) -> None:
    """Of the C-ECHOs, 99% take at most 0.5 s, and none takes more than 1 s, while 4096 x 3328 pixels are verified and
    retrieved."""
    pixels = breast(2048, 1664).repeat(2, axis=0).repeat(2, axis=1)
    ds = mammogram(pixels)
    entity = AE("VIEWER")
    entity.add_requested_context(Verification)
    assoc = entity.associate("127.0.0.1", archive.address.port)
    assert assoc.is_established
    seconds, stop = [0.0], threading.Event()

    def echo() -> None:
        while not stop.is_set():
            began = time.monotonic()
            assert assoc.send_c_echo().Status == 0x0000
            seconds.append(time.monotonic() - began)

    echoing = threading.Thread(target=echo)
    echoing.start()
    try:
        identifier = stored(archive, ds, tmp_path)
        assert archive.settled(ds.SOPInstanceUID).rendition is not None
        final = client.move(identifier, archive.address, calling="VIEWER", destination="VIEWER")
        assert final.NumberOfCompletedSuboperations == 1
    finally:
        stop.set()
        echoing.join()
        assoc.release()
    seconds.sort()
    assert seconds[int(0.99 * len(seconds))] < 0.5
    assert seconds[-1] < 1.0


@pytest.mark.slow
def test_answers_are_made_as_a_slow_peer_takes_them(quiet_archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many matches a query has, only few of them are in memory."""
    fill(quiet_archive.node.index.engine, 4000, Console(quiet=True))
    waiting: list[int] = []
    send = TimedSend.send

    def slowly(self: TimedSend, data: bytes) -> None:
        waiting.append(self.assoc.dul.to_provider_queue.qsize())
        time.sleep(0.001)
        send(self, data)

    monkeypatch.setattr(TimedSend, "send", slowly)
    entity = AE("VIEWER")
    entity.add_requested_context(FIND)
    assoc = entity.associate("127.0.0.1", quiet_archive.address.port)
    asked = Dataset()
    asked.QueryRetrieveLevel, asked.StudyInstanceUID = "STUDY", ""
    *matches, (final, _) = assoc.send_c_find(asked, FIND)
    assoc.release()
    assert final.Status == 0x0000
    assert len(matches) > 400
    assert max(waiting) < 100


def test_answers_are_left_to_who_waits_for_them(archive: Archive) -> None:
    """While it runs freely, pynetdicom's reactor thread does not take the answer from a requestor's association."""
    entity = AE("VIEWER")
    entity.add_requested_context(Verification)
    assoc = entity.associate("127.0.0.1", archive.address.port)
    keep_responses_from_reactor(assoc)  # the test proves this call; other tests have it from their session
    request = C_ECHO()
    request.MessageID, request.AffectedSOPClassUID = 1, Verification
    assoc.dimse.send_msg(request, assoc.accepted_contexts[0].context_id)  # without the pause that send_c_echo makes
    wait_for(lambda: not assoc.dimse.msg_queue.empty())
    time.sleep(0.1)  # a hundred rounds of the reactor
    answer: Any = assoc.dimse.get_msg(block=True)[1]
    assert answer is not None
    assert answer.Status == 0x0000
    assoc.release()


class SlowPool(WorkerPool):
    """A pool whose reconstructions take long, as with a large model on a small machine."""

    def __init__(self, settings: Any, seconds: float) -> None:
        super().__init__(settings)
        self._seconds = seconds

    def submit(self, request: Any, priority: Priority) -> Future[Any]:
        inner = super().submit(request, priority)
        if not isinstance(request, ReconstructRequest):
            return inner
        slow: Future[Any] = Future()

        def later(done: Future[Any]) -> None:
            threading.Timer(self._seconds, lambda: slow.set_result(done.result())).start()

        inner.add_done_callback(later)
        return slow


@pytest.mark.very_slow
def test_pending_responses_while_an_image_is_made(tmp_path: Path, receiver: Receiver) -> None:
    """A requester that waits at most 2 s for a message gets, by C-MOVE, an image that takes 4 s to make."""
    node = Node(settings_for(tmp_path / "archive", receiver.port, node={"keep_alive": 0.5}))
    node.pool.close()
    node.pool = SlowPool(node.settings.reconstruct, 4.0)
    node.retrieve._pool = node.archivist._pool = node.pool
    with node:
        archive = Archive(node, receiver)
        ds = mammogram(breast(400, 300))
        identifier = stored(archive, ds, tmp_path)
        archive.settled(ds.SOPInstanceUID)
        entity = AE("VIEWER")
        entity.dimse_timeout = 2
        entity.add_requested_context("1.2.840.10008.5.1.4.1.2.2.2")
        assoc = entity.associate("127.0.0.1", archive.address.port)
        responses = [
            status.Status for status, _ in assoc.send_c_move(identifier, "VIEWER", "1.2.840.10008.5.1.4.1.2.2.2")
        ]
        assoc.release()
    assert responses[-1] == 0x0000
    assert responses.count(0xFF00) >= 5
    assert len(receiver.received) == 1


def test_a_dead_worker_is_replaced(tmp_path: Path) -> None:
    pool = WorkerPool(settings_for(tmp_path).reconstruct)
    try:
        path = write(mammogram(breast(300, 280)), tmp_path / "one.dcm")
        request = CheckRequest(path)
        assert pool.submit(request, Priority.VIEWER).result(timeout=300) == ""
        for _ in range(2):
            for pid in wait_for(worker_pids, what="a worker process"):
                os.kill(pid, signal.SIGKILL)
            assert pool.submit(request, Priority.VIEWER).result(timeout=300) == ""
    finally:
        pool.close()
    with pytest.raises(NoWorker):
        pool.submit(request, Priority.VIEWER)


def worker_pids() -> list[int]:
    from multiprocessing import active_children

    return [child.pid for child in active_children() if child.pid is not None]
