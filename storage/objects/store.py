"""The content-addressed store: a folder of files named by the SHA-256 of their bytes.

``objects/ab/abcdef...`` holds an object; ``spool/`` holds what is still arriving and is emptied at start; ``lent/``
holds second names of objects for readers, who keep reading when an object is removed meanwhile. A file
appears under its final name only complete and on disk: write, fsync, link, fsync the folder. Writing an object
that is there already is not an error and writes nothing.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import socket
import tempfile
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from storage.errors import ConfigError, ObjectDamaged, ObjectMissing, StoreFull
from storage.objects.file_modes import close_to_others

_HOST = socket.gethostname().replace("+", "-")
_KEEPING = "-keeping"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class ObjectStore:
    """Objects below ``root``. ``min_free``: bytes that must stay free on the file system."""

    def __init__(self, root: Path, *, min_free: int = 0) -> None:
        self.root = root
        self.spool = root / "spool"
        self._lent = root / "lent"
        self._objects = root / "objects"
        self._min_free = min_free
        self._durable: set[str] = set()
        self._objects.mkdir(parents=True, exist_ok=True)
        self.spool.mkdir(exist_ok=True)
        self._lent.mkdir(exist_ok=True)
        close_to_others(root)

    def sweep_spool(self) -> None:
        """Remove what a killed process left half received. Only the process that owns the store may call it."""
        for entry in self.spool.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)

    def sweep_lent(self) -> None:
        """Remove names that were lent to processes of this machine that have ended."""
        for entry in self._lent.glob(f"{_HOST}+*"):
            pid = int(entry.name.split("+")[1])
            if pid == os.getpid() or not _runs(pid):
                entry.unlink(missing_ok=True)

    def lend(self, digest: str) -> Path:
        """A name of one reader's own for an object, which the reader unlinks. Raises ObjectMissing."""
        lent = self._own_name()
        held = self.held(digest)
        try:
            os.link(held, lent)
        except FileNotFoundError:
            raise ObjectMissing(f"object {digest} is not in {self._objects}") from None
        except OSError:  # a file system without links, or one that is read-only
            return _copied(held, lent)
        return lent

    def take_from(self, other: ObjectStore, digest: str) -> None:
        """Copy an object from another store. On return it is durable here, and has that digest.

        Raises ObjectMissing, ObjectDamaged, StoreFull.
        """
        self.take_copy(other.held(digest), digest)

    def take_copy(self, source: Path, digest: str) -> None:
        """Copy a file that holds an object. On return it is durable here, and has that digest.

        Raises ObjectDamaged, StoreFull.
        """
        self.check_room(source.stat().st_size)
        copied = self._own_name()
        try:
            with full_disk_is_store_full():
                shutil.copyfile(source, copied, follow_symlinks=False)
            if not has_digest(copied, digest):
                raise ObjectDamaged(f"object {digest} as {source} does not have that digest any more")
            self.adopt(copied)
        finally:
            copied.unlink(missing_ok=True)

    def keep_free(self, size: int) -> None:
        """From now on at least so many bytes must stay free, also where fewer were asked for."""
        self._min_free = max(self._min_free, size)

    def check_room(self, coming: int = 0) -> None:
        """Raises StoreFull when ``coming`` more bytes would leave less than ``min_free``."""
        free = shutil.disk_usage(self.root).free
        if free - coming < self._min_free:
            raise StoreFull(f"{free} bytes free below {self.root}, {self._min_free} must stay free")

    def adopt(self, file: Path) -> str:
        """Take a spooled file (same file system) into the store and return its digest, hex.

        On return the bytes are durable under their final name. The spooled name is gone.
        """
        with file.open("rb") as opened, full_disk_is_store_full():
            with ThreadPoolExecutor(1) as other:  # the disk works while the digest is computed
                synced = other.submit(os.fsync, opened.fileno())
                digest = hashlib.file_digest(opened, "sha256").hexdigest()
                synced.result()
            final = self.path(digest)
            if self.has(digest) and has_digest(final, digest) and _renew(final):
                # whoever put it there may not have come to that yet, and this caller promises it too
                self._make_folder(final.parent)
                fsync_folder(final.parent)
                file.unlink()
                return digest
            self._make_folder(final.parent)
            file.replace(final)
            fsync_folder(final.parent)
        return digest

    def put(self, data: bytes) -> str:
        """Store bytes and return their digest, hex."""
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
        """Where the object of that digest is, or would be."""
        if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
            raise ObjectMissing(f"{digest!r} is no SHA-256 digest")
        return self._objects / digest[:2] / digest

    def has(self, digest: str) -> bool:
        """Whether there is a file for that object; a link to one elsewhere is none."""
        path = self.path(digest)
        return path.is_file() and not path.is_symlink() and not path.parent.is_symlink()

    def held(self, digest: str) -> Path:
        """The file of an object. Raises ObjectMissing."""
        path = self.path(digest)
        if not self.has(digest):
            raise ObjectMissing(f"object {digest} is not in {self._objects}")
        return path

    def read(self, digest: str) -> bytes:
        """The bytes of an object, checked against its name. Raises ObjectMissing, ObjectDamaged."""
        data = self.held(digest).read_bytes()
        if hashlib.sha256(data).hexdigest() != digest:
            raise ObjectDamaged(f"object {digest} does not have that digest any more")
        return data

    def delete(self, digest: str) -> None:
        """Remove an object; absent is fine. A backup in progress keeps a name of its own for it."""
        for mark in self._lent.glob(f"*{_KEEPING}"):
            host, pid, _ = mark.name.split("+")
            if host != _HOST or _runs(int(pid)):
                with suppress(OSError):  # no such object, kept already, or a file system without links
                    os.link(self.path(digest), _kept_name(mark, digest))
        self.path(digest).unlink(missing_ok=True)

    @contextmanager
    def keeping(self) -> Iterator[Callable[[str], Path]]:
        """While the block runs, objects that are deleted are kept under another name, which the function tells.

        ``sweep_lent`` removes what a killed process kept.
        """
        mark = self._own_name()
        mark = mark.with_name(mark.name + _KEEPING)
        mark.touch()
        try:
            yield lambda digest: _kept_name(mark, digest)
        finally:
            mark.unlink(missing_ok=True)
            for kept in self._lent.glob(f"{mark.name.removesuffix(_KEEPING)}-*"):
                kept.unlink(missing_ok=True)

    def digests(self) -> Iterator[str]:
        """Every digest in the store, in order."""
        for folder in sorted(self._objects.iterdir()):
            yield from sorted(entry.name for entry in folder.iterdir())

    def _own_name(self) -> Path:
        """A new name of this process's own; ``sweep_lent`` removes it when the process has ended."""
        return self._lent / f"{_HOST}+{os.getpid()}+{uuid.uuid4().hex}"

    def _make_folder(self, folder: Path) -> None:
        """Make a folder of objects; on return it is on disk, whichever thread or process made it."""
        if folder.is_symlink():
            raise ConfigError(f"{folder} is a symbolic link, and none is followed inside an archive; remove it")
        if folder.name not in self._durable or not folder.is_dir():
            folder.mkdir(exist_ok=True)
            fsync_folder(self._objects)
            self._durable.add(folder.name)


def _kept_name(mark: Path, digest: str) -> Path:
    return mark.with_name(f"{mark.name.removesuffix(_KEEPING)}-{digest}")


def _copied(held: Path, lent: Path) -> Path:
    """A copy of an object, beside it where that can be written to, else in the system's folder for such."""
    try:
        shutil.copyfile(held, lent, follow_symlinks=False)
        return lent
    except FileNotFoundError:
        raise
    except OSError:
        handle, name = tempfile.mkstemp(prefix="latent-pacs-lent-")
        os.close(handle)
        return Path(shutil.copyfile(held, name, follow_symlinks=False))


@contextmanager
def full_disk_is_store_full() -> Iterator[None]:
    """Turns the operating system's ways to say "no room" into StoreFull."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StoreFull(f"no room for the object: {error.strerror}") from error
        raise


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def has_digest(path: Path, digest: str) -> bool:
    """Whether what lies there is whole: has the SHA-256 that it is named by."""
    try:
        with open(path, "rb", opener=_not_a_link) as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest() == digest
    except FileNotFoundError:  # a scrub moved it aside since
        return False
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link, which is no object
            return False
        raise


def _not_a_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW)


def _renew(path: Path) -> bool:
    """Make an object that is taken once more look new, so that nobody removes it as an orphan; False if it has gone."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


def fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
