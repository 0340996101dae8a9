"""Writes that survive a power failure, and the error for a full disk."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from storage.errors import StoreFull

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""Values of errno for a full disk, an exhausted quota and a file above the file system's limit."""


def fsync_file(file: IO[Any]) -> None:
    """Flush an open file, and wait until its bytes are on disk."""
    file.flush()
    os.fsync(file.fileno())


def fsync_folders(*folders: Path) -> None:
    """Wait until the entries of these folders (new, renamed and removed files) are on disk."""
    for folder in folders:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def make_folder(folder: Path) -> None:
    """Make a folder unless it exists. On return its name is on disk, but not those of parents that were made too."""
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        fsync_folders(folder.parent)


def replace_file(path: Path, content: Iterable[bytes]) -> None:
    """Create a file, or replace it by a rename. On return it is complete and on disk. Raises StoreFull."""
    making = path.with_name(f"{path.name}.making")
    try:
        with full_disk_is_store_full(), making.open("wb") as out:
            out.writelines(content)
            fsync_file(out)
        making.replace(path)
    except BaseException:
        making.unlink(missing_ok=True)
        raise
    fsync_folders(path.parent)


@contextmanager
def full_disk_is_store_full() -> Iterator[None]:
    """Raise StoreFull in place of an OSError that reports a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise StoreFull(f"no room for the object: {error.strerror}") from error
        raise
