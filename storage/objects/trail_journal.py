"""The journal: the audit trail as files beside the objects, so that it outlives the index.

``journal/trail-000000000001.jsonl``: one record a line, as JSON, in segments named by their first record. Lines are
only ever added, with fsync, by one process at a time. A last line without an end was being written when its process
was killed; it is written anew.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from storage.errors import JournalDamaged
from storage.objects.store import fsync_folder
from storage.records import TrailEntry, TrailRecord

_SEGMENT_BYTES = 8 * 1024 * 1024


class TrailJournal:
    """The journal in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps every other writer, of any process, out."""
        with (self.folder / "lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def last(self) -> TrailRecord | None:
        """The newest whole record. Raises JournalDamaged."""
        for segment in reversed(self._segments()):
            line = last_whole_line(segment)
            if line:
                return _record(line, segment)
        return None

    def records(self) -> Iterator[TrailRecord]:
        """Every whole record, in order. Raises JournalDamaged."""
        for segment in self._segments():
            for line in _whole_lines(segment):
                yield _record(line, segment)

    def repair(self) -> str:
        """Cut lines that are no records off the end, and keep them beside; what was done in words, empty for nothing.

        What was cut is in the index, which writes it down again.
        """
        with self.locked():
            for segment in reversed(self._segments()):
                data = segment.read_bytes() if _ends_badly(segment) else b""
                end = _sound_length(data, segment)
                if end == len(data):
                    return ""
                aside = self.folder / f"damaged-{time.time_ns()}"
                aside.write_bytes(data[end:])
                with segment.open("r+b") as file:
                    file.truncate(end)
                    os.fsync(file.fileno())
                if end:
                    return f"{len(data) - end} damaged bytes at the end of {segment} were moved to {aside}"
        return ""

    def append(self, records: Iterable[TrailRecord]) -> None:
        """Add records; on return they are on disk. The caller has the lock."""
        lines = [(record.number, _line(record)) for record in records]
        if not lines:
            return
        segments = self._segments()
        if segments:
            _cut_torn_end(segments[-1])
        new = not segments or segments[-1].stat().st_size > _SEGMENT_BYTES
        if new:
            segments = [self.folder / f"trail-{lines[0][0]:012d}.jsonl"]
        with segments[-1].open("ab") as out:
            out.write(b"".join(line for _, line in lines))
            out.flush()
            os.fsync(out.fileno())
        if new:
            fsync_folder(self.folder)

    def _segments(self) -> list[Path]:
        return sorted(self.folder.glob("trail-*.jsonl"))


def _line(record: TrailRecord) -> bytes:
    return json.dumps(asdict(record), separators=(",", ":")).encode() + b"\n"


def _record(line: bytes, segment: Path) -> TrailRecord:
    try:
        fields = json.loads(line)
        entry = fields.pop("entry")
        return TrailRecord(**fields, entry=TrailEntry(**{**entry, "uids": tuple(entry["uids"])}))
    except (ValueError, TypeError, KeyError) as error:
        raise JournalDamaged(f"{segment} has a line that is no record: {error}") from error


def _whole_lines(segment: Path) -> list[bytes]:
    data = segment.read_bytes()
    return data[: data.rfind(b"\n") + 1].splitlines()


def last_whole_line(segment: Path) -> bytes:
    """The last line that has an end, without it; empty where there is none."""
    size, reach = segment.stat().st_size, 1 << 16
    with segment.open("rb") as file:
        while True:
            file.seek(max(0, size - reach))
            lines = file.read().rpartition(b"\n")[0].split(b"\n")
            if len(lines) > 1 or reach >= size:  # the first one found may have lost its beginning
                return lines[-1]
            reach *= 2


def _ends_badly(segment: Path) -> bool:
    line = last_whole_line(segment)
    return bool(line) and not _is_record(line, segment)


def _is_record(line: bytes, segment: Path) -> bool:
    try:
        _record(line, segment)
    except JournalDamaged:
        return False
    return True


def _sound_length(data: bytes, segment: Path) -> int:
    """Bytes up to the end of the last line that is a record."""
    end = data.rfind(b"\n") + 1
    while end:
        begin = data.rfind(b"\n", 0, end - 1) + 1
        if _is_record(data[begin : end - 1], segment):
            return end
        end = begin
    return 0


def _cut_torn_end(segment: Path) -> None:
    with segment.open("r+b") as file:
        data = file.read()
        file.truncate(data.rfind(b"\n") + 1)
