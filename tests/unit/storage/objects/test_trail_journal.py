"""Proves that the journal of the audit trail returns its records, and moves damaged lines away."""

from __future__ import annotations

from pathlib import Path

import pytest

import storage.objects.trail_journal as journal_module
from storage.errors import JournalDamaged, NewerFormat, StoreFull
from storage.objects.trail_journal import TrailJournal
from storage.records import TrailEntry, TrailRecord
from tests.support.largest_file import largest_file


def record(number: int, detail: str = "") -> TrailRecord:
    entry = TrailEntry("store", "MODALITY", "image", (f"1.2.{number}",), detail=detail)
    return TrailRecord(number, "2026-01-01T00:00:00+00:00", entry, "0" * 64, f"{number:064x}")


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrailJournal:
    """Records 1 and 2 in a first segment, 3 in a second, 4 in a third."""
    made = TrailJournal(tmp_path / "journal")
    made.append([record(1), record(2)])
    monkeypatch.setattr(journal_module, "_SEGMENT_BYTES", 0)
    made.append([record(3)])
    made.append([record(4)])
    return made


def segments(journal: TrailJournal) -> list[Path]:
    return sorted(journal.folder.glob("trail-*.jsonl"))


def test_the_newest_record_is_found_before_an_empty_segment(journal: TrailJournal) -> None:
    """A process that is killed when it begins a segment leaves an empty one."""
    (journal.folder / "trail-000000000005.jsonl").touch()
    assert journal.last() == record(4)
    assert journal.repair() == ""
    journal.append([record(5)])
    assert list(journal.records()) == [record(number) for number in range(1, 6)]


def test_segments_without_a_record_are_moved_away_and_named(journal: TrailJournal) -> None:
    _, *lost = segments(journal)
    for segment in lost:
        segment.write_bytes(b'{"no": "record"}\n')
    with pytest.raises(JournalDamaged, match="has a line that is not a record"):
        journal.last()
    note = journal.repair()
    assert note.count("17 damaged bytes at the end of") == 2
    assert all(str(segment) in note for segment in lost)
    assert [path.read_bytes() for path in journal.folder.glob("damaged-*")] == [b'{"no": "record"}\n'] * 2
    assert journal.last() == record(2)
    journal.append([record(3), record(4)])
    assert list(journal.records()) == [record(number) for number in range(1, 5)]


def test_a_copy_of_a_segment_is_no_segment(journal: TrailJournal) -> None:
    """Formerly, a rebuild of the index read the records twice, and ended with an exception."""
    for name in ("trail-000000000001-copy.jsonl", "trail-000000000004 (2).jsonl"):
        (journal.folder / name).write_bytes(segments(journal)[0].read_bytes())
    assert journal.last() == record(4)
    assert list(journal.records()) == [record(number) for number in range(1, 5)]


def test_records_of_a_later_version_are_refused_and_left(journal: TrailJournal) -> None:
    newer = segments(journal)[-1]
    newer.write_bytes(newer.read_bytes() + newer.read_bytes().replace(b"{", b'{"signed":"x",', 1))
    before = newer.read_bytes()
    for read in (journal.repair, journal.last, lambda: list(journal.records())):
        with pytest.raises(NewerFormat, match="records of a later version: install a newer version"):
            read()
    assert newer.read_bytes() == before


def test_records_that_do_not_fit_are_appended_again_later(tmp_path: Path) -> None:
    journal = TrailJournal(tmp_path / "other")
    journal.append([record(1)])
    size = segments(journal)[0].stat().st_size
    late = [record(2), record(3, detail="x" * 100)]
    with largest_file(size + 40), pytest.raises(StoreFull, match="no room for the object: File too large"):
        journal.append(late)
    assert journal.last() == record(1)
    assert list(journal.records()) == [record(1)]
    journal.append(late)
    assert list(journal.records()) == [record(1), *late]
