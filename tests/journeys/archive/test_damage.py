"""Proves that no damaged object is served: every object is compared with its digest when it is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from node.app import Node
from node.archive.rendered_cache import RenderedCache
from node.dimse import client
from node.dimse.client import Receiver
from storage.objects.store import DAMAGED
from storage.records import InstanceState, OriginalForm
from tests.conftest import Archive, settings_for, wait_for
from tests.support.samples import MAMMOGRAPHY
from tests.support.transfers import got, stored


def flip(path: Path, at: int = -1000) -> None:
    """Flip one bit of a file, as a medium may do."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)


def test_a_damaged_verbatim_original_fails_and_heals(quiet_archive: Archive, tmp_path: Path) -> None:
    node, held = quiet_archive.node, stored(quiet_archive, tmp_path)
    assert got(quiet_archive, held, "EXACTVIEW") == (0, [held.sop_instance_uid])
    flip(node.store.path(held.original_digest))
    assert got(quiet_archive, held, "EXACTVIEW") == (0xA702, [])
    after = node.index.by_uid(held.sop_instance_uid)
    assert after is not None
    assert after.state is InstanceState.FAILED
    assert "send it again" in after.reason
    assert [one.name for one in (node.store.root / DAMAGED).iterdir()] == [f"{held.original_digest}.1"]
    told = [one.entry for one in node.index.trail.records() if one.entry.action == "damage"]
    assert [(one.uids, one.outcome) for one in told] == [((held.sop_instance_uid,), "lost")]
    again: list[int] = []
    client.store(
        [tmp_path / "image.dcm"],
        quiet_archive.address,
        calling="MODALITY",
        each=lambda _, status, __: again.append(status),
    )
    assert again == [0]
    assert got(quiet_archive, held, "EXACTVIEW") == (0, [held.sop_instance_uid])


@pytest.mark.slow
def test_auto_gets_the_reconstruction_of_an_original_that_was_damaged(archive: Archive, tmp_path: Path) -> None:
    held = stored(archive, tmp_path)
    settled = archive.settled(held.sop_instance_uid)
    assert settled.rendition is not None
    flip(archive.node.store.path(held.original_digest))
    assert got(archive, held, "AUTOVIEW")[0] == 0xA702  # its choice was made before the damage was found
    derived = settled.rendition.derived_uid
    identifier = client.image_identifier(held.study_instance_uid)
    archive.receiver.received.clear()
    response = client.get(
        identifier, archive.address, calling="AUTOVIEW", sop_classes=[MAMMOGRAPHY], receiver=archive.receiver
    )
    assert (response.Status, list(archive.receiver.received)) == (0, [derived])


@pytest.mark.slow
def test_a_damaged_packed_original_fails(tmp_path: Path, receiver: Receiver) -> None:
    with Node(settings_for(tmp_path / "archive", receiver.port, originals={"coder": "jpegls"})) as node:
        archive = Archive(node, receiver)
        held = stored(archive, tmp_path)

        def packed() -> str:
            original = node.index.originals.of_digest(held.original_digest)
            return original.object_digest if original and original.form is OriginalForm.PACKED else ""

        digest = wait_for(packed, what="a packed original")
        assert got(archive, held, "EXACTVIEW") == (0, [held.sop_instance_uid])
        for entry in (node.store.root / "rendered").glob("*.dcm"):  # a damaged cache entry is made again
            flip(entry)
        assert got(archive, held, "EXACTVIEW") == (0, [held.sop_instance_uid])
        for entry in (node.store.root / "rendered").glob("*.dcm"):
            entry.unlink()
        flip(node.store.path(digest))
        assert got(archive, held, "EXACTVIEW") == (0xA702, [])


def test_a_cached_object_that_changes_is_not_lent(tmp_path: Path) -> None:
    cache = RenderedCache(tmp_path, 10**6)
    made = cache.new_file()
    made.write_bytes(bytes(5000))
    cache.keep("key", made).unlink()
    link = cache.link("key")
    assert link is not None
    link.unlink()
    flip(next(tmp_path.glob("key.*.dcm")))
    assert cache.link("key") is None
    assert not cache.has("key")
    assert list((tmp_path / "sending").iterdir()) == []
