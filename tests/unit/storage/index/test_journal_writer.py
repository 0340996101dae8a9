"""Proves that committed changes are journalled, and that an index which was replaced is noticed before any harm."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import func, select

from storage.errors import IndexLost
from storage.index import Index, journal_writer
from storage.index.opening import open_checked_index
from storage.index.tables import change
from storage.objects.change_journal import ChangeJournal
from storage.objects.store import ObjectStore
from storage.objects.trail_journal import TrailJournal
from storage.records import Tier, TrailEntry


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    opened = open_checked_index(f"sqlite:///{tmp_path / 'index.sqlite'}", tmp_path, holds_objects=False).index
    yield opened
    opened.close()


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_an_index_that_was_replaced_unlinks_nothing(index: Index, tmp_path: Path, how: str) -> None:
    """Rows of the new index may need the objects. No change is to be journalled, so the journal does not notice."""
    store = ObjectStore(tmp_path)
    digest = store.put(b"needed by the new index")
    index.garbage.mark(digest, Tier.HOT)
    file = tmp_path / "index.sqlite"
    file.rename(tmp_path / "former")
    if how == "replaced":
        file.write_bytes((tmp_path / "former").read_bytes())
    with pytest.raises(IndexLost, match="removed or replaced"):
        index.garbage.collect({Tier.HOT: store})
    assert store.has(digest)


def test_marks_of_journalled_changes_are_deleted(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The index would grow by a row with each change of a row."""
    monkeypatch.setattr(journal_writer, "_MARKS_KEPT", 5)
    for number in range(20):
        index.holds.put_label("teaching", f"1.2.{number}", who="user:me")
    with index.engine.connect() as connection:
        assert connection.execute(select(func.count()).select_from(change)).scalar_one() < 15
    journalled = [row for group in ChangeJournal(tmp_path / "journal").groups() for row in group.rows]
    assert sum(row[:2] == ["+", "label"] for row in journalled) == 20


def test_the_first_record_of_the_trail_is_journalled_at_once(index: Index, tmp_path: Path) -> None:
    index.trail.append(TrailEntry("retrieve", "VIEWER", "study", ("1.2",)))
    assert [record.number for record in TrailJournal(tmp_path / "journal").records()] == [1]
