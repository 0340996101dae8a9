"""Proves that gdcmscu, which has a DIMSE implementation of its own, can store and move.

With any peer, Debian's gdcmscu 3.0.21 aborts when an association has been released, before it prints the answers to a
C-FIND. The tests check what it did before that.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid

from benchmarks.ingest import free_port
from node.app import Node
from node.dimse.client import Receiver
from tests.conftest import Archive, settings_for, wait_for
from tests.support import samples
from tests.support.peers import Ran, run, running

# pynetdicom leaves the socket of an association that was refused or broke to the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    folder = tmp_path_factory.mktemp("gdcm")
    with Receiver(folder) as receiver:
        peers = [
            {"ae_title": "MODALITY", "allow": ["echo", "store"]},
            {"ae_title": "NOTHING", "allow": []},
            {"ae_title": "GDCM", "host": "127.0.0.1", "port": receiver.port, "allow": ["move"]},
        ]
        settings = settings_for(folder / "archive", peers=peers, archivist={"enabled": False})
        with Node(settings) as running:
            yield Archive(running, receiver)
    gc.collect()


@pytest.fixture(scope="module")
def study(node: Archive, tmp_path_factory: pytest.TempPathFactory) -> list[Dataset]:
    """Two images in two transfer syntaxes, stored by gdcmscu."""
    folder, uid = tmp_path_factory.mktemp("files"), generate_uid()
    images = []
    for number, syntax in enumerate((ExplicitVRLittleEndian, ImplicitVRLittleEndian)):
        changes = {"StudyInstanceUID": uid, "PatientID": "GDCM-1", "PatientName": "Gdcm^Anna"}
        images.append(samples.mammogram(samples.breast(64, 48), **changes, InstanceNumber=number + 1))
        file = samples.write(images[-1], folder / f"{number}.dcm", syntax)
        ran = gdcmscu(node, "--store", "-i", file)
        assert "was successful" in ran.output, ran.output
    return images


def gdcmscu(node: Archive, *options: object, calling: str = "MODALITY") -> Ran:
    return run(*command(node, *options, calling=calling))


def command(node: Archive, *options: object, calling: str) -> tuple[str, *tuple[object, ...]]:
    to = node.address
    return ("gdcmscu", "-D", "--aetitle", calling, "--call", to.ae_title, *options, "-H", to.host, "-p", to.port)


def test_what_it_stores_is_held(node: Archive, study: list[Dataset]) -> None:
    for ds in study:
        held = node.node.index.by_uid(ds.SOPInstanceUID)
        assert held is not None
        assert dcmread(node.node.store.held(held.original_digest)).PixelData == ds.PixelData


def test_a_store_that_is_refused(node: Archive, tmp_path: Path) -> None:
    ds = samples.mammogram(samples.breast(64, 48))
    ran = gdcmscu(node, "--store", "-i", samples.write(ds, tmp_path / "one.dcm"), calling="NOTHING")
    assert "was successful" not in ran.output, ran.output
    assert node.node.index.by_uid(ds.SOPInstanceUID) is None


@pytest.mark.slow
def test_what_it_moves_arrives(node: Archive, study: list[Dataset], tmp_path: Path) -> None:
    """GDCM's AE title leads to a receiver of ours, because gdcmscu aborts as a receiver at the first data set."""
    study_key = f"20,d={study[0].StudyInstanceUID}"
    options = ("--move", "--studyroot", "--study", "--key", study_key, "--port-scp", free_port(), "-o", tmp_path)
    received = node.receiver.received
    with running(*command(node, *options, calling="GDCM")):  # it goes on waiting for an association of ours
        wait_for(lambda: len(received) == 2, what="both images")
    for ds in study:
        assert dcmread(received[ds.SOPInstanceUID]).PixelData == ds.PixelData
