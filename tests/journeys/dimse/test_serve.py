"""Proves that ``latent-pacs serve`` finishes what is in flight when stopped, and loses nothing when killed."""

from __future__ import annotations

import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE

from node.app import Node
from node.dimse import client
from node.dimse.client import Receiver
from storage.dicom.writing import encode
from storage.index import Index
from storage.objects.store import ObjectStore
from storage.records import InstanceState
from tests.conftest import settings_for, size_of, spooled, wait_for
from tests.support.node_process import COMMAND, NodeProcess
from tests.support.samples import MAMMOGRAPHY, breast, mammogram, write


@pytest.fixture
def served(tmp_path: Path) -> Iterator[NodeProcess]:
    node = NodeProcess(tmp_path)
    yield node
    if node.process is not None and node.process.poll() is None:
        node.process.kill()
        node.process.wait()
    node.log.close()


def test_a_start_that_fails_leaves_no_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The threads would keep a process alive that does not listen, and no service manager would restart it."""
    before = set(threading.enumerate())
    node = Node(settings_for(tmp_path / "archive"))
    monkeypatch.setattr(node.schedule, "start", mock.Mock(side_effect=RuntimeError("can't start new thread")))
    with pytest.raises(RuntimeError, match="new thread"):
        node.start()
    assert not [one for one in set(threading.enumerate()) - before if one.is_alive() and not one.daemon]


@pytest.mark.slow
def test_sigterm_finishes_what_is_in_flight(served: NodeProcess, tmp_path: Path) -> None:
    """The signal arrives when half a data set has been received. The other half is still received, and stored
    durably."""
    served.start()
    ds = mammogram(breast(900, 800))
    entity = AE("MODALITY")
    entity.add_requested_context(MAMMOGRAPHY, ExplicitVRLittleEndian)
    assoc = entity.associate("127.0.0.1", served.port)
    assert assoc.is_established
    request: Any = C_STORE()
    request.MessageID, request.Priority = 1, 2
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = MAMMOGRAPHY, ds.SOPInstanceUID
    request.DataSet = BytesIO(encode(ds, ExplicitVRLittleEndian))
    message = C_STORE_RQ()
    message.primitive_to_message(request)
    pieces = list(message.encode_msg(assoc.accepted_contexts[0].context_id, 65536))
    assoc._reactor_checkpoint.clear()
    wait_for(lambda: assoc._is_paused, what="a paused reactor")
    for piece in pieces[: len(pieces) // 2]:
        assoc.dul.send_pdu(piece)
    spool = served.root / "spool"
    wait_for(lambda: any(size_of(path) > 100_000 for path in spooled(spool)), what="spooled bytes")
    served.signal(signal.SIGTERM)
    wait_for(lambda: not served.listening(), what="a node that accepts no associations")
    for piece in pieces[len(pieces) // 2 :]:
        assoc.dul.send_pdu(piece)
    _, answer = assoc.dimse.get_msg(block=True)
    assert answer is not None
    assert answer.Status == 0x0000
    assoc._reactor_checkpoint.set()
    assoc.release()
    assert served.ended() == 0
    assert served.status()["by_state"]["received"] + served.status()["by_state"]["verified"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_an_idle_association_does_not_hold_the_stop(served: NodeProcess, number: signal.Signals) -> None:
    served.start()
    entity = AE("MODALITY")
    entity.add_requested_context(MAMMOGRAPHY, ExplicitVRLittleEndian)
    assoc = entity.associate("127.0.0.1", served.port)
    assert assoc.is_established
    began = time.monotonic()
    served.signal(number)
    assert served.ended() == 0
    assert time.monotonic() - began < 150  # 200 s would be the limit for what is in flight


@pytest.mark.very_slow
@pytest.mark.timeout(900)
def test_killed_at_any_point_and_resumed(served: NodeProcess, tmp_path: Path) -> None:
    """SIGKILL arrives repeatedly while images are received and encoded. Every acknowledged image is there, and reaches
    a final state."""
    chance = random.Random(5)
    acknowledged: dict[str, Path] = {}
    for round_number in range(5):
        served.start()
        files = [write(mammogram(breast(seed=round_number)), tmp_path / f"{round_number}-{n}.dcm") for n in range(3)]
        uids = {path: str(dcmread(path).SOPInstanceUID) for path in files}

        def stored(path: Path, status: int, seconds: float, uids: dict[Path, str] = uids) -> None:
            if status == 0x0000:
                acknowledged[uids[path]] = path

        client.store(files, served.address, calling="MODALITY", each=stored)
        time.sleep(chance.uniform(0.0, 5.0))
        served.signal(signal.SIGKILL)
        served.ended()
    assert len(acknowledged) == 15
    served.start()
    wait_for(lambda: served.status()["backlog"] == 0, timeout=800, what="an empty backlog")
    report = served.status()
    assert report["by_state"]["verified"] == 15, report
    index, store = Index.open(f"sqlite:///{served.root / 'index.sqlite'}"), ObjectStore(served.root)
    for uid, path in acknowledged.items():
        held = index.by_uid(uid)
        assert held is not None
        assert held.state is InstanceState.VERIFIED
        assert held.rendition is not None
        for digest in (held.original_digest, held.rendition.base_digest, held.rendition.rendition_digest):
            store.read(digest)
        receiver = Receiver(tmp_path)
        identifier = client.image_identifier(held.study_instance_uid, held.series_instance_uid, uid)
        client.get(identifier, served.address, calling="EXACTVIEW", sop_classes=[MAMMOGRAPHY], receiver=receiver)
        assert dcmread(receiver.received[uid]).PixelData == dcmread(path).PixelData
    index.close()
    served.signal(signal.SIGTERM)
    assert served.ended() == 0
    assert not spooled(served.root / "spool")


@pytest.mark.slow
def test_workers_end_with_a_killed_node(served: NodeProcess, tmp_path: Path) -> None:
    """No process stays that would hold memory or a GPU."""
    served.start()
    path = write(mammogram(), tmp_path / "one.dcm")
    client.store([path], served.address, calling="MODALITY", each=lambda *_: None)
    assert served.process is not None
    parent = served.process.pid
    workers = wait_for(lambda: children(parent), what="a worker process")
    served.signal(signal.SIGKILL)
    served.ended()
    wait_for(lambda: not any(alive(pid) for pid in workers), what="the workers' end")


@pytest.mark.slow
def test_torch_stays_in_the_workers(served: NodeProcess, tmp_path: Path) -> None:
    """Importing torch would delay every association of the node for seconds, and occupy its memory for good."""
    served.start()
    ds = mammogram()
    path = write(ds, tmp_path / "one.dcm")
    client.store([path], served.address, calling="MODALITY", each=lambda *_: None)
    index = Index.open(f"sqlite:///{served.root / 'index.sqlite'}")  # asking by command would take the worker's time

    def verified() -> bool:
        held = index.by_uid(ds.SOPInstanceUID)
        return held is not None and held.state is InstanceState.VERIFIED

    wait_for(verified, what="a rendition")
    index.close()
    assert served.process is not None
    parent = served.process.pid
    assert any("libtorch" in mapped(pid) for pid in children(parent))
    assert "libtorch" not in mapped(parent)


def mapped(pid: int) -> str:
    """The files that a process has mapped into its memory."""
    return Path(f"/proc/{pid}/maps").read_text()


def children(parent: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(fields[1]) == parent:
                found.append(int(entry.name))
    return found


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_a_second_node_on_the_same_folder_is_refused(served: NodeProcess) -> None:
    served.start()
    second = subprocess.run(
        [*COMMAND, "serve", "-c", str(served.config)], capture_output=True, timeout=300, check=False
    )
    assert second.returncode == 3
    assert b"in use by another node" in second.stderr


@pytest.mark.slow
def test_taken_port_is_one_clear_line(served: NodeProcess, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", served.port))
        taken.listen()
        done = subprocess.run(
            [*COMMAND, "serve", "-c", str(served.config)], capture_output=True, timeout=300, check=False
        )
    assert done.returncode == 2
    assert f"node.port {served.port}".encode() in done.stderr
    assert b"Traceback" not in done.stderr
    assert served.root.is_dir()
