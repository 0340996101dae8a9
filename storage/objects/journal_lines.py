"""Journal files: text lines that are only ever appended, by one process at a time."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from storage.objects.durability import fsync_file, fsync_folders
from storage.objects.file_modes import give_to_owner
from storage.printable import counted


@contextmanager
def exclusive(lock: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file ``lock``. Waits while another thread or process holds it."""
    with lock.open("wb") as file:
        give_to_owner(lock)
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def last_whole_line(segment: Path) -> bytes:
    """The last line that ends with a newline, without the newline; empty if there is none."""
    size, reach = segment.stat().st_size, 1 << 16
    with segment.open("rb") as file:
        while True:
            file.seek(max(0, size - reach))
            lines = file.read().rpartition(b"\n")[0].split(b"\n")
            if len(lines) > 1 or reach >= size:  # the first line that was read may lack its beginning
                return lines[-1]
            reach *= 2


def cut_torn_end(file: IO[bytes]) -> None:
    """Cut off a last line without its newline, which a killed process left. On return the file is at its end."""
    size = file.seek(0, 2)
    file.seek(max(size - 1, 0))
    if file.read() not in (b"", b"\n"):
        file.seek(0)
        file.seek(file.read().rfind(b"\n") + 1)
        file.truncate()


def move_damaged_end(segment: Path, is_sound: Callable[[bytes], bool]) -> tuple[int, str]:
    """Move what follows the last sound line to a file of its own.

    Returns the number of bytes left in the segment, and a description of the move; it is empty if nothing was moved.
    """
    data = segment.read_bytes()
    end = _sound_length(data, is_sound)
    if not data[end:]:
        return end, ""
    aside = segment.with_name(f"damaged-{time.time_ns()}")
    with aside.open("wb") as out:
        out.write(data[end:])
        fsync_file(out)
    with segment.open("r+b") as file:
        file.truncate(end)
        fsync_file(file)
    fsync_folders(segment.parent)
    return end, f"{counted(len(data) - end, 'damaged byte')} at the end of {segment}, moved to {aside}"


def _sound_length(data: bytes, is_sound: Callable[[bytes], bool]) -> int:
    """Bytes up to the end of the last whole line that is sound."""
    end = data.rfind(b"\n") + 1
    while end:
        begin = data.rfind(b"\n", 0, end - 1) + 1
        if is_sound(data[begin : end - 1]):
            return end
        end = begin
    return 0
