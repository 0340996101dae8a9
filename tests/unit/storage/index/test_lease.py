"""Proves for every table with lease columns that it has one owner at a time, and that a lost lease changes nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from pydantic import ValidationError
from sqlalchemy import Connection, Table, insert, text

from node.config.encoding_sections import ArchivistSettings
from node.config.job_sections import JobsSettings
from storage.errors import StoreFull
from storage.index import Index, lease
from storage.index.connection import FOLLOWER, writing
from storage.index.tables import instance, job, metadata

LEASED = [table for table in metadata.sorted_tables if "lease_owner" in table.c]


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[Connection]:
    index = Index.open(f"sqlite:///{tmp_path / 'index.sqlite'}")
    with writing(index.engine) as opened:
        opened.execute(insert(job).values(name="scrub", paused=0, due_at=0.0, memory={}))
        yield opened
    index.close()


def test_five_tables_have_leases() -> None:
    names = {table.name for table in LEASED}
    assert names == {"instance", "original", "commitment", "reverification", "job"}


@pytest.mark.parametrize("table", LEASED, ids=lambda table: str(table.name))
def test_a_missing_row_is_neither_claimed_nor_changed(connection: Connection, table: Table) -> None:
    mine = lease.owned(table, "me")
    assert lease.claim(connection, table, table.c.lease_owner == "me", "me", 60) is None
    assert not lease.renew(connection, table, mine, 60)
    assert not lease.change_and_release(connection, table, mine)


def test_one_owner_at_a_time(connection: Connection) -> None:
    wanted, first, second = job.c.name == "scrub", lease.new_owner(), lease.new_owner()
    claimed = lease.claim(connection, job, wanted, first, 60, run_key=7)
    assert claimed is not None
    assert (claimed.lease_owner, claimed.run_key, lease.is_leased(claimed)) == (first, 7, True)
    assert lease.claim(connection, job, wanted, second, 60) is None
    assert lease.renew(connection, job, lease.owned(job, first, name="scrub", run_key=7), 60)
    assert not lease.renew(connection, job, lease.owned(job, first, name="scrub", run_key=8), 60)
    connection.execute(text("UPDATE job SET lease_until = 0"))  # as if the time had passed
    assert lease.claim(connection, job, wanted, second, 60) is not None
    assert not lease.change_and_release(connection, job, lease.owned(job, first, name="scrub"), paused=1)
    assert lease.change_and_release(connection, job, lease.owned(job, second, name="scrub"), paused=1)
    assert connection.execute(text("SELECT lease_owner, lease_until, paused FROM job")).one() == (None, None, 1)


def test_a_row_may_stay_unclaimable_for_a_while(connection: Connection) -> None:
    connection.execute(job.update().values(lease.leased_to(None, 60)))
    assert lease.claim(connection, job, job.c.name == "scrub", "me", 60) is None
    connection.execute(job.update().values(lease.leased_to(None, -1)))
    assert lease.claim(connection, job, job.c.name == "scrub", "me", 60) is not None


def test_a_lease_from_before_the_clock_was_set_back_is_over(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its worker may be dead, and the row would wait until the clock has reached that time again."""
    wanted, now = job.c.name == "scrub", time.time()
    claimed = lease.claim(connection, job, wanted, "killed", 900)
    assert claimed is not None
    monkeypatch.setattr(lease, "time", SimpleNamespace(time=lambda: now - 60))
    assert lease.is_leased(claimed), "the clocks of two nodes differ by so much"
    assert lease.claim(connection, job, wanted, "next", 900) is None
    monkeypatch.setattr(lease, "time", SimpleNamespace(time=lambda: now - 86400))
    assert not lease.is_leased(claimed)
    assert lease.claim(connection, job, wanted, "next", 900) is not None
    assert not lease.renew(connection, job, lease.owned(job, "killed"), 900)


@pytest.mark.parametrize("section", [ArchivistSettings, JobsSettings])
def test_no_setting_allows_a_longer_lease(section: type[ArchivistSettings | JobsSettings]) -> None:
    assert section(lease=lease.LONGEST).lease == lease.LONGEST
    with pytest.raises(ValidationError):
        section(lease=lease.LONGEST + 1)


def test_owners_differ() -> None:
    assert lease.new_owner() != lease.new_owner()
    assert len(lease.new_owner()) <= instance.c.lease_owner.type.length  # type: ignore[attr-defined]


@pytest.mark.parametrize("release_fails", [False, True])
def test_a_claim_whose_journal_fails_is_released(connection: Connection, release_fails: bool) -> None:
    """It is committed then, and nobody could work on the row until the lease ends."""
    released: list[str] = []

    def journal() -> None:
        raise StoreFull("the journal is full")

    def release(claim: str) -> None:
        released.append(claim)
        if release_fails:
            raise StoreFull("the release is not journalled either")

    connection.rollback()
    engine = connection.engine.execution_options(**{FOLLOWER: journal})
    with pytest.raises(StoreFull, match="the journal is full"):
        lease.claimed(engine, lambda _: "claim", release)
    assert released == ["claim"]
    with pytest.raises(StoreFull, match="the journal is full"):
        lease.claimed(engine, lambda _: None, release)
    assert released == ["claim"], "nothing was claimed"
