"""The manifest of a backup: the list of its files and objects, in one file that is replaced as a whole.

The first line of ``manifest.jsonl`` is a JSON object with the format and the counts. Each further line is a JSON array
``[kind, digest, bytes, name]``. A ``file`` belongs to the index, the journals or the reports; its name is its path
below ``storage.root``. An ``object`` belongs to the store of that name. The last line is ``{"digest": ...}``, the
SHA-256 of everything before it, which detects a manifest that was truncated or changed. ``manifest-copy.jsonl`` has the
same bytes, and is read if the manifest is missing or damaged.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from storage.errors import BackupRefused, NewerFormat
from storage.objects.durability import replace_file

FORMAT = 1
"""Version of a backup's layout and manifest. A higher one is refused."""

NAME = "manifest.jsonl"
COPY = "manifest-copy.jsonl"
INDEX = "index.sqlite"
_WITHOUT = (
    f"if the archive is there, delete {NAME} and {COPY} of the backup, and make it again, which copies the rest. "
    "Otherwise copy the backup's folder objects into an empty storage.root, and run `latent-pacs index rebuild`"
)
"""Advice for a backup whose manifest and copy cannot be read."""
_FOLDERS = {"journal", "reports"}
"""Folders below ``storage.root`` whose files a backup may hold."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One file or object of a backup. ``name``: the path of the file, or the store of the object."""

    digest: str
    bytes: int
    name: str


@dataclass(frozen=True)
class Manifest:
    """The contents of a backup. ``archive``: the identity of the archive. ``number``: that of the index's last change.

    ``made_at``: ISO 8601, UTC. ``missing``: digests of the objects that were missing or damaged in the archive itself,
    and are not in the backup.
    """

    archive: str
    number: int
    made_at: str
    missing: tuple[str, ...]
    files: tuple[Entry, ...]
    objects: tuple[Entry, ...]


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace the manifest; on return it is on disk. Raises StoreFull."""
    for name in (NAME, COPY):  # files of the former state are removed after both
        replace_file(folder / name, _lines(manifest))


def _lines(manifest: Manifest) -> Iterator[bytes]:
    digest = hashlib.sha256()
    for content in _contents(manifest):
        line = json.dumps(content, separators=(",", ":")).encode() + b"\n"
        digest.update(line)
        yield line
    yield json.dumps({"digest": digest.hexdigest()}).encode() + b"\n"


def _contents(manifest: Manifest) -> Iterator[Any]:
    """All lines but the last one."""
    counts = {"files": len(manifest.files), "objects": len(manifest.objects)}
    about = {name: getattr(manifest, name) for name in ("archive", "number", "made_at", "missing")}
    yield {"format": FORMAT, **about, **counts, "bytes": sum(one.bytes for one in manifest.objects)}
    for kind, entries in (("file", manifest.files), ("object", manifest.objects)):
        for one in entries:
            yield [kind, one.digest, one.bytes, one.name]


def has_manifest(folder: Path) -> bool:
    """Whether there is a manifest, or a copy of one."""
    return (folder / NAME).exists() or (folder / COPY).exists()


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a backup, or its copy. Raises NewerFormat, and BackupRefused if both are missing or damaged."""
    try:
        return _read(folder / NAME)
    except BackupRefused as refused:
        try:
            return _read(folder / COPY)
        except BackupRefused:
            raise refused from None


def damage_of_manifest(folder: Path) -> list[str]:
    """One sentence for each of the manifest and its copy that cannot be read. A missing copy is not reported, because
    an earlier version wrote none."""
    found = []
    for name in (NAME, COPY):
        try:
            _read(folder / name)
        except BackupRefused as refused:
            if name == NAME or (folder / name).exists():
                found.append(str(refused))
    return found


def _read(file: Path) -> Manifest:
    digest, head, last = hashlib.sha256(), dict[str, Any](), b""
    by_kind: dict[str, list[Entry]] = {"file": [], "object": []}
    try:
        with file.open("rb") as lines:
            for line in lines:
                if last:
                    digest.update(last)
                if last and not head:
                    head = json.loads(last)
                    if head["format"] > FORMAT:
                        raise NewerFormat(
                            f"{file} has format {head['format']}, and this version reads up to {FORMAT}: install a "
                            "newer version"
                        )
                elif last:
                    kind, of, size, name = json.loads(last)
                    by_kind.setdefault(kind, []).append(Entry(of, size, sys.intern(name)))
                last = line
        if json.loads(last)["digest"] != digest.hexdigest():
            raise ValueError("its digest does not match its lines")
        if len(by_kind) > 2:
            raise ValueError("it has lines of an unknown kind")
        files, objects = tuple(by_kind["file"]), tuple(by_kind["object"])
        if not all(_may_be_written(one.name) for one in files):
            raise ValueError("it names a file that does not belong to an archive")
        return Manifest(head["archive"], head["number"], head["made_at"], tuple(head["missing"]), files, objects)
    except FileNotFoundError:
        raise BackupRefused(f"{file.parent} holds no complete backup: there is no {file.name}") from None
    except (ValueError, TypeError, KeyError) as error:
        raise BackupRefused(f"{file} is damaged ({error}); {_WITHOUT}") from error


def _may_be_written(name: str) -> bool:
    """Whether a restore may write a file of that name. Somebody may have changed the manifest, to write elsewhere."""
    parts = PurePosixPath(name).parts
    return name == INDEX or (len(parts) > 1 and parts[0] in _FOLDERS and ".." not in parts)
