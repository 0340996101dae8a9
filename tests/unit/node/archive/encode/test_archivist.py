"""Proves in which state the archivist leaves an image when workers or the index fail, or others change the image."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydicom import dcmread
from sqlalchemy import update

from node.app.damage import damage_handler
from node.archive.encode import archivist
from node.archive.intake.marked_regions import MarkedRegions
from node.codec.encode.encode_request import EncodeRequest, EncodeResult
from node.workers.requests import ProofRequest
from storage.errors import IndexFault, NotReconstructable, NoWorker, PixelError, StoreFull, WorkerDied
from storage.index import lease
from storage.index.connection import now, writing
from storage.index.integrity import Integrity, NewDamage
from storage.index.tables import instance
from storage.records import InstanceState, ReasonCode, StoredInstance, TrailEntry, Trial
from tests.support.annotations import graphic, item, presentation_state, references
from tests.support.archive_parts import ArchiveParts
from tests.support.coded_images import InlinePool, PoolThatOutlastsLeases, just_before, receive
from tests.support.inline_archivist import UID, InlineArchivist, arrive, once
from tests.support.samples import breast, mammogram


@pytest.fixture
def bench(tmp_path: Path) -> ArchiveParts:
    bench = ArchiveParts(tmp_path / "archive", coder="none")
    arrive(bench)
    return bench


def image(bench: ArchiveParts) -> StoredInstance:
    found = bench.index.by_uid(UID)
    assert found is not None
    return found


def delete(bench: ArchiveParts) -> None:
    bench.index.tombstones.mark_deleted("image", UID, reason="wrong patient", who="user:test")
    bench.index.tombstones.delete_rows()


def raising(error: Exception, *, times: int = 1) -> Callable[[object], None]:
    """For ``InlinePool``: a function that lets the first ``times`` requests to encode fail."""
    left = [times]

    def first(request: object) -> None:
        if isinstance(request, EncodeRequest) and left[0] > 0:
            left[0] -= 1
            raise error

    return first


def annotate(bench: ArchiveParts, uid: str = UID) -> None:
    """Receive an annotation that marks a place of the image."""
    mark = item(ReferencedImageSequence=references(uid), GraphicObjectSequence=[graphic("POINT", [100.0, 90.0])])
    arrive(bench, presentation_state(image(bench).study_instance_uid, [uid], mark))


def withdrawn(bench: ArchiveParts, derived_uid: str) -> str:
    found = bench.index.rendition(derived_uid)
    assert found is not None
    return found.withdrawn


# --- what its workers answer ---


def test_an_image_that_passes_is_verified(bench: ArchiveParts) -> None:
    held = InlineArchivist(bench).run()
    assert held is not None
    assert held.rendition is not None
    assert held.state is InstanceState.VERIFIED
    bench.check_promises()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (PixelError("3 pixels are missing"), ReasonCode.PIXELS),
        (NotReconstructable("no breast in it", ReasonCode.SMALL), ReasonCode.SMALL),
    ],
    ids=["pixels", "not reconstructable"],
)
def test_an_image_that_cannot_be_encoded_is_exact_with_the_reason(
    bench: ArchiveParts, error: Exception, code: ReasonCode
) -> None:
    held = InlineArchivist(bench, InlinePool(raising(error))).run()
    assert held is not None
    assert (held.state, held.reason_code, held.reason) == (InstanceState.EXACT, code, str(error))


def test_the_lease_of_an_image_is_renewed_while_a_worker_has_it(
    bench: ArchiveParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise another process would encode it too."""
    pool = PoolThatOutlastsLeases(EncodeRequest, bench.index.engine, instance.c.lease_until, monkeypatch)
    held = InlineArchivist(bench, pool).run()
    assert held is not None
    assert held.state is InstanceState.VERIFIED


def test_an_image_that_may_only_be_kept_exact_reaches_no_worker(bench: ArchiveParts) -> None:
    other, asked = "1.2.3.2", []
    arrive(bench, mammogram(breast(256, 256), SOPInstanceUID=other, BurnedInAnnotation="YES"))
    InlineArchivist(bench, InlinePool(asked.append)).run()
    assert {request.original_uid for request in asked if isinstance(request, EncodeRequest)} == {UID}
    held = bench.index.by_uid(other)
    assert held is not None
    assert (held.state, held.reason_code, held.rendition) == (InstanceState.EXACT, ReasonCode.BURNED_IN, None)


def test_an_image_of_which_no_encoding_passes_is_exact_with_all_that_was_tried(bench: ArchiveParts) -> None:
    tried = (
        Trial("x2 jpegxl d2", "bicubic", 9, ("too coarse",), 0.1, sample=True),
        Trial("x2 jpegxl d1", "bicubic", 90, (), 0.1, sample=True),
        Trial("x2 jpegxl d1", "mammo", 99, ("too dark", "too soft"), 0.1),
    )

    class NonePasses(InlinePool):
        def submit(self, request: object, priority: object) -> Any:
            assert isinstance(request, EncodeRequest)
            done: Future[Any] = Future()
            done.set_result(EncodeResult(tried, None))
            return done

    held = InlineArchivist(bench, NonePasses()).run()
    assert held is not None
    assert (held.state, held.reason_code, held.rendition) == (InstanceState.EXACT, ReasonCode.GATE, None)
    assert held.reason == (
        "no operating point passed the gate: x2 jpegxl d2 on a sample, 9 bytes: too coarse; "
        "x2 jpegxl d1, 99 bytes: too dark, too soft"
    )
    bench.check_promises()


@pytest.mark.parametrize("error", [WorkerDied("killed"), RuntimeError("a fault of ours")], ids=["known", "unknown"])
def test_an_error_is_tried_again(bench: ArchiveParts, error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        held = InlineArchivist(bench, InlinePool(raising(error))).run()
    assert held is not None
    assert held.state is InstanceState.VERIFIED
    (record,) = caplog.records
    assert record.getMessage() == f"instance {UID}: {error}"
    assert bool(record.exc_info) is isinstance(error, RuntimeError)


def test_an_image_that_fails_at_every_attempt_is_failed_and_its_original_stays(bench: ArchiveParts) -> None:
    held = InlineArchivist(bench, InlinePool(raising(WorkerDied("killed by signal 11"), times=2))).run()
    assert held is not None
    assert (held.state, held.reason) == (InstanceState.FAILED, "WorkerDied: killed by signal 11")
    bench.check_promises()


@pytest.mark.parametrize(
    "error",
    [
        StoreFull("no room for the object: No space left on device"),
        OSError(errno.EACCES, "Permission denied"),
        OSError(errno.EROFS, "Read-only file system"),
        IndexFault("the index is locked"),
        ModuleNotFoundError("No module named 'torch'"),
        RuntimeError("can't start new thread"),
        NoWorker("no worker process can start"),
    ],
    ids=["full", "rights", "read-only", "locked", "environment", "threads", "processes"],
)
def test_what_the_machine_lacks_costs_an_image_no_attempt(
    bench: ArchiveParts, error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Otherwise a disk that is full for a night would set the whole backlog to FAILED."""
    with caplog.at_level(logging.ERROR):
        held = InlineArchivist(bench, InlinePool(raising(error, times=9))).run()
    assert held is not None
    assert held.state is InstanceState.RECEIVED
    (record,) = caplog.records
    assert record.getMessage() == f"instance {UID}: {error}; it is tried again in 60 s"
    assert not record.exc_info
    assert bench.index.claim("another", 60) is None
    now = time.time()
    monkeypatch.setattr(lease, "time", SimpleNamespace(time=lambda: now + 61))
    claim = bench.index.claim("another", 60)
    assert claim is not None
    assert claim.attempts == 1


def test_a_node_that_stops_gives_the_image_back_without_an_attempt(bench: ArchiveParts) -> None:
    work = InlineArchivist(bench)

    def stop() -> None:
        work.archivist.stop()
        raise NoWorker("the node is stopping")

    work.archivist._pool = InlinePool(once(EncodeRequest, stop))  # type: ignore[assignment]
    held = work.run()
    assert held is not None
    assert held.state is InstanceState.RECEIVED
    claim = bench.index.claim("another", 60)
    assert claim is not None
    assert claim.attempts == 1


# --- an index that fails ---


def test_an_archivist_outlives_an_index_that_cannot_be_read(
    bench: ArchiveParts, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def locked() -> None:
        raise IndexFault("the index is locked")

    just_before(monkeypatch, bench.index, "claim", locked)
    with caplog.at_level(logging.ERROR):
        held = InlineArchivist(bench).run()
    assert held is not None
    assert held.state is InstanceState.VERIFIED
    assert [record.getMessage() for record in caplog.records] == ["the archivist failed between two images"]


def test_an_image_whose_result_cannot_be_committed_is_tried_again_at_once(
    bench: ArchiveParts, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Formerly, the image waited 15 minutes until its lease expired."""

    def locked() -> None:
        raise IndexFault("the index is locked")

    just_before(monkeypatch, bench.index, "finish", locked)
    work = InlineArchivist(bench, InlinePool(raising(PixelError("3 pixels are missing"))))
    with caplog.at_level(logging.ERROR):
        held = work.run()
    assert held is not None
    assert held.state is InstanceState.VERIFIED
    assert "the result of an image cannot be recorded" in caplog.text
    assert not work.archivist.busy


@pytest.mark.parametrize(
    "error",
    [
        StoreFull("the index cannot be written: database or disk is full"),
        PermissionError(errno.EACCES, "Permission denied", "/data/journal/changes.lock"),
    ],
    ids=["full", "rights"],
)
def test_an_index_that_cannot_be_written_is_asked_again_after_a_pause(
    bench: ArchiveParts, error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither a claim nor its end can be written. Formerly, each logged a traceback, and claims did so every second."""

    def full() -> None:
        raise error

    monkeypatch.setattr(archivist, "_PAUSE", 0.01)
    just_before(monkeypatch, bench.index, "claim", full)
    with caplog.at_level(logging.ERROR):
        held = InlineArchivist(bench).run()
    assert held is not None
    assert held.state is InstanceState.VERIFIED
    assert f"the archivist waits for 0 s: {error}" in caplog.text
    assert not [record for record in caplog.records if record.exc_info]


def test_a_claim_that_cannot_be_given_back_is_one_line(
    bench: ArchiveParts, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    full = StoreFull("the index cannot be written: database or disk is full")

    def fail() -> None:
        raise full

    just_before(monkeypatch, bench.index, "release", fail)
    with caplog.at_level(logging.ERROR):
        InlineArchivist(bench, InlinePool(raising(full))).run()
    assert f"tried again once the index can be written: {full}" in caplog.text
    assert image(bench).state is InstanceState.VERIFIED
    assert not [record for record in caplog.records if record.exc_info]


# --- what others do meanwhile ---


@pytest.mark.parametrize("when", ["before", "while"])
def test_nothing_is_left_of_an_image_that_is_deleted(
    bench: ArchiveParts, when: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pool = InlinePool()
    if when == "before":
        just_before(monkeypatch, bench.index, "by_key", lambda: delete(bench))
    else:
        pool = InlinePool(once(ProofRequest, lambda: delete(bench)))
    with caplog.at_level(logging.ERROR):
        assert InlineArchivist(bench, pool).run() is None
    assert bench.files() == 0
    assert not caplog.records


@pytest.mark.parametrize("marked", [UID, "1.2.3.77"], ids=["the image", "its source"])
def test_an_annotation_that_arrives_meanwhile_gets_its_patches(tmp_path: Path, marked: str) -> None:
    bench = ArchiveParts(tmp_path / "archive", coder="none")
    source = item(ReferencedSOPClassUID="1.2.840.10008.5.1.4.1.1.1.2.1", ReferencedSOPInstanceUID="1.2.3.77")
    arrive(bench, mammogram(breast(256, 256), SOPInstanceUID=UID, SourceImageSequence=[source]))
    requests: list[EncodeRequest] = []
    arrives = once(EncodeRequest, lambda: annotate(bench, marked))

    def first(request: object) -> None:
        if isinstance(request, EncodeRequest):
            requests.append(request)
        arrives(request)

    work = InlineArchivist(bench, InlinePool(first))
    held = work.run()
    assert held is not None
    assert [bool(request.regions) for request in requests] == [False, True]
    assert held.rendition is not None
    assert held.state is InstanceState.VERIFIED
    assert not work.regions.lacks_patches(held, requests[1].regions)


class WithoutPatches(InlinePool):
    """Workers that find no passing rendition of an image with regions."""

    def submit(self, request: object, priority: object) -> Any:
        done = super().submit(request, priority)
        if isinstance(request, EncodeRequest) and request.regions:
            done = type(done)()
            done.set_result(EncodeResult((), None))
        return done


@pytest.mark.parametrize("passes", [True, False])
def test_a_rendition_without_patches_is_withdrawn_only_if_none_with_them_passes(
    bench: ArchiveParts, passes: bool
) -> None:
    held = InlineArchivist(bench).run()
    assert held is not None
    assert held.rendition is not None
    former = held.rendition.derived_uid
    annotate(bench)
    Integrity(bench.index.engine).requeue(held.key, ReasonCode.OTHER, "regions were marked")
    held = InlineArchivist(bench, InlinePool() if passes else WithoutPatches()).run()
    assert held is not None
    assert withdrawn(bench, former) == (
        "" if passes else "no encoding passed with the regions marked since it was made"
    )
    if passes:
        assert held.rendition is not None
        assert (held.state, held.rendition.derived_uid == former) == (InstanceState.VERIFIED, False)
    else:
        assert (held.state, held.reason_code, held.rendition) == (InstanceState.EXACT, ReasonCode.GATE, None)


# --- renditions that were lost ---


class Encoded:
    """An image whose rendition is to be made again."""

    def __init__(self, bench: ArchiveParts) -> None:
        self.bench = bench
        held = InlineArchivist(bench).run()
        assert held is not None
        assert held.rendition is not None
        self.rendition = held.rendition
        Integrity(bench.index.engine).requeue(held.key, ReasonCode.OTHER, "an object was lost")

    def lose(self, *digests: str) -> None:
        for digest in digests:
            self.bench.hot.delete(digest)


@pytest.fixture
def encoded(bench: ArchiveParts) -> Encoded:
    return Encoded(bench)


UNSENDABLE = "its reconstruction cannot be made as a whole: ValueError"


def unsendable(request: object) -> None:
    """For ``InlinePool``: no object can be made of a rendition."""
    if isinstance(request, ProofRequest):
        raise ValueError("no such header")


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["nothing", "base", "rendition", "both"])
def test_a_lost_rendition_is_made_again_under_its_uid(
    encoded: Encoded, lost: str, caplog: pytest.LogCaptureFixture
) -> None:
    base, rendition = encoded.rendition.base_digest, encoded.rendition.rendition_digest
    encoded.lose(*{"nothing": [], "base": [base], "rendition": [rendition], "both": [base, rendition]}[lost])
    with caplog.at_level(logging.WARNING):
        held = InlineArchivist(encoded.bench).run()
    assert caplog.text == ""
    assert held is not None
    assert held.rendition is not None
    assert (held.state, held.rendition.derived_uid) == (InstanceState.VERIFIED, encoded.rendition.derived_uid)
    for digest in (held.rendition.base_digest, held.rendition.rendition_digest):
        assert encoded.bench.hot.read(digest)


@pytest.mark.parametrize("lost", ["nothing", "base"])
def test_a_rendition_that_cannot_be_sent_is_withdrawn(encoded: Encoded, lost: str) -> None:
    if lost == "base":
        encoded.lose(encoded.rendition.base_digest)
    held = InlineArchivist(encoded.bench, InlinePool(unsendable)).run()
    assert held is not None
    assert (held.state, held.reason_code, held.reason) == (InstanceState.EXACT, ReasonCode.NOT_SENDABLE, UNSENDABLE)
    assert held.rendition is None
    why = "an object of it was lost, and its image was encoded again" if lost == "base" else UNSENDABLE
    assert withdrawn(encoded.bench, encoded.rendition.derived_uid) == why


def test_an_index_that_is_locked_during_the_proof_is_no_fault_of_the_image(bench: ArchiveParts) -> None:
    """As when the lease is renewed meanwhile. Formerly, the image was EXACT for ever."""

    def locked() -> None:
        raise IndexFault("the index is locked")

    held = InlineArchivist(bench, InlinePool(once(ProofRequest, locked))).run()
    assert held is not None
    assert (held.state, held.reason) == (InstanceState.RECEIVED, "")


def test_a_new_rendition_that_cannot_be_sent_leaves_no_object(bench: ArchiveParts) -> None:
    held = InlineArchivist(bench, InlinePool(unsendable)).run()
    assert held is not None
    assert (held.state, held.reason, held.rendition) == (InstanceState.EXACT, UNSENDABLE, None)
    assert list(bench.hot.digests()) == [held.original_digest]


def test_a_base_that_was_made_again_for_a_deleted_image_is_removed(encoded: Encoded) -> None:
    encoded.lose(encoded.rendition.base_digest)
    pool = InlinePool(once(ProofRequest, lambda: delete(encoded.bench)))
    assert InlineArchivist(encoded.bench, pool).run() is None
    assert encoded.bench.files() == 0


# --- originals that were purged meanwhile ---


def purge(bench: ArchiveParts) -> None:
    for one in bench.index.originals.purgeable(now()):
        assert bench.index.originals.commit_purge(one, now(), TrailEntry("original.purge", "user:me", "image", (UID,)))


def test_an_image_that_is_purged_while_its_regions_are_checked_is_not_sent_back(bench: ArchiveParts) -> None:
    """Formerly, the image became FAILED after three attempts without an original, and peers got nothing."""
    held = InlineArchivist(bench).run()
    assert held is not None
    purge(bench)
    MarkedRegions(bench.index, bench.hot, bench.originals, None).send_back(held)
    assert image(bench).state is InstanceState.VERIFIED


def test_a_purged_image_that_waits_keeps_its_rendition(encoded: Encoded) -> None:
    """A scrub finds the original damaged while the image waits. The image gets its state from before back after the
    purge."""
    bench, rows, uid = encoded.bench, Integrity(encoded.bench.index.engine), encoded.rendition.derived_uid
    waiting = image(bench)
    where = (waiting.original_digest, "original", "hot", waiting.key)
    found = NewDamage(*where, condition="damaged", detail="", moved_to="", action="flagged")
    rows.note(found)
    assert rows.flag(found, InstanceState.VERIFIED, ReasonCode.ORIGINAL_LOST, "its reconstruction is whole")
    purge(bench)
    (damage,) = rows.open_damage()
    rows.close(damage.key, "nothing needs it any more")
    assert (image(bench).state, image(bench).purged) == (InstanceState.RECEIVED, True)
    held = InlineArchivist(bench).run()
    assert held is not None
    assert held.rendition is not None
    assert (held.state, held.rendition.derived_uid) == (InstanceState.VERIFIED, uid)


def test_an_image_at_which_the_node_dies_is_given_up(bench: ArchiveParts) -> None:
    """A killed process does not end its claim, so the attempt is counted at the next claim."""
    attempts = bench.settings.archivist.attempts
    for number in range(attempts):
        claim = bench.index.claim(f"killed {number}", 60)
        assert claim is not None
        with writing(bench.index.engine) as connection:
            connection.execute(update(instance).values(lease_until=0.0))
    given_up = InlineArchivist(bench).run()
    assert (given_up.state, given_up.reason_code) == (InstanceState.FAILED, ReasonCode.OTHER)
    assert given_up.reason == f"the node ended during attempt {attempts} to encode this image, the last one"


def test_an_image_that_failed_since_its_original_was_damaged_is_tried_again_with_it(bench: ArchiveParts) -> None:
    held = image(bench)
    target = bench.hot.path(held.original_digest)
    data = target.read_bytes()
    target.write_bytes(b"x" + data[1:])
    bench.originals.damaged = damage_handler(bench.index, bench.stores, bench.trail)
    while InlineArchivist(bench).run().state is not InstanceState.FAILED:
        pass
    receive(bench, data, dcmread(BytesIO(data)))
    assert image(bench).state is InstanceState.RECEIVED
    assert InlineArchivist(bench).run().state is InstanceState.VERIFIED
