"""Proves which bytes a reader of an original gets while it is moved, removed or damaged."""

from __future__ import annotations

import errno
import hashlib
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from node.archive.originals.original_access import OriginalAccess
from node.archive.originals.storage_commitment import original_fault
from node.archive.rendered_cache import RenderedCache
from storage.errors import NoWorker, ObjectDamaged, ObjectMissing
from storage.formats.packed_original import restore_original
from storage.records import InstanceState, Tier
from tests.support.archive_parts import ArchiveParts
from tests.support.coded_images import just_before

UID = "1.2.3.1"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def bench(tmp_path: Path) -> ArchiveParts:
    return ArchiveParts(tmp_path / "archive", coder="jpegls")


def caching(bench: ArchiveParts) -> OriginalAccess:
    """Access that keeps what it unpacked."""
    return OriginalAccess(bench.index, bench.stores, RenderedCache(bench.root / "rendered", 1 << 30), restore_original)


def packed(bench: ArchiveParts) -> tuple[bytes, Path]:
    """The received bytes, and the path of the object in which they are packed."""
    every_grey_level = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    data = bench.receive(UID, state=InstanceState.EXACT, pixels=every_grey_level)
    assert bench.work() == 1
    held = bench.index.originals.of_digest(sha256(data))
    assert held is not None
    return data, bench.hot.path(held.object_digest)


def links(bench: ArchiveParts) -> list[Path]:
    """Files that readers should have removed."""
    return [*(bench.root / "lent").iterdir(), *(bench.root / "rendered" / "sending").iterdir()]


# --- originals that move ---


class Moving:
    """An original that is moved to the other store right before an object is lent."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, *, times: int) -> None:
        self.bench = ArchiveParts(folder / "archive", coder="none", path=str(folder / "cold"))
        self.data = self.bench.receive(UID)
        self.left = times
        for store in self.bench.stores.values():
            just_before(monkeypatch, store, "lend", self.move, times=99)

    def move(self) -> None:
        if self.left == 0:
            return
        self.left -= 1
        originals, stores = self.bench.index.originals, self.bench.stores
        held = originals.of_digest(sha256(self.data))
        assert held is not None
        to = Tier.COLD if held.tier is Tier.HOT else Tier.HOT
        stores[to].take_from(stores[held.tier], held.object_digest)
        assert originals.commit_move(held, to, stores[to].has)
        self.bench.index.garbage.collect(stores)


def test_an_original_that_is_moved_before_it_is_read_is_found_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moving = Moving(tmp_path, monkeypatch, times=3)
    assert moving.bench.read(moving.data) == moving.data


def test_an_original_that_moves_without_end_is_an_error_and_not_a_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moving = Moving(tmp_path, monkeypatch, times=99)
    with pytest.raises(
        ObjectMissing, match=f"original {sha256(moving.data)} was moved or packed at each attempt to read it"
    ):
        moving.bench.read(moving.data)
    moving.left = 0
    assert moving.bench.read(moving.data) == moving.data


@pytest.mark.parametrize("folder", ["damaged", "orphans/2026-01-31/{0:.2}"])
def test_an_original_that_a_killed_scrub_had_moved_aside_is_read(bench: ArchiveParts, folder: str) -> None:
    """The scrub was killed between its two steps. Formerly, each retrieval failed until another scrub came to the
    object, perhaps weeks later."""
    data = bench.receive(UID)
    digest = sha256(data)
    aside = bench.root / folder.format(digest) / (f"{digest}.1" if folder == "damaged" else digest)
    aside.parent.mkdir(parents=True)
    bench.hot.path(digest).rename(aside)
    assert bench.read(data) == data
    assert not aside.exists()
    bench.hot.path(digest).unlink()
    with pytest.raises(ObjectMissing):
        bench.read(data)


# --- objects that no image has ---


def test_an_object_in_quarantine_is_lent_by_its_digest(bench: ArchiveParts) -> None:
    data = b"quarantined"
    digest = bench.hot.put(data)
    bench.index.quarantine.put(digest, UID, "MODALITY", "why")
    assert bench.read(data) == data
    assert links(bench) == []


# --- packed originals ---


def test_an_original_is_unpacked_ahead_once(bench: ArchiveParts, monkeypatch: pytest.MonkeyPatch) -> None:
    data, _ = packed(bench)
    access, digest = caching(bench), sha256(data)
    assert access.unpack_ahead(digest)
    monkeypatch.setattr(access, "_restore", None)
    assert access.unpack_ahead(digest)
    with access.borrowed(digest) as path:
        assert path.read_bytes() == data
    assert links(bench) == []


def test_nothing_is_unpacked_ahead_of_an_original_that_is_not_packed_or_not_held(bench: ArchiveParts) -> None:
    data = bench.receive(UID, state=InstanceState.RECEIVED)
    assert not bench.originals.unpack_ahead(sha256(data))
    assert not bench.originals.unpack_ahead("0" * 64)


def test_a_deleted_original_does_not_stay_in_the_cache(bench: ArchiveParts) -> None:
    """The image is deleted while a reader unpacks its original. This reader gets the original, and the next one does
    not."""
    data, _ = packed(bench)
    cache = RenderedCache(bench.root / "rendered", 1 << 30)

    def delete_and_restore(packed: Path, digest: str, target: Path) -> None:
        stones = bench.index.tombstones
        stones.mark_deleted("image", UID, reason="wrong patient", who="user:test")
        stones.delete_rows()
        restore_original(packed, digest, target)

    access = OriginalAccess(bench.index, bench.stores, cache, delete_and_restore)
    with access.borrowed(sha256(data)) as path:
        assert path.read_bytes() == data
    assert not cache.has(sha256(data))
    with pytest.raises(ObjectMissing):
        access.lend(sha256(data))


@pytest.mark.parametrize("harm", ["missing", "damaged"])
def test_damaged_codestreams_are_not_passed_through(bench: ArchiveParts, tmp_path: Path, harm: str) -> None:
    data, path = packed(bench)
    target = tmp_path / "passed.dcm"
    assert bench.originals.write_packed_form(sha256(data), target)
    path.unlink() if harm == "missing" else path.write_bytes(b"damaged")
    assert not bench.originals.write_packed_form(sha256(data), target)
    assert links(bench) == []


def test_a_damaged_packed_object_is_reported_and_not_lent(bench: ArchiveParts) -> None:
    data, path = packed(bench)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    reported: list[tuple[Tier, str]] = []
    bench.originals.damaged = lambda tier, digest: reported.append((tier, digest))
    with pytest.raises(ObjectDamaged, match=f"object {path.name} no longer has that digest"):
        bench.originals.lend(sha256(data))
    assert reported == [(Tier.HOT, path.name)]
    assert links(bench) == []


def test_an_error_of_unpacking_alone_is_not_taken_for_damage(bench: ArchiveParts) -> None:
    """The disk of the cache is full. The object is whole, and no damage is reported."""
    data, _ = packed(bench)

    def full(packed: Path, digest: str, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    access = OriginalAccess(bench.index, bench.stores, RenderedCache(bench.root / "rendered", 0), full)
    reported: list[tuple[Tier, str]] = []
    access.damaged = lambda tier, digest: reported.append((tier, digest))
    with pytest.raises(OSError, match="No space left"):
        access.lend(sha256(data))
    assert reported == []
    assert links(bench) == []


# --- disks that fail ---


def test_an_object_that_the_disk_cannot_read_is_reported_and_not_lent(
    bench: ArchiveParts, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    data = bench.receive(UID, state=InstanceState.RECEIVED)
    reported: list[tuple[Tier, str]] = []
    bench.originals.damaged = lambda tier, digest: reported.append((tier, digest))

    def unreadable(*_: Any) -> bool:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("node.archive.originals.original_access.has_digest", unreadable)
    with caplog.at_level(logging.ERROR), pytest.raises(ObjectDamaged, match="no longer has that digest"):
        bench.originals.lend(sha256(data))
    assert f"object {sha256(data)} cannot be read: Input/output error" in caplog.text
    assert reported == [(Tier.HOT, sha256(data))]
    assert links(bench) == []


def test_an_original_in_a_store_that_is_not_configured_is_not_whole(tmp_path: Path) -> None:
    bench = ArchiveParts(tmp_path / "archive", coder="none", path=str(tmp_path / "cold"))
    data = bench.receive(UID)
    bench.work()
    held = bench.index.originals.of_digest(sha256(data))
    assert held is not None
    assert bench.originals.whole(held)
    without = OriginalAccess(
        bench.index, {Tier.HOT: bench.hot}, RenderedCache(bench.root / "rendered", 0), restore_original
    )
    assert not without.whole(held)
    assert not without.write_packed_form(sha256(data), tmp_path / "passed.dcm")


def test_a_packed_original_is_lent_where_nothing_can_be_linked(
    bench: ArchiveParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This is so on a read-only disk, and on a file system without hard links."""
    data, _ = packed(bench)

    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no hard links")

    monkeypatch.setattr("node.archive.rendered_cache.os.link", refuse)
    with bench.originals.borrowed(sha256(data)) as path:
        assert path.read_bytes() == data


def test_a_packed_original_is_unpacked_elsewhere_if_the_disk_is_full(
    bench: ArchiveParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, _ = packed(bench)
    full = []

    def restore(packed_object: Path, digest: str, target: Path) -> None:
        if target.is_relative_to(bench.root):
            full.append(target)
            raise OSError(errno.ENOSPC, "no room")
        restore_original(packed_object, digest, target)

    monkeypatch.setattr(bench.originals, "_restore", restore)
    with bench.originals.borrowed(sha256(data)) as path:
        assert path.read_bytes() == data
    assert len(full) == 1
    assert not full[0].exists()
    assert not path.exists()


def test_an_original_in_the_cache_is_no_proof_of_its_object(bench: ArchiveParts) -> None:
    data, target = packed(bench)
    access = caching(bench)
    with access.borrowed(sha256(data)):
        pass
    access.check_object(sha256(data))
    held = bench.index.by_uid(UID)
    assert held is not None
    assert original_fault(access, held) == ""
    target.unlink()
    with access.borrowed(sha256(data)) as path:
        assert path.read_bytes() == data, "the cache has it"
    assert "is not in its store" in original_fault(access, held)
    target.write_bytes(b"damaged")
    assert original_fault(access, held) == "its original is damaged"


def test_a_stop_while_an_original_is_unpacked_says_nothing_about_it(bench: ArchiveParts) -> None:
    packed(bench)
    held = bench.index.by_uid(UID)
    assert held is not None

    def stopped(*_: Any) -> None:
        raise NoWorker("the node is stopping")

    access = OriginalAccess(bench.index, bench.stores, RenderedCache(bench.root / "rendered", 1 << 30), stopped)
    with pytest.raises(NoWorker):
        original_fault(access, held)
    assert original_fault(caching(bench), held) == ""
