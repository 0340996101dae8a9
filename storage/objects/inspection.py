"""Verifies objects, and moves damaged ones away without deleting them.

``damaged/`` beside ``objects/`` holds damaged objects, each named by its digest and a number. An object that verifies
when it is read again is moved back.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from storage.errors import ObjectMissing
from storage.objects.durability import fsync_folders, make_folder
from storage.objects.file_modes import give_to_owner
from storage.objects.store import DAMAGED, ORPHANS, ObjectStore


class Condition(StrEnum):
    WHOLE = "whole"
    DAMAGED = "damaged"
    """Its bytes do not have its digest, the disk fails to read them, or it is not a regular file."""
    MISSING = "missing"
    UNREADABLE = "unreadable"
    """The system refuses to open it (permissions, mounts). Its bytes may be sound, so it is not moved."""


@dataclass(frozen=True)
class Inspection:
    """The result of reading one object. ``detail``: a description of the fault."""

    condition: Condition
    detail: str = ""
    bytes_read: int = 0

    @property
    def whole(self) -> bool:
        return self.condition is Condition.WHOLE


def examine(store: ObjectStore, digest: str) -> Inspection:
    """Read a whole object from disk and compare it with its digest."""
    return _examine(store.path(digest), digest)


def set_aside(store: ObjectStore, digest: str) -> Path | None:
    """Move a damaged object to ``damaged/`` and return its path; None if it is whole or no longer exists.

    The file is verified again after the move and put back if it is whole, so a concurrent write of the same object is
    not lost. A reader may put it back first (``recover``).
    """
    final, aside = store.path(digest), _free_name(store, digest)
    try:
        final.rename(aside)
    except FileNotFoundError:
        return None
    fsync_folders(final.parent, aside.parent)
    found = _examine(aside, digest)
    if found.whole:
        put_back(aside, final)
    return None if found.condition in (Condition.WHOLE, Condition.MISSING) else aside


def recover(store: ObjectStore, digest: str) -> bool:
    """Put back a missing object if ``damaged/`` or ``orphans/`` holds it whole. Returns whether it was put back."""
    for aside in _copies_aside(store, digest):
        if _examine(aside, digest).whole:
            put_back(aside, store.path(digest))
            return True
    return False


def is_back(store: ObjectStore, digest: str) -> bool:
    """Whether an object that a reader did not find is in the store after all.

    A process that was killed after it moved the object aside may have left it in ``damaged/`` or ``orphans/``. If it is
    whole, it is put back.
    """
    try:
        return store.has(digest) or recover(store, digest) or store.has(digest)
    except OSError:  # such as a read-only disk
        return False


def finish_moves(store: ObjectStore) -> None:
    """Finish the moves of a killed process: remove each file in ``damaged/`` and ``orphans/`` that is a hard link to
    the object, which was put back already."""
    for aside in [*(store.root / DAMAGED).glob("*"), *(store.root / ORPHANS).glob("*/*/*")]:
        with suppress(ObjectMissing, OSError):
            final = store.path(aside.name.partition(".")[0])
            if aside.samefile(final):
                fsync_folders(final.parent)
                aside.unlink()


def remove_aside(store: ObjectStore, digest: str) -> None:
    """Delete the copies in ``damaged/`` and ``orphans/`` of an object that is being deleted."""
    for aside in _copies_aside(store, digest):
        aside.unlink(missing_ok=True)


@dataclass(frozen=True)
class Listed:
    """One entry of the store. ``digest`` is empty for a file that is not an object."""

    name: str
    digest: str
    bytes: int
    written_at: float


def listing(store: ObjectStore, folder: str) -> list[Listed]:
    """The entries of ``objects/<folder>``, sorted by name; empty if there is no such folder."""
    root = store.root / "objects" / folder
    found = []
    for entry in sorted(root.iterdir()) if root.is_dir() else ():
        try:
            status = entry.lstat()
        except FileNotFoundError:  # deleted in the meantime
            continue
        found.append(Listed(entry.name, _digest_of(store, entry), status.st_size, status.st_mtime))
    return found


def holds_any(root: Path) -> bool:
    """Whether the store below ``root`` exists and holds an object. A store whose disk is not mounted holds none."""
    objects = root / "objects"
    folders = (folder for folder in objects.iterdir() if folder.is_dir()) if objects.is_dir() else ()
    return any(any(folder.iterdir()) for folder in folders)


def _examine(path: Path, digest: str) -> Inspection:
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or path.parent.is_symlink():
            return Inspection(Condition.DAMAGED, "not a regular file")
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
        return Inspection(Condition.DAMAGED, f"its {status.st_size} bytes have digest {found}", status.st_size)
    return Inspection(Condition.WHOLE, "", status.st_size)


def _forget_cached(handle: int) -> None:
    """Drop the file from the page cache, so that it is read from disk and leaves room for images that are served."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)


def put_back(aside: Path, final: Path) -> None:
    """Move an object back to ``objects/``. On return the move is on disk. Another process may have moved it back."""
    make_folder(final.parent)
    give_to_owner(final.parent)
    try:
        os.link(aside, final)  # never replaces an object that was stored again in the meantime
    except FileExistsError:
        pass
    except FileNotFoundError:
        if not final.exists():
            raise
    except OSError:  # the file system has no hard links
        if not final.exists():
            aside.replace(final)
    fsync_folders(final.parent)
    aside.unlink(missing_ok=True)
    fsync_folders(aside.parent)


def _copies_aside(store: ObjectStore, digest: str) -> list[Path]:
    among_orphans = (store.root / ORPHANS).glob(f"*/{digest[:2]}/{digest}")
    return [*sorted((store.root / DAMAGED).glob(f"{digest}.*")), *among_orphans]


def _free_name(store: ObjectStore, digest: str) -> Path:
    folder = store.root / DAMAGED
    make_folder(folder)
    give_to_owner(folder)
    number = 1
    taken = {entry.name for entry in folder.glob(f"{digest}.*")}
    while f"{digest}.{number}" in taken:
        number += 1
    return folder / f"{digest}.{number}"


def _digest_of(store: ObjectStore, entry: Path) -> str:
    """The digest of the object at ``entry``; empty if no object has that path."""
    try:
        return entry.name if store.path(entry.name) == entry else ""
    except ObjectMissing:
        return ""
