"""A folder as a disk holds it after a power failure: POSIX promises only what was synced."""

from __future__ import annotations

import os
import stat
from itertools import count
from pathlib import Path

import pytest


class SyncedFolder:
    """Follows what is synced below ``root``. What it holds at first is on disk.

    A synced file has its bytes on disk, and a synced folder its entries; a name without a synced folder is lost.
    """

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._root = root
        self._numbers = count()
        self._files: dict[int, bytes] = {}
        self._folders: dict[int, dict[str, tuple[int, bool]]] = {}
        self._open: list[int] = []
        """Handles that keep the number of an inode from being used again."""
        for path in (root, *root.rglob("*")):
            handle = os.open(path, os.O_RDONLY)
            self._sync(handle)
            os.close(handle)
        monkeypatch.setattr(os, "fsync", self._sync)

    def after_power_failure(self) -> Path:
        """A new folder with what would be left now."""
        left = self._root.with_name(f"{self._root.name}-after-{next(self._numbers)}")
        self._write(left, self._root.stat().st_ino, folder=True)
        return left

    def close(self) -> None:
        for handle in self._open:
            os.close(handle)

    def _sync(self, handle: int) -> None:
        status = os.fstat(handle)
        self._open.append(os.dup(handle))
        if stat.S_ISDIR(status.st_mode):
            with os.scandir(handle) as entries:
                self._folders[status.st_ino] = {one.name: (one.inode(), one.is_dir()) for one in entries}
        else:
            path = Path(f"/proc/self/fd/{handle}")  # the handle may be open for writing only
            self._files[status.st_ino] = path.read_bytes()

    def _write(self, path: Path, inode: int, *, folder: bool) -> None:
        if folder:
            path.mkdir()
            for name, (entry, is_folder) in self._folders.get(inode, {}).items():
                self._write(path / name, entry, folder=is_folder)
        else:
            path.write_bytes(self._files.get(inode, b""))
