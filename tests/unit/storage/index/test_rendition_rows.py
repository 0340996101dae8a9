"""Proves that withdrawn renditions leave no objects behind, and that objects which are needed again stay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from storage.index.audit_outcomes import AuditRows
from storage.index.integrity import Integrity, NewDamage
from storage.records import InstanceState, ReasonCode, StoredInstance, StoredRendition, TrailEntry
from tests.support.archive_parts import ArchiveParts
from tests.support.index_rows import claimed, new_rendition

UID, DERIVED = "1.2.3.1", "2.25.1"


@pytest.fixture
def bench(tmp_path: Path) -> ArchiveParts:
    """One image, VERIFIED, with two objects of its rendition."""
    made = ArchiveParts(tmp_path / "archive", coder="none")
    made.receive(UID)
    return made


def held(bench: ArchiveParts, uid: str = UID) -> StoredInstance:
    found = bench.index.by_uid(uid)
    assert found is not None
    return found


def made(bench: ArchiveParts, uid: str = DERIVED) -> StoredRendition:
    found = bench.index.rendition(uid)
    assert found is not None
    return found


def objects_of(bench: ArchiveParts, row: StoredRendition) -> list[bool]:
    """Whether base and rendition are in the store."""
    return [bench.hot.has(row.base_digest), bench.hot.has(row.rendition_digest)]


def audited(bench: ArchiveParts) -> None:
    entry = TrailEntry("rendition.withdraw", "job:audit", "image", (UID, DERIVED), "reconstructed")
    assert AuditRows(bench.index.engine).withdraw(held(bench).key, DERIVED, "a band is lost", entry)


def encoded_again(bench: ArchiveParts) -> None:
    Integrity(bench.index.engine).withdraw(DERIVED, "today's coder makes others")


WITHDRAW: dict[str, Callable[[ArchiveParts], None]] = {"audit": audited, "archivist": encoded_again}


@pytest.mark.parametrize("by", WITHDRAW)
def test_objects_of_a_withdrawn_rendition_are_released(bench: ArchiveParts, by: str) -> None:
    bench.receive("1.2.3.2")
    row, other = made(bench), held(bench, "1.2.3.2")
    WITHDRAW[by](bench)
    assert objects_of(bench, row) == [True, True], "the row is committed first"
    assert bench.work() == 0
    assert objects_of(bench, row) == [False, False]
    assert (held(bench).rendition, held(bench, DERIVED).sop_instance_uid) == (None, UID)
    assert held(bench, "1.2.3.2") == other
    bench.check_promises()


def test_a_base_that_another_rendition_needs_stays(bench: ArchiveParts) -> None:
    bench.receive("1.2.3.2", state=InstanceState.RECEIVED)
    claim = bench.index.claim("test", 60)
    assert claim is not None
    row = made(bench)
    other = new_rendition("2.25.2", base_digest=row.base_digest, rendition_digest=bench.hot.put(b"other"))
    assert bench.index.finish_with(claim, InstanceState.VERIFIED, other)
    audited(bench)
    bench.work()
    assert objects_of(bench, row) == [True, False]
    assert objects_of(bench, made(bench, "2.25.2")) == [True, True]


@pytest.mark.parametrize("collected", [False, True], ids=["before they are unlinked", "afterwards"])
def test_a_withdrawn_rendition_that_is_made_again_has_its_objects(bench: ArchiveParts, collected: bool) -> None:
    """The row takes the new base too, since the coder may have written other bytes for the same pixels."""
    audited(bench)
    if collected:
        bench.work()
    before = made(bench)
    assert bench.index.retry_failed() == 1
    claim = bench.index.claim("test", 60)
    assert claim is not None
    base, side = bench.hot.put(b"base of another version"), bench.hot.put(b"rendition 1.2.3.1")
    again = replace(
        new_rendition(DERIVED, base_digest=base, rendition_digest=side), base_bytes=23, numerics_digest="1" * 64
    )
    assert (again.output_digest, again.structure_digest) == (before.output_digest, before.structure_digest)
    assert bench.index.finish_with(claim, InstanceState.VERIFIED, again, present=bench.hot.has)
    bench.work()
    row = made(bench)
    assert (row.base_digest, row.base_bytes, row.withdrawn) == (base, 23, "")
    assert row.numerics_digest == "1" * 64, "of the object that it has now"
    assert objects_of(bench, row) == [True, True]
    assert not bench.hot.has(before.base_digest)


def test_a_rendition_that_is_made_again_takes_its_new_objects(bench: ArchiveParts) -> None:
    """A scrub found the base damaged. The row of another image stays as it is."""
    bench.receive("1.2.3.2")
    other = made(bench, "2.25.2")
    Integrity(bench.index.engine).requeue(held(bench).key, ReasonCode.PAYLOAD_LOST, "the base is damaged")
    base, side = bench.hot.put(b"base of another version"), bench.hot.put(b"rendition of another version")
    again = new_rendition(DERIVED, base_digest=base, rendition_digest=side)
    assert bench.index.finish_with(claimed(bench.index), InstanceState.VERIFIED, again, present=bench.hot.has)
    assert (made(bench).base_digest, made(bench).rendition_digest) == (base, side)
    assert (held(bench).state, held(bench).rendition) == (InstanceState.VERIFIED, made(bench))
    assert made(bench, "2.25.2") == other


@pytest.mark.parametrize("differs", ["output_digest", "structure_digest"])
def test_a_derived_uid_of_other_pixels_is_refused(bench: ArchiveParts, differs: str) -> None:
    """Peers hold the former pixels under that UID."""
    before = made(bench)
    Integrity(bench.index.engine).requeue(held(bench).key, ReasonCode.PAYLOAD_LOST, "the base is damaged")
    base, side = bench.hot.put(b"base of other pixels"), bench.hot.put(b"rendition of other pixels")
    other = new_rendition(DERIVED, base_digest=base, rendition_digest=side, **{differs: "2" * 64})
    assert bench.index.finish_with(claimed(bench.index), InstanceState.VERIFIED, other, present=bench.hot.has)
    assert held(bench).state is InstanceState.EXACT
    assert "is the UID of another object already" in held(bench).reason
    assert made(bench) == before
    bench.index.garbage.collect(bench.stores)
    assert not (bench.hot.has(base) or bench.hot.has(side))


def test_what_lost_its_base_after_a_purge_is_not_tried_again(bench: ArchiveParts) -> None:
    """There is no original to encode. The image gets its state back when its base is whole again."""
    assert len(bench.retention.purge().purged) == 1
    row, integrity = made(bench), Integrity(bench.index.engine)
    integrity.note(NewDamage(row.base_digest, "base", "hot", held(bench).key, "missing", "", "", "lost"))
    (damage,) = integrity.open_damage()
    assert integrity.flag(damage, InstanceState.FAILED, ReasonCode.PAYLOAD_LOST, "nothing whole is left")
    assert bench.index.retry_failed() == 0
    integrity.close(damage.key, "whole again")
    assert held(bench).state is InstanceState.VERIFIED
