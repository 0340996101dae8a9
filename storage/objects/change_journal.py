"""The change journal: every row of the index as it was committed, as files beside the objects, so that it outlives it.

``journal/changes-<number>.jsonl``. A line is a CRC-32 in hex, a space, and JSON. The first line of a segment says which
archive it is of; each further line holds the changes of some commits: ``number`` of the last one, and ``rows``. A
segment whose header says ``whole`` begins with every row there was, and makes all segments before it superfluous. Lines
are only ever added, with fsync, by one process at a time. docs/FORMATS.md describes the rows.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.errors import JournalDamaged, NewerFormat
from storage.objects.store import fsync_folder, full_disk_is_store_full
from storage.objects.trail_journal import last_whole_line

FORMAT = 1
"""Version of the lines; a segment of a higher one is refused."""

_SEGMENT_BYTES = 32 * 1024 * 1024
"""A segment that is larger is followed by a new one."""

Change = list[Any]
"""``["+", table, key, row]`` for a whole row, ``["~", table, key, columns]`` for some columns of a row that is there
already, ``["-", table, key]`` for a row that was deleted. ``key``: values of the primary key."""


@dataclass(frozen=True)
class Group:
    """The changes of one line. ``number``: that of the last commit in it."""

    number: int
    rows: list[Change]


class ChangeJournal:
    """The change journal in one folder. Its caller holds ``locked`` while it writes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._end: tuple[Path, int, int] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps every other writer, of any process, out."""
        with (self.folder / "changes.lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def archive(self) -> str:
        """The identity of the archive that it is of; empty where there is no journal. Raises NewerFormat."""
        names = (str(_header(segment)["archive"]) for segment in reversed(self._segments()))
        return next((name for name in names if name), "")

    def whole_since(self) -> int:
        """The number at which the newest segment with every row begins; -1 where there is none."""
        return max((_place(segment)[0] for segment in self._segments() if _header(segment)["whole"]), default=-1)

    def last(self) -> int:
        """Number of the last commit that it tells of; -1 where there is no journal. Raises JournalDamaged."""
        segments = self._segments()
        if not segments:
            return -1
        size = segments[-1].stat().st_size
        if self._end is None or self._end[:2] != (segments[-1], size):
            content = _content(last_whole_line(segments[-1]))
            if content is None:
                raise JournalDamaged(f"the last line of {segments[-1]} is damaged")
            self._end = (segments[-1], size, int(content["number"]))
        return self._end[2]

    def append(self, group: Group) -> None:
        """Add a line; on return it is on disk. Raises StoreFull."""
        segment = self._segments()[-1]
        archive = None
        if segment.stat().st_size > _SEGMENT_BYTES:
            archive = str(_header(segment)["archive"])
            segment = self._segment(group.number)
        with full_disk_is_store_full(), segment.open("ab") as out:
            size = out.tell()
            try:
                if archive is not None:
                    out.write(_line({"format": FORMAT, "archive": archive, "number": group.number - 1, "whole": False}))
                out.write(_line({"number": group.number, "rows": group.rows}))
                out.flush()
                os.fsync(out.fileno())
            except OSError:
                os.truncate(segment, size)  # half a line would hide what is added after it
                raise
            size = out.tell()
        if archive is not None:
            fsync_folder(self.folder)
        self._end = (segment, size, group.number)

    def begin(self, archive: str, number: int, rows: Iterable[list[Change]]) -> None:
        """Begin anew with every row there is; what was there before is moved to ``superseded/``. Raises StoreFull."""
        making = self._made_whole(archive, number, rows)
        final = self._segment(number, whole=True)
        self.set_aside([final])
        making.replace(final)
        fsync_folder(self.folder)
        self.set_aside(segment for segment in self._segments() if segment != final)
        self._end = None

    def compact(self, archive: str, number: int, rows: Iterable[list[Change]]) -> None:
        """Put one segment with every row there is in place of all segments, which are deleted. Raises StoreFull,
        JournalDamaged where the new segment cannot be read back.

        It has its final name, on disk, before anything is deleted; segments that a killed process leaves behind are
        superfluous, and go with the next compaction.
        """
        former, final = self._segments(), self._segment(number, whole=True)
        making = self._made_whole(archive, number, rows)
        with making.open("rb") as lines:
            if any(_content(line.rstrip(b"\n")) is None for line in lines):
                making.unlink()
                raise JournalDamaged(f"what was written to {making} is not what comes back; is the disk sound?")
        making.replace(final)
        fsync_folder(self.folder)
        for segment in former:
            if segment != final:
                segment.unlink()
        fsync_folder(self.folder)
        self._end = None

    def _made_whole(self, archive: str, number: int, rows: Iterable[list[Change]]) -> Path:
        """A file, on disk, that becomes a segment with every row when it is renamed."""
        making = self.folder / "changes.making"
        with full_disk_is_store_full(), making.open("wb") as out:
            out.write(_line({"format": FORMAT, "archive": archive, "number": number, "whole": True}))
            for some in rows:
                out.write(_line({"number": number, "rows": some}))
            out.flush()
            os.fsync(out.fileno())
        return making

    def set_aside(self, segments: Iterable[Path] | None = None) -> None:
        """Move segments, all where none are named, to a folder below ``superseded/``; nothing is deleted."""
        these = [one for one in (self._segments() if segments is None else segments) if one.exists()]
        if not these:
            return
        aside = self.folder / "superseded" / f"{time.time_ns()}"
        aside.mkdir(parents=True)
        for segment in these:
            segment.replace(aside / segment.name)
        fsync_folder(aside)
        fsync_folder(self.folder)
        self._end = None

    def repair(self) -> str:
        """Cut what is torn or damaged off the end, and keep it beside; what was done in words, empty for nothing.

        What was cut is in the index, which writes it down again.
        """
        self._end = None
        for segment in reversed(self._segments()):
            data = segment.read_bytes() if _is_hurt(segment) else None
            if data is None:
                return ""
            end = _sound_length(data)
            aside = self.folder / f"damaged-{time.time_ns()}"
            aside.write_bytes(data[end:])
            if end == 0:
                segment.unlink()
            else:
                os.truncate(segment, end)
            fsync_folder(self.folder)
            if end:
                return f"{len(data) - end} damaged bytes at the end of {segment} were moved to {aside}"
        return ""

    def groups(
        self,
        *,
        after: int = -1,
        damaged: Callable[[Path, int], None] | None = None,
        progress: Callable[[int], None] = lambda size: None,
    ) -> Iterator[Group]:
        """What it tells, in order, from the newest segment with every row on: the lines numbered above ``after``.

        ``damaged`` hears of each line that cannot be read (segment, number of the line), which is left out then;
        without it such a line raises JournalDamaged. ``progress`` hears of the bytes of each line.
        """
        segments = self._segments()
        whole = [at for at, segment in enumerate(segments) if _header(segment)["whole"]]
        for segment in segments[whole[-1] if whole else 0 :]:
            with segment.open("rb") as lines:
                for count, line in enumerate(lines, 1):
                    progress(len(line))
                    content = _content(line.rstrip(b"\n"))
                    if content is None:
                        if damaged is None:
                            raise JournalDamaged(f"line {count} of {segment} is damaged")
                        damaged(segment, count)
                    elif "rows" in content and content["number"] > after:
                        yield Group(int(content["number"]), content["rows"])

    def size(self) -> int:
        """Bytes of all segments."""
        return sum(segment.stat().st_size for segment in self._segments())

    def _segments(self) -> list[Path]:
        return sorted(self.folder.glob("changes-*.jsonl"), key=_place)

    def _segment(self, number: int, *, whole: bool = False) -> Path:
        return self.folder / f"changes-{number:012d}{'-whole' if whole else ''}.jsonl"


def _place(segment: Path) -> tuple[int, bool]:
    number, _, whole = segment.stem.removeprefix("changes-").partition("-")
    return int(number), bool(whole)


def _line(content: dict[str, Any]) -> bytes:
    body = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    return b"%08x %s\n" % (zlib.crc32(body), body)


def _content(line: bytes) -> dict[str, Any] | None:
    """What a line says; None where it is damaged."""
    try:
        if len(line) < 10 or int(line[:8], 16) != zlib.crc32(line[9:]):
            return None
        found: dict[str, Any] = json.loads(line[9:])
        return found
    except ValueError:
        return None


def _header(segment: Path) -> dict[str, Any]:
    with segment.open("rb") as lines:
        content = _content(lines.readline().rstrip(b"\n"))
    if content is None or "format" not in content:
        return {"format": FORMAT, "archive": "", "whole": False}
    if content["format"] > FORMAT:
        raise NewerFormat(
            f"{segment} has format {content['format']}, and this version reads up to {FORMAT}: install a newer version"
        )
    return content


def _is_hurt(segment: Path) -> bool:
    with segment.open("rb") as file:
        file.seek(-min(1, segment.stat().st_size), os.SEEK_END)
        ended = file.read() == b"\n"
    return not ended or _content(last_whole_line(segment)) is None


def _sound_length(data: bytes) -> int:
    """Bytes up to the end of the last sound line."""
    end = data.rfind(b"\n") + 1
    while end:
        begin = data.rfind(b"\n", 0, end - 1) + 1
        if _content(data[begin : end - 1]) is not None:
            return end
        end = begin
    return 0
