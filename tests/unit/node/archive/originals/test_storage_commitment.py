"""Proves that a request for storage commitment stays claimed while its originals are read."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from node.archive.originals import storage_commitment
from node.archive.originals.storage_commitment import COMMITTED, CommitmentJudge, FailureReason, original_fault
from node.config import parse
from storage.index.commitment_requests import CommitmentItem, Commitments
from storage.records import InstanceState, StoredInstance
from tests.support.archive_parts import ArchiveParts
from tests.support.index_rows import has_pin
from tests.support.samples import MAMMOGRAPHY

UIDS = ("1.2.3.1", "1.2.3.2", "1.2.3.3")


@pytest.fixture
def bench(tmp_path: Path) -> ArchiveParts:
    bench = ArchiveParts(tmp_path / "archive", coder="none")
    for uid in UIDS:
        bench.receive(uid, state=InstanceState.EXACT)
    return bench


def test_a_long_request_is_not_judged_by_two(bench: ArchiveParts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading all originals takes longer than the lease, which is renewed meanwhile."""
    monkeypatch.setattr(storage_commitment, "LEASE", 0.6)
    commitments = Commitments(bench.index.engine)
    commitments.add("1.9", "MODALITY", [CommitmentItem(MAMMOGRAPHY, uid) for uid in UIDS], due=0.0)
    request = commitments.claim("one", storage_commitment.LEASE)
    assert request is not None
    claimed_by_another: list[bool] = []

    def read_slowly(held: StoredInstance) -> str:
        time.sleep(0.25)
        claimed_by_another.append(commitments.claim("another", 60) is not None)
        return original_fault(bench.originals, held)

    settings = parse({}, "test").commitment
    report = CommitmentJudge(bench.index, commitments, read_slowly, settings).judge(request)
    assert claimed_by_another == [False, False, False]
    assert [one.reason for one in report] == [COMMITTED] * 3


@pytest.mark.parametrize("harm", ["missing", "damaged"])
def test_an_original_that_is_not_whole_is_not_committed(bench: ArchiveParts, harm: str) -> None:
    first = bench.index.by_uid(UIDS[0])
    assert first is not None
    path = bench.hot.path(first.original_digest)
    path.unlink() if harm == "missing" else path.write_bytes(b"damaged")
    fault = original_fault(bench.originals, first)
    cannot_be_read = f"its original cannot be read: object {path.name} is not in {bench.root / 'objects'}"
    assert fault == (cannot_be_read if harm == "missing" else "its original is damaged")
    commitments = Commitments(bench.index.engine)
    commitments.add("1.9", "MODALITY", [CommitmentItem(MAMMOGRAPHY, uid) for uid in UIDS[:2]], due=0.0)
    request = commitments.claim("one", 60)
    assert request is not None
    judge = CommitmentJudge(
        bench.index, commitments, lambda held: original_fault(bench.originals, held), parse({}, "test").commitment
    )
    assert [one.reason for one in judge.judge(request)] == [FailureReason.PROCESSING_FAILURE, COMMITTED]
    assert not has_pin(bench.index.engine, first.key)
