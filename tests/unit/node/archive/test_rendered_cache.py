"""Proves that an object is sent even if the cache cannot keep it, and that a damaged entry is not."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

from node.archive.rendered_cache import RenderedCache, forget
from tests.support.coded_images import just_before

KEY = "a" * 64


@pytest.fixture
def cache(tmp_path: Path) -> RenderedCache:
    return RenderedCache(tmp_path / "rendered", 1000)


def kept(cache: RenderedCache, key: str, data: bytes) -> bytes:
    """Put an object into the cache, and read it as its first reader does."""
    made = cache.new_file()
    made.write_bytes(data)
    return taken(cache.keep(key, made))


def taken(link: Path | None) -> bytes:
    assert link is not None
    data = link.read_bytes()
    link.unlink()
    return data


def full(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_an_object_is_sent_from_elsewhere_if_the_cache_is_full(
    cache: RenderedCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere, make = tmp_path / "elsewhere", tempfile.mkstemp
    elsewhere.mkdir()

    def no_room_in_the_cache(suffix: str = "", dir: Path | None = None) -> tuple[int, str]:
        return make(suffix=suffix, dir=elsewhere) if dir is None else full()

    monkeypatch.setattr(tempfile, "mkstemp", no_room_in_the_cache)
    monkeypatch.setattr(os, "link", full)
    made = cache.new_file()
    assert made.parent == elsewhere
    made.write_bytes(b"pixels")
    assert taken(cache.keep(KEY, made)) == b"pixels"
    assert not cache.has(KEY)


def test_without_links_each_reader_has_the_object_made_for_itself(
    cache: RenderedCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", full)
        assert kept(cache, KEY, b"pixels") == b"pixels"
    assert not cache.has(KEY)
    assert kept(cache, KEY, b"pixels") == b"pixels"
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", full)
        assert cache.link(KEY) is None
    assert taken(cache.link(KEY)) == b"pixels"


def test_an_entry_that_is_evicted_before_it_is_linked_is_made_again(
    cache: RenderedCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept(cache, KEY, b"pixels")
    just_before(monkeypatch, os, "link", lambda: cache.drop(KEY))
    assert cache.link(KEY) is None
    assert list((tmp_path / "rendered" / "sending").iterdir()) == []


def test_a_damaged_entry_is_not_sent_and_not_kept(cache: RenderedCache, tmp_path: Path) -> None:
    kept(cache, KEY, b"pixels")
    (entry,) = (tmp_path / "rendered").glob(f"{KEY}.*.dcm")
    assert entry.name.split(".")[1] == hashlib.sha256(b"pixels").hexdigest()
    entry.write_bytes(b"others")
    assert cache.link(KEY) is None
    assert not cache.has(KEY)


def test_a_new_version_replaces_the_former_entry(cache: RenderedCache) -> None:
    kept(cache, KEY, b"former")
    kept(cache, KEY, b"newer")
    assert taken(cache.link(KEY)) == b"newer"


def test_the_least_recently_used_entry_is_evicted_and_its_reader_keeps_it(cache: RenderedCache) -> None:
    for number in range(3):
        kept(cache, f"{number}" * 64, bytes(400))
        os.utime(next(cache._root.glob(f"{number}*.dcm")), (number, number))
    assert [cache.has(f"{number}" * 64) for number in range(3)] == [False, True, True]
    reader = cache.link("1" * 64)
    kept(cache, "3" * 64, bytes(900))
    assert [cache.has(f"{number}" * 64) for number in range(4)] == [False, False, False, True]
    assert taken(reader) == bytes(400)


def test_a_killed_process_leaves_no_files(cache: RenderedCache, tmp_path: Path) -> None:
    kept(cache, KEY, b"pixels")
    cache.new_file()
    assert cache.link(KEY) is not None
    again = RenderedCache(tmp_path / "rendered", 1000)
    left = [path for path in (tmp_path / "rendered").rglob("*") if path.is_file()]
    assert [path.name.split(".")[0] for path in left] == [KEY]
    assert taken(again.link(KEY)) == b"pixels"


def test_all_entries_of_a_forgotten_object_go(cache: RenderedCache, tmp_path: Path) -> None:
    """Entries with the other texture, or with an amended header, are removed too."""
    for key in (KEY, f"{KEY}-plain", f"{KEY}-plain-3", "b" * 64):
        kept(cache, key, key.encode())
    forget(tmp_path / "rendered", [KEY])
    assert [path.name.split(".")[0] for path in (tmp_path / "rendered").glob("*.dcm")] == ["b" * 64]


def test_an_entry_that_a_command_deletes_while_others_are_evicted_fails_no_reader(
    cache: RenderedCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``latent-pacs delete`` removes entries from another process. Formerly, the image that was being put into the
    cache could not be sent."""
    kept(cache, KEY, b"deleted meanwhile")
    real = Path.stat

    def late(self: Path, **named: Any) -> os.stat_result:
        if self.name.startswith(KEY):
            self.unlink(missing_ok=True)
        return real(self, **named)

    monkeypatch.setattr(Path, "stat", late)
    assert kept(cache, "b" * 64, b"kept") == b"kept"
    assert (cache.has(KEY), cache.has("b" * 64)) == (False, True)
