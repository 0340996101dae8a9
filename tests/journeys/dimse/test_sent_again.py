"""Proves that a lost or damaged original that is sent again is held intact afterwards, in whatever form it was held."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest
from pydicom.uid import ImplicitVRLittleEndian
from sqlalchemy import text

from node.app import Node
from node.archive.intake.ingest import Ingest, Receipt, examine
from node.config import ScrubSettings, parse
from node.dimse import client
from node.jobs.scrub_job import Extent, ScrubPlan
from node.workers.pool import WorkerPool
from storage.errors import Duplicate, NoWorker
from storage.index.integrity import Integrity
from storage.records import HeldOriginal, InstanceState, OriginalForm, ReasonCode, Tier
from tests.conftest import Archive, settings_for, wait_for
from tests.support.archive_parts import ArchiveParts, InlineWorkers
from tests.support.index_rows import new_rendition
from tests.support.job_runs import CountedRun, scrub_in
from tests.support.samples import breast, mammogram, rle_file, write

UID = "1.2.3.1"


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


HARM: dict[str, Callable[[Path], None]] = {"missing": Path.unlink, "flipped": flip}


def ingest_of(bench: ArchiveParts, arrived: Callable[[str], None] = lambda _: None) -> Ingest:
    return Ingest(bench.index, bench.hot, bench.originals, InlineWorkers(), arrived)  # type: ignore[arg-type]


def send(bench: ArchiveParts, data: bytes, uid: str = UID, arrived: Callable[[str], None] = lambda _: None) -> Receipt:
    path = bench.hot.spool / f"{uid}.dcm"
    path.write_bytes(data)
    sop_class = mammogram(breast(64, 48)).SOPClassUID
    return ingest_of(bench, arrived).receive(path, sop_class=sop_class, sop_instance=uid, calling_aet="MODALITY")


def held_as(bench: ArchiveParts, data: bytes) -> HeldOriginal:
    held = bench.index.originals.of_digest(hashlib.sha256(data).hexdigest())
    assert held is not None
    return held


def scrub(bench: ArchiveParts) -> None:
    stores = {str(tier): store for tier, store in bench.stores.items()}
    CountedRun().of(scrub_in(bench.index, stores, ScrubPlan(ScrubSettings(), Extent.FULL)).run)


@pytest.mark.parametrize("scrubbed", [False, True], ids=["unnoticed", "scrubbed"])
@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("form", ["verbatim", "packed", "cold"])
def test_what_is_lost_is_held_again(tmp_path: Path, form: str, harm: str, scrubbed: bool) -> None:
    settings = {"coder": "none"} if form == "verbatim" else {"coder": "jpegls"}
    if form == "cold":
        settings["path"] = str(tmp_path / "cold")
    bench = ArchiveParts(tmp_path / "archive", **settings)
    data = bench.receive(UID)
    bench.receive("1.2.3.2")  # a store without any object is taken for a disk that is not mounted
    bench.work()
    before = held_as(bench, data)
    assert (before.form, before.tier) == (
        OriginalForm.VERBATIM if form == "verbatim" else OriginalForm.PACKED,
        Tier.COLD if form == "cold" else Tier.HOT,
    )
    HARM[harm](bench.stores[before.tier].path(before.object_digest))
    if scrubbed:
        scrub(bench)
        assert bench.index.by_uid(UID).reason_code is ReasonCode.ORIGINAL_LOST  # type: ignore[union-attr]
    assert send(bench, data).sop_instance_uid == UID
    assert bench.read(data) == data
    bench.work()
    assert bench.read(data) == data
    bench.check_promises()
    after = bench.index.by_uid(UID)
    assert after is not None
    assert (after.state, after.reason_code) == (InstanceState.VERIFIED, ReasonCode.NONE)
    assert not Integrity(bench.index.engine).open_damage()
    if form != "verbatim":
        newest = list(bench.index.trail.records(newest=1))
        assert (newest[0].entry.action, newest[0].entry.who) == ("original.again", "MODALITY")


@pytest.mark.parametrize("harm", HARM)
def test_the_archivist_hears_of_an_image_that_it_can_encode_now(tmp_path: Path, harm: str) -> None:
    """Formerly, the image waited for ``archivist.poll``: a verbatim object is whole as soon as it is received."""
    bench = ArchiveParts(tmp_path / "archive", coder="none")
    bench.receive("1.2.3.2")
    data, studies = bench.receive(UID, state=InstanceState.RECEIVED), list[str]()
    claim = bench.index.claim("test", 60)
    assert claim is not None
    bench.index.finish(claim, InstanceState.FAILED, ReasonCode.OTHER, "its original was damaged")
    HARM[harm](bench.hot.path(held_as(bench, data).object_digest))

    def arrived(study: str) -> None:
        held = bench.index.by_uid(UID)
        assert held is not None
        assert held.state is InstanceState.RECEIVED
        studies.append(study)

    assert not send(bench, data, arrived=arrived).new
    assert len(studies) == 1


def test_a_lost_original_that_is_purged_and_sent_again_is_lost_no_more(tmp_path: Path) -> None:
    """Formerly, peers that take originals while these are held were sent reconstructions until the next scrub."""
    bench = ArchiveParts(tmp_path / "archive", coder="none")
    data = bench.receive(UID)
    bench.receive("1.2.3.2")
    bench.hot.delete(held_as(bench, data).object_digest)
    scrub(bench)
    assert len(bench.retention.purge().purged) == 2
    assert send(bench, data).new
    after = bench.index.by_uid(UID)
    assert after is not None
    assert not after.original_gone
    assert not Integrity(bench.index.engine).open_damage()


def test_a_whole_one_that_is_sent_again_changes_nothing(tmp_path: Path) -> None:
    bench = ArchiveParts(tmp_path / "archive", coder="jpegls")
    data = bench.receive(UID)
    bench.work()
    before, files = held_as(bench, data), bench.files()
    assert not send(bench, data).new
    bench.work()
    assert (held_as(bench, data), bench.files()) == (before, files)


def test_other_bytes_for_a_lost_original_are_kept_and_not_thrown_away(tmp_path: Path) -> None:
    """Whether they are the same image can no longer be determined, so they stay in quarantine until a person
    decides."""
    bench = ArchiveParts(tmp_path / "archive", coder="jpegls")
    data = bench.receive(UID)
    bench.work()
    bench.hot.path(held_as(bench, data).object_digest).unlink()
    other = data.replace(b"MONOCHROME2 ", b"MONOCHROME1 ")
    assert other != data
    with pytest.raises(Duplicate, match="lost or damaged"):
        send(bench, other)
    assert [one.digest for one in bench.index.quarantine.all()] == [hashlib.sha256(other).hexdigest()]
    assert bench.hot.read(hashlib.sha256(other).hexdigest()) == other


def test_what_quarantine_promises_is_not_unlinked(tmp_path: Path) -> None:
    """The same content in another encoding is dropped, unless that very object is in quarantine."""
    bench = ArchiveParts(tmp_path / "archive", coder="none")
    ds = mammogram(breast(300, 280), SOPInstanceUID=UID)
    data = write(ds, tmp_path / "explicit.dcm").read_bytes()
    other = write(ds, tmp_path / "other.dcm", ImplicitVRLittleEndian).read_bytes()
    digest = hashlib.sha256(other).hexdigest()
    assert other != data
    assert send(bench, data).new
    bench.hot.put(other)
    bench.index.quarantine.put(digest, UID, "MODALITY", "it waits")
    assert not send(bench, other).new
    assert bench.hot.read(digest) == other


def test_the_uid_of_a_reconstruction_is_taken_by_what_somebody_stored(bench: ArchiveParts) -> None:
    """There are two archives of ours. The reconstruction of the other arrives before this one makes the same."""
    bench.receive("1.2.3.4", state=InstanceState.EXACT)
    bench.receive("1.2.3.5", state=InstanceState.RECEIVED)
    claim = bench.index.claim("test", 60)
    assert claim is not None
    stored = [bench.hot.put(data) for data in (b"base", b"rendition")]
    made = new_rendition("1.2.3.4", base_digest=stored[0], rendition_digest=stored[1])
    bench.index.finish_with(claim, InstanceState.VERIFIED, made)
    held = bench.index.by_uid("1.2.3.5")
    assert held is not None
    assert (held.state, held.rendition) == (InstanceState.EXACT, None)
    assert "is the UID of another object" in held.reason
    found = bench.index.by_uid("1.2.3.4")
    assert found is not None
    assert found.sop_instance_uid == "1.2.3.4"
    assert bench.index.garbage.collect({Tier.HOT: bench.hot}) == 2
    assert not any(map(bench.hot.has, stored))


@pytest.fixture
def bench(tmp_path: Path) -> ArchiveParts:
    return ArchiveParts(tmp_path / "archive")


class Dying(ProcessPoolExecutor):
    """A worker that is killed during its first request, as when the machine runs out of memory."""

    def submit(self, *_: object, **__: object) -> Any:
        raise BrokenProcessPool


class Sound(ProcessPoolExecutor):
    """A worker that finds every codestream sound."""

    def submit(self, *_: object, **__: object) -> Any:
        done: Future[str] = Future()
        done.set_result("")
        return done


@pytest.mark.parametrize(("deaths", "sound"), [(2, True), (3, False)])
def test_a_killed_decoder_is_no_judgement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deaths: int, sound: bool
) -> None:
    path = rle_file(mammogram(breast(64, 48)), tmp_path / "rle.dcm", [b"\0\0", b"\0\0"])
    executors = [*[Dying] * deaths, Sound]
    monkeypatch.setattr(WorkerPool, "_new_executor", lambda _: executors.pop(0)(1))
    pool = WorkerPool(parse({}, "t").reconstruct, name="decode")
    try:
        assert (examine(path, "MODALITY", pool).pixel_warning == "") is sound
    finally:
        pool.close()


def test_a_node_that_stops_judges_no_codestream(tmp_path: Path) -> None:
    """It would store the image with B007, and never encode it."""
    path = rle_file(mammogram(breast(64, 48)), tmp_path / "rle.dcm", [b"\0\0", b"\0\0"])
    pool = WorkerPool(parse({}, "t").reconstruct, name="decode")
    pool.close()
    with pytest.raises(NoWorker, match="the node is stopping"):
        examine(path, "MODALITY", pool)


@pytest.mark.slow
def test_over_the_network(tmp_path: Path, receiver: client.Receiver) -> None:
    """The sender gets success, and C-MOVE returns the bytes."""
    settings = settings_for(tmp_path / "archive", receiver.port, originals={"coder": "jpegls"})
    ds = mammogram()
    file = write(ds, tmp_path / "sent.dcm")
    with Node(settings) as node:
        archive = Archive(node, receiver)
        client.store([file], archive.address, calling="MODALITY", each=lambda *_: None)
        digest = archive.settled(ds.SOPInstanceUID).original_digest

        def packed() -> HeldOriginal | None:
            held = node.index.originals.of_digest(digest)
            return held if held is not None and held.form is OriginalForm.PACKED else None

        node.store.path(wait_for(packed).object_digest).unlink()
        statuses = []
        client.store([file], archive.address, calling="MODALITY", each=lambda *sent: statuses.append(sent[1]))
        assert statuses == [0]
        with node.originals.borrowed(digest) as path:
            assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
        wait_for(packed)
        with node.index.engine.connect() as connection:
            assert connection.execute(text("SELECT count(*) FROM damage WHERE closed_at IS NULL")).scalar() == 0
