"""Proves how often an audit saves its progress."""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from node.config import parse
from node.jobs import audit_job
from node.jobs.audit_job import AUDIT, Audit, AuditPlan
from storage.errors import Cancelled
from storage.index import Index
from storage.index.job_runs import JobRows
from tests.support.index_rows import url_of

IMAGES = 500
SECONDS = 11.0
"""Seconds that each image takes; more than the fewest seconds between two saves."""


def test_a_long_audit_does_not_write_its_growing_progress_every_few_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it were saved every 10 seconds, the progress on 10,000 images would be written 2,000 times, with 16 GB in
    all."""
    index = Index.open(url_of(tmp_path))
    rows, clock, saves = JobRows(index.engine), [0.0], []
    rows.ensure([AUDIT])
    begun = {"seed": 1, "sample": "5%", "began": time.time(), "left": list(range(IMAGES)), "cells": {}, "findings": []}
    rows.remember(AUDIT, begun)
    monkeypatch.setattr(audit_job, "time", SimpleNamespace(time=time.time, monotonic=lambda: clock[0]))
    monkeypatch.setattr(JobRows, "remember", lambda _, __, memory: saves.append(len(memory["left"])))

    def audit(key: int) -> None:
        clock[0] += SECONDS
        if key == IMAGES - 1:
            raise Cancelled("here")

    check: Any = SimpleNamespace(audit=audit)
    run = Audit(index, parse({}, "test"), SimpleNamespace(), lambda _: check, AuditPlan("5%"))  # type: ignore[arg-type]
    assert run.run(lambda *_: None, lambda: False) == {"finished": False, "audited": 0, "left": 1}
    index.close()
    assert saves[:3] == [IMAGES - 1, IMAGES - 2, IMAGES - 3]
    assert saves[-1] == 1
    assert len(saves) < 100
    lost = [before - after for before, after in pairwise(saves)]
    assert max(lost) <= 0.05 * IMAGES + 1
