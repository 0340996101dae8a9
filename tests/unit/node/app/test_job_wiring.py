"""Proves which jobs are scheduled under a profile."""

from __future__ import annotations

from pathlib import Path

import pytest

from node.app.building import open_archive
from node.app.job_wiring import plan_jobs
from node.config import parse
from storage.index import Index


@pytest.mark.parametrize(("profile", "scheduled"), [("strict", True), ("us-mqsa", False)])
def test_no_purge_is_scheduled_that_the_profile_refuses(tmp_path: Path, profile: str, scheduled: bool) -> None:
    """Such a purge would fail each night, and raise an alert."""
    settings = parse({"storage": {"root": str(tmp_path), "min_free": 0}, "codec": {"profile": profile}}, "test")
    Index.open(settings.storage.database_url).close()
    with open_archive(settings) as services:
        (purge,) = [one for one in plan_jobs(services) if one.job.name == "purge"]
    assert (purge.settings.schedule is not None) is scheduled
