"""Proves that damage in a running archive is found and encoded again, and that every UID keeps its pixels."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydicom import Dataset
from sqlalchemy import update

from node.app import make_scrub
from node.dimse import client
from node.jobs.scrub_job import Extent
from storage.dicom.pixels import integer_pixels, pixel_digest
from storage.formats.payload import decode_rendition, encode_rendition
from storage.index.connection import writing
from storage.index.tables import rendition
from storage.records import InstanceState, StoredInstance, StoredRendition
from tests.conftest import Archive
from tests.support.commands import run as command
from tests.support.job_runs import CountedRun
from tests.support.samples import breast, mammogram, write


def stored(archive: Archive, folder: Path, ds: Dataset) -> StoredInstance:
    file = write(ds, folder / f"{ds.SOPInstanceUID}.dcm")
    client.store([file], archive.address, calling="MODALITY", each=lambda *_: None)
    return archive.settled(ds.SOPInstanceUID)


def rendition_of(instance: StoredInstance) -> StoredRendition:
    assert instance.rendition is not None
    return instance.rendition


def scrubbed(archive: Archive) -> dict[str, Any]:
    node = archive.node
    return CountedRun().of(make_scrub(node.archive, extent=Extent.FULL).work)


def moved(archive: Archive, ds: Dataset, uid: str, title: str) -> tuple[int, dict[str, Path]]:
    archive.receiver.received.clear()
    names = (ds.StudyInstanceUID, ds.SeriesInstanceUID, uid) if uid else (ds.StudyInstanceUID,)
    identifier = client.image_identifier(*names)
    final = client.move(identifier, archive.address, calling="VIEWER", destination=title)
    return final.Status, dict(archive.receiver.received)


def again(archive: Archive, uid: str) -> StoredInstance:
    return archive.settled(uid)


@pytest.mark.slow
def test_the_same_bytes_are_made_again(archive: Archive, tmp_path: Path) -> None:
    ds = mammogram()
    before = stored(archive, tmp_path, ds)
    was = rendition_of(before)
    bytes_before = {digest: archive.node.store.read(digest) for digest in (was.base_digest, was.rendition_digest)}
    for lost in ([was.base_digest], [was.rendition_digest], [was.base_digest, was.rendition_digest]):
        for digest in lost:
            archive.node.store.path(digest).write_bytes(b"rubbish")
        report = scrubbed(archive)
        assert (report["queued"], report["damaged"]) == (len(lost), len(lost))
        status, received = moved(archive, ds, was.derived_uid, "VIEWER")
        assert status == 0x0000
        assert len(received) == 1, "served all the while"
        assert again(archive, ds.SOPInstanceUID) == before
        for digest, data in bytes_before.items():
            assert archive.node.store.read(digest) == data
        status, received = moved(archive, ds, was.derived_uid, "VIEWER")
        assert list(received) == [was.derived_uid]
        assert pixel_digest(integer_pixels(received[was.derived_uid])) == was.output_digest
        report = scrubbed(archive)
        assert (report["clean"], report["orphans"]) == (True, 0)


@pytest.mark.slow
def test_no_false_alarm_while_images_arrive(archive: Archive, tmp_path: Path) -> None:
    """Scrubs run repeatedly while images are stored and encoded. They find no damage and no orphan."""
    images = [mammogram(breast(300, 280, seed=number)) for number in range(2)]
    files = [write(ds, tmp_path / f"{number}.dcm") for number, ds in enumerate(images)]
    node, statuses = archive.node, list[int]()
    sending = threading.Thread(
        target=client.store,
        args=(files, archive.address),
        kwargs={"calling": "MODALITY", "each": lambda _, status, __: statuses.append(status)},
    )
    sending.start()
    busy = True
    while busy:
        busy = len(statuses) < 2 or node.index.counts().backlog > 0
        report = scrubbed(archive)
        assert (report["clean"], report["orphans"], report["foreign"]) == (True, 0, 0)
    sending.join()
    assert report["checked"] == len(list(node.store.digests())) > 2


@pytest.mark.slow
def test_another_version_of_a_library_makes_another_object_of_the_same_pixels(archive: Archive, tmp_path: Path) -> None:
    """An older torch seems to have made the rendition. Its row gets the new object, and keeps UID and figures."""
    ds = mammogram()
    was = rendition_of(stored(archive, tmp_path, ds))
    store, index = archive.node.store, archive.node.index
    made = decode_rendition(store.read(was.rendition_digest))
    made.numerics["torch"] = "1.0"
    old = store.put(encode_rendition(made))
    with writing(index.engine) as connection:
        connection.execute(update(rendition).values(rendition_digest=old))
    store.path(old).unlink()
    assert scrubbed(archive)["queued"] == 1
    after = again(archive, ds.SOPInstanceUID)
    assert after.rendition == was, "the figures of its day, and the object of today"
    assert after.state is InstanceState.VERIFIED


@pytest.mark.slow
def test_what_cannot_be_made_again_is_withdrawn(archive: Archive, tmp_path: Path) -> None:
    """Another coder seems to have made the base. The image gets a new rendition, and the old UID leads to the image."""
    ds = mammogram()
    was = rendition_of(stored(archive, tmp_path, ds))
    with writing(archive.node.index.engine) as connection:
        connection.execute(
            update(rendition).values(
                base_digest="0" * 64, derived_uid="2.25.77", structure_uid="2.25.78", rendition_digest="1" * 64
            )
        )
    assert scrubbed(archive)["queued"] == 2
    after = again(archive, ds.SOPInstanceUID)
    assert after.state is InstanceState.VERIFIED
    assert rendition_of(after).derived_uid == was.derived_uid != "2.25.77"
    found = archive.node.index.by_uid("2.25.77")
    assert found is not None
    assert found.sop_instance_uid == ds.SOPInstanceUID
    assert scrubbed(archive)["clean"]


@pytest.mark.slow
def test_a_uid_is_not_issued_for_other_pixels(archive: Archive, tmp_path: Path) -> None:
    """Other numerics would give other pixels under a UID that was issued already. The image becomes EXACT."""
    ds = mammogram()
    was = rendition_of(stored(archive, tmp_path, ds))
    with writing(archive.node.index.engine) as connection:
        connection.execute(update(rendition).values(output_digest="0" * 64))
    archive.node.store.path(was.rendition_digest).unlink()
    scrubbed(archive)
    after = again(archive, ds.SOPInstanceUID)
    assert (after.state, after.rendition) == (InstanceState.EXACT, None)
    assert "is the UID of another object already" in after.reason
    status, received = moved(archive, ds, was.derived_uid, "VIEWER")
    assert (status, list(received)) == (0x0000, [ds.SOPInstanceUID])


@pytest.mark.slow
def test_a_lost_original(archive: Archive, tmp_path: Path) -> None:
    """Peers that may get a reconstruction get it. A request for the original fails, with the reason."""
    ds = mammogram()
    instance = stored(archive, tmp_path, ds)
    path = archive.node.store.path(instance.original_digest)
    path.write_bytes(path.read_bytes()[:-1])
    assert scrubbed(archive)["flagged"] == 1
    status, received = moved(archive, ds, ds.SOPInstanceUID, "VIEWER")
    assert (status, list(received)) == (0x0000, [rendition_of(instance).derived_uid])
    for title in ("EXACTVIEW", "AUTOVIEW"):
        status, received = moved(archive, ds, ds.SOPInstanceUID, title)
        assert (status, received) == (0xA702, {})
    status, received = moved(archive, ds, "", "AUTOVIEW")
    assert (status, list(received)) == (0x0000, [rendition_of(instance).derived_uid])
    client.store([tmp_path / f"{ds.SOPInstanceUID}.dcm"], archive.address, calling="MODALITY", each=lambda *_: None)
    assert scrubbed(archive)["clean"], "sent again, and whole"
    status, received = moved(archive, ds, ds.SOPInstanceUID, "EXACTVIEW")
    assert (status, list(received)) == (0x0000, [ds.SOPInstanceUID])


@pytest.mark.slow
def test_scrub_as_a_command_on_a_running_node(archive: Archive, tmp_path: Path) -> None:
    ds = mammogram()
    was = rendition_of(stored(archive, tmp_path, ds))
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"storage": {"root": str(archive.node.settings.storage.root)}}))
    assert command("scrub", "--full", "-c", str(config)).returncode == 0
    archive.node.store.path(was.base_digest).write_bytes(b"")
    assert command("scrub", "--sample", "100%", "-c", str(config), "--json").returncode == 1
    again(archive, ds.SOPInstanceUID)
    done = command("scrub", "--full", "-c", str(config), "--json")
    assert done.returncode == 0
    report = json.loads(done.stdout)
    assert (report["checked"], report["clean"], report["state"]) == (3, True, "done")
    done = command("scrub", "--sample", "0%", "-c", str(config))
    assert (done.returncode, "not a share" in done.stderr) == (2, True)
