"""Proves that benchmarks/load.py tells wrong answers from right ones, and that a short load finds no wrong one."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.ledger import Ledger, Sent
from benchmarks.samples import breast, mammogram, write
from benchmarks.victim import ROOT
from storage.index import Index

SUCCESS, DELETED, FAILED_IN_PART = 0x0000, 0xC004, 0xB000


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    opened = Index.open(f"sqlite:///{tmp_path / 'index.sqlite'}")
    yield opened
    opened.close()


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
def held(ledger: Ledger, tmp_path: Path) -> Sent:
    """An image that was sent and acknowledged."""
    ds = mammogram(breast(64, 48), StudyInstanceUID="1.2", SOPInstanceUID="1.2.3")
    sent = ledger.sends(ds, write(ds, tmp_path / "sent.dcm"))
    ledger.stored(sent, SUCCESS, time.monotonic())
    return sent


def changed(tmp_path: Path, rows: int = 64) -> Path:
    """An image of the same UID with another accession number, and with other pixels unless it has 64 rows."""
    ds = mammogram(breast(rows, 48), StudyInstanceUID="1.2", SOPInstanceUID="1.2.3", AccessionNumber="L1")
    return write(ds, tmp_path / "changed.dcm")


def delete(ledger: Ledger, *uids: str) -> None:
    ledger.deletes("1.2")
    ledger.deleted("1.2", uids)


def test_what_comes_back_as_it_was_sent_is_right(ledger: Ledger, held: Sent, index: Index) -> None:
    now = time.monotonic()
    assert ledger.retrieved("1.2", now, SUCCESS, {held.uid: held.path}, index) == {held.uid}
    ledger.found("1.2", now, [held.uid], index)
    assert (ledger.wrong, ledger.refused, ledger.studies()) == ([], {}, ["1.2"])


def test_other_bytes_are_wrong(ledger: Ledger, held: Sent, index: Index, tmp_path: Path) -> None:
    other = {held.uid: changed(tmp_path)}
    assert ledger.retrieved("1.2", time.monotonic(), SUCCESS, other, index) == set()
    assert ledger.wrong == ["1.2.3: retrieved with other bytes"]


@pytest.mark.parametrize(("rows", "right"), [(64, True), (65, False)])
def test_an_amended_study_may_have_another_header_but_no_other_pixels(
    ledger: Ledger, held: Sent, index: Index, tmp_path: Path, rows: int, right: bool
) -> None:
    ledger.amends("1.2")
    other = {held.uid: changed(tmp_path, rows)}
    assert bool(ledger.retrieved("1.2", time.monotonic(), SUCCESS, other, index)) == right
    assert bool(ledger.wrong) != right


def test_only_an_answer_other_than_success_may_leave_an_image_out(ledger: Ledger, held: Sent, index: Index) -> None:
    ledger.retrieved("1.2", time.monotonic(), FAILED_IN_PART, {}, index)
    assert (ledger.wrong, ledger.refused) == ([], {"retrieve B000": 1})
    ledger.retrieved("1.2", time.monotonic(), SUCCESS, {}, index)
    ledger.found("1.2", time.monotonic(), [], index)
    assert ledger.wrong == [
        "1.2.3: left out by a retrieve that succeeded",
        "1.2.3: not found by a query that succeeded",
    ]


def test_nothing_is_expected_of_an_image_while_it_may_be_deleted(ledger: Ledger, held: Sent, index: Index) -> None:
    before = time.monotonic()
    ledger.deletes("1.2")
    ledger.retrieved("1.2", time.monotonic(), SUCCESS, {}, index)
    ledger.deleted("1.2", [])
    ledger.retrieved("1.2", before, SUCCESS, {}, index)
    assert ledger.wrong == []
    ledger.retrieved("1.2", time.monotonic(), SUCCESS, {}, index)
    assert len(ledger.wrong) == 1


def test_a_deleted_image_must_not_come_back(ledger: Ledger, held: Sent, index: Index) -> None:
    before = time.monotonic()
    delete(ledger, held.uid)
    ledger.retrieved("1.2", before, SUCCESS, {held.uid: held.path}, index)
    ledger.stored(held, SUCCESS, before)
    assert (ledger.wrong, ledger.held(), ledger.gone()) == ([], [], [held])
    now = time.monotonic()
    ledger.stored(held, DELETED, now)
    assert (ledger.wrong, ledger.refused) == ([], {"store C004": 1})
    ledger.stored(held, SUCCESS, now)
    ledger.found("1.2", now, [held.uid], index)
    ledger.retrieved("1.2", now, SUCCESS, {held.uid: held.path}, index)
    assert [line.partition(": ")[2] for line in ledger.wrong] == [
        "stored with success after it was deleted",
        "found after it was deleted",
        "retrieved after it was deleted",
    ]


@pytest.mark.very_slow
@pytest.mark.timeout(600)
def test_half_a_minute_of_mixed_load(tmp_path: Path) -> None:
    words = [sys.executable, "-W", "ignore", "-m", "benchmarks.load", "--minutes", "0.5", "--seed", "3", "--json"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    report = json.loads(done.stdout)
    assert (done.returncode, report["found"]) == (0, [])
    assert (report["lost"], report["wrong_success"], report["crashes"]) == (0, 0, 0)
    assert report["stop_seconds"] <= report["stop_limit_seconds"]
    assert min(report[name] for name in ("stores", "retrieves", "echoes", "finds", "purges", "amends", "scrubs")) > 0
