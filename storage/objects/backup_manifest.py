"""The manifest of a backup: which files and objects it holds, in one file that is replaced as a whole.

``manifest.jsonl``: the first line is a JSON object with the format and the counts. Each further line is a JSON array
``[kind, digest, bytes, name]``. A ``file`` belongs to the index, the journals or the reports, and its name is its path
below ``storage.root``. An ``object`` belongs to the store that its name says. The last line is ``{"digest": ...}``, the
SHA-256 of everything before it, so that a manifest that is cut off or changed is noticed.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from storage.errors import BackupRefused, NewerFormat
from storage.objects.durability import fsync_file, fsync_folders, full_disk_is_store_full

FORMAT = 1
"""Version of a backup's layout and manifest; a higher one is refused."""

NAME = "manifest.jsonl"
INDEX = "index.sqlite"
_FOLDERS = {"journal", "reports"}


@dataclass(frozen=True)
class Entry:
    """One file or object of a backup. ``name``: the path of a file, the store of an object."""

    digest: str
    bytes: int
    name: str


@dataclass(frozen=True)
class Manifest:
    """What a backup holds. ``archive``, ``number``: the identity of the archive, and the last change in the index.

    ``made_at``: ISO 8601, UTC. ``missing``: how many objects the archive itself did not hold whole by then.
    """

    archive: str
    number: int
    made_at: str
    missing: int
    files: tuple[Entry, ...]
    objects: tuple[Entry, ...]


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Put a manifest in the place of the former one; on return it is on disk. Raises StoreFull."""
    head = {"format": FORMAT, **asdict(manifest), "files": len(manifest.files), "objects": len(manifest.objects)}
    head["bytes"] = sum(one.bytes for one in manifest.objects)
    lines: list[Any] = [head]
    lines += [["file", one.digest, one.bytes, one.name] for one in manifest.files]
    lines += [["object", one.digest, one.bytes, one.name] for one in manifest.objects]
    body = b"".join(json.dumps(line, separators=(",", ":")).encode() + b"\n" for line in lines)
    making = folder / f"{NAME}.making"
    with full_disk_is_store_full(), making.open("wb") as out:
        out.write(body)
        out.write(json.dumps({"digest": hashlib.sha256(body).hexdigest()}).encode() + b"\n")
        fsync_file(out)
    making.replace(folder / NAME)
    fsync_folders(folder)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a backup. Raises BackupRefused where there is none or it is damaged, NewerFormat."""
    file = folder / NAME
    try:
        body, _, last = file.read_bytes().rstrip(b"\n").rpartition(b"\n")
    except FileNotFoundError:
        raise BackupRefused(f"{folder} holds no complete backup: there is no {NAME}") from None
    body += b"\n"
    try:
        head, *lines = map(json.loads, body.splitlines())
        if head["format"] > FORMAT:
            raise NewerFormat(
                f"{file} has format {head['format']}, and this version reads up to {FORMAT}: install a newer version"
            )
        if json.loads(last)["digest"] != hashlib.sha256(body).hexdigest():
            raise ValueError("its digest is not that of its lines")
        of_kind: dict[str, list[Entry]] = {"file": [], "object": []}
        for kind, *entry in lines:
            of_kind[kind].append(Entry(*entry))
        files, objects = tuple(of_kind["file"]), tuple(of_kind["object"])
        if not all(_may_be_written(one.name) for one in files):
            raise ValueError("it names a file that is no part of an archive")
        return Manifest(head["archive"], head["number"], head["made_at"], head["missing"], files, objects)
    except (ValueError, TypeError, KeyError) as error:
        raise BackupRefused(f"{file} is damaged ({error}); make the backup again") from error


def _may_be_written(name: str) -> bool:
    """Whether a restore may write a file of that name: it comes from a medium that others may have had."""
    parts = PurePosixPath(name).parts
    return name == INDEX or (len(parts) > 1 and parts[0] in _FOLDERS and ".." not in parts)
