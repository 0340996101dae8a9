"""Proves which objects without a row are added to the index again, and which are left to a scrub."""

from __future__ import annotations

import errno
import hashlib
import os
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select, update

from node.archive.intake.ingest import examine
from node.archive.orphan_recovery import OrphanRecovery
from storage.errors import NoWorker, StoreFull
from storage.formats.packed_original import pack_original
from storage.formats.payload import encode_rendition
from storage.index.connection import writing
from storage.index.integrity import Integrity
from storage.index.model_files import ModelFile, ModelRows
from storage.index.tables import original
from storage.records import InstanceState, NewInstance, OriginalForm, Tier, TrailEntry
from tests.support.archive_parts import ArchiveParts, InlineWorkers
from tests.support.coded_images import Pair, hold_image, pair_of, receive, small
from tests.support.index_rows import new_rendition
from tests.support.samples import write

UID, DERIVED = "1.2.3.1", "2.25.7"


@pytest.fixture
def bench(tmp_path: Path) -> ArchiveParts:
    return ArchiveParts(tmp_path / "archive", coder="none")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def recovery(bench: ArchiveParts) -> OrphanRecovery:
    decoders = InlineWorkers()
    return OrphanRecovery(bench.index, bench.stores, lambda path, aet: examine(path, aet, decoders))  # type: ignore[arg-type]


class Lost:
    """An image whose rows were lost. ``made``: its base and its rendition."""

    def __init__(self, bench: ArchiveParts, *, passed: bool = True) -> None:
        self.bench, self.ds = bench, small(UID)
        self.received = write(self.ds, bench.root / "received.dcm").read_bytes()
        self.made: Pair = pair_of(self.ds, self.received, DERIVED, passed=passed)

    def leave(self, *data: bytes) -> list[str]:
        return [self.bench.hot.put(one) for one in data]

    def leave_rendition(self) -> list[str]:
        return self.leave(self.made.base_bytes, self.made.rendition_bytes)

    def can_recover(self, data: bytes) -> bool:
        return recovery(self.bench).can_recover("hot", sha256(data))


@pytest.fixture
def lost(bench: ArchiveParts) -> Lost:
    return Lost(bench)


def test_an_original_is_held_again_as_received(lost: Lost) -> None:
    lost.leave(lost.received)
    assert lost.can_recover(lost.received)
    assert recovery(lost.bench).recover() == 1
    held = lost.bench.index.by_uid(UID)
    assert held is not None
    assert (held.state, held.calling_aet) == (InstanceState.RECEIVED, "")
    assert lost.bench.read(lost.received) == lost.received
    assert not lost.can_recover(lost.received)
    assert recovery(lost.bench).recover() == 0


def test_a_packed_original_is_held_again_as_it_is(lost: Lost) -> None:
    path = lost.bench.root / "received.dcm"
    packed = pack_original(path, "jpegls", sha256(lost.received))
    lost.leave(packed)
    assert lost.can_recover(packed)
    assert recovery(lost.bench).recover() == 1
    held = lost.bench.index.originals.of_digest(sha256(lost.received))
    assert held is not None
    assert (held.form, held.tier, held.object_digest) == (OriginalForm.PACKED, Tier.HOT, sha256(packed))
    assert lost.bench.read(lost.received) == lost.received


def test_a_packed_original_is_found_if_its_row_names_the_received_file(lost: Lost) -> None:
    """A rebuild leaves such a row if only the line with the packing is damaged in the change journal."""
    path, engine = lost.bench.root / "received.dcm", lost.bench.index.engine
    packed = pack_original(path, "jpegls", sha256(lost.received))
    lost.leave(lost.received)
    recovery(lost.bench).recover()
    lost.leave(packed)
    assert not lost.can_recover(packed), "its received file is held"
    lost.bench.hot.path(sha256(lost.received)).unlink()
    assert lost.can_recover(packed)
    assert recovery(lost.bench).recover() == 1
    held = lost.bench.index.originals.of_digest(sha256(lost.received))
    assert held is not None
    assert (held.form, held.object_digest) == (OriginalForm.PACKED, sha256(packed))
    assert lost.bench.read(lost.received) == lost.received
    with writing(engine) as connection:
        connection.execute(update(original).values(form=OriginalForm.PURGED, object_digest=None))
    assert not lost.can_recover(packed), "what was purged stays purged"


@pytest.mark.parametrize("form", ["packed", "verbatim"])
def test_what_was_in_quarantine_does_not_take_the_place_of_the_original(lost: Lost, form: str) -> None:
    """Of two files with one SOP Instance UID, the later one returns to quarantine, and is not removed as an orphan."""
    lost.ds.PatientName = "Other^One"
    other = write(lost.ds, lost.bench.root / "other.dcm").read_bytes()
    packed = pack_original(lost.bench.root / "received.dcm", "jpegls", sha256(lost.received))
    held, in_quarantine = lost.leave(packed if form == "packed" else lost.received, other)
    for digest, arrived in ((held, 2000.0), (in_quarantine, 3000.0 if form == "verbatim" else 1000.0)):
        os.utime(lost.bench.hot.path(digest), (arrived, arrived))  # an original that is packed later has a later time
    assert recovery(lost.bench).recover() == 2
    assert lost.bench.read(lost.received) == lost.received
    (found,) = lost.bench.index.quarantine.all()
    assert (found.digest, found.sop_instance_uid) == (in_quarantine, UID)
    assert recovery(lost.bench).recover() == 0


@pytest.mark.parametrize(("passed", "state"), [(True, InstanceState.VERIFIED), (False, InstanceState.MEASURED)])
def test_a_rendition_stands_for_its_image_again(bench: ArchiveParts, passed: bool, state: InstanceState) -> None:
    lost = Lost(bench, passed=passed)
    lost.leave(lost.received)
    lost.leave_rendition()
    assert lost.can_recover(lost.made.base_bytes)
    assert lost.can_recover(lost.made.rendition_bytes)
    assert recovery(bench).recover() == 3
    held = bench.index.by_uid(DERIVED)
    assert held is not None
    assert held.rendition is not None
    assert (held.sop_instance_uid, held.state, held.rendition.derived_uid) == (UID, state, DERIVED)
    assert held.rendition.payload_bytes == len(lost.made.base_bytes) + len(lost.made.rendition_bytes)
    assert not lost.can_recover(lost.made.base_bytes)
    assert not lost.can_recover(lost.made.rendition_bytes)


def test_an_image_without_its_original_is_known_from_its_base(lost: Lost) -> None:
    lost.leave_rendition()
    assert recovery(lost.bench).recover() == 2
    held = lost.bench.index.by_uid(UID)
    assert held is not None
    assert (held.state, held.purged, held.study_instance_uid) == (
        InstanceState.VERIFIED,
        True,
        str(lost.ds.StudyInstanceUID),
    )


def test_a_rendition_without_its_base_is_left(lost: Lost) -> None:
    lost.leave(lost.made.rendition_bytes)
    assert not lost.can_recover(lost.made.rendition_bytes)
    assert recovery(lost.bench).recover() == 0
    assert lost.bench.index.by_uid(UID) is None


def test_a_rendition_of_other_received_bytes_is_left(lost: Lost) -> None:
    """Its pixels would be served for another original."""
    other = small(UID, KVP="31")
    receive(lost.bench, write(other, lost.bench.root / "other.dcm").read_bytes(), other)
    lost.leave_rendition()
    assert not lost.can_recover(lost.made.rendition_bytes)
    assert recovery(lost.bench).recover() == 0
    held = lost.bench.index.by_uid(UID)
    assert held is not None
    assert (held.rendition, held.state) == (None, InstanceState.RECEIVED)


def test_a_second_rendition_of_an_image_is_left(lost: Lost) -> None:
    hold_image(lost.bench, lost.ds, DERIVED)
    second = encode_rendition(replace(lost.made.rendition, derived_uid="2.25.8"))
    lost.leave(second)
    assert not lost.can_recover(second)
    assert recovery(lost.bench).recover() == 0
    assert lost.bench.index.rendition("2.25.8") is None


def test_a_rendition_is_left_if_the_one_of_its_image_was_withdrawn(lost: Lost) -> None:
    hold_image(lost.bench, lost.ds, DERIVED)
    Integrity(lost.bench.index.engine).withdraw(DERIVED, "an audit failed")
    second = encode_rendition(replace(lost.made.rendition, derived_uid="2.25.8"))
    lost.leave(second)
    assert not lost.can_recover(second)
    assert recovery(lost.bench).recover() == 0


def test_nothing_of_a_deleted_image_comes_back(lost: Lost) -> None:
    receive(lost.bench, lost.received, lost.ds)
    stones = lost.bench.index.tombstones
    stones.mark_deleted("image", UID, reason="wrong patient", who="user:test")
    stones.delete_rows()
    lost.bench.index.garbage.collect(lost.bench.stores)
    lost.leave(lost.received)
    lost.leave_rendition()
    assert not lost.can_recover(lost.received)
    assert not lost.can_recover(lost.made.rendition_bytes)
    assert recovery(lost.bench).recover() == 0
    assert lost.bench.index.by_uid(UID) is None


def test_an_original_whose_uid_was_issued_to_a_reconstruction_is_left(lost: Lost) -> None:
    bench = lost.bench
    bench.receive("1.2.3.2", state=InstanceState.RECEIVED)
    claim = bench.index.claim("test", 60)
    assert claim is not None
    bench.index.finish_with(claim, InstanceState.VERIFIED, new_rendition(UID))
    lost.leave(lost.received)
    assert not lost.can_recover(lost.received)
    assert recovery(bench).recover() == 0


def test_what_cannot_be_read_does_not_end_the_recovery(lost: Lost) -> None:
    """The store holds a damaged original, base and rendition, an object of an unknown kind, and a file that is not an
    object."""
    broken = [
        bytes(128) + b"DICM and nothing",
        lost.made.base_bytes[:200],
        lost.made.rendition_bytes[:100],
        b"LPACS?no such kind",
        b"",
    ]
    lost.leave(*broken)
    folder = lost.bench.hot.path(sha256(broken[0])).parent
    (folder / ".hidden").write_bytes(b"of a file manager")
    assert not any(lost.can_recover(one) for one in broken)
    assert not recovery(lost.bench).can_recover("hot", ".hidden")
    lost.leave(lost.received)
    assert recovery(lost.bench).recover() == 1
    assert lost.bench.read(lost.received) == lost.received


@pytest.mark.parametrize(
    "error",
    [NoWorker("no worker process can start"), StoreFull("no room"), OSError(errno.EMFILE, "Too many open files")],
)
def test_what_the_machine_lacks_costs_no_image(lost: Lost, error: Exception) -> None:
    """Otherwise a rebuild would leave images out, and a scrub would take them for orphans, and delete them later."""

    def refuse(path: Path, aet: str) -> NewInstance:
        raise error

    lost.leave(lost.received)
    refused = OrphanRecovery(lost.bench.index, lost.bench.stores, refuse)
    assert refused.can_recover("hot", sha256(lost.received))
    with pytest.raises(type(error)):
        refused.recover()
    assert recovery(lost.bench).recover() == 1


def test_a_rendition_whose_base_is_damaged_is_left(lost: Lost) -> None:
    base, _ = lost.leave_rendition()
    lost.bench.hot.path(base).write_bytes(lost.made.base_bytes[:-1])
    assert not lost.can_recover(lost.made.rendition_bytes)
    assert recovery(lost.bench).recover() == 0
    assert lost.bench.index.by_uid(UID) is None


def test_a_purge_that_only_the_trail_knows_is_no_loss(bench: ArchiveParts) -> None:
    """After a rebuild from a journal whose last line is damaged, the row names an object that was removed."""
    data = bench.receive(UID)
    with bench.index.engine.connect() as connection:
        row = connection.execute(select(original)).mappings().one()
    bench.retention.purge()
    purged = bench.index.by_uid(UID)

    def forget() -> None:
        with writing(bench.index.engine) as connection:
            connection.execute(update(original).values(**row))

    forget()
    assert recovery(bench).recover() == 0
    found = bench.index.by_uid(UID)
    assert found is not None
    assert purged is not None
    assert found.purged
    assert found.held is not None
    assert purged.held is not None
    assert found.held.purged_at is not None
    assert purged.held.purged_at is not None
    assert abs(found.held.purged_at - purged.held.purged_at) < timedelta(seconds=60)
    forget()
    bench.hot.put(data)
    recovery(bench).recover()
    assert bench.read(data) == data, "what is there stays held, whatever the trail says"
    bench.check_promises()


@pytest.mark.parametrize("action", ["original.again", "delete", "quarantine.accept"])
def test_an_original_that_is_lost_after_it_returned_is_not_taken_for_a_purged_one(
    bench: ArchiveParts, action: str
) -> None:
    """A purged image may be deleted and stored again, or accepted from quarantine."""
    bench.receive(UID)
    with bench.index.engine.connect() as connection:
        row = connection.execute(select(original)).mappings().one()
    bench.retention.purge()
    bench.index.trail.append(TrailEntry(action, "user:me", "image", (UID,)))
    with writing(bench.index.engine) as connection:
        connection.execute(update(original).values(**row))
    recovery(bench).recover()
    found = bench.index.by_uid(UID)
    assert found is not None
    assert not found.purged


def test_files_of_a_model_stay_while_renditions_need_them(lost: Lost) -> None:
    """Without rows, nothing tells the files of a model from others. The model may not be installed any more."""
    lost.leave(b"weights of a model")
    assert not lost.can_recover(b"weights of a model")
    by_mammo = replace(lost.made.rendition, upscaler="mammo", weights_digest="1")
    lost.leave(lost.received, lost.made.base_bytes, encode_rendition(by_mammo))
    assert recovery(lost.bench).recover() == 3
    assert lost.can_recover(b"weights of a model")
    weights = ModelFile("weights", sha256(b"weights of a model"), 18)
    ModelRows(lost.bench.index.engine).add("mammo", "1", [weights])
    assert not lost.can_recover(b"weights of a model")
