"""Proves that damage changes the state of its own instance only, and that its end gives this state back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

from storage.index import Index
from storage.index.integrity import Damage, Integrity, NewDamage
from storage.index.tables import damage
from storage.records import InstanceState, ReasonCode, StoredInstance
from tests.support.index_rows import claimed, new_instance, new_rendition, url_of

FIRST, SECOND = "1.2.3.1", "1.2.3.2"
VERIFIED = (InstanceState.VERIFIED, ReasonCode.NONE, "")
ORIGINAL_GONE = (InstanceState.VERIFIED, ReasonCode.ORIGINAL_LOST, "scrub: original missing")
PAYLOAD_GONE = (InstanceState.FAILED, ReasonCode.PAYLOAD_LOST, "scrub: rendition missing")


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    """Two images, VERIFIED."""
    opened = Index.open(url_of(tmp_path))
    for number, uid in enumerate((FIRST, SECOND), 1):
        opened.add(new_instance(uid))
        assert opened.finish_with(claimed(opened), InstanceState.VERIFIED, new_rendition(f"2.25.{number}"))
    yield opened
    opened.close()


@pytest.fixture
def integrity(index: Index) -> Integrity:
    return Integrity(index.engine)


def held(index: Index, uid: str) -> StoredInstance:
    found = index.by_uid(uid)
    assert found is not None
    return found


def state(index: Index, uid: str) -> tuple[InstanceState, ReasonCode, str]:
    found = held(index, uid)
    return found.state, found.reason_code, found.reason


def noted(index: Index, uid: str, kind: str = "original", action: str = "flagged") -> Damage:
    """The open damage of an object of that image, just found."""
    integrity = Integrity(index.engine)
    (lost,) = (one for one in integrity.expected_of(held(index, uid).key) if one.kind == kind)
    integrity.note(NewDamage(lost.digest, kind, lost.store, lost.instance_key, "missing", "", "", action))
    (found,) = (one for one in integrity.open_damage() if one.digest == lost.digest)
    return found


def rows(index: Index) -> list[tuple[str, str, str]]:
    with index.engine.connect() as connection:
        found = connection.execute(select(damage).order_by(damage.c.key)).all()
    return [(row.action, row.set_reason, row.outcome) for row in found]


def test_each_image_gets_its_own_state_back(index: Index, integrity: Integrity) -> None:
    first, second = noted(index, FIRST), noted(index, SECOND, "rendition")
    assert integrity.flag(first, *ORIGINAL_GONE)
    assert integrity.flag(second, *PAYLOAD_GONE)
    assert (state(index, FIRST), state(index, SECOND)) == (ORIGINAL_GONE, PAYLOAD_GONE)
    integrity.close(second.key, "made again")
    assert (state(index, FIRST), state(index, SECOND)) == (ORIGINAL_GONE, VERIFIED)
    assert integrity.open_damage() == [first]
    integrity.close_of(first, "whole again")
    assert state(index, FIRST) == VERIFIED
    assert rows(index) == [
        ("flagged", ORIGINAL_GONE[2], "whole again"),
        ("flagged", PAYLOAD_GONE[2], "made again"),
    ]


def test_damage_that_is_found_again_stays_one_row(index: Index, integrity: Integrity) -> None:
    other, first = noted(index, SECOND), noted(index, FIRST)
    assert integrity.flag(first, *ORIGINAL_GONE)
    assert noted(index, FIRST, action="replaced") == first
    assert integrity.flag(first, *ORIGINAL_GONE)
    assert rows(index) == [("flagged", "", ""), ("replaced", ORIGINAL_GONE[2], "")]
    integrity.close(first.key, "whole again")
    assert state(index, FIRST) == VERIFIED, "not the state that the damage set"
    assert integrity.open_damage() == [other]
    assert noted(index, FIRST).key not in (first.key, other.key), "what is closed stays closed"


def test_a_state_that_was_set_since_is_kept(index: Index, integrity: Integrity) -> None:
    """The image was encoded again: its former state is history."""
    first = noted(index, FIRST)
    assert integrity.flag(first, *ORIGINAL_GONE)
    integrity.requeue(held(index, FIRST).key, ReasonCode.PAYLOAD_LOST, "made again from the base")
    before = state(index, FIRST)
    assert before == (InstanceState.RECEIVED, ReasonCode.PAYLOAD_LOST, "made again from the base")
    integrity.close(first.key, "whole again")
    assert state(index, FIRST) == before


@pytest.mark.parametrize("closed_first", ["older", "newer"])
def test_two_objects_of_one_image(index: Index, integrity: Integrity, closed_first: str) -> None:
    """The state before both comes back with the last of them, in whatever order they are closed."""
    older, newer = noted(index, FIRST), noted(index, FIRST, "rendition")
    assert integrity.flag(older, *ORIGINAL_GONE)
    assert integrity.flag(newer, *PAYLOAD_GONE)
    order = (older, newer) if closed_first == "older" else (newer, older)
    integrity.close(order[0].key, "whole again")
    assert state(index, FIRST) == (PAYLOAD_GONE if closed_first == "older" else ORIGINAL_GONE)
    integrity.close(order[1].key, "whole again")
    assert state(index, FIRST) == VERIFIED


def test_damage_without_effect_gives_nothing_back(index: Index, integrity: Integrity) -> None:
    """Its instance was not flagged, so there is no former state."""
    integrity.close(noted(index, FIRST).key, "whole again")
    assert state(index, FIRST) == VERIFIED


def test_the_first_of_several_states_comes_back(index: Index, integrity: Integrity) -> None:
    """An original that was missing at first, and is there but damaged later."""
    first = noted(index, FIRST)
    assert integrity.flag(first, *ORIGINAL_GONE)
    assert integrity.flag(first, InstanceState.VERIFIED, ReasonCode.ORIGINAL_LOST, "scrub: original damaged")
    integrity.close(first.key, "whole again")
    assert state(index, FIRST) == VERIFIED


def test_an_image_that_is_being_encoded_is_not_flagged(index: Index, integrity: Integrity) -> None:
    integrity.requeue(held(index, FIRST).key, ReasonCode.NONE, "")
    claim = claimed(index)
    first = noted(index, FIRST)
    assert not integrity.flag(first, *ORIGINAL_GONE)
    assert state(index, FIRST) == (InstanceState.RECEIVED, ReasonCode.NONE, "")
    assert index.release(claim)
    assert integrity.flag(first, *ORIGINAL_GONE)
