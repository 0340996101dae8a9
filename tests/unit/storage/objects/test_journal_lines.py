"""Proves that one process at a time writes a journal, and that whole lines are told from partial ones."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from storage.objects.journal_lines import cut_torn_end, exclusive, last_whole_line


def test_a_lock_excludes_everybody_else_and_ends_with_its_block(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with exclusive(lock), lock.open("rb") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with lock.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize(
    ("data", "last", "left"),
    [
        (b"", b"", b""),
        (b"torn", b"", b""),
        (b"one\n", b"one", b"one\n"),
        (b"one\ntwo\n", b"two", b"one\ntwo\n"),
        (b"one\ntwo\ntorn", b"two", b"one\ntwo\n"),
        (b"one\n" + b"long" * 100_000 + b"\n", b"long" * 100_000, b"one\n" + b"long" * 100_000 + b"\n"),
        (b"one\n" + b"torn" * 100_000, b"one", b"one\n"),
    ],
    ids=["empty", "torn", "one", "two", "two and torn", "long", "long and torn"],
)
def test_whole_lines(tmp_path: Path, data: bytes, last: bytes, left: bytes) -> None:
    segment = tmp_path / "segment"
    segment.write_bytes(data)
    assert last_whole_line(segment) == last
    with segment.open("r+b") as file:
        cut_torn_end(file)
        assert file.tell() == len(left)
    assert segment.read_bytes() == left
