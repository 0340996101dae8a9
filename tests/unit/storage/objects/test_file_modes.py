"""Proves that files have mode 0600 and folders 0700, and that no symbolic link is followed."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from node.app import Node
from node.cli.main import app
from node.dimse.client import Receiver
from node.workers import pool
from storage.errors import ConfigError, ObjectMissing
from storage.index.opening import open_checked_index
from storage.index.rebuild import rebuild
from storage.objects.file_modes import close_to_others
from storage.objects.inspection import Condition, examine, set_aside
from storage.objects.orphans import move_orphan
from storage.objects.store import ObjectStore
from tests.conftest import Archive, settings_for
from tests.support.transfers import got, stored


@pytest.fixture(autouse=True)
def _open_mask(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Set the umask that most systems have, until the archive sets its own, which its workers inherit."""
    monkeypatch.setattr(pool, "START_METHOD", "spawn")
    before = os.umask(0o022)
    yield
    os.umask(before)


def modes(root: Path) -> dict[str, str]:
    """Files and folders of an archive that others may use, and their permissions for others."""
    found = {}
    for path in [root, *root.rglob("*")]:
        mode = stat.S_IMODE(path.lstat().st_mode)
        if mode & 0o077:
            found[str(path.relative_to(root))] = oct(mode)
    return found


@pytest.mark.slow
def test_nothing_is_readable_by_others(tmp_path: Path, receiver: Receiver) -> None:
    with Node(settings_for(tmp_path / "archive", receiver.port)) as node:
        archive = Archive(node, receiver)
        held = archive.settled(stored(archive, tmp_path).sop_instance_uid)
        for calling in ("EXACTVIEW", "VIEWER"):
            got(archive, held, calling)
        assert modes(node.store.root) == {}
    assert modes(tmp_path / "archive") == {}


def test_an_archive_of_an_earlier_release_is_closed(tmp_path: Path) -> None:
    root = tmp_path / "archive"
    for folder in ("journal", "reports", "objects/ab"):
        (root / folder).mkdir(parents=True)
    for file in ("index.sqlite", "index.sqlite-wal", "journal/trail-000000000001.jsonl", "reports/1.html"):
        (root / file).write_text("x")
    assert len(modes(root)) == 9
    ObjectStore(root)
    assert modes(root) == {}


def test_commands_set_the_mask() -> None:
    CliRunner().invoke(app, ["version"])
    assert os.umask(0o022) == 0o077


@pytest.mark.parametrize(
    "name", ["objects", "journal", "spool", "index.sqlite", "objects/ab", "journal/x.jsonl", "lent"]
)
def test_a_link_in_an_archive_is_refused_at_the_start(tmp_path: Path, name: str) -> None:
    root, elsewhere = tmp_path / "archive", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (root / name).parent.mkdir(parents=True)
    (root / name).symlink_to(elsewhere)
    with pytest.raises(ConfigError, match="symbolic link"):
        ObjectStore(root)


def test_the_root_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "root").symlink_to(tmp_path / "there")
    store = ObjectStore(tmp_path / "root")
    assert store.read(store.put(b"x")) == b"x"
    close_to_others(store.root)
    assert modes(tmp_path / "there") == {}


def test_a_link_is_no_object(tmp_path: Path) -> None:
    """A symbolic link with the name of an object or of its folder is not read, lent or written through."""
    store, secret = ObjectStore(tmp_path / "archive"), tmp_path / "secret"
    digest = store.put(b"content")
    path = store.path(digest)
    path.rename(secret)
    path.symlink_to(secret)
    for use in (store.held, store.lend, store.read):
        with pytest.raises(ObjectMissing):
            use(digest)
    assert not store.has(digest)
    assert examine(store, digest).condition is Condition.DAMAGED
    assert store.put(b"content") == digest  # stored again in its place
    assert not path.is_symlink()
    assert store.read(digest) == b"content"
    elsewhere = tmp_path / "elsewhere"
    path.parent.rename(elsewhere)
    path.parent.symlink_to(elsewhere)
    with pytest.raises(ObjectMissing):
        store.read(digest)
    with pytest.raises(ConfigError, match="symbolic link"):
        store.put(b"content")


NOBODY = 65534


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_command_of_root_leaves_no_files_that_another_user_cannot_use(tmp_path: Path) -> None:
    """Formerly, a hold that root added began a segment of the journal, and the node refused every image from then
    on."""
    root = tmp_path / "archive"
    root.mkdir()
    os.chown(root, NOBODY, NOBODY)
    index = open_checked_index(f"sqlite:///{root / 'index.sqlite'}", root, holds_objects=False).index
    os.chown(root / "index.sqlite", NOBODY, NOBODY)
    index.holds.put_label("teaching", "1.2", who="user:me")
    index.close()
    store = ObjectStore(root)
    for data in (b"stays", b"damaged", b"orphan"):
        store.put(data)
    for data in (b"damaged", b"orphan"):
        store.path(hashlib.sha256(data).hexdigest()).write_bytes(b"x")
    assert set_aside(store, hashlib.sha256(b"damaged").hexdigest())
    assert move_orphan(store, hashlib.sha256(b"orphan").hexdigest(), older_than=time.time() + 9)
    rebuild(root / "index.sqlite", root)
    assert {path.name for path in root.rglob("*") if path.stat().st_uid != NOBODY} == set()
