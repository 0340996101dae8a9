"""Proves that a patient's earlier images are in the rendered cache before a viewer asks, and that other work is not
delayed.

Profile ``paper`` makes a rendition of each image at one attempt, whatever it looks like.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset

from node.app import Node
from node.archive.serve.prefetch import Prefetch
from node.config import RenditionPolicy
from node.dimse import client
from node.dimse.client import Receiver
from node.workers.pool import Priority, WorkerPool
from node.workers.requests import CheckRequest
from storage.index.instance_queries import prior_keys
from tests.conftest import Archive, settings_for, wait_for
from tests.support import samples


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    """A node that does not prefetch, so that there is no prefetch but that of the test."""
    folder = tmp_path_factory.mktemp("priors")
    with Node(settings_for(folder / "archive", codec={"profile": "paper"})) as node:
        yield Archive(node, Receiver(folder))


def stored(archive: Archive, folder: Path, size: tuple[int, int] = (300, 280), **changes: Any) -> Dataset:
    ds = samples.mammogram(samples.breast(*size), **changes)
    path = samples.write(ds, folder / f"{ds.SOPInstanceUID}.dcm")
    statuses: list[int] = []
    client.store([path], archive.address, calling="MODALITY", each=lambda _, status, __: statuses.append(status))
    assert statuses == [0x0000]
    archive.settled(ds.SOPInstanceUID)
    return ds


def rendered(archive: Archive) -> set[str]:
    """Digests of the renditions in the rendered cache."""
    return {entry.name.split(".")[0] for entry in (archive.node.settings.storage.root / "rendered").glob("*.dcm")}


def rendition_digest(archive: Archive, ds: Dataset) -> str:
    held = archive.node.index.by_uid(ds.SOPInstanceUID)
    assert held is not None
    assert held.rendition is not None
    return held.rendition.rendition_digest


@pytest.mark.slow
def test_a_study_that_arrives_has_its_priors_rendered(
    tmp_path: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest priors are rendered, as many as configured. They have the same ID and issuer, whatever the name, and
    belong to earlier studies."""
    changes = {"codec": {"profile": "paper"}, "reconstruct": {"prefetch_priors": 2}}
    prepared, prepare = [], Prefetch.prepare
    monkeypatch.setattr(Prefetch, "prepare", lambda self, study: (prepared.append(study), prepare(self, study)))
    with Node(settings_for(tmp_path / "archive", receiver.port, **changes)) as node:
        archive = Archive(node, receiver)
        same: dict[str, Any] = {"PatientID": "P1", "IssuerOfPatientID": "HERE"}
        oldest, old, prior, later = (
            stored(archive, tmp_path, **same, PatientName=f"Name{year}", StudyDate=f"20{year}0101")
            for year in (10, 18, 20, 24)
        )
        stored(archive, tmp_path, PatientID="P1", IssuerOfPatientID="ELSEWHERE", StudyDate="20190101")
        wait_for(lambda: rendered(archive), what="priors of those, as they came")
        wait_for(lambda: len(prepared) == 5 and node.prefetch._studies.empty() and node.pool.idle, what="idle workers")
        for entry in (tmp_path / "archive" / "rendered").glob("*.dcm"):
            entry.unlink()
        stored(archive, tmp_path, (64, 48), **same, StudyDate="20220101")
        expected = {rendition_digest(archive, ds) for ds in (old, prior)}
        wait_for(lambda: rendered(archive) >= expected, what="two priors")
        assert rendered(archive) == expected
        node.pool.close()  # what is sent now was rendered before
        wanted = client.image_identifier(prior.StudyInstanceUID)
        final = client.move(wanted, archive.address, calling="VIEWER", destination="VIEWER")
        assert final.NumberOfCompletedSuboperations == 1
        (got,) = receiver.received
        held = node.index.by_uid(prior.SOPInstanceUID)
        assert held is not None
        assert held.rendition is not None
        assert got == held.rendition.derived_uid
        found = prior_keys(node.index.engine, later.StudyInstanceUID, 10)
        assert [one.sop_instance_uid for one in node.index.by_keys(found)] == [
            ds.SOPInstanceUID for ds in (prior, old, oldest)
        ]


@pytest.mark.slow
def test_priors_wait_while_there_is_other_work(archive: Archive, tmp_path: Path) -> None:
    prior = stored(archive, tmp_path, PatientID="P1", StudyDate="20200101")
    arrived = stored(archive, tmp_path, (64, 48), PatientID="P1", StudyDate="20220101")
    before = rendered(archive)
    looks = 0

    def busy() -> bool:
        nonlocal looks
        looks += 1
        assert rendered(archive) == before
        return looks < 3

    policies = frozenset({(RenditionPolicy.RECONSTRUCTED, True)})
    priors = Prefetch(archive.node.index, archive.node.retrieve, policies, 10, busy)
    assert priors.prepare(arrived.StudyInstanceUID) == 1
    assert looks == 3
    assert rendered(archive) == before | {rendition_digest(archive, prior)}
    assert priors.prepare(prior.StudyInstanceUID) == 0


@pytest.mark.parametrize(
    ("policies", "images", "wanted"),
    [
        (set(), 5, False),
        ({(RenditionPolicy.ORIGINAL, True)}, 5, True),
        ({(RenditionPolicy.RECONSTRUCTED, True)}, 0, False),
        ({(RenditionPolicy.ORIGINAL, True), (RenditionPolicy.AUTO, False)}, 5, True),
    ],
)
def test_where_nobody_would_get_them_none_are_rendered(
    archive: Archive, policies: set[tuple[RenditionPolicy, bool]], images: int, wanted: bool
) -> None:
    priors = Prefetch(archive.node.index, archive.node.retrieve, frozenset(policies), images, lambda: False)
    assert priors.enabled is wanted


@pytest.mark.slow
@pytest.mark.parametrize("policy", [RenditionPolicy.ORIGINAL, RenditionPolicy.AUTO])
def test_originals_that_a_peer_gets_are_unpacked_ahead(tmp_path: Path, policy: RenditionPolicy) -> None:
    """Otherwise a viewer would wait until the original is unpacked."""
    settings = settings_for(tmp_path / "archive", codec={"profile": "paper"}, originals={"coder": "jpegls"})
    with Node(settings) as node:
        archive = Archive(node, Receiver(tmp_path))
        prior = stored(archive, tmp_path, PatientID="P3", StudyDate="20200101")
        held = node.index.by_uid(prior.SOPInstanceUID)
        assert held is not None
        arrived = stored(archive, tmp_path, (64, 48), PatientID="P3", StudyDate="20220101")
        wait_for(lambda: node.index.originals.totals().packed == 2, what="packed originals")
        for entry in (tmp_path / "archive" / "rendered").glob("*.dcm"):
            entry.unlink()
        priors = Prefetch(node.index, node.retrieve, frozenset({(policy, True)}), 10, lambda: False)
        assert priors.prepare(arrived.StudyInstanceUID) == 1
        assert rendered(archive) == {held.original_digest}


def test_auto_peers_get_originals_while_they_are_held(archive: Archive, tmp_path: Path) -> None:
    prior = stored(archive, tmp_path, PatientID="P2", StudyDate="20200101")
    arrived = stored(archive, tmp_path, (64, 48), PatientID="P2", StudyDate="20220101")
    policies = frozenset({(RenditionPolicy.AUTO, True)})
    priors = Prefetch(archive.node.index, archive.node.retrieve, policies, 10, lambda: False)
    assert priors.prepare(arrived.StudyInstanceUID) == 0
    assert rendition_digest(archive, prior) not in rendered(archive)


def test_what_is_made_ahead_goes_last(tmp_path: Path) -> None:
    pool = WorkerPool(settings_for(tmp_path).reconstruct)
    assert pool.idle
    try:
        request = CheckRequest(samples.write(samples.mammogram(samples.breast(64, 48)), tmp_path / "one.dcm"))
        order: list[Priority] = []
        asked = [pool.submit(request, Priority.VIEWER)]  # the others line up behind it
        for priority in (Priority.AHEAD, Priority.REVERIFY, Priority.ARCHIVIST, Priority.VIEWER):
            asked.append(pool.submit(request, priority))
            asked[-1].add_done_callback(lambda _, priority=priority: order.append(priority))  # type: ignore[misc]
        assert not pool.idle
        for future in asked:
            assert future.result(timeout=300) == ""
        assert order == sorted(Priority)
        wait_for(lambda: pool.idle)
    finally:
        pool.close()
