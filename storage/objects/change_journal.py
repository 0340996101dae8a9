"""The change journal: files beside the objects that hold every committed row, so that the index can be rebuilt.

``journal/changes-<number>.jsonl`` is a segment. Each line is a CRC-32 in hex, a space, and JSON. The first line of a
segment names the archive; each further line holds the ``rows`` that some commits changed, and the ``number`` of the
last of these changes. A segment whose first line says ``whole`` starts with every row of the index and replaces all
earlier segments. Lines are only appended, with fsync, by one process at a time. docs/FORMATS.md describes the rows.
"""

from __future__ import annotations

import json
import os
import re
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.errors import JournalDamaged, NewerFormat
from storage.objects.durability import fsync_file, fsync_folders, full_disk_is_store_full, make_folder
from storage.objects.file_modes import give_to_owner
from storage.objects.journal_lines import cut_torn_end, exclusive, last_whole_line, move_damaged_end

FORMAT = 1
"""Version of the line format. A segment of a higher version is refused."""

_NAME = re.compile(r"changes-\d{12,}(-whole)?\.jsonl")
"""The name of a segment."""

_SEGMENT_BYTES = 32 * 1024 * 1024
"""Size in bytes above which the next line starts a new segment. Chosen, not measured."""

Change = list[Any]
"""``["+", table, key, row]`` is a new row, ``["~", table, key, columns]`` changes columns of an existing row, and
``["-", table, key]`` deletes a row. ``key``: values of the primary key."""


@dataclass(frozen=True)
class Group:
    """The changes in one line. ``number``: the number of the last of these changes."""

    number: int
    rows: list[Change]


class ChangeJournal:
    """The change journal in one folder. Its caller holds ``locked`` while it writes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._end: tuple[Path, int, int] | None = None
        make_folder(folder)
        give_to_owner(folder)

    def locked(self) -> AbstractContextManager[None]:
        """Exclude all other writers, in this and in other processes."""
        return exclusive(self.folder / "changes.lock")

    def archive(self) -> str:
        """The identity of the archive; empty if there is no journal. Raises NewerFormat."""
        names = (str(_header(segment)["archive"]) for segment in reversed(self._segments()))
        return next((name for name in names if name), "")

    def whole_since(self) -> int:
        """The commit number at which the newest whole segment starts; -1 if there is none."""
        return max((_place(segment)[0] for segment in self._segments() if _header(segment)["whole"]), default=-1)

    def last(self) -> int:
        """The number of the last commit in the journal; -1 if there is no journal. Raises JournalDamaged."""
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

    def settle(self) -> None:
        """Sync lines that other processes appended, and cut off a partial line that a killed process left.

        Otherwise the next line would be appended to the partial one. The index still marks the changes of the partial
        line, so that they are appended again.
        """
        segments = self._segments()
        if not segments or (self._end is not None and self._end[:2] == (segments[-1], segments[-1].stat().st_size)):
            return
        with segments[-1].open("r+b") as file:
            cut_torn_end(file)
            fsync_file(file)
            if not file.tell():
                segments[-1].unlink()
        fsync_folders(self.folder)

    def append(self, group: Group) -> None:
        """Append a line; on return it is on disk. ``begin`` has made the first segment. Raises StoreFull."""
        segment = self._segments()[-1]
        archive = None
        size = segment.stat().st_size
        if size > _SEGMENT_BYTES:
            archive, before, size = str(_header(segment)["archive"]), self.last(), 0
            segment = self._segment(group.number)
        with full_disk_is_store_full():
            try:
                with segment.open("ab") as out:
                    if archive is not None:
                        head = {"format": FORMAT, "archive": archive, "number": before, "whole": False}
                        out.write(_line(head))
                    out.write(_line({"number": group.number, "rows": group.rows}))
                    fsync_file(out)
                    end = out.tell()
                give_to_owner(segment)
            except OSError:  # closing the file has written its buffer, so the line may be there in part
                _shorten(segment, size)
                raise
        if archive is not None:
            fsync_folders(self.folder)
        self._end = (segment, end, group.number)

    def begin(self, archive: str, number: int, rows: Iterable[list[Change]]) -> None:
        """Start a new journal with ``rows``, all rows of the index, and move all former segments to ``superseded/``.

        Raises StoreFull.
        """
        making = self._made_whole(archive, number, rows)
        final = self._segment(number, whole=True)
        self.set_aside([final])
        making.replace(final)
        fsync_folders(self.folder)
        self.set_aside(segment for segment in self._segments() if segment != final)
        self._end = None

    def compact(self, archive: str, number: int, rows: Iterable[list[Change]]) -> None:
        """Replace all segments by one that holds ``rows``, all rows of the index.

        The new segment is on disk under its final name before any other is deleted. If the process is killed in
        between, the next compaction deletes the remaining segments. Raises StoreFull, and JournalDamaged if the new
        segment cannot be read back.
        """
        former, final = self._segments(), self._segment(number, whole=True)
        making = self._made_whole(archive, number, rows)
        with making.open("rb") as lines:
            if any(_content(line.rstrip(b"\n")) is None for line in lines):
                making.unlink()
                raise JournalDamaged(f"{making} does not read back as it was written; check the disk")
        making.replace(final)
        fsync_folders(self.folder)
        for segment in former:
            if segment != final:
                segment.unlink()
        fsync_folders(self.folder)
        self._end = None

    def _made_whole(self, archive: str, number: int, rows: Iterable[list[Change]]) -> Path:
        """Write a file, synced to disk, that becomes a whole segment when it is renamed."""
        making = self.folder / "changes.making"
        with full_disk_is_store_full(), making.open("wb") as out:
            out.write(_line({"format": FORMAT, "archive": archive, "number": number, "whole": True}))
            for part in rows:
                out.write(_line({"number": number, "rows": part}))
            fsync_file(out)
        give_to_owner(making)
        return making

    def set_aside(self, segments: Iterable[Path] | None = None) -> None:
        """Move these segments, by default all, to a folder below ``superseded/``. Nothing is deleted."""
        moved = [one for one in (self._segments() if segments is None else segments) if one.exists()]
        if not moved:
            return
        aside = self.folder / "superseded" / f"{time.time_ns()}"
        aside.mkdir(parents=True)
        for segment in moved:
            segment.replace(aside / segment.name)
        fsync_folders(aside, aside.parent, self.folder)
        self._end = None

    def repair(self) -> str:
        """Move torn or damaged lines at the end to a file of their own. Returns what was done; empty if nothing.

        The index still holds these changes and appends them again. Raises NewerFormat: the lines of a later format may
        look damaged.
        """
        self._end = None
        for segment in self._segments():
            _header(segment)
        done: list[str] = []
        for segment in reversed(self._segments()):
            if not _ends_damaged(segment):
                break
            end, note = move_damaged_end(segment, lambda line: _content(line) is not None)
            done += [note] if note else []
            if end:
                break
            segment.unlink()
        return "; ".join(done)

    def groups(
        self,
        *,
        after: int = -1,
        damaged: Callable[[str], None] | None = None,
        progress: Callable[[int], None] = lambda size: None,
    ) -> Iterator[Group]:
        """The changes numbered above ``after``, in order, from the newest whole segment on.

        ``damaged`` is called with the name of each unreadable line, which is then skipped, and with the numbers of
        the changes that a missing segment held. Without ``damaged``, both raise JournalDamaged. ``progress(bytes)`` is
        called for each line.
        """

        def report(what: str) -> None:
            if damaged is None:
                raise JournalDamaged(f"{what} in {self.folder}: damaged or missing")
            damaged(what)

        segments, known = self._segments(), after
        whole = [at for at, segment in enumerate(segments) if _header(segment)["whole"]]
        for segment in segments[whole[-1] if whole else 0 :]:
            with segment.open("rb") as lines:
                for count, line in enumerate(lines, 1):
                    progress(len(line))
                    content = _content(line.rstrip(b"\n"))
                    if content is None:
                        report(f"line {count} of {segment.name}")
                        continue
                    number = int(content["number"])
                    if "rows" not in content and not content["whole"] and number > known:
                        report(f"changes {known + 1} to {number}, before {segment.name}")
                    elif "rows" in content and number > after:
                        yield Group(number, content["rows"])
                    known = max(known, number)

    def size(self) -> int:
        """The size of all segments, in bytes."""
        return sum(segment.stat().st_size for segment in self._segments())

    def _segments(self) -> list[Path]:
        """The segments in their order. Copies that a person made are left out, since they have other names."""
        found = (path for path in self.folder.glob("changes-*.jsonl") if _NAME.fullmatch(path.name))
        return sorted(found, key=_place)

    def _segment(self, number: int, *, whole: bool = False) -> Path:
        return self.folder / f"changes-{number:012d}{'-whole' if whole else ''}.jsonl"


def _shorten(segment: Path, size: int) -> None:
    """Remove a partial line, which would make the next line unreadable, or a segment that did not exist before."""
    if size:
        os.truncate(segment, size)
    else:
        segment.unlink(missing_ok=True)


def _place(segment: Path) -> tuple[int, bool]:
    number, _, whole = segment.stem.removeprefix("changes-").partition("-")
    return int(number), bool(whole)


def _line(content: dict[str, Any]) -> bytes:
    body = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    return b"%08x %s\n" % (zlib.crc32(body), body)


def _content(line: bytes) -> dict[str, Any] | None:
    """The JSON of a line; None if the line is damaged."""
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


def _ends_damaged(segment: Path) -> bool:
    with segment.open("rb") as file:
        file.seek(-min(1, segment.stat().st_size), os.SEEK_END)
        ended = file.read() == b"\n"
    return not ended or _content(last_whole_line(segment)) is None
