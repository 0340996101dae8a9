"""Proves that a manifest is read as it was written, and that a changed or truncated one is refused."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from storage.errors import BackupRefused, StoreFull
from storage.objects.backup_manifest import (
    COPY,
    NAME,
    Entry,
    Manifest,
    damage_of_manifest,
    read_manifest,
    write_manifest,
)
from tests.support.largest_file import largest_file

FILES = (Entry("ab" * 32, 10, "index.sqlite"), Entry("cd" * 32, 20, "journal/changes-000000000001.jsonl"))
OBJECTS = (Entry("ef" * 32, 30, "hot"), Entry("01" * 32, 40, "cold"))
MADE = Manifest("5f0c1c1e", 7, "2026-01-01T00:00:00+00:00", ("cd" * 32,), FILES, OBJECTS)


def test_a_manifest_comes_back(tmp_path: Path) -> None:
    write_manifest(tmp_path, MADE)
    assert read_manifest(tmp_path) == MADE


def test_a_manifest_of_many_objects_is_written_and_read_line_by_line(tmp_path: Path) -> None:
    """A large archive has millions of objects, and the node makes the backup in its main process."""
    many = Manifest(
        "5f0c1c1e", 7, "", (), FILES, tuple(Entry(f"{number:064x}", 80_000, "hot") for number in range(5000))
    )
    tracemalloc.start()
    write_manifest(tmp_path, many)
    written = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    assert read_manifest(tmp_path) == many
    read = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert written < 200_000
    assert read < 5000 * 350


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        (b",30,", b",31,", "its digest does not match its lines"),
        (b'"hot"]\n', b'"hot"]\n["object","%s",1,"hot"]\n' % (b"02" * 32), "its digest does not match its lines"),
        (b'"missing":["cd', b'"missing":["ce', "its digest does not match its lines"),
        (b'["object"', b'["folder"', "its digest does not match its lines"),
        (b'{"format":1', b'{"form":1', "'format'"),
        (b'["file"', b"", "Expecting value"),
    ],
)
def test_a_changed_manifest_is_refused(tmp_path: Path, before: bytes, after: bytes, why: str) -> None:
    """Otherwise a restore would miss an object and report that it is complete."""
    write_manifest(tmp_path, MADE)
    data = (tmp_path / NAME).read_bytes()
    for name in (NAME, COPY):
        (tmp_path / name).write_bytes(data.replace(before, after, 1))
    with pytest.raises(BackupRefused, match=rf"{NAME} is damaged \({why}.*\); if the archive is there, delete {NAME}"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("lines", range(6))
def test_a_shortened_manifest_is_refused(tmp_path: Path, lines: int) -> None:
    write_manifest(tmp_path, MADE)
    kept = (tmp_path / NAME).read_bytes().splitlines(keepends=True)[:lines]
    for name in (NAME, COPY):
        (tmp_path / name).write_bytes(b"".join(kept))
    with pytest.raises(BackupRefused, match="is damaged"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("name", [NAME, COPY])
@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_one_of_the_two_manifests_is_enough(tmp_path: Path, name: str, damage: str) -> None:
    """Formerly there was one manifest, and one flipped byte in it made a whole backup unusable."""
    write_manifest(tmp_path, MADE)
    data = bytearray((tmp_path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / name).write_bytes(data)
    if damage == "missing":
        (tmp_path / name).unlink()
    assert read_manifest(tmp_path) == MADE
    said = damage_of_manifest(tmp_path)
    assert [name in one for one in said] == ([] if (name, damage) == (COPY, "missing") else [True])


def test_a_manifest_that_does_not_fit_leaves_the_former(tmp_path: Path) -> None:
    write_manifest(tmp_path, MADE)
    size = (tmp_path / NAME).stat().st_size
    larger = Manifest("5f0c1c1e", 8, MADE.made_at, (), FILES, OBJECTS * 10)
    with largest_file(size), pytest.raises(StoreFull, match="no room for the object"):
        write_manifest(tmp_path, larger)
    assert read_manifest(tmp_path) == MADE
