"""Who may read what an archive writes: its own user alone. And nothing in it is a link to somewhere else.

Files are made 0600 and folders 0700, by the mask that ``keep_private`` sets for the process and those it starts.
``close_to_others`` sees to what an earlier release made, and to links that somebody put there.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from storage.errors import ConfigError

MASK = 0o077
_DEEPER = {"journal", "reports", "damaged", "objects"}
"""Folders whose entries are looked at too; objects lie one deeper, and each is looked at when it is read."""


def keep_private() -> None:
    """Whatever this process and its workers make is for its own user alone; called once at the start."""
    os.umask(MASK)


def close_to_others(root: Path) -> None:
    """Take rights on an archive's folder from everybody else. Raises ConfigError where there is a link in it.

    The folder itself may be reached by a link. Where the file system is read-only, or is another user's, rights stay.
    """
    for entry in _entries(root):
        if entry.is_symlink():
            raise ConfigError(
                f"{entry.path} is a symbolic link, and none is followed inside an archive; "
                "mount the other place there, or move storage.root"
            )
        mode = stat.S_IMODE(entry.stat(follow_symlinks=False).st_mode)
        if mode & MASK:
            with suppress(OSError):
                Path(entry.path).chmod(mode & ~MASK)
    with suppress(OSError):
        if stat.S_IMODE(root.stat().st_mode) & MASK:
            root.chmod(0o700)


def _entries(root: Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(root) as entries:
        for entry in entries:
            yield entry
            if entry.name in _DEEPER and entry.is_dir(follow_symlinks=False):
                with suppress(FileNotFoundError), os.scandir(entry.path) as inner:
                    yield from inner
