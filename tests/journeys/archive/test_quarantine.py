"""Proves that quarantined instances can be listed, accepted and rejected, and which of them the rules refuse."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydicom import Dataset
from sqlalchemy import insert

from node.app import Node, Services
from node.archive.intake.quarantine import QuarantineReview
from node.config import parse
from node.dimse.client import Receiver
from storage.errors import ChangeRefused, LatentPacsError, UnknownUid
from storage.index.connection import now, writing
from storage.index.tables import commitment, pin
from storage.records import HoldKind, InstanceState, Quarantined
from tests.conftest import Archive, settings_for
from tests.support.commands import invoke
from tests.support.peers import data_set_bytes, getscu, storescu
from tests.support.samples import breast, mammogram, write

WHY = {"reason": "the right one", "who": "user:test"}


def identity(ds: Dataset) -> dict[str, str]:
    return {name: str(ds[name].value) for name in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")}


def small(**changes: Any) -> Dataset:
    return mammogram(breast(64, 48), **changes)


class Sent:
    """Two data sets under one UID, sent one after the other."""

    def __init__(self, archive: Archive, folder: Path) -> None:
        self.archive, self.folder = archive, folder
        self.ds = small()
        self.first = write(self.ds, folder / "first.dcm")
        self.second = write(small(**identity(self.ds), KVP="30", PatientID="P2"), folder / "second.dcm")
        assert [storescu([path], archive.address).statuses for path in (self.first, self.second)] == [[0], [0xC003]]

    @property
    def here(self) -> Services:
        return self.archive.node.archive

    def one(self) -> Quarantined:
        (found,) = self.here.index.quarantine.all()
        return found

    def got(self, name: str) -> bytes:
        folder = self.folder / name
        key = f"StudyInstanceUID={self.ds.StudyInstanceUID}"
        ran = getscu(self.archive.address, folder, "-S", "STUDY", key, calling="EXACTVIEW")
        assert ran.counts == (1, 0, 0), ran.said
        (path,) = folder.iterdir()
        return data_set_bytes(path)


@pytest.fixture
def sent(quiet_archive: Archive, tmp_path: Path) -> Iterator[Sent]:
    yield Sent(quiet_archive, tmp_path)


@pytest.mark.slow
def test_accepted_and_accepted_back(sent: Sent) -> None:
    review, index = sent.here.quarantine, sent.here.index
    first = index.by_uid(sent.ds.SOPInstanceUID)
    assert first is not None
    compared = review.compare(sent.one().digest[:10])
    assert [(one.name, one.one, one.other) for one in compared.differences] == [
        ("PatientID", "P0001", "P2"),
        ("KVP", "28", "30"),
    ]
    review.accept(sent.one().digest, **WHY)
    assert sent.got("a") == data_set_bytes(sent.second)
    second = index.by_uid(sent.ds.SOPInstanceUID)
    assert second is not None
    assert (second.patient_id, second.state) == ("P2", InstanceState.RECEIVED)
    former = sent.one()
    assert former.digest == first.original_digest
    assert "accepted in its place" in former.reason
    review.accept(former.digest, **WHY)
    assert sent.got("b") == data_set_bytes(sent.first)
    assert index.by_uid(sent.ds.SOPInstanceUID).patient_id == "P0001"  # type: ignore[union-attr]
    review.reject(sent.one().digest, **WHY)
    assert index.quarantine.all() == []
    assert list(sent.here.store.digests()) == [first.original_digest]
    actions = [record.entry.action for record in index.trail.records() if record.entry.action.startswith("quar")]
    assert actions == ["quarantine.accept", "quarantine.accept", "quarantine.reject"]
    with pytest.raises(UnknownUid, match="no digest in quarantine begins"):
        review.reject("no digest", **WHY)
    with pytest.raises(UnknownUid, match=rf"user:.* rejected it at 20.*: object {second.original_digest} from .*: "):
        review.compare(second.original_digest[:12])


def test_a_hold_or_a_pin_keeps_the_one_before(sent: Sent) -> None:
    review, index = sent.here.quarantine, sent.here.index
    hold = index.holds.add(HoldKind.STUDY, sent.ds.StudyInstanceUID, **WHY)
    with pytest.raises(ChangeRefused, match="on hold"):
        review.accept(sent.one().digest, **WHY)
    index.holds.release(hold.key, **WHY)
    held = index.by_uid(sent.ds.SOPInstanceUID)
    assert held is not None
    with writing(index.engine) as connection:
        request = {"transaction_uid": "1.9", "calling_aet": "A", "items": [], "duplicate": 0, "state": "reported"}
        more = {"attempts": 0, "due": 0.0, "requested_at": now()}
        key = connection.execute(insert(commitment).values(**request, **more).returning(commitment.c.key)).scalar_one()
        until = time.time() + 3600
        connection.execute(insert(pin).values(instance_key=held.key, commitment_key=key, until=until))
    with pytest.raises(ChangeRefused, match="pinned"):
        review.accept(sent.one().digest, **WHY)
    here = sent.here
    strict = parse({"codec": {"profile": "us-mqsa"}}, "test")
    mqsa = QuarantineReview(index, here.originals, here.deletion, strict, raise_if_asked)
    with pytest.raises(ChangeRefused, match="MQSA"):
        mqsa.accept(sent.one().digest, **WHY)
    assert sent.got("a") == data_set_bytes(sent.first)
    assert len(index.quarantine.all()) == 1


def raise_if_asked(path: Path, calling_aet: str) -> Any:
    raise AssertionError("nothing is examined that is refused")


@pytest.mark.slow
def test_what_was_deleted_comes_back_where_it_is_allowed(sent: Sent) -> None:
    """The instance in quarantine outlives the deletion of the held one, and may take its place."""
    review, index = sent.here.quarantine, sent.here.index
    sent.here.deletion.delete("image", sent.ds.SOPInstanceUID, **WHY)
    assert review.compare(sent.one().digest).deleted
    with pytest.raises(ChangeRefused, match="allow-return"):
        review.accept(sent.one().digest, **WHY)
    review.accept(sent.one().digest, **WHY, allow_return=True)
    assert index.quarantine.all() == []
    assert sent.got("a") == data_set_bytes(sent.second)


@pytest.mark.slow
def test_reconstructions_of_the_one_before_are_withdrawn(archive: Archive, tmp_path: Path) -> None:
    ds = mammogram(breast(320, 288))
    other = mammogram(breast(320, 288, seed=5), **identity(ds))
    paths = [write(one, tmp_path / f"{number}.dcm") for number, one in enumerate((ds, other))]
    assert storescu([paths[0]], archive.address).statuses == [0]
    first = archive.settled(ds.SOPInstanceUID).rendition
    assert first is not None
    assert storescu([paths[1]], archive.address).statuses == [0xC003]
    index = archive.node.index
    (waiting,) = index.quarantine.all()
    archive.node.archive.quarantine.accept(waiting.digest, **WHY)
    second = archive.settled(ds.SOPInstanceUID).rendition
    assert second is not None
    assert second.derived_uid != first.derived_uid
    held = index.rendition(first.derived_uid)
    assert held is not None
    for digest in (first.base_digest, first.rendition_digest):
        assert not archive.node.store.path(digest).exists()
    # an impostor of a reconstruction replaces nothing
    fake = mammogram(breast(320, 288), **{**identity(ds), "SOPInstanceUID": second.derived_uid})
    assert storescu([write(fake, tmp_path / "fake.dcm")], archive.address).statuses == [0xC003]
    with pytest.raises(ChangeRefused, match="is the UID of a reconstruction of"):
        archive.node.archive.quarantine.accept(index.quarantine.all()[-1].digest, **WHY)


@pytest.mark.slow
def test_the_commands(tmp_path: Path, receiver: Receiver) -> None:
    config = tmp_path / "config.yaml"
    settings = settings_for(tmp_path / "archive", receiver.port, archivist={"enabled": False})
    config.write_text(yaml.safe_dump(settings.model_dump(mode="json", by_alias=True) | {"originals": {}}))
    with Node(settings) as node:
        sent = Sent(Archive(node, receiver), tmp_path)
        digest = sent.one().digest

    def told(*arguments: str) -> Any:
        done = invoke(*arguments, "-c", str(config), "--json")
        assert done.exit_code == 0, done.exception
        return json.loads(done.stdout)

    assert told("status")["quarantined"] == 1
    assert [one["digest"] for one in told("quarantine", "list")] == [digest]
    shown = told("quarantine", "show", digest[:8])
    assert [one["name"] for one in shown["differences"]] == ["PatientID", "KVP"]
    assert "28" in invoke("quarantine", "show", digest, "-c", str(config)).stdout
    assert told("quarantine", "accept", digest[:8], "--reason", "later")["outcome"] == "accepted"
    (former,) = told("quarantine", "list")
    assert told("quarantine", "reject", former["digest"], "--reason", "older")["outcome"] == "rejected"
    assert told("status")["quarantined"] == 0
    refused = invoke("quarantine", "accept", digest, "--reason", "x", "-c", str(config))
    assert isinstance(refused.exception, LatentPacsError)
