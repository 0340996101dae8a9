"""The rendered cache: reconstructions and unpacked originals as files, up to a number of bytes.

The least recently used entries are evicted first. Every entry can be made again. A reader gets a hard link of its own,
so that an entry may be evicted while it is sent.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import threading
import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from storage.objects.store import has_digest

LOGGER = logging.getLogger(__name__)


class RenderedCache:
    """A cache of files below ``root``, at most ``budget`` bytes; 0 disables it."""

    def __init__(self, root: Path, budget: int) -> None:
        self._root, self._budget = root, budget
        self._links = root / "sending"
        self._lock = threading.Lock()
        self._links.mkdir(parents=True, exist_ok=True)
        for leftover in (*self._links.iterdir(), *root.glob("*.making")):
            leftover.unlink(missing_ok=True)

    def new_file(self) -> Path:
        """A new empty file to write an object to; in the system's folder if it cannot be made in the cache."""
        try:
            handle, name = tempfile.mkstemp(dir=self._root, suffix=".making")
        except OSError:  # the disk is full or read-only: the object is sent, and not cached
            return self.new_file_elsewhere()
        os.close(handle)
        return Path(name)

    def new_file_elsewhere(self) -> Path:
        """A new empty file in the system's folder for temporary files, for an object for which this disk is full."""
        handle, name = tempfile.mkstemp(suffix=".making")
        os.close(handle)
        return Path(name)

    def has(self, key: str) -> bool:
        return self._entry(key) is not None

    def link(self, key: str) -> Path | None:
        """A link to the entry for one reader, which unlinks it; None if there is no entry, or it is damaged."""
        entry = self._entry(key)
        if entry is None:
            return None
        link = self._new_link()
        try:
            os.utime(entry)
            os.link(entry, link)
        except OSError:  # evicted meanwhile, or the disk is full or read-only
            return None
        if has_digest(link, entry.name.split(".")[1]):
            return link
        LOGGER.error("cached object %s is damaged; it is made again", key)
        entry.unlink(missing_ok=True)
        link.unlink(missing_ok=True)
        return None

    def keep(self, key: str, made: Path, digest: str = "") -> Path:
        """Move a finished file into the cache, and return a link to it for one reader, which unlinks it.

        If no link can be made, ``made`` itself is returned and not cached. ``digest``: the SHA-256 of the file, if the
        caller has verified it.
        """
        link = self._new_link()
        try:
            os.link(made, link)
        except OSError:  # the disk is full or read-only, or ``made`` was put elsewhere for that reason
            return made
        if not digest:
            with made.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        with self._lock:
            self.drop(key)
            made.replace(self._root / f"{key}.{digest}.dcm")
            self._evict()
        return link

    def drop(self, key: str) -> None:
        """Remove the entry of a key, if there is one; links of readers remain."""
        for entry in self._root.glob(f"{key}.*.dcm"):
            entry.unlink(missing_ok=True)

    def _entry(self, key: str) -> Path | None:
        """The file ``KEY.SHA-256.dcm`` of an entry; the digest reveals damage to it."""
        return next(self._root.glob(f"{key}.*.dcm"), None)

    def _new_link(self) -> Path:
        return self._links / uuid.uuid4().hex

    def _evict(self) -> None:
        entries = []
        for entry in self._root.glob("*.dcm"):
            with suppress(FileNotFoundError):  # a deletion by a command removed it meanwhile
                status = entry.stat()
                entries.append((status.st_mtime_ns, status.st_size, entry))
        used = 0
        for _, size, entry in sorted(entries, reverse=True):
            used += size
            if used > self._budget:
                entry.unlink(missing_ok=True)


def forget(root: Path, digests: Iterable[str]) -> None:
    """Remove the entries of objects from a cache, which another process may use; links of readers remain."""
    for digest in digests:
        for entry in root.glob(f"{digest}*.dcm"):
            entry.unlink(missing_ok=True)
