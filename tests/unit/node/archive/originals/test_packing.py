"""Proves what becomes of an original that cannot be packed, or that changes while it is packed or moved."""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import update

from node.archive.originals.packing import Packer
from storage.errors import IndexFault, KeptVerbatim, PixelError, WorkerDied
from storage.index.connection import writing
from storage.index.tables import original
from storage.objects.store import ObjectStore
from storage.records import HeldOriginal, InstanceState, OriginalForm, ReasonCode, Tier
from tests.support.archive_parts import ArchiveParts, InlineWorkers
from tests.support.coded_images import just_before, receive
from tests.support.samples import mammogram, write

UID = "1.2.3.1"


class FailingWorkers(InlineWorkers):
    """Workers whose first requests fail with an error, and that work afterwards."""

    def __init__(self, error: Exception, times: int) -> None:
        self.error, self.times = error, times

    def submit(self, request: object, priority: object) -> Future[str]:
        self.times -= 1
        if self.times < 0:
            return super().submit(request, priority)  # type: ignore[arg-type]
        done: Future[str] = Future()
        done.set_exception(self.error)
        return done


@pytest.fixture
def bench(tmp_path: Path) -> ArchiveParts:
    return ArchiveParts(tmp_path / "archive", coder="jpegls")


def packer(bench: ArchiveParts, workers: InlineWorkers, *, attempts: int = 3) -> Packer:
    archivist = bench.settings.archivist.model_copy(update={"attempts": attempts})
    settings = bench.settings.model_copy(update={"archivist": archivist})
    return Packer(bench.index, bench.originals, workers, settings)  # type: ignore[arg-type]


def held(bench: ArchiveParts, data: bytes) -> HeldOriginal:
    found = bench.index.originals.of_digest(hashlib.sha256(data).hexdigest())
    assert found is not None
    return found


def failures(bench: ArchiveParts) -> list[str]:
    return [one.entry.detail for one in bench.index.trail.records() if one.entry.outcome == "failure"]


def test_pixels_that_no_coder_makes_smaller_stay_as_received(bench: ArchiveParts) -> None:
    noise = np.random.default_rng(1).integers(0, 1 << 16, (64, 64), dtype=np.uint16)
    ds = mammogram(noise, bits=16, SOPInstanceUID=UID)
    data = write(ds, bench.root / "noise.dcm").read_bytes()
    receive(bench, data, ds)
    claim = bench.index.claim("test", 60)
    assert claim is not None
    bench.index.finish(claim, InstanceState.EXACT, ReasonCode.OTHER, "not eligible")
    assert bench.work() == 1
    found = held(bench, data)
    assert found.form is OriginalForm.VERBATIM
    assert found.note != ""
    assert (bench.work(), failures(bench), bench.read(data)) == (0, [], data)


@pytest.mark.parametrize(
    "error", [PixelError("3 pixels are missing"), KeptVerbatim("it is written by another encoder")]
)
def test_an_original_that_cannot_be_packed_stays_as_received_with_the_reason(
    bench: ArchiveParts, error: Exception
) -> None:
    data = bench.receive(UID, state=InstanceState.EXACT)
    assert packer(bench, FailingWorkers(error, 1)).step()
    assert (held(bench, data).form, held(bench, data).note) == (OriginalForm.VERBATIM, str(error))
    assert (bench.work(), failures(bench)) == (0, [])


def test_an_original_that_crashes_its_workers_is_given_up_in_the_trail(
    bench: ArchiveParts, caplog: pytest.LogCaptureFixture
) -> None:
    data = bench.receive(UID, state=InstanceState.EXACT)
    with caplog.at_level(logging.ERROR):
        assert packer(bench, FailingWorkers(WorkerDied("killed by signal 11"), 1), attempts=1).step()
    assert f"original of {UID}: killed by signal 11" in caplog.text
    assert (held(bench, data).form, held(bench, data).note) == (
        OriginalForm.VERBATIM,
        "WorkerDied: killed by signal 11",
    )
    assert failures(bench) == ["killed by signal 11"]
    assert (bench.work(), bench.read(data)) == (0, data)


@pytest.mark.parametrize(
    "error",
    [OSError(5, "Input/output error"), IndexFault("the index is locked"), WorkerDied("killed")],
    ids=["disk", "index", "first crash"],
)
def test_an_original_waits_before_it_is_packed_again(bench: ArchiveParts, error: Exception) -> None:
    """Errors of the machine are never final, and neither is one crash. After one of the disk, the archivist pauses."""
    bench.receive(UID, state=InstanceState.EXACT)
    if isinstance(error, OSError):
        with pytest.raises(OSError, match=re.escape(str(error))):
            packer(bench, FailingWorkers(error, 1), attempts=1).step()
    else:
        assert packer(bench, FailingWorkers(error, 1), attempts=3 if isinstance(error, WorkerDied) else 1).step()
    assert bench.work() == 0
    assert bench.index.originals.totals().to_pack == 1
    assert failures(bench) == []


def test_an_original_that_a_stopping_node_packs_is_free_at_once(bench: ArchiveParts) -> None:
    data = bench.receive(UID, state=InstanceState.EXACT)
    stopping = packer(bench, FailingWorkers(WorkerDied("stopped"), 1))
    stopping.stop()
    assert stopping.step()
    assert bench.work() == 1
    assert held(bench, data).form is OriginalForm.PACKED
    assert bench.read(data) == data


def test_an_object_that_was_packed_for_a_deleted_image_is_removed(
    bench: ArchiveParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.receive(UID, state=InstanceState.EXACT)

    def delete() -> None:
        bench.index.tombstones.mark_deleted("image", UID, reason="wrong patient", who="user:test")
        bench.index.tombstones.delete_rows()

    just_before(monkeypatch, bench.index.originals, "commit_packed", delete)
    bench.work()
    assert bench.files() == 0


def test_a_copy_in_the_cold_store_is_removed_if_its_original_is_purged_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = ArchiveParts(tmp_path / "archive", coder="none", path=str(tmp_path / "cold"))
    data = bench.receive(UID)
    just_before(monkeypatch, bench.index.originals, "commit_move", bench.retention.purge)
    bench.work()
    assert held(bench, data).form is OriginalForm.PURGED
    assert list(bench.stores[Tier.COLD].digests()) == []
    assert bench.files() == 2  # base and rendition


def test_garbage_that_cannot_be_unlinked_stops_nothing(
    bench: ArchiveParts, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One object cannot be unlinked, for example because its file is immutable or the disk has an error there."""
    stuck, other = bench.hot.put(b"stuck"), bench.hot.put(b"other")
    for digest in (stuck, other):
        bench.index.garbage.mark(digest, Tier.HOT)
    delete = ObjectStore.delete

    def refuse(store: ObjectStore, digest: str) -> None:
        if digest == stuck:
            raise PermissionError(1, "Operation not permitted")
        delete(store, digest)

    monkeypatch.setattr(ObjectStore, "delete", refuse)
    with caplog.at_level(logging.ERROR):
        assert bench.index.garbage.collect(bench.stores) == 1
        assert bench.index.garbage.collect(bench.stores) == 0
    assert caplog.text.count(f"garbage {stuck} in the hot store cannot be unlinked") == 1
    assert bench.hot.has(stuck)
    assert not bench.hot.has(other)
    monkeypatch.undo()
    assert bench.index.garbage.collect(bench.stores) == 1, "it stayed marked"
    assert not bench.hot.has(stuck)


def test_garbage_on_a_disk_that_is_not_mounted_stays_marked(tmp_path: Path) -> None:
    cold = tmp_path / "cold"
    bench = ArchiveParts(tmp_path / "archive", coder="none", path=str(cold))
    digest = bench.stores[Tier.COLD].put(b"former original")
    bench.index.garbage.mark(digest, Tier.COLD)
    cold.rename(tmp_path / "unmounted")
    cold.mkdir()
    assert bench.index.garbage.collect(bench.stores) == 0
    cold.rmdir()
    (tmp_path / "unmounted").rename(cold)
    assert bench.index.garbage.collect(bench.stores) == 1
    assert not bench.stores[Tier.COLD].has(digest)


def test_a_damaged_original_is_not_moved_and_is_tried_again(tmp_path: Path) -> None:
    """It may be repaired by then. The failed attempts are of the move: its pixels can still be packed."""
    bench = ArchiveParts(tmp_path / "archive", coder="none", path=str(tmp_path / "cold"))
    data = bench.receive(UID)
    path = bench.hot.path(hashlib.sha256(data).hexdigest())
    path.write_bytes(b"damaged")
    moving = packer(bench, InlineWorkers(), attempts=1)
    assert moving.step()
    assert (held(bench, data).tier, held(bench, data).note, failures(bench)) == (Tier.HOT, "", [])
    path.write_bytes(data)
    assert bench.work() == 0, "it waits"
    with writing(bench.index.engine) as connection:
        connection.execute(update(original).values(lease_until=None))
    assert bench.work() == 1
    assert held(bench, data).tier is Tier.COLD
    bench.check_promises()


def test_nothing_is_moved_to_the_mount_point_of_a_disk_that_is_not_mounted(tmp_path: Path) -> None:
    """The mount point has the folders of a store if a node ran before the disk was mounted for the first time."""
    cold = tmp_path / "cold"
    bench = ArchiveParts(tmp_path / "archive", coder="none", path=str(cold))
    bench.receive(UID)
    assert bench.work() == 1
    cold.rename(tmp_path / "unmounted")
    unmounted = ArchiveParts(tmp_path / "archive", coder="none", path=str(cold))
    data = unmounted.receive("1.2.3.2")
    with pytest.raises(FileNotFoundError, match="is its disk mounted"):
        unmounted.work()
    assert unmounted.read(data) == data
    shutil.rmtree(cold)
    (tmp_path / "unmounted").rename(cold)
    with writing(bench.index.engine) as connection:
        connection.execute(update(original).values(lease_until=None))
    assert bench.work() == 1
    bench.check_promises()
