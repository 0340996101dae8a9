"""Whether an object is whole, and what happens to one that is not: it is moved aside, never deleted.

``damaged/`` beside ``objects/`` holds what was moved aside, under its digest and a number. What turns out to be whole
after all, there or on a second look, is put back.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from storage.errors import ObjectMissing
from storage.objects.durability import fsync_folders
from storage.objects.store import ObjectStore

DAMAGED = "damaged"
ORPHANS = "orphans"


class Condition(StrEnum):
    """What a look at an object found."""

    WHOLE = "whole"
    DAMAGED = "damaged"
    """Its bytes are not those of its name, or the medium does not give them back."""
    MISSING = "missing"
    UNREADABLE = "unreadable"
    """The system refuses to open it (rights, mounts): its bytes may be sound, and it is left where it is."""


@dataclass(frozen=True)
class Inspection:
    """One object looked at: its condition, what is wrong in words, and how many bytes were read."""

    condition: Condition
    detail: str = ""
    bytes_read: int = 0

    @property
    def whole(self) -> bool:
        return self.condition is Condition.WHOLE


def examine(store: ObjectStore, digest: str) -> Inspection:
    """Read an object from beginning to end and compare it with its name."""
    return _examine(store.path(digest), digest)


def set_aside(store: ObjectStore, digest: str) -> Path | None:
    """Move a damaged object to ``damaged/`` and return where it is; None where it was whole after all, or has gone.

    Whoever stores the same bytes at this moment is safe: what was moved is looked at again, and put back if whole.
    """
    final, aside = store.path(digest), _free_name(store, digest)
    try:
        final.rename(aside)
    except FileNotFoundError:
        return None
    fsync_folders(final.parent, aside.parent)
    if not _examine(aside, digest).whole:
        return aside
    put_back(aside, final)
    return None


def recover(store: ObjectStore, digest: str) -> bool:
    """Put back an object that is missing and lies whole in ``damaged/`` or ``orphans/``."""
    among_orphans = (store.root / ORPHANS).glob(f"*/{digest[:2]}/{digest}")
    for aside in [*sorted((store.root / DAMAGED).glob(f"{digest}.*")), *among_orphans]:
        if _examine(aside, digest).whole:
            store.path(digest).parent.mkdir(exist_ok=True)
            put_back(aside, store.path(digest))
            return True
    return False


def remove_aside(store: ObjectStore, digest: str) -> None:
    """Delete what was moved aside of an object that is deleted on purpose."""
    among_orphans = (store.root / ORPHANS).glob(f"*/{digest[:2]}/{digest}")
    for aside in [*(store.root / DAMAGED).glob(f"{digest}.*"), *among_orphans]:
        aside.unlink(missing_ok=True)


@dataclass(frozen=True)
class Listed:
    """One entry of the store: an object, or with ``digest`` empty something that does not belong there."""

    name: str
    digest: str
    bytes: int
    written_at: float


def listing(store: ObjectStore, folder: str) -> list[Listed]:
    """What lies in ``objects/<folder>``, by name; nothing where there is no such folder."""
    root = store.root / "objects" / folder
    found = []
    for entry in sorted(root.iterdir()) if root.is_dir() else ():
        try:
            status = entry.lstat()
        except FileNotFoundError:  # an object that was deleted since
            continue
        found.append(Listed(entry.name, _digest_of(store, entry), status.st_size, status.st_mtime))
    return found


def is_empty(store: ObjectStore) -> bool:
    """Whether the store holds no object at all, as when its disk is not mounted."""
    return not holds_any(store.root / "objects")


def holds_any(objects: Path) -> bool:
    """Whether a folder of objects has any; False where there is no such folder."""
    folders = (folder for folder in objects.iterdir() if folder.is_dir()) if objects.is_dir() else ()
    return any(any(folder.iterdir()) for folder in folders)


def _examine(path: Path, digest: str) -> Inspection:
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or path.parent.is_symlink():
            return Inspection(Condition.DAMAGED, "no regular file")
        with path.open("rb", buffering=0) as opened:
            _forget_cached(opened.fileno())
            found = hashlib.file_digest(opened, "sha256").hexdigest()
            _forget_cached(opened.fileno())
    except FileNotFoundError:
        return Inspection(Condition.MISSING)
    except OSError as error:
        medium = error.errno in (errno.EIO, errno.ELOOP)
        return Inspection(Condition.DAMAGED if medium else Condition.UNREADABLE, f"cannot be read: {error.strerror}")
    if found != digest:
        return Inspection(Condition.DAMAGED, f"{status.st_size} bytes of digest {found}", status.st_size)
    return Inspection(Condition.WHOLE, "", status.st_size)


def _forget_cached(handle: int) -> None:
    """Read from the medium, which is in question, not from memory; and leave memory to what is being served."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)


def put_back(aside: Path, final: Path) -> None:
    """Give an object its place again, unless it was stored anew meanwhile; on return that is on disk."""
    with contextlib.suppress(FileExistsError):  # stored anew meanwhile
        os.link(aside, final)
    fsync_folders(final.parent)
    aside.unlink()
    fsync_folders(aside.parent)


def _free_name(store: ObjectStore, digest: str) -> Path:
    folder = store.root / DAMAGED
    if not folder.is_dir():
        folder.mkdir(exist_ok=True)
        fsync_folders(store.root)
    number = 1
    taken = {entry.name for entry in folder.glob(f"{digest}.*")}
    while f"{digest}.{number}" in taken:
        number += 1
    return folder / f"{digest}.{number}"


def _digest_of(store: ObjectStore, entry: Path) -> str:
    """The digest that an entry is the object of; empty for a name or a place that no object has."""
    try:
        return entry.name if store.path(entry.name) == entry else ""
    except ObjectMissing:
        return ""
