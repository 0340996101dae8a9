"""Proves what becomes of a received file while the same image is removed, moved or issued by somebody else."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian
from sqlalchemy import delete as sql_delete

from node.archive.intake.ingest import ANOTHER_PATIENT, check_uid, examine
from storage.dicom.header_amendments import AmendmentKind
from storage.dicom.writing import encode
from storage.errors import (
    ChangedMeanwhile,
    Deleted,
    Duplicate,
    InvalidUid,
    ObjectMissing,
    OutOfTime,
    StoreFull,
    WorkerDied,
)
from storage.index.connection import now, writing
from storage.index.tables import original
from storage.records import HoldKind, InstanceState, OriginalForm, Tier
from tests.support.archive_parts import ArchiveParts, InlineWorkers
from tests.support.coded_images import FailingDecoders, hold_image, just_before, receive, small
from tests.support.encoded_elements import element
from tests.support.index_rows import new_rendition
from tests.support.samples import MAMMOGRAPHY, write, write_body

EXPLICIT = ExplicitVRLittleEndian
UID = "1.2.3.1"
SEND_AGAIN = "it was being removed while it was received again; send it once more"


@pytest.fixture
def bench(tmp_path: Path) -> ArchiveParts:
    return ArchiveParts(tmp_path / "archive", coder="none")


def as_file(bench: ArchiveParts, ds: Dataset) -> bytes:
    return write(ds, bench.root / "sent.dcm").read_bytes()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def quarantined(bench: ArchiveParts) -> list[tuple[str, str]]:
    """Digest and reason of each object in quarantine. Checks that the store holds each object."""
    found = [(one.digest, one.reason) for one in bench.index.quarantine.all()]
    for digest, _ in found:
        assert bench.hot.read(digest)
    return found


def purge(bench: ArchiveParts) -> None:
    """Remove the originals of all verified images."""
    assert len(bench.retention.purge().purged) == 1


def delete(bench: ArchiveParts, uid: str = UID) -> None:
    bench.index.tombstones.mark_deleted("image", uid, reason="wrong patient", who="user:test")
    bench.index.tombstones.delete_rows()
    bench.index.garbage.collect(bench.stores)


# --- the first arrival ---


def test_a_file_that_is_unlinked_before_its_row_is_not_acknowledged(
    bench: ArchiveParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    ds = small(UID)
    data = as_file(bench, ds)
    just_before(monkeypatch, bench.index, "add", lambda: bench.hot.delete(sha256(data)))
    with pytest.raises(ChangedMeanwhile, match=SEND_AGAIN):
        receive(bench, data, ds)
    assert bench.index.by_uid(UID) is None
    assert receive(bench, data, ds).new
    assert bench.read(data) == data


def test_the_archivist_is_woken_by_what_it_may_have_to_encode(bench: ArchiveParts) -> None:
    """By a new image, and by one that is sent again, since its original may have been lost or damaged."""
    ds, woken = small(UID), []
    data = as_file(bench, ds)
    assert receive(bench, data, ds, arrived=woken.append).new
    assert woken == [ds.StudyInstanceUID]
    with writing(bench.index.engine) as connection:
        connection.execute(sql_delete(original))
    assert not receive(bench, data, ds, arrived=woken.append).new
    assert woken == [ds.StudyInstanceUID] * 2


def test_nothing_is_received_on_a_disk_that_is_nearly_full(bench: ArchiveParts) -> None:
    ds = small(UID)
    data = as_file(bench, ds)
    bench.hot.keep_free(1 << 60)
    with pytest.raises(StoreFull, match="must stay free"):
        receive(bench, data, ds)
    assert (bench.files(), bench.index.by_uid(UID)) == (0, None)


def test_a_uid_that_is_issued_to_a_reconstruction_meanwhile_is_not_stored(
    bench: ArchiveParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    ds = small("2.25.7")
    data = as_file(bench, ds)

    def issue() -> None:
        bench.receive(UID, state=InstanceState.RECEIVED)
        claim = bench.index.claim("test", 60)
        assert claim is not None
        bench.index.finish_with(claim, InstanceState.VERIFIED, new_rendition("2.25.7"))

    just_before(monkeypatch, bench.index, "add", issue)
    with pytest.raises(ChangedMeanwhile, match=SEND_AGAIN):
        receive(bench, data, ds)
    held = bench.index.by_uid("2.25.7")
    assert held is not None
    assert held.sop_instance_uid == UID


# --- patients ---


def of_patient(uid: str, patient_id: str | None) -> Dataset:
    return small(uid, StudyInstanceUID="1.2.3.4.5", PatientID=patient_id)


def test_an_image_of_another_patient_under_a_known_study_is_reported(
    bench: ArchiveParts, caplog: pytest.LogCaptureFixture
) -> None:
    """Queries find the image under the patient of its study, and not by the Patient ID that it states."""
    notes = {}
    for number, patient_id in enumerate(("P1", "P1", None, "P2")):
        ds = of_patient(f"{UID}.{number}", patient_id)
        notes[number] = receive(bench, as_file(bench, ds), ds).note
    assert notes == {0: "", 1: "", 2: "", 3: ANOTHER_PATIENT}
    [line] = [record.getMessage() for record in caplog.records if ANOTHER_PATIENT in record.getMessage()]
    assert f"{UID}.3" in line
    assert "1.2.3.4.5" in line
    assert "P2" not in line  # the log holds no patient data


def test_a_hold_covers_what_states_its_patient_under_the_study_of_another(bench: ArchiveParts) -> None:
    """Every such image is reported, not only the first one."""
    notes = []
    for number, patient_id in enumerate(("P1", "P2", "P2")):
        ds = of_patient(f"{UID}.{number}", patient_id)
        notes.append(receive(bench, as_file(bench, ds), ds).note)
    assert notes == ["", ANOTHER_PATIENT, ANOTHER_PATIENT]
    bench.index.holds.add(HoldKind.PATIENT, "P2", reason="court", who="user:me")
    assert {one.kept_because for one in bench.index.tombstones.plan("study", "1.2.3.4.5")} == {"is on hold"}


def test_an_image_with_the_former_id_of_an_amended_patient_is_not_reported(bench: ArchiveParts) -> None:
    first, later, other = (of_patient(f"{UID}.{n}", who) for n, who in ((1, "P1"), (2, "P1"), (3, "P2")))
    receive(bench, as_file(bench, first), first)
    moved = {"00100020": {"vr": "LO", "Value": ["P9"]}}
    bench.index.amendments.make(AmendmentKind.STUDY, "1.2.3.4.5", moved, reason="wrong ID", who="user:me")
    assert receive(bench, as_file(bench, later), later).note == ""
    assert receive(bench, as_file(bench, other), other).note == ANOTHER_PATIENT


# --- the same bytes again ---


def test_a_packed_original_that_is_purged_while_it_arrives_again_is_held_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = ArchiveParts(tmp_path / "archive", coder="jpegls")
    ds = small(UID)
    data = hold_image(bench, ds, "2.25.7")
    bench.work()
    just_before(monkeypatch, bench.index.originals, "of_digest", lambda: purge(bench))
    assert receive(bench, data, ds).new
    held = bench.index.originals.of_digest(sha256(data))
    assert held is not None
    assert held.form is OriginalForm.VERBATIM
    assert bench.read(data) == data


def test_a_verbatim_original_that_is_purged_while_it_arrives_again_is_not_acknowledged(
    bench: ArchiveParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The purge unlinks the very object that the new file would share."""
    ds = small(UID)
    data = hold_image(bench, ds, "2.25.7")
    just_before(monkeypatch, bench.index.originals, "of_digest", lambda: purge(bench))
    with pytest.raises(ChangedMeanwhile, match=SEND_AGAIN):
        receive(bench, data, ds)
    assert receive(bench, data, ds).new
    assert bench.read(data) == data


def test_an_original_whose_row_was_lost_is_held_again(bench: ArchiveParts) -> None:
    """A damaged line of the change journal can take the row of an original, and leave the row of its instance."""
    ds = small(UID)
    data = as_file(bench, ds)
    receive(bench, data, ds)
    with writing(bench.index.engine) as connection:
        connection.execute(sql_delete(original))
    bench.hot.delete(sha256(data))
    assert not receive(bench, data, ds).new
    bench.check_promises()
    assert [held.original_digest for _, held in bench.index.originals.below("image", UID)] == [sha256(data)]


@pytest.mark.parametrize("damaged", [False, True], ids=["whole", "damaged"])
def test_an_original_that_is_moved_while_it_is_checked_is_checked_again(
    tmp_path: Path, damaged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = ArchiveParts(tmp_path / "archive", coder="none", path=str(tmp_path / "cold"))
    ds = small(UID)
    data = hold_image(bench, ds, "2.25.7")
    bench.work()
    if damaged:
        bench.stores[Tier.COLD].path(sha256(data)).write_bytes(b"other")
    checks: list[object] = []

    def changed_once(connection: Any, held: Any) -> bool:
        checks.append(held)
        return len(checks) > 1

    monkeypatch.setattr("storage.index.resent_originals.still_held", changed_once)
    assert not receive(bench, data, ds).new
    assert len(checks) == 2
    assert bench.read(data) == data
    bench.check_promises()


def test_an_original_that_moves_without_end_is_not_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = ArchiveParts(tmp_path / "archive", coder="none", path=str(tmp_path / "cold"))
    ds = small(UID)
    data = hold_image(bench, ds, "2.25.7")

    def move() -> None:
        held = bench.index.originals.of_digest(sha256(data))
        assert held is not None
        to = Tier.COLD if held.tier is Tier.HOT else Tier.HOT
        bench.stores[to].take_from(bench.stores[held.tier], held.object_digest)
        assert bench.index.originals.commit_move(held, to, bench.stores[to].has)

    just_before(monkeypatch, bench.originals, "whole", move, times=99)
    with pytest.raises(ObjectMissing, match=f"original {sha256(data)} was moved at each attempt to check it"):
        receive(bench, data, ds)
    assert bench.read(data) == data


# --- other bytes under a UID that is held ---


def test_the_image_that_is_held_is_deleted_while_another_arrives(
    bench: ArchiveParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    ds = small(UID)
    receive(bench, as_file(bench, ds), ds)
    ds.KVP = "31"
    other = as_file(bench, ds)
    just_before(monkeypatch, bench.index, "by_uid", lambda: delete(bench))
    with pytest.raises(ChangedMeanwhile, match=SEND_AGAIN):
        receive(bench, other, ds)
    with pytest.raises(Deleted):
        receive(bench, other, ds)
    assert quarantined(bench)[0][0] == sha256(other)


def test_other_bytes_for_a_purged_original_wait_in_quarantine(bench: ArchiveParts) -> None:
    ds = small(UID)
    hold_image(bench, ds, "2.25.7")
    purge(bench)
    ds.KVP = "31"
    other = as_file(bench, ds)
    with pytest.raises(
        Duplicate, match="was purged, and had other bytes; the first is kept, this one is in quarantine"
    ):
        receive(bench, other, ds)
    reason = "the original of this SOP Instance UID was purged, and had other bytes"
    assert quarantined(bench) == [(sha256(other), reason)]


@pytest.mark.parametrize("error", [WorkerDied("killed by signal 11"), OutOfTime("took 60 s")], ids=["crash", "slow"])
def test_files_that_a_decoder_cannot_compare_are_not_taken_for_the_same(bench: ArchiveParts, error: Exception) -> None:
    ds = small(UID)
    data = as_file(bench, ds)
    receive(bench, data, ds)
    other = data + element(0xFFFCFFFC, "OB", b"\0\0", EXPLICIT)
    with pytest.raises(Duplicate, match="another data set is held under this SOP Instance UID"):
        receive(bench, other, ds, FailingDecoders(error))
    assert quarantined(bench) == [(sha256(other), "another data set is held under this SOP Instance UID")]
    assert bench.read(data) == data


def test_a_file_that_is_unlinked_before_it_is_quarantined_is_not_acknowledged(
    bench: ArchiveParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    ds = small(UID)
    receive(bench, as_file(bench, ds), ds)
    ds.KVP = "31"
    other = as_file(bench, ds)
    just_before(monkeypatch, bench.index.quarantine, "put", lambda: bench.hot.delete(sha256(other)))
    with pytest.raises(ChangedMeanwhile, match=SEND_AGAIN):
        receive(bench, other, ds)
    assert quarantined(bench) == []


# --- what was deleted ---


def test_a_return_that_is_allowed_at_this_moment_is_asked_for_once_more(
    bench: ArchiveParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    ds = small(UID)
    data = as_file(bench, ds)
    receive(bench, data, ds)
    delete(bench)
    stones = bench.index.tombstones

    def allow() -> None:
        stones.allow_return("image", UID, reason="it was right", who="user:test")

    just_before(monkeypatch, stones, "in_force", allow)
    with pytest.raises(ChangedMeanwhile, match=SEND_AGAIN):
        receive(bench, data, ds)
    assert quarantined(bench) == []
    assert receive(bench, data, ds).new
    assert bench.read(data) == data


def test_a_deleted_image_is_quarantined_with_the_day_of_its_deletion(bench: ArchiveParts) -> None:
    ds = small(UID)
    data = as_file(bench, ds)
    receive(bench, data, ds)
    delete(bench)
    with pytest.raises(Deleted, match="was deleted here, and is in quarantine now"):
        receive(bench, data, ds)
    assert quarantined(bench) == [(sha256(data), f"its SOP Instance UID was deleted here on {now():%Y-%m-%d}")]


def test_an_image_that_returns_leaves_the_quarantine(bench: ArchiveParts) -> None:
    """Formerly, its storage commitment failed, as if another data set with its UID were in quarantine."""
    ds = small(UID)
    data = as_file(bench, ds)
    receive(bench, data, ds)
    delete(bench)
    with pytest.raises(Deleted):
        receive(bench, data, ds)
    bench.index.tombstones.allow_return("image", UID, reason="it was right", who="user:test")
    assert receive(bench, data, ds).new
    assert quarantined(bench) == []
    assert bench.read(data) == data


# --- UIDs of the data set ---


def with_study_uid(bench: ArchiveParts, encoded: bytes) -> Path:
    """A file whose Study Instance UID is encoded as given."""
    ds = small(UID)
    before, after = (encode(ds, EXPLICIT, within=part) for part in (range(0x0020000D), range(0x0020000E, 1 << 32)))
    path = bench.root / "odd.dcm"
    return write_body(before + encoded + after, path, sop_class=MAMMOGRAPHY, sop_instance=UID, syntax=EXPLICIT)


UNUSABLE: dict[str, tuple[bytes, str]] = {
    "two values": (element(0x0020000D, "UI", b"1.2.3\\1.2.4\0", EXPLICIT), "StudyInstanceUID has more than one value"),
    "a number": (element(0x0020000D, "FD", bytes(3), EXPLICIT), "StudyInstanceUID cannot be read"),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_a_study_uid_that_cannot_be_used_is_refused(kind: str, bench: ArchiveParts) -> None:
    odd, why = UNUSABLE[kind]
    with pytest.raises(InvalidUid, match=why):
        examine(with_study_uid(bench, odd), "MODALITY", InlineWorkers())  # type: ignore[arg-type]


def test_an_empty_uid_is_missing_and_not_invalid() -> None:
    with pytest.raises(InvalidUid, match=r"^the Affected SOP Instance UID is missing$"):
        check_uid("Affected SOP Instance UID", "")
    with pytest.raises(InvalidUid, match=r"^Affected SOP Instance UID is no valid UID: 'a\.b'$"):
        check_uid("Affected SOP Instance UID", "a.b")
