"""A reserve file that is deleted when the disk is full, so that the index can still be opened.

SQLite creates files beside the index when it opens it. Without room for them the archive could not even be read.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

RESERVE = 8 << 20
"""Size of the reserve file in bytes: about 100 times what opening the index and recording a start of the node need."""
_NAME = "reserve"


def keep_reserve(root: Path) -> None:
    """Create the reserve file below ``root`` if at least four times its size is free."""
    file = root / _NAME
    if file.exists() or shutil.disk_usage(root).free < 4 * RESERVE:
        return
    making = root / f"{_NAME}.making"
    with suppress(OSError):
        with making.open("wb") as out:
            os.posix_fallocate(out.fileno(), 0, RESERVE)
        making.replace(file)
    making.unlink(missing_ok=True)


def release_reserve(root: Path) -> str:
    """Delete the reserve file if the disk below ``root`` is full. Returns what was done; empty if nothing."""
    free = shutil.disk_usage(root).free
    if free >= RESERVE:
        return ""
    with suppress(OSError):
        (root / _NAME).unlink()
        return f"{free} bytes are free below {root}: the reserve file was deleted, so that the archive can be read"
    return ""
