"""Proves that with a full, read-only or missing disk peers get the right status, reading still works, and a stop loses
nothing.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE

from node.app import Node
from node.archive.rendered_cache import RenderedCache
from node.dimse.dimse_status import STORE_ERRORS, of_error
from node.dimse.spool import Allowance, SpoolFile
from storage.errors import StoreFull
from storage.objects.reserve_file import RESERVE, keep_reserve, release_reserve
from storage.objects.store import ObjectStore
from tests.conftest import Archive, settings_for, wait_for
from tests.support.paths import ROOT
from tests.support.samples import MAMMOGRAPHY, breast, mammogram
from tests.support.transfers import got, stored

# pynetdicom leaves the socket of an association that broke to the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. <s:pytest.PytestUnraisableExceptionWarning")


def refuse(*_: Any, **__: Any) -> Any:
    raise OSError(errno.EROFS, "Read-only file system")


def send(archive: Archive, assoc: Any = None) -> int | None:
    """The status of one small C-STORE; None if there was none."""
    entity = AE("MODALITY")
    entity.add_requested_context(MAMMOGRAPHY, ExplicitVRLittleEndian)
    own = assoc is None
    assoc = assoc or entity.associate("127.0.0.1", archive.address.port)
    ds = mammogram(breast(64, 64), SOPInstanceUID=generate_uid())
    from pydicom.dataset import FileMetaDataset

    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    status = assoc.send_c_store(ds)
    if own and assoc.is_established:
        assoc.release()
    return int(status.Status) if "Status" in status else None


@pytest.mark.parametrize("where", ["tempfile.mkstemp", "pathlib.Path.mkdir"])
def test_a_spool_that_cannot_be_written_is_a_status(
    quiet_archive: Archive, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(where, refuse)
        assert send(quiet_archive) == 0xA700
    assert send(quiet_archive) == 0


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT])
def test_bytes_that_cannot_be_written_are_a_status(tmp_path: Path, code: int) -> None:
    spooled = SpoolFile(tmp_path, Allowance(10**6, lambda: None))

    def fails(data: bytes) -> int:
        raise OSError(code, os.strerror(code))

    spooled._out.close()
    spooled._out = type("Out", (), {"write": staticmethod(fails), "close": lambda self: None, "flush": fails})()
    assert spooled.write(b"x" * 100) == 100
    assert isinstance(spooled.refused, StoreFull)
    comment = of_error(spooled.refused, STORE_ERRORS).ErrorComment
    full = code in (errno.ENOSPC, errno.EDQUOT)
    assert comment == ("not enough space in the archive" if full else "the archive cannot write at present")


def test_objects_that_cannot_be_written_are_a_status(quiet_archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ObjectStore, "adopt", refuse)
    assert send(quiet_archive) == 0xA700


def test_a_read_only_disk_still_serves(quiet_archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither links nor files can be made in the archive. A copy of the original in the system's temporary folder is
    served."""
    held = stored(quiet_archive, tmp_path)
    root, make, copy = quiet_archive.node.store.root, tempfile.mkstemp, shutil.copyfile

    def outside(suffix: str | None = None, prefix: str | None = None, dir: Any = None) -> Any:
        return refuse() if dir is not None and Path(dir).is_relative_to(root) else make(suffix, prefix, dir)

    def copied(source: Any, target: Any, **options: Any) -> Any:
        return refuse() if Path(target).is_relative_to(root) else copy(source, target, **options)

    monkeypatch.setattr("os.link", refuse)
    monkeypatch.setattr("tempfile.mkstemp", outside)
    monkeypatch.setattr("shutil.copyfile", copied)
    assert got(quiet_archive, held, "EXACTVIEW") == (0, [held.sop_instance_uid])
    assert send(quiet_archive) == 0xA700
    assert not list(Path(tempfile.gettempdir()).glob("latent-pacs-lent-*"))


@pytest.fixture(scope="module")
def mounts() -> list[str]:
    """The command line in front of a command that may mount. Tests that need it are skipped where mounting is
    impossible."""
    prefix = ["unshare", "--map-root-user", "--mount"]
    probe = ["sh", "-c", "mount -t tmpfs -o size=1m tmpfs /mnt"]
    if not shutil.which("unshare") or subprocess.run([*prefix, *probe], capture_output=True, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    return prefix


@pytest.mark.slow
@pytest.mark.parametrize("kept", ["room", "nothing"])
def test_a_node_starts_on_a_full_disk(tmp_path: Path, mounts: list[str], kept: str) -> None:
    """The node serves images and refuses stores. Without a reserve file, it reports that the disk is full."""
    script = [sys.executable, "-W", "ignore", "-m", "tests.support.full_disk", str(tmp_path), kept]
    done = subprocess.run([*mounts, *script], capture_output=True, text=True, check=False, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    if kept == "room":
        assert told == {
            "first": 0,
            "stored": [0xA700, 0xA700],
            "found": 1,
            "moved": 0,
            "received": 1,
            "with room again": 0,
            "kept back again": True,
        }
    else:
        assert "is too full to open it" in told["refused"]
        assert "rebuild" not in told["refused"]


def test_room_is_kept_back_where_there_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_reserve(tmp_path)
    file = tmp_path / "reserve"
    assert file.stat().st_blocks * 512 >= RESERVE
    assert release_reserve(tmp_path) == ""
    assert file.exists()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=1000))
    assert release_reserve(tmp_path).startswith("1000 bytes are free")
    assert release_reserve(tmp_path) == ""
    keep_reserve(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_cache_that_cannot_be_written_gives_what_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = RenderedCache(tmp_path, 10**6)
    made = cache.new_file()
    made.write_bytes(b"made")
    monkeypatch.setattr("os.link", refuse)
    assert cache.keep("key", made).read_bytes() == b"made"
    assert not cache.has("key")


@pytest.mark.slow
def test_a_stop_under_load_finishes_or_refuses(tmp_path: Path) -> None:
    """Every store that began before the stop has a status, and the store holds every image that was answered with
    success."""
    node = Node(settings_for(tmp_path / "archive", archivist={"enabled": False}, node={"shutdown_timeout": 20}))
    node.start()
    archive = Archive(node, None)  # type: ignore[arg-type]
    entity = AE("MODALITY")
    entity.add_requested_context(MAMMOGRAPHY, ExplicitVRLittleEndian)
    answered: list[int | None] = []

    def load() -> None:
        assoc = entity.associate("127.0.0.1", archive.address.port)
        while assoc.is_established:
            try:
                answered.append(send(archive, assoc))
            except (RuntimeError, ValueError):  # ended before it was sent
                return

    senders = [threading.Thread(target=load) for _ in range(3)]
    for sender in senders:
        sender.start()
    wait_for(lambda: len(answered) > 5, what="some stores")
    node.stop()
    for sender in senders:
        sender.join(300)
    statuses = [status for status in answered if status is not None]
    assert set(statuses) == {0, 0xA700}
    assert statuses.count(0xA700) >= 3
    with Node(settings_for(tmp_path / "archive", archivist={"enabled": False})) as again:
        assert sum(again.index.counts().by_state.values()) == statuses.count(0)
    gc.collect()  # while the filter above holds
