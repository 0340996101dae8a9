"""Proves that what a peer has acknowledged is not sent again, and that everything else is reported and sent again."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.ingest import free_port
from node.app import Node, send_to_peer
from node.config import Settings, parse
from node.dimse import client
from node.dimse.client import Address, Receiver
from node.dimse.replication import JOB, Replication
from storage.dicom.header_amendments import AmendmentKind
from storage.errors import ConfigError, LatentPacsError
from storage.index.job_runs import JobRows, RunState
from storage.index.replicas import Replicas
from tests.conftest import Archive, need, settings_for, wait_for
from tests.support.commands import run
from tests.support.peers import dead_port, storescp
from tests.support.samples import breast, mammogram, write

# pynetdicom leaves the socket of an association that was refused or broke to the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. <s:pytest.PytestUnraisableExceptionWarning")

VIEWER, EXACT = "VIEWER", "EXACTVIEW"


class Replica(Receiver):
    """A Storage SCP that gives each image the answer in ``says``, and stores images without an answer there."""

    says: dict[str, int]
    aborts = False

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "REPLICA")
        self.says, self.asked = {}, []  # type: ignore[var-annotated]

    def _store(self, event: Any) -> int:
        uid = str(event.request.AffectedSOPInstanceUID)
        self.asked.append(uid)
        if self.aborts:
            event.assoc.abort()
        status = self.says.get(uid, 0x0000)
        return super()._store(event) if status == 0x0000 else status

    def asked_since(self) -> list[str]:
        asked, self.asked = self.asked, []
        return asked


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[Replica]:
    (tmp_path / "replica").mkdir()
    with Replica(tmp_path / "replica") as listening:
        yield listening


@contextmanager
def running(tmp_path: Path, port: int, **changes: Any) -> Iterator[Archive]:
    with Node(settings_for(tmp_path / "archive", port, archivist={"enabled": False}, **changes)) as node:
        yield Archive(node, None)  # type: ignore[arg-type]


def stored(archive: Archive, folder: Path, number: int = 1) -> list[str]:
    uids, paths = [], []
    for at in range(number):
        ds = mammogram(breast(60 + at, 50, seed=at))
        path = write(ds, folder / f"{ds.SOPInstanceUID}.dcm")
        paths.append(path)
        uids.append(str(ds.SOPInstanceUID))
    statuses: list[int] = []
    client.store(paths, archive.address, calling="MODALITY", each=lambda _, status, __: statuses.append(status))
    assert statuses == [0] * number
    return uids


def replicated(archive: Archive, peer: str = EXACT, cancelled: Callable[[], bool] = lambda: False) -> dict[str, Any]:
    node = archive.node
    found = node.settings.peer(peer)
    assert found is not None
    replication = Replication(node.index, node.retrieve, node.server.outgoing, found, node.archive.trail.append)
    return replication.run(lambda done, total: None, cancelled)


def data_set(path: Path) -> bytes:
    data = path.read_bytes()
    return data[132 + 12 + int.from_bytes(data[140:144], "little") :]


@pytest.mark.slow
@pytest.mark.parametrize("peer", [EXACT, VIEWER])
def test_each_original_is_sent_once_byte_for_byte(tmp_path: Path, replica: Replica, peer: str) -> None:
    """This includes a peer that gets reconstructions when it retrieves images."""
    with running(tmp_path, replica.port) as archive:
        uids = stored(archive, tmp_path, 3)
        report = replicated(archive, peer)
        assert (report["acknowledged"], report["clean"], report["held_there"]) == (3, True, 3)
        assert sorted(replica.asked_since()) == sorted(uids)
        for uid in uids:
            assert data_set(replica.received[uid]) == data_set(tmp_path / f"{uid}.dcm")
        assert replicated(archive, peer)["acknowledged"] == 0
        (new,) = stored(archive, tmp_path)
        assert replicated(archive, peer)["acknowledged"] == 1
        assert replica.asked_since() == [new]
        assert Replicas(archive.node.index.engine).count("ANOTHER") == 0
        told = [one.entry for one in archive.node.index.trail.records() if one.entry.action == "replicate"]
        assert [one.outcome for one in told] == ["3 acknowledged", "1 acknowledged"]
        assert [one.detail for one in told] == [f"to {peer}, of 3 images", f"to {peer}, of 1 image"]
        assert {(one.who, one.rendition) for one in told} == {("job:replicate-peer", "original")}


@pytest.mark.slow
def test_refusals_and_warnings_are_told_and_sent_again(tmp_path: Path, replica: Replica) -> None:
    with running(tmp_path, replica.port) as archive:
        taken, refused, warned = stored(archive, tmp_path, 3)
        replica.says = {refused: 0xA700, warned: 0xB000}
        report = replicated(archive)
        assert (report["acknowledged"], report["failed"], report["warned"], report["clean"]) == (1, 1, 1, False)
        assert report["answers"] == {"A700": 1, "B000": 1}
        assert {one["uid"]: one["why"] for one in report["not_taken"]} == {
            refused: "answered A700",
            warned: "answered B000, a warning",
        }
        assert sorted(replica.asked_since()) == sorted([taken, refused, warned])
        replica.says = {}
        report = replicated(archive)
        assert (report["acknowledged"], report["clean"], report["held_there"]) == (2, True, 3)
        assert sorted(replica.asked_since()) == sorted([refused, warned])


def test_a_run_that_is_cancelled_is_gone_on_with(tmp_path: Path, replica: Replica) -> None:
    with running(tmp_path, replica.port) as archive:
        uids = stored(archive, tmp_path, 3)
        first = replicated(archive, cancelled=lambda: len(replica.asked) > 0)
        assert first["acknowledged"] < 3
        before = set(replica.asked_since())
        second = replicated(archive)
        assert first["acknowledged"] + second["acknowledged"] == 3
        assert before | set(replica.asked_since()) == set(uids)


def test_a_peer_that_is_not_there_fails_the_run_at_once(tmp_path: Path) -> None:
    with dead_port() as port, running(tmp_path, port) as archive:
        stored(archive, tmp_path, 2)
        with pytest.raises(LatentPacsError, match=r"cannot be reached.*; acknowledged before: 0"):
            replicated(archive)


def test_a_peer_that_aborts_each_image_is_not_called_for_ever(tmp_path: Path, replica: Replica) -> None:
    with running(tmp_path, replica.port) as archive:
        stored(archive, tmp_path, 5)
        replica.aborts = True
        with pytest.raises(LatentPacsError, match="; acknowledged before: 0"):
            replicated(archive)
        assert len(replica.asked_since()) == 3
        replica.aborts = False
        assert replicated(archive)["acknowledged"] == 5


def test_an_amended_header_is_sent_again(tmp_path: Path, replica: Replica) -> None:
    with running(tmp_path, replica.port) as archive:
        (uid,) = stored(archive, tmp_path)
        replicated(archive)
        held = archive.node.index.by_uid(uid)
        assert held is not None
        changes = {"00080050": {"vr": "SH", "Value": ["A17"]}}
        made = archive.node.index.amendments.make(
            AmendmentKind.STUDY, held.study_instance_uid, changes, reason="typing error", who="user:me"
        )
        assert replicated(archive)["acknowledged"] == 1
        assert replicated(archive)["acknowledged"] == 0
        assert b"A17" in replica.received[uid].read_bytes()
        archive.node.index.amendments.undo(made.amendment.number, reason="after all", who="user:me")
        assert replicated(archive)["acknowledged"] == 1
        assert data_set(replica.received[uid]) == data_set(tmp_path / f"{uid}.dcm")


def test_what_is_deleted_or_cannot_be_read(tmp_path: Path, replica: Replica) -> None:
    with running(tmp_path, replica.port) as archive:
        gone, hurt, whole = stored(archive, tmp_path, 3)
        held = archive.node.index.by_uid(hurt)
        assert held is not None
        archive.node.store.path(held.original_digest).write_bytes(b"x")
        report = replicated(archive)
        assert (report["acknowledged"], report["failed"]) == (2, 1)
        assert [one["uid"] for one in report["not_taken"]] == [hurt]
        archive.node.archive.deletion.delete("image", gone, reason="not ours", who="user:me")
        assert Replicas(archive.node.index.engine).count(EXACT) == 1
        assert whole in replica.asked_since()


def test_packed_originals_and_dcmtk(tmp_path: Path) -> None:
    """storescp receives originals that are stored packed, and gets the received bytes."""
    need("storescp")
    settings: dict[str, Any] = {"originals": {"coder": "jpegls"}, "codec": {"profile": "paper"}}
    with storescp_at(tmp_path / "scp") as port, Node(settings_for(tmp_path / "archive", port, **settings)) as node:
        archive = Archive(node, None)  # type: ignore[arg-type]
        (uid,) = stored(archive, tmp_path)
        wait_for(lambda: node.index.originals.totals().packed == 1, what="a packed original")
        assert replicated(archive)["acknowledged"] == 1
        (got,) = [path for path in (tmp_path / "scp").iterdir() if uid in path.name]
        assert data_set(got) == data_set(tmp_path / f"{uid}.dcm")


@contextmanager
def storescp_at(folder: Path) -> Iterator[int]:
    folder.mkdir()
    port = free_port()
    with storescp(folder, port, "+xa", "+B"):
        yield port


def test_the_job_runs_where_a_peer_is_named(tmp_path: Path, replica: Replica) -> None:
    jobs = {"poll": 0.05, "replicate_peer": {"to": EXACT}}
    with running(tmp_path, replica.port, jobs=jobs) as archive:
        (uid,) = stored(archive, tmp_path)
        rows = JobRows(archive.node.index.engine)
        rows.request(JOB)
        wait_for(lambda: [one.state for one in rows.history(JOB, 1)] == [RunState.DONE], what="the job")
        assert uid in replica.received


def test_the_command(tmp_path: Path, replica: Replica) -> None:
    config = tmp_path / "config.yaml"
    raw = {
        "node": {"host": "127.0.0.1", "port": 0},
        "peers": [
            {"ae_title": "MODALITY", "allow": ["echo", "store"]},
            {"ae_title": "REPLICA", "host": "127.0.0.1", "port": replica.port},
        ],
        "storage": {"root": str(tmp_path / "archive"), "min_free": 0},
        "archivist": {"enabled": False},
    }
    config.write_text(yaml.safe_dump(raw))
    with Node(parse(raw, "test")) as node:
        to = Address("127.0.0.1", node.server.port, "LATENTPACS")
        archive = Archive(node, None)  # type: ignore[arg-type]
        assert archive.address == to
        _, refused = stored(archive, tmp_path, 2)
        replica.says = {refused: 0xA900}
        done = command(config, "replicate", "REPLICA", "--json")  # beside the node
        assert done.returncode == 1, done.stderr
        report = json.loads(done.stdout)
        assert (report["state"], report["acknowledged"], report["answers"]) == ("done", 1, {"A900": 1})
    shown = command(config, "replicate", "REPLICA")
    assert (shown.returncode, f"{refused} is not replicated: answered A900" in shown.stdout) == (1, True)
    replica.says = {}
    done = command(config, "replicate", "REPLICA", "--json")  # without one
    assert (done.returncode, json.loads(done.stdout)["acknowledged"]) == (0, 1), done.stderr
    assert json.loads(command(config, "jobs", "history", JOB, "--json").stdout)[0]["report"]["held_there"] == 2
    assert "not a peer with host and port" in command(config, "replicate", "MODALITY").stderr
    wrong = command(config, "replicate", "REPLICAA")
    assert (wrong.returncode, "neither a peer" in wrong.stderr) == (2, True)
    assert not (tmp_path / "REPLICAA").exists()


def command(config: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return run(*words, "-c", str(config))


@pytest.mark.parametrize("to", ["NOBODY", "MODALITY"])
def test_a_peer_that_cannot_be_called_is_a_mistake_in_the_configuration(tmp_path: Path, to: str) -> None:
    with pytest.raises(ConfigError, match=f"jobs.replicate_peer.to: {to} is not a peer with host and port"):
        settings_for(tmp_path, jobs={"replicate_peer": {"to": to}})


def test_without_a_peer_the_job_says_what_is_missing(tmp_path: Path) -> None:
    settings: Settings = settings_for(tmp_path / "archive", archivist={"enabled": False})
    with Node(settings) as node, pytest.raises(ConfigError, match="names no peer"):
        send_to_peer(node.archive).work(lambda done, total: None, lambda: False)
