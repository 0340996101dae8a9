"""Proves that a decision on an older state of a row changes nothing: the object that the row names now stays.

Objects are examined on disk, outside of any transaction. Meanwhile another process may have packed, moved, removed or
replaced the object.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import func, select

from storage.errors import ChangeRefused, ObjectMissing
from storage.index import Index
from storage.index.connection import now, writing
from storage.index.garbage_rows import unmark_garbage
from storage.index.holdings import Added
from storage.index.integrity import Integrity, NewDamage
from storage.index.original_locations import STAYS_RESTORED
from storage.index.quarantined import REPLACED, Former
from storage.index.resent_originals import drop_copy, insert_lost_row, replace_lost
from storage.index.tables import garbage, original
from storage.objects.store import ObjectStore
from storage.records import (
    HeldOriginal,
    HoldKind,
    InstanceState,
    OriginalClaim,
    OriginalForm,
    Quarantined,
    ReasonCode,
    Tier,
    TrailEntry,
)
from tests.support.index_rows import between_look_and_write, claimed, digest, new_instance, new_rendition, url_of

UID = "1.2.3.1"
ENTRY = TrailEntry("test", "user:me", "image", (UID,))


def here(_: str) -> bool:
    return True


def gone(_: str) -> bool:
    return False


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    """One image, VERIFIED."""
    opened = Index.open(url_of(tmp_path))
    opened.add(new_instance(UID))
    assert opened.finish_with(claimed(opened), InstanceState.VERIFIED, new_rendition())
    yield opened
    opened.close()


def held(index: Index) -> HeldOriginal:
    found = index.by_uid(UID)
    assert found is not None
    assert found.held is not None
    return found.held


def marked(index: Index) -> set[tuple[str, str]]:
    """The marked garbage: digest and store of each object."""
    with index.engine.connect() as connection:
        return {(row.digest, row.tier) for row in connection.execute(select(garbage))}


def actions(index: Index) -> list[str]:
    return [record.entry.action for record in index.trail.records()]


def packing(index: Index) -> OriginalClaim:
    claim = index.originals.claim_to_pack("packer", 60.0)
    assert claim is not None
    return claim


def purge(index: Index) -> None:
    (one,) = index.originals.purgeable(now())
    assert index.originals.commit_purge(one, now(), ENTRY)


# --- packing and moving ---------------------------------------------------------------------------------------


def test_a_packed_object_that_is_gone_does_not_replace_the_verbatim_one(index: Index) -> None:
    before, claim = held(index), packing(index)
    assert not index.originals.commit_packed(claim, "ab" * 32, 500, gone)
    assert (held(index), marked(index)) == (before, set())
    assert index.originals.commit_packed(claim, "ab" * 32, 500, here)
    assert (held(index).form, held(index).object_digest) == (OriginalForm.PACKED, "ab" * 32)
    assert marked(index) == {(before.object_digest, "hot")}


def test_a_packer_whose_lease_another_one_took_records_nothing(index: Index) -> None:
    slow = index.originals.claim_to_pack("slow", -1.0)
    assert slow is not None
    claim = packing(index)
    index.originals.stays_verbatim(slow, "it does not get smaller", [ENTRY])
    index.originals.release(slow, wait=1e6)
    assert (held(index).note, actions(index)) == ("", [])
    index.originals.stays_verbatim(claim, "it does not get smaller", [ENTRY])
    assert (held(index).note, actions(index)) == ("it does not get smaller", ["test"])


def test_an_original_that_was_given_up_is_free_at_once_or_after_a_while(index: Index) -> None:
    index.originals.release(packing(index))
    again = packing(index)
    assert again.attempts == 2
    index.originals.release(again, wait=3600.0)
    assert index.originals.claim_to_pack("packer", 60.0) is None


def test_of_two_packers_that_saw_the_same_original_one_gets_it(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second packer read the row before the first had committed."""
    found: list[OriginalClaim | None] = []
    originals = index.originals
    between_look_and_write(monkeypatch, index.engine, lambda: found.append(originals.claim_to_pack("first", 60.0)))
    assert index.originals.claim_to_pack("second", 60.0) is None
    assert [claim.owner for claim in found if claim is not None] == ["first"]


@pytest.mark.parametrize("why", ["the copy is gone", "packed meanwhile"])
def test_an_original_is_not_moved_on_an_older_state(index: Index, why: str) -> None:
    before = held(index)
    if why == "packed meanwhile":
        assert index.originals.commit_packed(packing(index), "ab" * 32, 500, here)
        after = held(index)
        assert not index.originals.commit_move(before, Tier.COLD, here, [ENTRY])
        assert marked(index) == {(before.object_digest, "hot")}
    else:
        after = before
        assert not index.originals.commit_move(before, Tier.COLD, gone, [ENTRY])
        assert marked(index) == set()
    assert (held(index), actions(index)) == (after, [])


def test_a_restored_original_that_is_used_stays_hot_for_longer(index: Index) -> None:
    assert index.originals.commit_move(held(index), Tier.COLD, here)
    assert index.originals.commit_move(held(index), Tier.HOT, here)
    assert index.originals.claim_to_move("mover", 60.0, packed_first=False) is None
    old = now() - STAYS_RESTORED - timedelta(hours=1)
    with writing(index.engine) as connection:
        connection.exec_driver_sql("UPDATE original SET restored_at = ?", (old.isoformat(" "),))
    index.originals.stays_hot(held(index))
    assert index.originals.claim_to_move("mover", 60.0, packed_first=False) is None
    with writing(index.engine) as connection:
        connection.exec_driver_sql("UPDATE original SET restored_at = ?", (old.isoformat(" "),))
    assert index.originals.claim_to_move("mover", 60.0, packed_first=False) is not None


def test_garbage_is_marked_once_and_kept_if_a_row_needs_it(index: Index, tmp_path: Path) -> None:
    store = ObjectStore(tmp_path / "store")
    needed, other = store.put(b"needed"), store.put(b"other")
    index.add(new_instance("1.2.3.2", original_digest=needed))
    for one in (needed, other, other):
        index.garbage.mark(one, Tier.HOT)
    index.garbage.mark(other, Tier.COLD)
    with index.engine.connect() as connection:
        assert connection.execute(select(func.count()).select_from(garbage)).scalar_one() == 3
    assert index.garbage.collect({Tier.HOT: store}) == 1
    assert (list(store.digests()), marked(index)) == ([needed], {(other, "cold")})


def test_garbage_that_was_taken_back_meanwhile_is_left(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No row names it yet: the bytes may belong to an instance that is just being received."""
    store = ObjectStore(tmp_path / "store")
    taken, other = store.put(b"taken back"), store.put(b"other")
    for one in (taken, other):
        index.garbage.mark(one, Tier.HOT)

    def take_back() -> None:
        with writing(index.engine) as connection:
            assert unmark_garbage(connection, taken, store.has)

    between_look_and_write(monkeypatch, index.engine, take_back)
    assert index.garbage.collect({Tier.HOT: store}) == 1
    assert (list(store.digests()), marked(index)) == ([taken], set())


# --- sent again -------------------------------------------------------------------------------------------------


def test_a_copy_is_dropped_only_while_the_checked_object_is_the_held_one(index: Index) -> None:
    before = held(index)
    assert index.originals.commit_packed(packing(index), "ab" * 32, 500, here)
    with writing(index.engine) as connection:
        connection.execute(garbage.delete())
    assert not drop_copy(index.engine, before, before.object_digest)
    assert marked(index) == set()
    assert drop_copy(index.engine, held(index), before.object_digest)
    assert marked(index) == {(before.object_digest, "hot")}


def test_the_held_object_itself_is_never_dropped_as_a_copy(index: Index) -> None:
    assert drop_copy(index.engine, held(index), held(index).object_digest)
    assert marked(index) == set()


@pytest.mark.parametrize("why", ["the new object is gone", "packed meanwhile"])
def test_a_lost_original_is_not_replaced_on_an_older_state(index: Index, why: str) -> None:
    before = held(index)
    if why == "packed meanwhile":
        assert index.originals.commit_packed(packing(index), "ab" * 32, 500, here)
    after, present = held(index), here if why == "packed meanwhile" else gone
    assert not replace_lost(index.engine, before, new_instance(UID), present)
    assert (held(index), actions(index)) == (after, [])


def test_only_a_row_that_was_lost_is_inserted_again(index: Index) -> None:
    """A row that is there may name a packed object by now."""
    new = new_instance(UID)
    assert index.originals.commit_packed(packing(index), "ab" * 32, 500, here)
    before = held(index)
    assert not insert_lost_row(index.engine, new, here)
    assert held(index) == before
    index.add(new_instance("1.2.3.2"))
    with writing(index.engine) as connection:
        connection.execute(original.delete().where(original.c.instance_key == before.instance_key))
    assert not insert_lost_row(index.engine, new, gone)
    assert not insert_lost_row(index.engine, replace(new, original_digest="cd" * 32), here)
    assert insert_lost_row(index.engine, new, here)
    assert (held(index).form, held(index).object_digest) == (OriginalForm.VERBATIM, new.original_digest)
    assert actions(index) == ["original.again"]


def test_a_lost_verbatim_original_that_is_sent_again_is_no_garbage(index: Index) -> None:
    """The new object has the digest of the lost one. The damage is closed, and the image gets its state back."""
    before, rows = held(index), Integrity(index.engine)
    lost = NewDamage(before.object_digest, "original", "hot", before.instance_key, "missing", "", "", "reported")
    rows.note(lost)
    for _ in range(2):  # the second scrub that finds it changes nothing
        assert rows.flag(lost, InstanceState.FAILED, ReasonCode.ORIGINAL_LOST, "its original is lost")
    flagged = index.by_uid(UID)
    assert flagged is not None
    assert (flagged.state, flagged.reason) == (InstanceState.FAILED, "its original is lost")
    assert replace_lost(index.engine, before, new_instance(UID), here)
    found = index.by_uid(UID)
    assert found is not None
    assert (found.state, found.reason) == (InstanceState.VERIFIED, "")
    assert (rows.open_damage(), marked(index), actions(index)) == ([], set(), ["original.again"])


@pytest.mark.parametrize("first", ["original", "base"])
def test_damage_that_ends_in_any_order_leaves_the_state_from_before_both(index: Index, first: str) -> None:
    """Formerly, if the original was sent again before the base came back, the image stayed FAILED, as if its original
    were lost."""
    before, rows = held(index), Integrity(index.engine)
    for kind, code in (("original", ReasonCode.ORIGINAL_LOST), ("base", ReasonCode.PAYLOAD_LOST)):
        lost = NewDamage(digest(kind), kind, "hot", before.instance_key, "missing", "", "", "lost")
        rows.note(lost)
        assert rows.flag(lost, InstanceState.FAILED, code, f"its {kind} is lost")
    for one in sorted(rows.open_damage(), key=lambda one: one.kind != first):
        rows.close(one.key, "whole again")
    found = index.by_uid(UID)
    assert found is not None
    assert (found.state, found.reason_code, found.reason) == (InstanceState.VERIFIED, ReasonCode.NONE, "")


# --- adding and finishing -----------------------------------------------------------------------------------------


def test_a_reconstruction_is_never_added_as_an_original(index: Index) -> None:
    for uid in ("2.25.1", "2.25.1.9"):
        assert index.add(new_instance(uid)) is Added.DERIVED
    assert index.by_key(2) is None


def test_an_instance_whose_object_is_gone_is_not_added(index: Index) -> None:
    assert index.add(new_instance("1.2.3.2"), gone) is Added.GONE
    assert index.by_uid("1.2.3.2") is None


def test_a_rendition_whose_objects_are_gone_is_not_committed(index: Index) -> None:
    """The archivist stores the objects again, so that a peer is never promised pixels that the store does not hold."""
    index.add(new_instance("1.2.3.2"))
    claim, new = claimed(index), new_rendition("2.25.2")
    for lost in (new.base_digest, new.rendition_digest):
        with pytest.raises(ObjectMissing, match=r"2\.25\.2: one of its objects was unlinked before it was committed"):
            index.finish_with(claim, InstanceState.VERIFIED, new, lost.__ne__)
    assert index.rendition("2.25.2") is None
    assert index.finish_with(claim, InstanceState.VERIFIED, new)


# --- quarantine ---------------------------------------------------------------------------------------------------


def quarantined(index: Index, what: str = "other") -> Quarantined:
    assert index.quarantine.put(digest(what), UID, "MODALITY", "other bytes")
    (one,) = (one for one in index.quarantine.all() if one.digest == digest(what))
    return one


def test_an_object_that_is_gone_is_not_in_quarantine(index: Index) -> None:
    assert not index.quarantine.put(digest("other"), UID, "MODALITY", "other bytes", gone)
    assert index.quarantine.all() == []


def test_an_object_is_rejected_once(index: Index) -> None:
    one = quarantined(index)
    assert index.quarantine.reject(one, ENTRY)
    assert not index.quarantine.reject(one, ENTRY)
    assert (marked(index), actions(index)) == ({(one.digest, "hot")}, ["test"])


@pytest.mark.parametrize("why", ["rejected", "unlinked", "another original", "deleted"])
def test_an_object_is_not_accepted_on_an_older_state(index: Index, why: str) -> None:
    """Nothing of the decision is committed: the object stays in quarantine, and the former original is held."""
    one, before = quarantined(index), held(index)
    new, former = new_instance(UID, original_digest=one.digest), before.original_digest
    if why == "rejected":
        index.quarantine.reject(one, ENTRY)
    if why == "another original":
        former = digest("before that")
    if why == "deleted":
        index.tombstones.mark_deleted("image", UID, reason="not ours", who="user:me")
    left, trail = index.quarantine.all(), actions(index)
    assert not index.quarantine.accept(new, Former(former), ENTRY, gone if why == "unlinked" else here)
    assert (held(index), index.quarantine.all(), actions(index)) == (before, left, trail)
    found = index.by_uid(UID)
    assert found is not None
    assert found.original_digest == before.original_digest


def test_a_purged_original_is_replaced_without_a_former_object(index: Index) -> None:
    purge(index)
    with writing(index.engine) as connection:
        connection.execute(garbage.delete())
    one, made = quarantined(index), index.rendition("2.25.1")
    assert made is not None
    new = new_instance(UID, original_digest=one.digest)
    assert not index.quarantine.accept(new, Former(digest(UID)), ENTRY, here), "it is not there any more"
    assert index.quarantine.accept(new, Former(), ENTRY, here)
    found = index.by_uid(UID)
    assert found is not None
    assert (found.original_digest, found.state, found.rendition) == (one.digest, InstanceState.RECEIVED, None)
    assert (held(index).form, held(index).object_digest) == (OriginalForm.VERBATIM, one.digest)
    assert index.quarantine.all() == []
    assert marked(index) == {(made.base_digest, "hot"), (made.rendition_digest, "hot")}
    withdrawn = index.rendition("2.25.1")
    assert withdrawn is not None
    assert withdrawn.withdrawn == REPLACED


def test_a_former_original_on_hold_is_not_replaced(index: Index) -> None:
    one, before = quarantined(index), held(index)
    index.holds.add(HoldKind.STUDY, "1.2.1", reason="court", who="user:me")
    new = new_instance(UID, original_digest=one.digest)
    with pytest.raises(ChangeRefused, match=f"{UID}: the original that is held is on hold, and cannot be replaced"):
        index.quarantine.accept(new, Former(before.original_digest), ENTRY, here)
    assert (held(index), [found.digest for found in index.quarantine.all()]) == (before, [one.digest])


@pytest.mark.parametrize("shared", ["series", "study"])
def test_other_images_keep_their_attributes_when_one_of_them_is_replaced(index: Index, shared: str) -> None:
    """Attributes of series and study are taken from the image if it is the only one left there; otherwise they stay."""
    series_uid = "1.2.1.7" if shared == "series" else "1.2.1.8"
    other = new_instance("1.2.3.2", series_uid=series_uid)
    described = {"00081030": {"vr": "LO", "Value": ["its study"]}}
    index.add(replace(other, levels=replace(other.levels, study={**other.levels.study, **described})))
    one = quarantined(index)
    new = new_instance(UID, original_digest=one.digest)
    renamed = {"00081030": {"vr": "LO", "Value": ["another study"]}}
    named = {"0008103E": {"vr": "LO", "Value": ["another series"]}}
    levels = replace(new.levels, study={**new.levels.study, **renamed}, series={**new.levels.series, **named})
    assert index.quarantine.accept(replace(new, levels=levels), Former(digest(UID)), ENTRY, here)
    with index.engine.connect() as connection:
        of_study = connection.exec_driver_sql("SELECT attributes FROM study").scalars().all()
        of_series = connection.exec_driver_sql("SELECT attributes FROM series ORDER BY key").scalars().all()
    assert ["its study" in text for text in of_study] == [True]
    assert not any("another study" in text for text in of_study)
    assert ["another series" in text for text in of_series] == ([False] if shared == "series" else [True, False])
