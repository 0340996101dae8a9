"""The content-addressed store: a folder of files named by the SHA-256 of their bytes.

``objects/ab/abcdef...`` holds an object. ``spool/`` holds files that are still arriving; it is emptied at start.
``lent/`` holds hard links to objects for readers, who can go on reading when an object is deleted meanwhile. A file
appears under its final name only when it is complete and on disk: write, fsync, rename, fsync the folder. Storing an
object that the store already holds whole writes no bytes, and updates its time. A damaged one is replaced.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from storage.errors import ConfigError, ObjectDamaged, ObjectMissing, StoreFull
from storage.objects.durability import fsync_folders, full_disk_is_store_full, make_folder
from storage.objects.file_modes import close_to_others, give_to_owner

_HOST = socket.gethostname().replace("+", "-")
_DIGEST, _FOLDER = re.compile("[0-9a-f]{64}"), re.compile("[0-9a-f]{2}")
"""Patterns of the name of an object, and of a folder of objects."""
DAMAGED, ORPHANS = "damaged", "orphans"
"""Folders beside ``objects/`` to which damaged objects, and those without a row, are moved."""
_KEEPING = "-keeping"
"""Ending of the file in ``lent/`` that tells ``delete`` to keep a link to each deleted object."""
_LENT_FOR = 7 * 86400.0
"""Seconds after which a file in ``lent/`` counts as unused. Chosen, not measured: an association lasts at most a day
unless ``node.max_association_time`` is raised, and a backup renews its file. The limit is needed because nobody can see
whether a process of another host, such as a container that was replaced, still runs."""


class ObjectStore:
    """Objects below ``root``. ``min_free``: bytes that must stay free on the file system."""

    def __init__(self, root: Path, *, min_free: int = 0) -> None:
        self.root = root
        self.spool = root / "spool"
        self._lent = root / "lent"
        self._objects = root / "objects"
        self._min_free = min_free
        self._durable: set[str] = set()
        for folder in (self._objects, self.spool, self._lent):
            make_folder(folder)
        give_to_owner(self._objects, self.spool, self._lent)
        close_to_others(root)
        self._refuse_two_file_systems()

    def sweep_spool(self) -> None:
        """Remove files that a killed process received in part. Only the process that owns the store may call this."""
        for entry in self.spool.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)

    def sweep_lent(self) -> None:
        """Remove the links that processes of this host left when they ended, and all links older than ``_LENT_FOR``.

        Links with the id of this process are removed too: a restarted container may get the same host name and id.
        Call this before the first ``lend``.
        """
        for entry in self._lent.iterdir():
            host, pid = _process_of(entry)
            if host and ((host, pid) == (_HOST, os.getpid()) or not _in_use(entry)):
                entry.unlink(missing_ok=True)

    def lend(self, digest: str) -> Path:
        """The path of a link to an object, or of a copy, for one reader, who unlinks it. Raises ObjectMissing."""
        lent = self._own_name()
        held = self.held(digest)
        try:
            return _linked(held, lent)
        except FileNotFoundError:  # deleted in the meantime
            raise ObjectMissing(f"object {digest} is not in {self._objects}") from None

    def take_from(self, other: ObjectStore, digest: str) -> None:
        """Copy an object from another store. On return the copy is on disk and its digest is verified.

        Raises ObjectMissing, ObjectDamaged, StoreFull.
        """
        self.take_copy(other.held(digest), digest)

    def take_copy(self, source: Path, digest: str) -> None:
        """Copy a file that holds an object. On return the copy is on disk and its digest is verified.

        Raises FileNotFoundError, ObjectDamaged, StoreFull.
        """
        self.check_room(source.stat().st_size)
        copied = self._own_name()
        try:
            with full_disk_is_store_full():
                shutil.copyfile(source, copied, follow_symlinks=False)
            if not has_digest(copied, digest):
                raise ObjectDamaged(f"object {digest}, read from {source}, no longer has that digest")
            self.adopt(copied)
        finally:
            copied.unlink(missing_ok=True)

    def keep_free(self, size: int) -> None:
        """Raise ``min_free`` to at least ``size`` bytes."""
        self._min_free = max(self._min_free, size)

    def check_room(self, coming: int = 0) -> None:
        """Raises StoreFull if ``coming`` more bytes would leave less than ``min_free``."""
        free = shutil.disk_usage(self.root).free
        if free - coming < self._min_free:
            raise StoreFull(f"{free} bytes free below {self.root}, {self._min_free} must stay free")

    def adopt(self, file: Path) -> str:
        """Move a spooled file (on the same file system) into the store and return its digest, hex.

        On return the bytes are on disk under their final name. Raises StoreFull; the file then stays.
        """
        with file.open("rb") as opened, full_disk_is_store_full():
            with ThreadPoolExecutor(1) as other:  # the disk works while the digest is computed
                synced = other.submit(os.fsync, opened.fileno())
                digest = hashlib.file_digest(opened, "sha256").hexdigest()
                synced.result()
            final = self.path(digest)
            if self.has(digest) and _can_be_kept(final, digest):
                # another writer may have renamed it without having synced the folder yet
                self._make_folder(final.parent)
                fsync_folders(final.parent)
                file.unlink()
                return digest
            self._make_folder(final.parent)
            give_to_owner(file, folder=final.parent)
            file.replace(final)
            fsync_folders(final.parent)
        return digest

    def put(self, data: bytes) -> str:
        """Store bytes durably and return their digest, hex. Raises StoreFull."""
        with full_disk_is_store_full():
            handle, name = tempfile.mkstemp(dir=self.spool)
            spooled = Path(name)
            try:
                with os.fdopen(handle, "wb") as out:
                    out.write(data)
                return self.adopt(spooled)
            finally:
                spooled.unlink(missing_ok=True)

    def path(self, digest: str) -> Path:
        """The path of the object with that digest, whether it exists or not. Raises ObjectMissing for another text."""
        if not _DIGEST.fullmatch(digest):
            raise ObjectMissing(f"{digest!r} is not a SHA-256 digest")
        return self._objects / digest[:2] / digest

    def has(self, digest: str) -> bool:
        """Whether the object has a file. A symbolic link does not count."""
        path = self.path(digest)
        return path.is_file() and not path.is_symlink() and not path.parent.is_symlink()

    def held(self, digest: str) -> Path:
        """The path of an object that exists. Raises ObjectMissing."""
        path = self.path(digest)
        if not self.has(digest):
            raise ObjectMissing(f"object {digest} is not in {self._objects}")
        return path

    def read(self, digest: str) -> bytes:
        """The bytes of an object, verified against its digest. Raises ObjectMissing, ObjectDamaged."""
        held = self.held(digest)
        try:
            data = held.read_bytes()
        except FileNotFoundError:  # deleted in the meantime
            raise ObjectMissing(f"object {digest} is not in {self._objects}") from None
        if hashlib.sha256(data).hexdigest() != digest:
            raise ObjectDamaged(f"object {digest} no longer has that digest")
        return data

    def delete(self, digest: str) -> None:
        """Delete an object if it exists. It is first linked for every backup in progress (``keeping``)."""
        for mark in self._lent.glob(f"*{_KEEPING}"):
            if _in_use(mark):
                with suppress(OSError):  # no such object, a link exists already, or no hard links here
                    os.link(self.path(digest), _kept_name(mark, digest))
        self.path(digest).unlink(missing_ok=True)

    @contextmanager
    def keeping(self) -> Iterator[Callable[[str], Path]]:
        """Keep a link to every object that is deleted while the block runs. The function gives the link's path.

        The links are removed at the end of the block; ``sweep_lent`` removes those of a killed process.
        """
        mark = self._own_name()
        mark = mark.with_name(mark.name + _KEEPING)
        mark.touch()

        def kept(digest: str) -> Path:
            with suppress(OSError):  # a disk that has become read-only
                mark.touch()
            return _kept_name(mark, digest)

        try:
            yield kept
        finally:
            mark.unlink(missing_ok=True)
            for link in self._lent.glob(f"{mark.name.removesuffix(_KEEPING)}-*"):
                link.unlink(missing_ok=True)

    def digests(self) -> Iterator[str]:
        """All digests in the store, in ascending order. Files that are not objects are left out."""
        for folder in sorted(self._objects.iterdir()):
            if _FOLDER.fullmatch(folder.name) and folder.is_dir():
                names = (entry.name for entry in folder.iterdir())
                yield from sorted(name for name in names if _DIGEST.fullmatch(name) and name[:2] == folder.name)

    def _refuse_two_file_systems(self) -> None:
        """Raises ConfigError if a file could not be renamed from ``objects/`` to a folder beside it, or back.

        The kernel compares the mounts of both folders before it looks for the file, which does not exist.
        """
        name = uuid.uuid4().hex
        for folder in (self.spool, self._lent, self.root / DAMAGED, self.root / ORPHANS):
            try:
                (folder / name).rename(self._objects / name)
            except OSError as error:
                if error.errno == errno.EXDEV:
                    raise ConfigError(
                        f"{folder} and {self._objects} are on different file systems, and files are moved between them "
                        f"by a rename; mount the disk at {self.root}"
                    ) from error

    def _own_name(self) -> Path:
        """A new path in ``lent/``; ``sweep_lent`` removes it once this process has ended."""
        return self._lent / f"{_HOST}+{os.getpid()}+{uuid.uuid4().hex}"

    def _make_folder(self, folder: Path) -> None:
        """Make a folder for objects. On return it is on disk, even if another thread or process made it."""
        if folder.is_symlink():
            raise ConfigError(f"{folder} is a symbolic link, which is not followed inside an archive; remove it")
        if folder.name not in self._durable or not folder.is_dir():
            folder.mkdir(exist_ok=True)
            give_to_owner(folder)
            fsync_folders(self._objects)
            self._durable.add(folder.name)


def _kept_name(mark: Path, digest: str) -> Path:
    return mark.with_name(f"{mark.name.removesuffix(_KEEPING)}-{digest}")


def _process_of(lent: Path) -> tuple[str, int]:
    """The host and the process that made a file in ``lent/``; ("", 0) for a file that was not made here."""
    host, _, rest = lent.name.partition("+")
    pid, plus, _ = rest.partition("+")
    return (host, int(pid)) if plus and pid.isascii() and pid.isdigit() else ("", 0)


def _in_use(lent: Path) -> bool:
    """Whether the process that made a file in ``lent/`` may still use it.

    A hard link shares the modification time of its object, so the time of the inode's last change is compared, which is
    no earlier than the link.
    """
    host, pid = _process_of(lent)
    if not host or (host == _HOST and not _runs(pid)):
        return False
    try:
        return lent.stat(follow_symlinks=False).st_ctime > time.time() - _LENT_FOR
    except FileNotFoundError:
        return False


def _linked(held: Path, lent: Path) -> Path:
    """Link an object to ``lent``; without hard links, copy it there. Returns the path.

    If ``lent`` cannot be written, the copy is in the system's temporary folder.
    """
    try:
        os.link(held, lent)
        return lent
    except FileNotFoundError:
        raise
    except OSError:  # the file system has no hard links, or is read-only
        pass
    try:
        return shutil.copyfile(held, lent, follow_symlinks=False)
    except FileNotFoundError:
        raise
    except OSError:
        with suppress(OSError):
            lent.unlink()  # a partial copy on a full disk
        handle, name = tempfile.mkstemp(prefix="latent-pacs-lent-")
        os.close(handle)
        return Path(shutil.copyfile(held, name, follow_symlinks=False))


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def has_digest(path: Path, digest: str) -> bool:
    """Whether the file at ``path`` exists and has that SHA-256."""
    try:
        with open(path, "rb", opener=_not_a_link) as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest() == digest
    except FileNotFoundError:  # a scrub moved it away in the meantime
        return False
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EIO):  # a symbolic link is never an object; EIO: the disk fails to read
            return False
        raise


def _can_be_kept(path: Path, digest: str) -> bool:
    """Whether an object is whole and readable, so that its bytes need not be written again. Updates its time."""
    try:
        return has_digest(path, digest) and _renew(path)
    except PermissionError:  # it belongs to another user: the new file takes its place
        return False


def _not_a_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW)


def _renew(path: Path) -> bool:
    """Update an object's time so that it is not removed as an orphan. Returns False if it no longer exists.

    It is looked for after the update, because a scrub may have moved it away and read its old time in between.
    """
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return path.exists()
