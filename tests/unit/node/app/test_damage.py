"""Proves what is recorded of an object that a reader found damaged, and that its reader goes on in any case."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from node.app.damage import damage_handler
from storage.errors import IndexFault
from storage.index.integrity import Integrity
from storage.records import InstanceState, ReasonCode, StoredInstance, Tier
from tests.support.archive_parts import ArchiveParts
from tests.support.coded_images import just_before

UID = "1.2.3.1"


@pytest.fixture
def bench(tmp_path: Path) -> ArchiveParts:
    return ArchiveParts(tmp_path / "archive", coder="none")


def image(bench: ArchiveParts) -> StoredInstance:
    found = bench.index.by_uid(UID)
    assert found is not None
    return found


def settle(bench: ArchiveParts, digest: str) -> None:
    damage_handler(bench.index, bench.stores, bench.trail)(Tier.HOT, digest)


def test_a_damaged_original_is_flagged_in_index_and_trail(bench: ArchiveParts) -> None:
    bench.receive(UID, state=InstanceState.EXACT)
    digest = image(bench).original_digest
    bench.hot.path(digest).write_bytes(b"damaged")
    settle(bench, digest)
    assert image(bench).reason_code is ReasonCode.ORIGINAL_LOST
    assert len(Integrity(bench.index.engine).open_damage()) == 1
    assert bench.index.trail.last()[0] > 0


def test_an_object_that_is_whole_when_it_is_read_again_is_no_damage(
    bench: ArchiveParts, caplog: pytest.LogCaptureFixture
) -> None:
    bench.receive(UID, state=InstanceState.EXACT)
    with caplog.at_level(logging.ERROR):
        settle(bench, image(bench).original_digest)
    assert image(bench).state is InstanceState.EXACT
    assert not Integrity(bench.index.engine).open_damage()
    assert not caplog.records


def test_a_damaged_object_that_no_image_needs_is_logged(bench: ArchiveParts, caplog: pytest.LogCaptureFixture) -> None:
    digest = bench.hot.put(b"nobody's")
    bench.hot.path(digest).write_bytes(b"damaged")
    with caplog.at_level(logging.ERROR):
        settle(bench, digest)
    (line,) = caplog.messages
    assert line.startswith(f"object {digest} is damaged (")
    assert line.endswith("), and no image needs it")


def test_an_index_that_fails_does_not_fail_the_reader(
    bench: ArchiveParts, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bench.receive(UID, state=InstanceState.EXACT)
    digest = image(bench).original_digest
    bench.hot.path(digest).write_bytes(b"damaged")

    def locked() -> None:
        raise IndexFault("the index is locked")

    just_before(monkeypatch, Integrity, "expected_at", locked)
    with caplog.at_level(logging.ERROR):
        settle(bench, digest)
    assert caplog.messages == [f"damage of object {digest} could not be handled; run latent-pacs scrub --full"]
    settle(bench, digest)
    assert image(bench).reason_code is ReasonCode.ORIGINAL_LOST
