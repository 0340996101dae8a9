"""Proves the decisions on quarantined objects that two people take at once, or on originals that are gone."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from pydicom import dcmread

from node.archive.deletion import Deletion
from node.archive.intake.ingest import examine
from node.archive.intake.quarantine import QuarantineReview
from storage.errors import ChangeRefused, Deleted, Duplicate
from storage.index.integrity import Integrity
from storage.records import HoldKind, InstanceState
from tests.support.archive_parts import ArchiveParts, InlineWorkers
from tests.support.coded_images import derived_object, hold_image, just_before, receive, small
from tests.support.samples import write

UID, DERIVED = "1.2.3.1", "2.25.7"
WHY = {"reason": "the right one", "who": "user:test"}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Contested:
    """An image with a reconstruction, and another data set under its UID in quarantine."""

    def __init__(self, folder: Path, coder: str = "none") -> None:
        self.bench = ArchiveParts(folder / "archive", coder=coder)
        bench = self.bench
        self.deletion = Deletion(bench.index, bench.stores, bench.trail, bench.settings, bench.root / "rendered")
        self.ds = small(UID)
        self.first = hold_image(bench, self.ds, DERIVED)
        self.ds.KVP = "31"
        self.second = write(self.ds, bench.root / "second.dcm").read_bytes()
        with pytest.raises(Duplicate):
            receive(bench, self.second, self.ds)

    def desk(self) -> QuarantineReview:
        bench, workers = self.bench, InlineWorkers()
        parts = bench.index, bench.hot, bench.originals, self.deletion, bench.trail, bench.settings
        return QuarantineReview(*parts, lambda path, aet: examine(path, aet, workers))  # type: ignore[arg-type]

    def waiting(self) -> list[str]:
        return [one.digest for one in self.bench.index.quarantine.all()]

    def actions(self) -> list[str]:
        names = [one.entry.action for one in self.bench.index.trail.records()]
        return [name for name in names if name.startswith("quarantine.")]


@pytest.fixture
def contested(tmp_path: Path) -> Contested:
    return Contested(tmp_path)


def test_an_object_that_somebody_accepts_meanwhile_is_not_rejected(
    contested: Contested, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = sha256(contested.second)
    just_before(monkeypatch, contested.bench.index.quarantine, "reject", lambda: contested.desk().accept(digest, **WHY))
    with pytest.raises(ChangeRefused, match=f"{digest} was accepted or rejected meanwhile"):
        contested.desk().reject(digest, **WHY)
    assert contested.actions() == ["quarantine.accept"]
    assert contested.bench.read(contested.second) == contested.second
    assert contested.waiting() == [sha256(contested.first)]


def test_an_object_that_somebody_rejects_meanwhile_is_not_accepted(
    contested: Contested, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = sha256(contested.second)
    just_before(monkeypatch, contested.bench.index.quarantine, "accept", lambda: contested.desk().reject(digest, **WHY))
    with pytest.raises(ChangeRefused, match=f"{UID} changed meanwhile; compare it again before you accept it"):
        contested.desk().accept(digest, **WHY)
    assert contested.actions() == ["quarantine.reject"]
    assert contested.bench.read(contested.first) == contested.first


def test_a_refused_acceptance_leaves_no_copy_of_a_packed_original(tmp_path: Path) -> None:
    """The copy would have stayed on the disk when the image was deleted."""
    contested = Contested(tmp_path, coder="jpegls")
    bench = contested.bench
    assert bench.work() == 1
    before = set(bench.hot.digests())
    bench.index.holds.add(HoldKind.PATIENT, contested.ds.PatientID, reason="court", who="user:test")
    with pytest.raises(ChangeRefused, match="on hold, and cannot be replaced"):
        contested.desk().accept(sha256(contested.second), **WHY)
    assert set(bench.hot.digests()) == before
    assert bench.read(contested.first) == contested.first


@pytest.mark.parametrize("withdrawn", ["", "an audit failed"])
def test_a_reconstruction_of_a_replaced_original_that_returns_is_kept(contested: Contested, withdrawn: str) -> None:
    """Neither its payload nor its original is here, though another original is held."""
    bench = contested.bench
    row = bench.index.rendition(DERIVED)
    assert row is not None
    path = derived_object(bench, row, bench.root / "derived.dcm")
    returned, header = path.read_bytes(), dcmread(path)
    if withdrawn:
        Integrity(bench.index.engine).withdraw(DERIVED, withdrawn)
    contested.desk().accept(sha256(contested.second), **WHY)
    contested.desk().reject(sha256(contested.first), **WHY)
    with pytest.raises(Duplicate, match="with a payload that is lost here"):
        receive(bench, returned, header)
    assert contested.waiting() == [sha256(returned)]


def test_a_purged_original_is_replaced_and_does_not_go_to_quarantine(contested: Contested) -> None:
    assert len(contested.bench.retention.purge().purged) == 1
    compared = contested.desk().compare(sha256(contested.second))
    assert compared.differences == ()
    contested.desk().accept(sha256(contested.second), **WHY)
    held = contested.bench.index.by_uid(UID)
    assert held is not None
    assert (held.state, held.rendition, held.original_digest) == (
        InstanceState.RECEIVED,
        None,
        sha256(contested.second),
    )
    assert contested.bench.read(contested.second) == contested.second
    assert contested.waiting() == []


def test_a_reconstruction_of_a_deleted_image_never_becomes_an_original(contested: Contested) -> None:
    """Even if its return is allowed: its pixels are not those of a modality."""
    bench = contested.bench
    row = bench.index.rendition(DERIVED)
    assert row is not None
    made = derived_object(bench, row, bench.root / "derived.dcm").read_bytes()
    contested.deletion.delete("image", UID, **WHY)
    with pytest.raises(Deleted):
        receive(bench, made, small(DERIVED))
    with pytest.raises(ChangeRefused, match=f"{DERIVED} is the UID of a reconstruction of {UID}, which was deleted"):
        contested.desk().accept(sha256(made), **WHY, allow_return=True)
    assert sha256(made) in contested.waiting()
    assert bench.index.by_uid(DERIVED) is None


def test_a_reconstruction_replaces_no_original(contested: Contested) -> None:
    bench = contested.bench
    other = small(DERIVED)
    data = write(other, bench.root / "other.dcm").read_bytes()
    with pytest.raises(Duplicate, match="with other pixels"):
        receive(bench, data, other)
    with pytest.raises(ChangeRefused, match=f"{DERIVED} is the UID of a reconstruction of {UID}; nothing replaces it"):
        contested.desk().accept(sha256(data), **WHY)
    assert bench.read(contested.first) == contested.first
