"""Proves what a rebuild keeps when a line of the change journal is damaged; no image gets the wrong rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import func, select

from storage.errors import IndexRefused, NewerFormat
from storage.index import Index
from storage.index.opening import compact_journal, open_checked_index
from storage.index.rebuild import Rebuilt, rebuild
from storage.index.recovered_rows import FoundObject, adopt_original, adopt_rendition
from storage.index.tables import instance, original, rendition, series
from storage.objects.change_journal import Change, ChangeJournal, Group
from storage.records import HeldOriginal, InstanceState, OriginalForm, Tier
from tests.support.holdings import Holdings, filled, uid_of
from tests.support.index_rows import new_instance, new_rendition


@pytest.fixture
def held(tmp_path: Path) -> Holdings:
    """A stopped archive of three images. Each line of its journal has rows of one table."""
    made = filled(tmp_path, 3)
    made.index.close()
    url = f"sqlite:///{tmp_path / 'index.sqlite'}"
    open_checked_index(url, tmp_path, holds_objects=True).index.close()
    compact_journal(url, tmp_path)
    return made


@pytest.fixture
def rebuilt(held: Holdings) -> Iterator[Callable[[str], tuple[Rebuilt, Index]]]:
    opened: list[Index] = []

    def without(table: str) -> tuple[Rebuilt, Index]:
        """Rebuild from a journal in which the line with the rows of that table is damaged."""
        (segment,) = (held.root / "journal").glob("changes-*.jsonl")
        lines = segment.read_bytes().splitlines(keepends=True)
        (at,) = (number for number, line in enumerate(lines) if f'["+","{table}"'.encode() in line)
        lines[at] = b"#" * 8 + lines[at][8:]
        segment.write_bytes(b"".join(lines))
        (held.root / "index.sqlite").unlink()
        made = rebuild(held.root / "index.sqlite", held.root)
        opened.append(Index.open(f"sqlite:///{held.root / 'index.sqlite'}"))
        return made, opened[-1]

    yield without
    for index in opened:
        index.close()


def count(index: Index, *tables: str) -> list[int]:
    by_name = {table.name: table for table in (series, instance, original, rendition)}
    with index.engine.connect() as connection:
        return [connection.execute(select(func.count()).select_from(by_name[name])).scalar_one() for name in tables]


def located(index: Index, number: int) -> HeldOriginal | None:
    found = index.by_uid(uid_of(number))
    assert found is not None
    return found.held


def current(index: Index) -> dict[int, tuple[InstanceState, str | None]]:
    """State and derived UID of each image."""
    found = {}
    for number in (1, 2, 3):
        held = index.by_uid(uid_of(number))
        assert held is not None
        found[number] = (held.state, held.rendition.derived_uid if held.rendition else None)
    return found


def test_rows_below_a_lost_row_are_left_out_and_counted(
    rebuilt: Callable[[str], tuple[Rebuilt, Index]], held: Holdings
) -> None:
    """An image without a series would break every query; its objects are still there."""
    made, index = rebuilt("series")
    assert (made.clean, made.unlinked_rows, len(made.damaged_lines)) == (False, 9, 1)
    assert count(index, "series", "instance", "original", "rendition") == [0, 0, 0, 0]
    with index.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA foreign_key_check").all() == []
    assert {digest: held.store.read(digest) for digest in held.objects} == held.objects


def test_an_image_never_gets_the_rendition_of_another_by_its_key(
    rebuilt: Callable[[str], tuple[Rebuilt, Index]],
) -> None:
    """Renditions that are found among the objects get the keys of the lost rows, in another order."""
    made, index = rebuilt("rendition")
    assert not made.clean
    assert current(index) == {
        1: (InstanceState.RECEIVED, None),
        2: (InstanceState.RECEIVED, None),
        3: (InstanceState.RECEIVED, None),
    }
    for number in (3, 1):
        made_of_it = new_rendition(f"2.25.{number}")
        assert adopt_rendition(index.engine, uid_of(number), made_of_it)
    assert current(index) == {
        1: (InstanceState.VERIFIED, "2.25.1"),
        2: (InstanceState.RECEIVED, None),
        3: (InstanceState.VERIFIED, "2.25.3"),
    }


@pytest.mark.slow
def test_an_original_that_is_found_gets_its_row_again(
    rebuilt: Callable[[str], tuple[Rebuilt, Index]], held: Holdings
) -> None:
    """The row of the image is there, but no row says where its original is."""
    made, index = rebuilt("original")
    assert (made.clean, made.unlinked_rows) == (False, 0)
    assert (count(index, "instance", "original"), located(index, 2)) == ([3, 0], None)
    digest = held.originals[1]
    new = new_instance(uid_of(2), original_digest=digest, original_bytes=50)
    found = FoundObject(OriginalForm.PACKED, Tier.COLD, "ab" * 32, 40)
    assert adopt_original(index, new, found)
    there = located(index, 2)
    assert there is not None
    assert (there.form, there.tier, there.object_digest, there.object_bytes) == ("packed", "cold", "ab" * 32, 40)
    again = FoundObject(OriginalForm.VERBATIM, Tier.HOT, digest, 50)
    other = replace(new, original_digest="cd" * 32)
    assert not adopt_original(index, new, again)
    assert not adopt_original(index, other, again)
    assert located(index, 2) == there
    assert count(index, "instance", "original") == [3, 1]
    assert adopt_original(index, new, again, missing="ab" * 32), "the packed object was lost"
    there = located(index, 2)
    assert there is not None
    assert (there.form, there.object_digest) == ("verbatim", digest)


def test_a_rendition_is_adopted_for_an_image_that_is_held_only(
    rebuilt: Callable[[str], tuple[Rebuilt, Index]],
) -> None:
    _, index = rebuilt("rendition")
    assert not adopt_rendition(index.engine, "1.2.9.9", new_rendition("2.25.9"))
    assert adopt_rendition(index.engine, uid_of(1), new_rendition("2.25.1"))
    assert not adopt_rendition(index.engine, uid_of(2), new_rendition("2.25.1"))
    assert not adopt_rendition(index.engine, uid_of(2), new_rendition(uid_of(3)))
    assert [found[1] for found in current(index).values()] == ["2.25.1", None, None]


# --- journals of another version, or of an archive that went on -------------------------------------------------


@pytest.mark.parametrize(
    "change", [["+", "colour", [1], {"key": 1}], ["~", "label", [1], {"colour": "red"}]], ids=["table", "column"]
)
def test_rows_of_a_newer_version_are_never_left_out_silently(held: Holdings, change: Change) -> None:
    """Otherwise a rebuild would lose what these rows say, and begin the journal again without them."""
    journal = ChangeJournal(held.root / "journal")
    with journal.locked():
        journal.append(Group(journal.last() + 1, [change]))
    before = (held.root / "index.sqlite").read_bytes()
    with pytest.raises(NewerFormat, match=rf"rows of {change[1]} that this version does not know: use a newer version"):
        rebuild(held.root / "index.sqlite", held.root)
    assert (held.root / "index.sqlite").read_bytes() == before


def older_copy(held: Holdings) -> tuple[bytes, Path]:
    """The index as it is now. Its journal goes on afterwards."""
    file = held.root / "index.sqlite"
    copy = file.read_bytes()
    opened = open_checked_index(f"sqlite:///{file}", held.root, holds_objects=True).index
    opened.holds.put_label("teaching", "1.2", who="user:me")
    opened.holds.put_label("later", "1.2", who="user:me")
    opened.close()
    return copy, file


def test_a_command_beside_a_node_does_not_complete_an_older_index(held: Holdings) -> None:
    copy, file = older_copy(held)
    file.write_bytes(copy)
    with pytest.raises(IndexRefused, match=r"is older than the journal .* start the node, which completes it"):
        open_checked_index(f"sqlite:///{file}", held.root, holds_objects=True, replay=False)
    opened = open_checked_index(f"sqlite:///{file}", held.root, holds_objects=True)
    assert "changes replayed from the journal" in opened.notes[0]
    assert opened.index.holds.labels() == [("later", "1.2"), ("teaching", "1.2")]
    assert [record.number for record in opened.index.trail.records()] == [1, 2]
    opened.index.close()


def test_an_index_from_before_the_journal_was_compacted_is_refused(held: Holdings) -> None:
    """A compacted journal has only rows and no changes, so rows that were deleted meanwhile would stay in this
    index."""
    copy, file = older_copy(held)
    compact_journal(f"sqlite:///{file}", held.root)
    file.write_bytes(copy)
    with pytest.raises(IndexRefused, match="which does not go back that far; run `latent-pacs index rebuild`"):
        open_checked_index(f"sqlite:///{file}", held.root, holds_objects=True)
    assert rebuild(file, held.root).clean
    opened = open_checked_index(f"sqlite:///{file}", held.root, holds_objects=True)
    assert opened.index.holds.labels() == [("later", "1.2"), ("teaching", "1.2")]
    opened.index.close()


def test_an_older_index_is_not_completed_from_a_damaged_journal(held: Holdings) -> None:
    copy, file = older_copy(held)
    file.write_bytes(copy)
    (segment,) = (held.root / "journal").glob("changes-*.jsonl")
    lines = segment.read_bytes().splitlines(keepends=True)
    lines[-2] = b"#" * 8 + lines[-2][8:]
    segment.write_bytes(b"".join(lines))
    with pytest.raises(
        IndexRefused, match=f"is older than the journal .*, and line {len(lines) - 1} of .*: damaged or missing"
    ):
        open_checked_index(f"sqlite:///{file}", held.root, holds_objects=True)
    left = Index.open(f"sqlite:///{file}")
    assert left.holds.labels() == []
    left.close()


def test_a_journal_that_another_process_has_not_caught_up_with_is_not_compacted(
    held: Holdings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process has committed a change, and journals it when it gets the lock."""
    file = held.root / "index.sqlite"
    real = ChangeJournal.size

    def meanwhile(self: ChangeJournal) -> int:
        other = Index.open(f"sqlite:///{file}")
        other.holds.put_label("teaching", "1.2", who="user:me")
        other.close()
        return real(self)

    before = {path.name: path.read_bytes() for path in (held.root / "journal").glob("changes-*.jsonl")}
    with monkeypatch.context() as patch:
        patch.setattr(ChangeJournal, "size", meanwhile)
        with pytest.raises(
            IndexRefused, match="another process uses the index: compact its journal when that has ended"
        ):
            compact_journal(f"sqlite:///{file}", held.root)
    assert {path.name: path.read_bytes() for path in (held.root / "journal").glob("changes-*.jsonl")} == before
    compact_journal(f"sqlite:///{file}", held.root)
    rebuild(file, held.root)
    opened = Index.open(f"sqlite:///{file}")
    assert opened.holds.labels() == [("teaching", "1.2")]
    opened.close()
