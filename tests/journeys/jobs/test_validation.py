"""Proves that a validation finds equivalence if signs survive compression, and none if they are lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.phantoms import COARSE, FINE, cohort
from node.app import Node, plan_jobs
from node.dimse import client
from node.dimse.client import Address
from node.jobs.runner import Runner
from node.validation.label_file import read_labels
from storage.index.job_runs import Cause, JobRows, JobRun
from storage.records import InstanceState
from tests.conftest import settings_for, wait_for
from tests.support.chromium import open_page

UNGATED = {"profile": "paper"}


def filled(node: Node, files: list[Path], labels: Path) -> None:
    """Store the files by C-STORE, wait for the archivist, and label the images."""
    address = Address("127.0.0.1", node.server.port, node.settings.node.ae_title)
    statuses: list[int] = []
    client.store(files, address, calling="MODALITY", each=lambda _, status, __: statuses.append(status))
    assert statuses == [0] * len(files)
    wait_for(lambda: node.index.counts().backlog == 0, timeout=800, what="everything encoded")
    assert node.index.counts().by_state[InstanceState.RECEIVED] == 0
    node.index.classes.put(read_labels(labels, node.index).classes, who="user:test")


def validated(node: Node) -> JobRun:
    planned = plan_jobs(node.archive)
    [job] = [one.job for one in planned if one.job.name == "validation"]
    rows = JobRows(node.index.engine)
    rows.ensure([job.name])
    run = Runner(rows, 60).run(job, Cause.COMMAND)
    assert run is not None
    return run


def settings(root: Path, **changes: Any) -> Any:
    validation = {"weights": "none", "margin": 0.1, "folds": 4, "trials": 6, "bootstrap": 500}
    return settings_for(
        root, jobs={"validation": validation}, reconstruct={"threads": 1, "upscaler": "bicubic"}, **changes
    )


def made_when(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.very_slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("sign", "verdict"), [(COARSE, "equivalent"), (FINE, "different")])
def test_the_verdict_follows_what_compression_did(tmp_path: Path, sign: str, verdict: str) -> None:
    files, labels = cohort(tmp_path / "phantoms", 40, sign, rows=320, columns=256)
    with Node(settings(tmp_path / "archive", codec=UNGATED)) as node:
        filled(node, files, labels)
        run = validated(node)
        assert (run.state, run.error) == ("done", "")
        report = run.report
        assert report["verdict"] == verdict, report["sentence"]
        assert report["auc"]["source"] > 0.9
        assert (report["images"], report["positives"], report["patients"], report["excluded"]) == (40, 20, 20, 0)
        assert not any(one.held for one in node.index.classes.all())  # used, and so let go
        assert node.index.holds.labels() == []
        published = node.archive.reports.find(None, "validation")
        assert (published.key, published.alarm) == (report["report"], verdict == "different")
        seen = open_page(node.archive.reports.html(published), tmp_path)
        assert (seen.requests, seen.console) == ([], [])
        assert "<strong>Weights: none." in seen.dom
        assert verdict.capitalize() in seen.dom
        kept = made_when(tmp_path / "archive" / "features")
        assert kept
        again = validated(node)  # every feature is in the cache
        assert made_when(tmp_path / "archive" / "features") == kept
        assert again.report["auc"] == report["auc"]


def test_without_labels_a_run_says_what_is_missing(tmp_path: Path) -> None:
    with Node(settings(tmp_path / "archive")) as node:
        run = validated(node)
    assert run.state == "failed"
    assert run.error.startswith("no labelled image has both a reconstruction and an original")
