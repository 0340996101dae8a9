"""A copy of the audit trail in files beside the objects, which outlives the index.

``journal/trail-000000000001.jsonl`` is a segment, named by the number of its first record. Each line is one record in
JSON. Lines are only appended, with fsync, by one process at a time. A last line without a newline was left by a
process that was killed; ``append`` removes it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import partial
from pathlib import Path

from storage.errors import JournalDamaged, NewerFormat
from storage.objects.durability import fsync_file, fsync_folders, full_disk_is_store_full, make_folder
from storage.objects.file_modes import give_to_owner
from storage.objects.journal_lines import cut_torn_end, exclusive, last_whole_line, move_damaged_end
from storage.records import TrailEntry, TrailRecord

_NAME = re.compile(r"trail-\d{12,}\.jsonl")
"""The name of a segment."""
_KEYS = set(TrailRecord.__dataclass_fields__)
_SEGMENT_BYTES = 8 * 1024 * 1024
"""Size in bytes above which the next record starts a new segment. Chosen, not measured."""


class TrailJournal:
    """The journal in one folder. Its caller holds ``locked`` while it appends."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        make_folder(folder)
        give_to_owner(folder)

    def locked(self) -> AbstractContextManager[None]:
        """Exclude all other writers, in this and in other processes."""
        return exclusive(self.folder / "lock")

    def last(self) -> TrailRecord | None:
        """The newest whole record; None if there is none. Raises JournalDamaged, NewerFormat."""
        newest = (newest_record(segment) for segment in reversed(self._segments()))
        return next((record for record in newest if record is not None), None)

    def records(self) -> Iterator[TrailRecord]:
        """Every whole record, in order. Raises JournalDamaged, NewerFormat."""
        for segment in self._segments():
            for line in _whole_lines(segment):
                yield _record(line, segment)

    def repair(self) -> str:
        """Move lines at the end that are not records to a file of their own. Returns what was done; empty if nothing.

        The index still holds these records and appends them again. Raises NewerFormat.
        """
        done: list[str] = []
        with self.locked():
            for segment in reversed(self._segments()):
                if not _ends_badly(segment):
                    break
                end, note = move_damaged_end(segment, partial(_is_record, segment=segment))
                done.append(note)
                if end:
                    break
        return "; ".join(done)

    def append(self, records: Sequence[TrailRecord]) -> None:
        """Append records; on return they are on disk. The caller holds ``locked``. Raises StoreFull."""
        if not records:
            return
        segments = self._segments()
        if segments:
            with segments[-1].open("r+b") as file:
                cut_torn_end(file)
        new = not segments or segments[-1].stat().st_size > _SEGMENT_BYTES
        if new:
            segments = [self.folder / f"trail-{records[0].number:012d}.jsonl"]
        with full_disk_is_store_full(), segments[-1].open("ab") as out:
            out.write(b"".join(map(_line, records)))
            fsync_file(out)
        give_to_owner(segments[-1])
        if new:
            fsync_folders(self.folder)

    def _segments(self) -> list[Path]:
        """The segments in their order. Copies that a person made are left out, since they have other names."""
        return sorted(path for path in self.folder.glob("trail-*.jsonl") if _NAME.fullmatch(path.name))


def is_trail_segment(name: str) -> bool:
    """Whether a path below the storage root is that of a segment."""
    folder, _, segment = name.partition("/")
    return folder == "journal" and _NAME.fullmatch(segment) is not None


def newest_record(segment: Path) -> TrailRecord | None:
    """The last whole record of a segment; None if there is none. Raises JournalDamaged, NewerFormat."""
    line = last_whole_line(segment)
    return _record(line, segment) if line else None


def _line(record: TrailRecord) -> bytes:
    return json.dumps(asdict(record), separators=(",", ":")).encode() + b"\n"


def _record(line: bytes, segment: Path) -> TrailRecord:
    try:
        fields = json.loads(line)
        if set(fields) > _KEYS:
            raise NewerFormat(f"{segment} has records of a later version: install a newer version")
        entry = fields.pop("entry")
        return TrailRecord(**fields, entry=TrailEntry(**{**entry, "uids": tuple(entry["uids"])}))
    except (ValueError, TypeError, KeyError) as error:
        raise JournalDamaged(f"{segment} has a line that is not a record: {error}") from error


def _whole_lines(segment: Path) -> list[bytes]:
    data = segment.read_bytes()
    return data[: data.rfind(b"\n") + 1].splitlines()


def _ends_badly(segment: Path) -> bool:
    line = last_whole_line(segment)
    return bool(line) and not _is_record(line, segment)


def _is_record(line: bytes, segment: Path) -> bool:
    try:
        _record(line, segment)
    except JournalDamaged:
        return False
    return True
