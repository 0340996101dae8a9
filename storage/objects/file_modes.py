"""File modes: only the archive's own user may read its files, and no symbolic link in it is followed.

Files have mode 0600 and folders 0700, by the umask that ``keep_private`` sets for this process and its children.
``close_to_others`` corrects the modes that earlier versions left, and refuses symbolic links. ``give_to_owner`` keeps
a command of root from leaving files that the node's user cannot use.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from storage.errors import ConfigError

MASK = 0o077
"""Permission bits of group and others."""
_DEEPER = {"journal", "reports", "damaged", "objects"}
"""Folders whose entries are checked too. Objects lie one level deeper; each is checked when it is read."""


def keep_private() -> None:
    """Set the umask so that only this user can read new files. Called once, before workers start."""
    os.umask(MASK)


def give_to_owner(*paths: Path, folder: Path | None = None) -> None:
    """Change the owner of files and folders that root created to the owner of ``folder``, by default of their parent.

    Otherwise a command that root runs on another user's archive would leave files that the node cannot use. Does
    nothing unless this process runs as root.
    """
    if os.geteuid() != 0:
        return
    for path in paths:
        owner = (folder or path.parent).stat()
        if owner.st_uid and not path.stat().st_uid:
            with suppress(OSError):  # a file system without owners
                os.chown(path, owner.st_uid, owner.st_gid)


def close_to_others(root: Path) -> None:
    """Remove the permissions of group and others in an archive's folder. Raises ConfigError if it holds a link.

    The folder itself may be a link. If the file system is read-only or belongs to another user, nothing is changed.
    """
    for entry in _entries(root):
        if entry.is_symlink():
            raise ConfigError(
                f"{entry.path} is a symbolic link, which is not followed inside an archive; "
                f"move all of {root} to the other disk"
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
