"""Proves that a node in a process of its own serves many senders at once, and images that take long."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pydicom import Dataset, dcmread
from pydicom.uid import UID, generate_uid
from pynetdicom import AE
from pynetdicom.pdu_primitives import SOPClassExtendedNegotiation
from pynetdicom.presentation import build_context
from rich.console import Console

from benchmarks.find import fill
from benchmarks.ingest import free_port
from node.app import Node
from node.config import ReconstructSettings
from node.dimse.client import Address, Receiver
from node.workers.pool import Priority, WorkerPool
from node.workers.requests import Answer, ReconstructRequest, Request
from storage.index import Index
from tests.conftest import Archive, settings_for, wait_for
from tests.support import samples
from tests.support.peers import getscu_command, listens, movescu, run, storescp, storescu

pytestmark = [pytest.mark.very_slow, pytest.mark.timeout(900)]

SENDERS, IMAGES = 20, 50
FIND = "1.2.840.10008.5.1.4.1.2.1.1"


@contextmanager
def served(folder: Path, **sections: Any) -> Iterator[tuple[Address, subprocess.Popen[bytes]]]:
    """``latent-pacs serve`` on a folder."""
    port, config = free_port(), folder / "config.yaml"
    settings = {
        "node": {"host": "127.0.0.1", "port": port, "shutdown_timeout": 0},
        "storage": {"root": str(folder / "archive"), "min_free": 0},
        **sections,
    }
    config.write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-W", "ignore", "-m", "node.cli", "serve", "-c", str(config)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        wait_for(lambda: process.poll() is not None or listens(port), what="the node listens")
        assert process.poll() is None, (folder / "log").read_text()
        yield Address("127.0.0.1", port, "LATENTPACS"), process
    finally:
        process.terminate()
        process.wait(timeout=300)


@contextmanager
def highest_rss(pid: int) -> Iterator[list[int]]:
    """The peak of a process's memory in bytes, in a list that has one element when the block has ended."""
    yield (peak := [])
    status = Path(f"/proc/{pid}/status").read_text()
    peak.append(int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024)


def test_twenty_senders_at_once(tmp_path: Path) -> None:
    """1000 images of 2 MB arrive, 20 at a time. None fails, and the receiving process needs less than 1 GB."""
    folders = [tmp_path / f"sender{number:02d}" for number in range(SENDERS)]
    noise = np.random.default_rng(0).integers(0, 4096, (1024, 1024), np.uint16)
    sent = set()
    for folder in folders:
        folder.mkdir()
        study = generate_uid()
        for number in range(IMAGES):
            ds = samples.mammogram(noise, StudyInstanceUID=study, InstanceNumber=number)
            samples.write(ds, folder / f"{number:02d}.dcm")
            sent.add(str(ds.SOPInstanceUID))
    with served(tmp_path, archivist={"enabled": False}) as (address, process), highest_rss(process.pid) as peak:
        command = ("storescu", "-d", "-aet", "MODALITY", "-aec", address.ae_title, *address_of(address), "+sd")
        with ThreadPoolExecutor(SENDERS) as together:
            for ran in together.map(lambda folder: run(*command, folder, timeout=600), folders):
                assert ran.statuses == [0x0000] * IMAGES
        index = Index.open(f"sqlite:///{tmp_path / 'archive' / 'index.sqlite'}")
        try:
            assert len(index.states(sorted(sent))) == SENDERS * IMAGES
        finally:
            index.close()
    assert peak[0] < 10**9


class OneAtATime(WorkerPool):
    """A pool whose reconstructions take 45 s each, one after the other, as with a large model on a small machine."""

    def __init__(self, settings: ReconstructSettings) -> None:
        super().__init__(settings)
        self._turn = threading.Lock()

    def submit(self, request: Request, priority: Priority) -> Future[Answer]:
        inner = super().submit(request, priority)
        if not isinstance(request, ReconstructRequest):
            return inner
        slow: Future[Answer] = Future()

        def later() -> None:
            with self._turn:
                threading.Event().wait(45)
                slow.set_result(inner.result())

        threading.Thread(target=later, daemon=True).start()
        return slow


def test_images_that_take_longer_than_the_requester_waits(tmp_path: Path) -> None:
    """movescu and getscu give up after 30 s without a message. Two images that take 45 s each arrive nevertheless."""
    port, study = free_port(), generate_uid()
    changes = {"codec": {"profile": "paper"}, "node": {"host": "127.0.0.1", "port": 0, "shutdown_timeout": 0}}
    node = Node(settings_for(tmp_path / "archive", port, **changes))
    node.pool.close()
    node.pool = OneAtATime(node.settings.reconstruct)  # type: ignore[assignment]
    node.retrieve._pool = node.archivist._pool = node.pool
    with node, storescp(tmp_path / "scp", port) as scp, ThreadPoolExecutor(2) as both:
        archive = Archive(node, Receiver(tmp_path))
        for number in range(2):
            ds = samples.mammogram(samples.breast(300, 280), StudyInstanceUID=study, InstanceNumber=number)
            assert storescu([samples.write(ds, tmp_path / f"{number}.dcm")], archive.address).statuses == [0x0000]
            assert archive.settled(ds.SOPInstanceUID).rendition is not None
        asked = (archive.address, "-S", "STUDY", f"StudyInstanceUID={study}")
        (tmp_path / "got").mkdir()
        command = getscu_command(
            *(archive.address, tmp_path / "got", *asked[1:]), calling="VIEWER", options="+B --dimse-timeout 30"
        )
        began = time.monotonic()
        moving = both.submit(movescu, *asked, calling="VIEWER", options="--dimse-timeout 30", timeout=200)
        getting = both.submit(run, *command, timeout=200)
        for ran in (moving.result(), getting.result()):
            assert (ran.code, ran.status, ran.counts) == (0, 0x0000, (2, 0, 0)), ran.said
        assert time.monotonic() - began > 90
        for got in (scp.files(), list((tmp_path / "got").iterdir())):
            assert [dcmread(file).ImageType[0] for file in got] == ["DERIVED"] * 2


def address_of(address: Address) -> tuple[str, int]:
    return address.host, address.port


def matches(address: Address, patients: str) -> int:
    """The number of answers to a relational query of all images of some patients."""
    relational = SOPClassExtendedNegotiation()
    relational.sop_class_uid, relational.service_class_application_information = UID(FIND), b"\1"
    assoc = AE("VIEWER").associate(*address_of(address), contexts=[build_context(FIND)], ext_neg=[relational])
    asked = Dataset()
    asked.QueryRetrieveLevel, asked.PatientID, asked.SOPInstanceUID = "IMAGE", patients, ""
    count = 0
    for status, _ in assoc.send_c_find(asked, FIND):
        count += status.Status == 0xFF00
    assert status.Status == 0x0000
    assoc.release()
    return count


def test_thirty_thousand_matches_take_no_memory(tmp_path: Path) -> None:
    """Answers are made as they are sent. Queries of 30,000 images need the memory of one of 1600, and SQLite's page
    cache for each of a few connections."""
    settings = settings_for(tmp_path)
    with closing(Index.open(f"sqlite:///{settings.storage.root / 'index.sqlite'}")) as index:
        fill(index.engine, 30_000, Console(quiet=True))
    root = str(settings.storage.root)
    peers = [{"ae_title": "VIEWER", "allow": ["find"]}]
    with served(tmp_path, storage={"root": root, "min_free": 0}, peers=peers) as (address, process):
        held = []
        for patients, images in (("000000*", 1600), *[("", 30_000)] * 3):
            with highest_rss(process.pid) as peak:
                assert matches(address, patients) == images
            held.append(peak[0])
    assert max(held) - held[0] < 40_000_000
    assert held[3] - held[2] < 10_000_000
