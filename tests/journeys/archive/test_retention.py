"""Proves the life of an original over real associations: packed, held, purged, asked for, sent again, restored."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydicom import Dataset
from pydicom.uid import generate_uid

from node.app import Node
from node.config import Settings
from node.dimse import client
from node.dimse.client import Receiver
from storage.records import HoldKind, InstanceState, OriginalForm, StoredInstance
from tests.conftest import Archive, settings_for, wait_for
from tests.support.commands import run
from tests.support.samples import breast, mammogram, write
from tests.support.transfers import asked, data_set_bytes


@pytest.fixture
def archive(tmp_path: Path, receiver: Receiver) -> Iterator[Archive]:
    """A node that packs originals, and whose originals are old enough to be purged at once."""
    with Node(purging(tmp_path, receiver)) as node:
        yield Archive(node, receiver)


def purging(tmp_path: Path, receiver: Receiver, **originals: Any) -> Settings:
    return settings_for(
        tmp_path / "archive", receiver.port, originals={"coder": "jpegls", "retain_for": "0d", **originals}
    )


def send(archive: Archive, path: Path) -> int:
    statuses: list[int] = []
    client.store([path], archive.address, calling="MODALITY", each=lambda _, status, __: statuses.append(status))
    return statuses[0]


def packed(archive: Archive, ds: Dataset) -> StoredInstance:
    archive.settled(ds.SOPInstanceUID)

    def at_hand() -> StoredInstance | None:
        found = archive.node.index.by_uid(ds.SOPInstanceUID)
        return found if found and found.held and found.held.form is OriginalForm.PACKED else None

    found: StoredInstance = wait_for(at_hand, what="original packed")
    return found


def moved(archive: Archive, identifier: Dataset, to: str) -> tuple[Dataset, dict[str, Path]]:
    archive.receiver.received.clear()
    final = client.move(identifier, archive.address, calling=to, destination=to)
    return final, dict(archive.receiver.received)


def found(archive: Archive, ds: Dataset, title: str) -> list[tuple[str, str]]:
    """(SOP Instance UID, availability) of the study's images, as that peer finds them."""
    query = client.image_identifier(ds.StudyInstanceUID, ds.SeriesInstanceUID, "")
    query.SOPInstanceUID = ""
    answers = client.find(query, archive.address, calling=title)
    return [(str(one.SOPInstanceUID), str(one.InstanceAvailability)) for one in answers]


@pytest.mark.slow
def test_packed_purged_and_sent_again(archive: Archive, tmp_path: Path) -> None:
    good = mammogram()
    small = mammogram(
        breast(200, 200), StudyInstanceUID=good.StudyInstanceUID, SeriesInstanceUID=good.SeriesInstanceUID
    )
    sent = {ds.SOPInstanceUID: write(ds, tmp_path / f"{n}.dcm") for n, ds in enumerate((good, small))}
    assert [send(archive, path) for path in sent.values()] == [0, 0]
    instance = packed(archive, good)
    packed(archive, small)
    assert instance.state is InstanceState.VERIFIED
    rendition, store = instance.rendition, archive.node.store
    assert rendition is not None
    assert instance.held is not None

    # packed: the received bytes are not on disk any more, and everyone still gets them
    wait_for(lambda: not store.path(instance.original_digest).exists(), what="the verbatim file unlinked")
    assert instance.held.object_bytes < 0.6 * instance.original_bytes
    whole = client.image_identifier(good.StudyInstanceUID)
    final, received = moved(archive, whole, "EXACTVIEW")
    assert final.Status == 0x0000
    assert {uid: data_set_bytes(path) for uid, path in received.items()} == {
        uid: data_set_bytes(path) for uid, path in sent.items()
    }
    assert send(archive, sent[good.SOPInstanceUID]) == 0x0000  # the same once more: nothing is stored twice
    wait_for(lambda: not store.path(instance.original_digest).exists(), what="the second copy unlinked")

    # a hold keeps it, a dry run removes nothing
    index, retention = archive.node.index, archive.node.retention
    hold = index.holds.add(HoldKind.PATIENT, good.PatientID, reason="a claim", who="user:test")
    assert retention.purge().purged == ()
    index.holds.release(hold.key, reason="settled", who="user:test")
    planned = retention.purge(dry_run=True)
    assert [step.sop_instance_uid for step in planned.purged] == [good.SOPInstanceUID]
    assert store.path(instance.held.object_digest).exists()

    # purged: only the verified image went, and everyone is told the truth
    done = retention.purge()
    assert (done.purged, done.kept) == (planned.purged, ())
    assert done.bytes_freed == instance.held.object_bytes
    assert not store.path(instance.held.object_digest).exists()
    final, received = moved(archive, whole, "EXACTVIEW")
    assert (final.Status, final.NumberOfFailedSuboperations) == (0xB000, 1)
    assert list(received) == [small.SOPInstanceUID]
    assert moved(archive, asked(good), "EXACTVIEW")[0].Status == 0xA702
    for title in ("AUTOVIEW", "VIEWER"):
        final, received = moved(archive, whole, title)
        assert final.Status == 0x0000
        assert set(received) == {rendition.derived_uid, small.SOPInstanceUID}
        assert set(found(archive, good, title)) == {(rendition.derived_uid, "ONLINE"), (small.SOPInstanceUID, "ONLINE")}
        assert moved(archive, asked(good, rendition.derived_uid), title)[0].Status == 0x0000
    assert moved(archive, asked(good), "AUTOVIEW")[0].Status == 0xA702  # it asked for the very original
    assert set(found(archive, good, "EXACTVIEW")) == {
        (good.SOPInstanceUID, "UNAVAILABLE"),
        (small.SOPInstanceUID, "ONLINE"),
    }

    # other bytes under its UID are quarantined; its own bytes are held again
    other = write(mammogram(breast(seed=9), **identity(good)), tmp_path / "other.dcm")
    assert send(archive, other) == 0xC003
    assert "purged" in index.quarantine.all()[0].reason
    assert send(archive, sent[good.SOPInstanceUID]) == 0x0000
    again = packed(archive, good)
    assert again.state is InstanceState.VERIFIED
    final, received = moved(archive, asked(good), "EXACTVIEW")
    assert final.Status == 0x0000
    assert data_set_bytes(received[good.SOPInstanceUID]) == data_set_bytes(sent[good.SOPInstanceUID])

    everyday = {"store", "move", "get"}
    actions = [action for record in index.trail.records() if (action := record.entry.action) not in everyday]
    assert actions == ["hold.add", "hold.release", "original.purge", "original.again"]
    assert archive.node.trail.broken() == ""


def identity(ds: Dataset) -> dict[str, str]:
    return {name: str(ds[name].value) for name in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")}


@pytest.mark.slow
def test_the_reconstruction_is_proved_before_the_original_goes(archive: Archive, tmp_path: Path) -> None:
    """The base is damaged, so that the original is all there is. The original stays."""
    ds = mammogram()
    send(archive, write(ds, tmp_path / "x.dcm"))
    instance = packed(archive, ds)
    assert instance.rendition is not None
    path = archive.node.store.path(instance.rendition.base_digest)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"\0")
    report = archive.node.retention.purge()
    assert report.purged == ()
    assert report.kept[0].kept_because == f"object {path.name} of its reconstruction is damaged"
    assert moved(archive, asked(ds), "EXACTVIEW")[0].Status == 0x0000
    path.write_bytes(whole)
    assert len(archive.node.retention.purge().purged) == 1


@pytest.mark.slow
def test_the_cold_store(tmp_path: Path, receiver: Receiver) -> None:
    """Originals of images with a rendition are moved there, are served from there, and are restored on request."""
    cold = tmp_path / "cold"
    config = tmp_path / "config.yaml"
    good, small = mammogram(StudyInstanceUID=generate_uid()), mammogram(breast(200, 200))
    raw = purging(tmp_path, receiver, retain_for="forever", path=f"file://{cold}").model_dump(
        mode="json", by_alias=True
    )
    raw["originals"]["retain_for"] = "forever"
    config.write_text(yaml.safe_dump(raw))
    with Node(purging(tmp_path, receiver, retain_for="forever", path=f"file://{cold}")) as node:
        archive = Archive(node, receiver)
        sent = write(good, tmp_path / "good.dcm")
        assert [send(archive, path) for path in (sent, write(small, tmp_path / "small.dcm"))] == [0, 0]
        instance = packed(archive, good)
        packed(archive, small)
        wait_for(lambda: node.index.originals.totals().cold == 1, what="the original of the verified image moved")
        assert instance.held is not None
        digest = instance.held.object_digest
        wait_for(lambda: not node.store.path(digest).exists(), what="unlinked in the hot store")
        assert (cold / "objects" / digest[:2] / digest).is_file()
        final, received = moved(archive, asked(good), "EXACTVIEW")
        assert final.Status == 0x0000
        assert data_set_bytes(received[good.SOPInstanceUID]) == data_set_bytes(sent)
        restored = json.loads(run("restore", good.StudyInstanceUID, "-c", str(config), "--json").stdout)
        assert [(one["sop_instance_uid"], one["outcome"]) for one in restored] == [(good.SOPInstanceUID, "restored")]
        assert node.store.path(digest).is_file()
        assert not (cold / "objects" / digest[:2] / digest).exists()
        assert not node.packer.step()  # and stays for a while
        status = json.loads(run("status", "-c", str(config), "--json").stdout)
        assert status["originals"]["packed"] == 2
        assert status["purge_would_free"] == {
            "forever": {"originals": 0, "bytes": 0},
            "30d": {"originals": 0, "bytes": 0},
        }


@pytest.mark.slow
def test_the_commands(tmp_path: Path, receiver: Receiver) -> None:
    """The commands for holds, labels, dry run, purge and trail, on an archive whose node does not run."""
    config = tmp_path / "config.yaml"
    settings = purging(tmp_path, receiver)
    raw = settings.model_dump(mode="json", by_alias=True)
    raw["originals"]["retain_for"] = "0d"
    config.write_text(yaml.safe_dump(raw))
    ds = mammogram()
    with Node(settings) as node:
        archive = Archive(node, receiver)
        send(archive, write(ds, tmp_path / "x.dcm"))
        size = packed(archive, ds).held.object_bytes  # type: ignore[union-attr]

    def told(*arguments: str, code: int = 0) -> Any:
        done = run(*arguments, "-c", str(config), "--json")
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout)

    assert told("status")["purge_would_free"]["0d"] == {"originals": 1, "bytes": size}
    hold = told("hold", "add", "--label", "trial 7", "--reason", "audit")
    assert (hold["originals"], told("purge", "--dry-run")["bytes_freed"]) == (0, size)
    told("hold-label", "add", "trial 7", "--study", ds.StudyInstanceUID)
    assert [one["originals"] for one in told("hold", "list")] == [1]
    assert told("purge")["bytes_freed"] == 0
    told("hold", "release", str(hold["key"]), "--reason", "over")
    assert run("hold", "release", "99", "--reason", "x", "-c", str(config)).returncode == 2
    assert run("hold", "add", "--reason", "x", "-c", str(config)).returncode == 2
    purge = told("purge")
    assert (purge["bytes_freed"], purge["purged"][0]["sop_instance_uid"]) == (size, ds.SOPInstanceUID)
    assert told("status")["originals"]["purged"] == 1
    assert told("restore", ds.SOPInstanceUID, "--level", "image", code=1)[0]["outcome"] == "purged"
    records = told("trail", "--study", ds.StudyInstanceUID)
    assert [record["entry"]["action"] for record in records] == ["store", "label.add", "original.purge"]
    assert told("trail", "--verify") == {"records": 5, "broken": ""}
    raw["codec"]["profile"] = "us-mqsa"
    raw["originals"]["retain_for"] = "forever"
    config.write_text(yaml.safe_dump(raw))
    refused = run("purge", "-c", str(config))
    assert refused.returncode == 3
    assert "MQSA" in refused.stderr
