"""Proves that the change journal returns its changes and names damaged lines, also on a full disk."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import IO, Any

import pytest

import storage.objects.change_journal as journal_module
from storage.errors import JournalDamaged, NewerFormat, StoreFull
from storage.objects.change_journal import Change, ChangeJournal, Group
from tests.support.largest_file import largest_file

NAME = "5f0c1c1e-0000-4000-8000-000000000000"
FIRST: list[Change] = [["+", "label", [1], {"key": 1, "name": "teaching"}]]


def group(number: int, text: str = "x") -> Group:
    return Group(number, [["~", "label", [1], {"name": text}]])


@pytest.fixture
def journal(tmp_path: Path) -> ChangeJournal:
    """A journal that holds the changes 3, 4 and 5."""
    made = ChangeJournal(tmp_path / "journal")
    made.begin(NAME, 3, [FIRST])
    made.append(group(4))
    made.append(group(5))
    return made


def reopened(journal: ChangeJournal) -> ChangeJournal:
    return ChangeJournal(journal.folder)


def numbers(journal: ChangeJournal) -> list[int]:
    return [one.number for one in reopened(journal).groups()]


def segments(journal: ChangeJournal) -> list[Path]:
    return sorted(journal.folder.glob("changes-*.jsonl"))


def files(journal: ChangeJournal) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in journal.folder.glob("*") if path.suffix == ".jsonl"}


def damage_line(segment: Path, number: int) -> None:
    lines = segment.read_bytes().splitlines(keepends=True)
    lines[number - 1] = lines[number - 1][:20] + b"#" + lines[number - 1][21:]
    segment.write_bytes(b"".join(lines))


def start_a_segment_with_each_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "_SEGMENT_BYTES", 0)


def fail_to_sync(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


# --- a full disk ----------------------------------------------------------------------------------------------


def test_a_line_that_does_not_fit_leaves_nothing_behind(journal: ChangeJournal) -> None:
    """A part of the line is written at first, and the rest is tried once more when the file is closed."""
    (segment,) = segments(journal)
    before = segment.read_bytes()
    with largest_file(len(before) + 40), pytest.raises(StoreFull, match="no room for the object: File too large"):
        journal.append(group(6, "y" * 200))
    assert segment.read_bytes() == before
    journal.append(group(6, "again"))
    assert list(reopened(journal).groups(after=5)) == [group(6, "again")]


def test_a_new_segment_that_does_not_fit_leaves_the_journal_usable(
    journal: ChangeJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files(journal)
    start_a_segment_with_each_group(monkeypatch)
    with monkeypatch.context() as full:
        full.setattr(journal_module, "fsync_file", fail_to_sync)
        with pytest.raises(StoreFull, match="No space left"):
            journal.append(group(6))
    assert files(journal) == before
    assert (journal.last(), reopened(journal).last()) == (5, 5)
    journal.append(group(6))
    assert len(segments(journal)) == 2
    assert (reopened(journal).archive(), numbers(journal)) == (NAME, [3, 4, 5, 6])


def test_another_disk_error_leaves_nothing_behind_and_keeps_its_name(
    journal: ChangeJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(file: IO[bytes]) -> None:
        file.flush()
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    before = files(journal)
    monkeypatch.setattr(journal_module, "fsync_file", broken)
    with pytest.raises(OSError, match="Input/output error") as raised:
        journal.append(group(6))
    assert not isinstance(raised.value, StoreFull)
    assert files(journal) == before


# --- damage ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("last", [b"00000000 {}\n", b"not hex! {}\n", b"short\n"], ids=["checksum", "not hex", "short"])
def test_a_damaged_last_line_is_not_taken_for_the_end(journal: ChangeJournal, last: bytes) -> None:
    """Otherwise the next change would get the number of a change that is journalled already."""
    (segment,) = segments(journal)
    with segment.open("ab") as out:
        out.write(last)
    with pytest.raises(JournalDamaged, match=rf"the last line of {segment} is damaged"):
        journal.last()
    note = journal.repair()
    assert note.startswith(f"{len(last)} damaged bytes at the end of {segment}, moved to ")
    assert Path(note.rpartition(" ")[2]).read_bytes() == last
    assert (journal.last(), numbers(journal)) == (5, [3, 4, 5])


def test_a_damaged_line_is_an_error_or_is_told_and_skipped(journal: ChangeJournal) -> None:
    (segment,) = segments(journal)
    damage_line(segment, 3)
    with pytest.raises(JournalDamaged, match=rf"line 3 of {segment.name} in {journal.folder}: damaged or missing"):
        list(journal.groups())
    told: list[str] = []
    assert [one.number for one in journal.groups(damaged=told.append)] == [3, 5]
    assert told == [f"line 3 of {segment.name}"]


@pytest.mark.parametrize(("missing", "told"), [(0, "changes 0 to 5"), (1, "changes 6 to 8"), (2, "changes 9 to 9")])
def test_a_missing_segment_is_an_error_or_is_told(
    journal: ChangeJournal, monkeypatch: pytest.MonkeyPatch, missing: int, told: str
) -> None:
    """A line may hold several commits, so the number of the next line does not tell whether one is missing."""
    start_a_segment_with_each_group(monkeypatch)
    for number in (8, 9, 12):
        journal.append(group(number))
    assert numbers(journal) == [3, 4, 5, 8, 9, 12]
    found = segments(journal)
    found[missing].unlink()
    found_damaged: list[str] = []
    kept = [one.number for one in reopened(journal).groups(damaged=found_damaged.append)]
    assert kept == [number for place, number in ((0, 3), (0, 4), (0, 5), (1, 8), (2, 9), (3, 12)) if place != missing]
    assert found_damaged == [f"{told}, before {found[missing + 1].name}"]
    with pytest.raises(JournalDamaged, match=told):
        list(reopened(journal).groups())
    assert [one.number for one in reopened(journal).groups(after=9)] == [12], "what is missing is older than the index"


def test_segments_that_are_damaged_as_a_whole_are_moved_away_and_named(
    journal: ChangeJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_a_segment_with_each_group(monkeypatch)
    for number in (6, 7):
        journal.append(group(number))
    first, *lost = segments(journal)
    for segment in lost:
        segment.write_bytes(b"\0" * 50 + b"\n")
    note = journal.repair()
    assert note.count("51 damaged bytes at the end of") == 2
    assert all(str(segment) in note for segment in lost)
    assert segments(journal) == [first]
    assert [path.read_bytes() for path in journal.folder.glob("damaged-*")] == [b"\0" * 50 + b"\n"] * 2
    assert (journal.last(), numbers(journal), journal.repair()) == (5, [3, 4, 5], "")


def test_an_empty_segment_of_a_killed_process_is_removed(journal: ChangeJournal) -> None:
    (journal.folder / "changes-000000000006.jsonl").touch()
    assert journal.repair() == ""
    assert len(segments(journal)) == 1
    assert list(journal.folder.glob("damaged-*")) == []
    assert journal.last() == 5


def test_a_segment_without_its_first_line_keeps_its_changes_and_the_name_of_the_archive(
    journal: ChangeJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_a_segment_with_each_group(monkeypatch)
    journal.append(group(6))
    damage_line(segments(journal)[-1], 1)
    told: list[str] = []
    assert [one.number for one in reopened(journal).groups(damaged=told.append)] == [3, 4, 5, 6]
    assert (told, journal.archive(), journal.whole_since()) == (["line 1 of changes-000000000006.jsonl"], NAME, 3)


def test_a_compacted_segment_that_does_not_read_back_replaces_nothing(
    journal: ChangeJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, before = journal_module.fsync_file, files(journal)

    def lose_a_bit(file: IO[bytes]) -> None:
        real(file)
        damage_line(Path(file.name), 2)

    monkeypatch.setattr(journal_module, "fsync_file", lose_a_bit)
    with pytest.raises(JournalDamaged, match="does not read back as it was written; check the disk"):
        journal.compact(NAME, 5, [FIRST])
    assert files(journal) == before
    assert not (journal.folder / "changes.making").exists()


def test_lines_of_a_later_format_are_refused_before_they_are_repaired(journal: ChangeJournal) -> None:
    """Formerly, lines of a later format looked damaged to this version, which moved them away."""
    newer = journal.folder / "changes-000000000006.jsonl"
    head = journal_module._line({"format": 2, "archive": NAME, "number": 5, "whole": False})
    newer.write_bytes(head + b"lines of another form\x00\n and more")
    before = files(journal)
    with pytest.raises(NewerFormat, match="install a newer version"):
        reopened(journal).repair()
    assert files(journal) == before


def test_a_copy_of_a_segment_is_no_segment(journal: ChangeJournal) -> None:
    """Otherwise the next change would be written to the copy."""
    (segment,) = segments(journal)
    for name in (f"{segment.stem}-copy.jsonl", f"{segment.stem} (2).jsonl", "changes-old.jsonl"):
        (journal.folder / name).write_bytes(segment.read_bytes())
    again = reopened(journal)
    assert (again.repair(), again.last(), numbers(journal)) == ("", 5, [3, 4, 5])
    again.append(group(6))
    assert numbers(journal) == [3, 4, 5, 6]
    assert segment.read_bytes().count(b"\n") == 5
