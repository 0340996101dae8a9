"""Proves the decisions on quarantined objects that two people take at once, or on originals that are gone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from pydicom import dcmread

from node.app.damage import damage_handler
from node.archive.deletion import Deletion
from node.archive.intake.ingest import examine
from node.archive.intake.quarantine import QuarantineReview
from storage.errors import ChangeRefused, Deleted, Duplicate, ObjectDamaged
from storage.index.integrity import Integrity
from storage.objects.inspection import Condition
from storage.objects.store import ObjectStore
from storage.records import HeldOriginal, HoldKind, InstanceState, OriginalForm, Tier
from tests.support.archive_parts import ArchiveParts, InlineWorkers
from tests.support.coded_images import derived_object, hold_image, just_before, receive, small
from tests.support.samples import write

UID, DERIVED = "1.2.3.1", "2.25.7"
WHY = {"reason": "the right one", "who": "user:test"}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Contested:
    """An image with a reconstruction, and another data set under its UID in quarantine."""

    def __init__(self, folder: Path, coder: str = "none", **originals: str) -> None:
        self.bench = ArchiveParts(folder / "archive", coder=coder, **originals)
        bench = self.bench
        bench.originals.damaged = damage_handler(bench.index, bench.stores, bench.trail)
        self.deletion = Deletion(bench.index, bench.stores, bench.trail, bench.settings, bench.root / "rendered")
        self.ds = small(UID)
        self.first = hold_image(bench, self.ds, DERIVED)
        self.ds.KVP = "31"
        self.second = write(self.ds, bench.root / "second.dcm").read_bytes()
        with pytest.raises(Duplicate):
            receive(bench, self.second, self.ds)

    def review(self) -> QuarantineReview:
        bench, workers = self.bench, InlineWorkers()
        parts = bench.index, bench.originals, self.deletion, bench.settings
        return QuarantineReview(*parts, lambda path, aet: examine(path, aet, workers))  # type: ignore[arg-type]

    def original(self) -> HeldOriginal:
        held = self.bench.index.originals.of_digest(sha256(self.first))
        assert held is not None
        return held

    def object(self) -> Path:
        """The file of the object that holds the original."""
        held = self.original()
        return self.bench.stores[held.tier].path(held.object_digest)

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
    just_before(
        monkeypatch, contested.bench.index.quarantine, "reject", lambda: contested.review().accept(digest, **WHY)
    )
    with pytest.raises(ChangeRefused, match=f"{digest} was accepted or rejected meanwhile"):
        contested.review().reject(digest, **WHY)
    assert contested.actions() == ["quarantine.accept"]
    assert contested.bench.read(contested.second) == contested.second
    assert contested.waiting() == [sha256(contested.first)]


def test_nothing_that_arrived_for_an_image_on_hold_is_rejected(contested: Contested) -> None:
    """The quarantine also holds the former original of an image."""
    holds, digest = contested.bench.index.holds, sha256(contested.second)
    placed = holds.add(HoldKind.STUDY, str(contested.ds.StudyInstanceUID), reason="court", who="user:test")
    with pytest.raises(ChangeRefused, match=f"{UID} is on hold, and nothing that arrived under it is removed"):
        contested.review().reject(digest, **WHY)
    assert contested.waiting() == [digest]
    holds.release(placed.key, reason="settled", who="user:test")
    contested.review().reject(digest, **WHY)
    assert contested.waiting() == []


def test_an_object_that_somebody_rejects_meanwhile_is_not_accepted(
    contested: Contested, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = sha256(contested.second)
    just_before(
        monkeypatch, contested.bench.index.quarantine, "accept", lambda: contested.review().reject(digest, **WHY)
    )
    with pytest.raises(ChangeRefused, match=f"{UID} changed meanwhile; compare it again before you accept it"):
        contested.review().accept(digest, **WHY)
    assert contested.actions() == ["quarantine.reject"]
    assert contested.bench.read(contested.first) == contested.first


def test_a_refused_acceptance_leaves_no_copy_of_a_packed_original(tmp_path: Path) -> None:
    """Formerly, the copy stayed on the disk, even after the image was deleted."""
    contested = Contested(tmp_path, coder="jpegls")
    bench = contested.bench
    assert bench.work() == 1
    before = set(bench.hot.digests())
    bench.index.holds.add(HoldKind.PATIENT, contested.ds.PatientID, reason="court", who="user:test")
    with pytest.raises(ChangeRefused, match="on hold, and cannot be replaced"):
        contested.review().accept(sha256(contested.second), **WHY)
    assert set(bench.hot.digests()) == before
    assert bench.read(contested.first) == contested.first


@pytest.mark.parametrize("withdrawn", ["", "an audit failed"])
def test_a_reconstruction_of_a_replaced_original_that_returns_is_kept(contested: Contested, withdrawn: str) -> None:
    """Its payload and its own original are gone; the image has another original now."""
    bench = contested.bench
    row = bench.index.rendition(DERIVED)
    assert row is not None
    path = derived_object(bench, row, bench.root / "derived.dcm")
    returned, header = path.read_bytes(), dcmread(path)
    if withdrawn:
        Integrity(bench.index.engine).withdraw(DERIVED, withdrawn)
    contested.review().accept(sha256(contested.second), **WHY)
    contested.review().reject(sha256(contested.first), **WHY)
    with pytest.raises(Duplicate, match="with a payload that is lost here"):
        receive(bench, returned, header)
    assert contested.waiting() == [sha256(returned)]


def test_a_purged_original_is_replaced_and_does_not_go_to_quarantine(contested: Contested) -> None:
    assert len(contested.bench.retention.purge().purged) == 1
    compared = contested.review().compare(sha256(contested.second))
    assert compared.differences == ()
    contested.review().accept(sha256(contested.second), **WHY)
    held = contested.bench.index.by_uid(UID)
    assert held is not None
    assert (held.state, held.rendition, held.original_digest) == (
        InstanceState.RECEIVED,
        None,
        sha256(contested.second),
    )
    assert contested.bench.read(contested.second) == contested.second
    assert contested.waiting() == []


@pytest.mark.slow
def test_a_reconstruction_of_a_deleted_image_never_becomes_an_original(contested: Contested) -> None:
    """This holds even if its return is allowed, since its pixels are not those of a modality."""
    bench = contested.bench
    row = bench.index.rendition(DERIVED)
    assert row is not None
    made = derived_object(bench, row, bench.root / "derived.dcm").read_bytes()
    contested.deletion.delete("image", UID, **WHY)
    with pytest.raises(Deleted):
        receive(bench, made, small(DERIVED))
    with pytest.raises(ChangeRefused, match=f"{DERIVED} is the UID of a reconstruction of {UID}, which was deleted"):
        contested.review().accept(sha256(made), **WHY, allow_return=True)
    assert sha256(made) in contested.waiting()
    assert bench.index.by_uid(DERIVED) is None


def test_a_reconstruction_replaces_no_original(contested: Contested) -> None:
    bench = contested.bench
    other = small(DERIVED)
    data = write(other, bench.root / "other.dcm").read_bytes()
    with pytest.raises(Duplicate, match="with other pixels"):
        receive(bench, data, other)
    with pytest.raises(ChangeRefused, match=f"{DERIVED} is the UID of a reconstruction of {UID}; nothing replaces it"):
        contested.review().accept(sha256(data), **WHY)
    assert bench.read(contested.first) == contested.first


# --- the held original is lost ---


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


HARM: dict[str, Callable[[Path], None]] = {"missing": Path.unlink, "damaged": flip}


def contested_as(folder: Path, form: str) -> Contested:
    """A contested image whose held original is verbatim, packed, or packed in the cold store."""
    path = {"path": str(folder / "cold")} if form == "cold" else {}
    contested = Contested(folder, coder="none" if form == "verbatim" else "jpegls", **path)
    if form == "cold":
        contested.bench.receive("1.2.3.9")  # a store without any object is taken for a disk that is not mounted
    contested.bench.work()
    held = contested.original()
    assert (held.form is OriginalForm.PACKED, held.tier is Tier.COLD) == (form != "verbatim", form == "cold")
    return contested


@pytest.mark.parametrize("scrubbed", [False, True], ids=["unnoticed", "scrubbed"])
@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("form", ["verbatim", "packed", "cold"])
def test_a_lost_original_is_replaced(tmp_path: Path, form: str, harm: str, scrubbed: bool) -> None:
    contested = contested_as(tmp_path, form)
    bench, digest, lost = contested.bench, sha256(contested.second), contested.original()
    HARM[harm](contested.object())
    if scrubbed:
        bench.originals.damaged(lost.tier, lost.object_digest)
    compared = contested.review().compare(digest)
    assert (compared.lost, compared.differences) == (True, ())
    contested.review().accept(digest, **WHY)
    held = bench.index.by_uid(UID)
    assert held is not None
    assert (held.state, held.rendition, held.original_digest, held.reason) == (
        *(InstanceState.RECEIVED, None),
        *(digest, ""),
    )
    assert bench.read(contested.second) == contested.second
    bench.work()
    bench.check_promises()
    assert contested.waiting() == []
    assert not Integrity(bench.index.engine).open_damage()
    accepted = [one.entry for one in bench.index.trail.records() if one.entry.action == "quarantine.accept"]
    assert "the former original was missing or damaged" in accepted[0].detail
    aside = list((bench.stores[lost.tier].root / "damaged").glob(f"{lost.object_digest}.*"))
    assert len(aside) == (harm == "damaged"), "a damaged file is never deleted"


def test_a_lost_original_that_is_found_goes_to_quarantine(contested: Contested) -> None:
    """A former scrub moved the original aside, and it is whole."""
    path = contested.object()
    aside = contested.bench.root / "damaged" / f"{path.name}.1"
    aside.parent.mkdir()
    path.rename(aside)
    contested.review().accept(sha256(contested.second), **WHY)
    assert contested.waiting() == [sha256(contested.first)]
    assert contested.bench.hot.read(sha256(contested.first)) == contested.first


def test_an_original_in_a_store_that_is_not_there_is_not_replaced(tmp_path: Path) -> None:
    contested = contested_as(tmp_path, "cold")
    bench, digest = contested.bench, sha256(contested.second)
    cold = bench.stores.pop(Tier.COLD)
    with pytest.raises(ChangeRefused, match="holds no object at all: set originals"):
        contested.review().accept(digest, **WHY)
    (tmp_path / "elsewhere").mkdir()
    bench.stores[Tier.COLD] = ObjectStore(tmp_path / "elsewhere")
    with pytest.raises(ChangeRefused, match="holds no object at all: set originals"):
        contested.review().accept(digest, **WHY)
    bench.stores[Tier.COLD] = cold
    assert bench.read(contested.first) == contested.first
    assert contested.waiting() == [digest]


@pytest.mark.slow
def test_an_original_that_cannot_be_opened_is_not_replaced(
    contested: Contested, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lend(digest: str) -> Path:
        raise ObjectDamaged(digest)

    monkeypatch.setattr(contested.bench.originals, "lend", lend)
    monkeypatch.setattr(contested.bench.originals, "condition", lambda held: Condition.UNREADABLE)
    with pytest.raises(ChangeRefused, match="may be sound, but cannot be read: correct the permissions"):
        contested.review().accept(sha256(contested.second), **WHY)
    monkeypatch.undo()
    assert contested.bench.read(contested.first) == contested.first


def test_a_lost_original_that_comes_back_meanwhile_is_not_replaced(
    contested: Contested, monkeypatch: pytest.MonkeyPatch
) -> None:
    contested.object().unlink()
    just_before(
        monkeypatch, contested.bench.index.quarantine, "accept", lambda: contested.bench.hot.put(contested.first)
    )
    with pytest.raises(ChangeRefused, match=f"{UID} changed meanwhile"):
        contested.review().accept(sha256(contested.second), **WHY)
    assert contested.bench.read(contested.first) == contested.first
    assert contested.waiting() == [sha256(contested.second)]


@pytest.mark.parametrize("harm", HARM)
def test_a_lost_object_of_the_quarantine_replaces_nothing(contested: Contested, harm: str) -> None:
    digest = sha256(contested.second)
    HARM[harm](contested.bench.hot.path(digest))
    with pytest.raises(ChangeRefused, match=f"{digest} in quarantine is missing or damaged; let MODALITY send {UID}"):
        contested.review().accept(digest, **WHY)
    assert contested.bench.read(contested.first) == contested.first
    contested.review().reject(digest, **WHY)
    assert contested.waiting() == []
