"""Room kept back: a file that is given up where the disk is full, so that an index can be opened and served from.

SQLite makes files beside the index when it opens it. Without room for these an archive could not even be read.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

RESERVE = 8 << 20
"""Bytes kept back: some hundred times what opening an index and noting the start of a node take."""
_NAME = "reserve"


def keep_reserve(root: Path) -> None:
    """Keep room back below ``root``, where there is enough of it."""
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
    """Give up what was kept back where the disk below ``root`` is full; what was done in words, empty for nothing."""
    free = shutil.disk_usage(root).free
    if free >= RESERVE:
        return ""
    with suppress(OSError):
        (root / _NAME).unlink()
        return (
            f"{free} bytes are free below {root}: room that was kept back is given up, so that the archive can be read"
        )
    return ""
