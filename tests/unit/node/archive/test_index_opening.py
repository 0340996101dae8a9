"""Proves what a node reports and changes when it opens an index that another process has used."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import update

from node.archive.index_opening import open_for_command, open_for_node
from node.config import parse
from storage.index.connection import now, writing
from storage.index.tables import instance
from storage.records import InstanceState
from tests.support.index_rows import new_instance


def test_a_new_archive_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A spelling mistake in storage.root begins a new archive, and the images seem to be lost."""
    settings = parse({"storage": {"root": str(tmp_path)}}, "test")
    for _ in range(2):
        open_for_node(settings, accept_empty=False).close()
    (told,) = caplog.messages
    assert told.startswith(f"a new archive begins in {tmp_path}, which held none")


@pytest.mark.parametrize(("ahead", "told"), [(timedelta(minutes=50), 0), (timedelta(days=9), 1)])
def test_a_clock_that_is_behind_the_archive_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, ahead: timedelta, told: int
) -> None:
    settings = parse({"storage": {"root": str(tmp_path)}}, "test")
    index = open_for_node(settings, accept_empty=False)
    index.add(new_instance())
    with writing(index.engine) as connection:
        connection.execute(update(instance).values(received_at=now() + ahead))
    index.close()
    caplog.clear()
    open_for_node(settings, accept_empty=False).close()
    assert sum("correct the clock" in message for message in caplog.messages) == told


def test_claims_of_a_killed_node_end_at_the_next_start(tmp_path: Path) -> None:
    """A command that runs beside the node ends no claim. An image that waits after a fault continues to wait."""
    settings = parse({"storage": {"root": str(tmp_path)}}, "test")
    index = open_for_node(settings, accept_empty=False)
    for number in range(3):
        index.add(new_instance(f"1.2.3.{number}"))
    final, waits, claimed = (index.claim("killed:1", 900) for _ in range(3))
    assert final and waits and claimed
    assert index.finish(final, InstanceState.EXACT)
    assert index.originals.claim_to_pack("killed:1", 900) is not None
    assert index.release(waits, forgive=True, wait=900)
    index.close()
    beside = open_for_command(settings)
    assert beside.claim("another", 900) is None
    beside.close()
    again = open_for_node(settings, accept_empty=False)
    assert again.originals.claim_to_pack("new", 900) is not None
    found = again.claim("new", 900)
    assert found is not None
    assert (found.key, found.attempts) == (claimed.key, 2)
    assert again.claim("new", 900) is None
    assert not again.renew(claimed, 900)
    again.close()
