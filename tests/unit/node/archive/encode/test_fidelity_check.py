"""Proves what an audit does with an image: nothing, withdraw its rendition, or flag it."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from pydicom import Dataset

from node.archive.encode.fidelity_check import FidelityCheck, FidelityFinding, FidelityOutcome
from node.workers.auditing import AuditRequest
from storage.errors import Cancelled, NoWorker, WorkerDied
from storage.index.integrity import Integrity
from storage.records import InstanceState, ReasonCode, StoredInstance
from tests.support.archive_parts import ArchiveParts
from tests.support.coded_images import InlinePool, hold_image
from tests.support.samples import breast, mammogram

UID, DERIVED = "1.2.3.1", "2.25.7"


def measurable() -> Dataset:
    """An image of the smallest size that is measured."""
    return mammogram(breast(256, 256), SOPInstanceUID=UID)


@pytest.fixture
def bench(tmp_path: Path) -> ArchiveParts:
    return ArchiveParts(tmp_path / "archive", coder="none")


def check(bench: ArchiveParts, pool: InlinePool | None = None) -> FidelityCheck:
    parts = bench.index, bench.hot, bench.originals, bench.settings
    return FidelityCheck(*parts, pool or InlinePool(), lambda: False)  # type: ignore[arg-type]


def image(bench: ArchiveParts) -> StoredInstance:
    found = bench.index.by_uid(UID)
    assert found is not None
    return found


def audited(bench: ArchiveParts, pool: InlinePool | None = None) -> FidelityFinding:
    found = check(bench, pool).audit(image(bench).key)
    assert found is not None
    return found


def newest_action(bench: ArchiveParts) -> tuple[str, str]:
    (record,) = bench.index.trail.records(newest=1)
    return record.entry.action, record.entry.outcome


class Failing:
    """Lets audits fail with an error."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __call__(self, request: object) -> None:
        if isinstance(request, AuditRequest):
            raise self.error


def test_what_has_no_rendition_is_not_audited(bench: ArchiveParts) -> None:
    bench.receive(UID, state=InstanceState.EXACT)
    assert check(bench).audit(image(bench).key) is None
    assert check(bench).audit(10_000) is None


def test_an_image_that_is_encoded_again_is_not_audited(bench: ArchiveParts) -> None:
    hold_image(bench, measurable(), DERIVED)
    Integrity(bench.index.engine).requeue(image(bench).key, ReasonCode.OTHER, "regions were marked")
    assert check(bench).audit(image(bench).key) is None


def test_an_image_that_was_not_gated_is_only_remeasured(bench: ArchiveParts) -> None:
    hold_image(bench, measurable(), DERIVED, passed=False)
    found = audited(bench)
    assert (found.outcome, found.action) == (FidelityOutcome.REMEASURED, "")
    assert found.reason.startswith("fsim_mean ")
    assert "recorded was 0.9900" in found.reason
    assert image(bench).state is InstanceState.MEASURED


def test_a_rendition_beyond_the_limits_is_withdrawn_and_its_original_served(bench: ArchiveParts) -> None:
    hold_image(bench, measurable(), DERIVED)
    found = audited(bench)
    assert (found.outcome, found.action) == (FidelityOutcome.WORSE, "withdrawn")
    assert (image(bench).state, image(bench).rendition) == (InstanceState.WITHDRAWN, None)
    assert newest_action(bench) == ("rendition.withdraw", "failure")


@pytest.mark.slow
@pytest.mark.parametrize("harm", ["missing", "damaged"])
def test_a_rendition_is_flagged_and_not_withdrawn_if_the_original_is_lost_meanwhile(
    bench: ArchiveParts, harm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The original is lost after the image was measured, and nothing but the rendition could be served."""
    hold_image(bench, measurable(), DERIVED)
    path = bench.hot.path(image(bench).original_digest)
    auditor = check(bench)
    judge = auditor._judge

    def judge_and_lose(*parts: object) -> FidelityFinding:
        path.unlink() if harm == "missing" else path.write_bytes(b"damaged")
        return judge(*parts)  # type: ignore[arg-type]

    monkeypatch.setattr(auditor, "_judge", judge_and_lose)
    found = auditor.audit(image(bench).key)
    assert found is not None
    assert (found.outcome, found.action) == (FidelityOutcome.WORSE, "flagged")
    assert image(bench).rendition is not None
    assert image(bench).state is InstanceState.FAILED
    assert image(bench).reason.endswith("; no original to serve instead")
    assert newest_action(bench) == ("rendition.flag", "failure")


def test_damage_of_its_objects_is_left_to_the_scrub(bench: ArchiveParts) -> None:
    hold_image(bench, measurable(), DERIVED)
    rendition = image(bench).rendition
    assert rendition is not None
    bench.hot.path(rendition.base_digest).write_bytes(b"damaged")
    found = audited(bench)
    assert (found.outcome, found.action) == (FidelityOutcome.DAMAGED, "")
    assert image(bench).state is InstanceState.VERIFIED


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (WorkerDied("killed by signal 9"), "WorkerDied: killed by signal 9"),
        (RuntimeError("a fault of ours"), "RuntimeError: a fault of ours"),
    ],
    ids=["known", "unknown"],
)
def test_an_error_that_is_not_of_the_image_changes_nothing(
    bench: ArchiveParts, error: Exception, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    hold_image(bench, measurable(), DERIVED)
    with caplog.at_level(logging.ERROR):
        found = audited(bench, InlinePool(Failing(error)))
    assert (found.outcome, found.reason, found.action) == (FidelityOutcome.UNTRIED, reason, "")
    (record,) = caplog.records
    assert record.getMessage() == f"auditing {UID}: {error}"
    assert bool(record.exc_info) is isinstance(error, RuntimeError)
    assert image(bench).state is InstanceState.VERIFIED


def test_a_cancelled_audit_judges_nothing(bench: ArchiveParts) -> None:
    hold_image(bench, measurable(), DERIVED)
    with pytest.raises(Cancelled):
        audited(bench, InlinePool(Failing(Cancelled())))
    assert image(bench).state is InstanceState.VERIFIED


def test_pictures_are_made_of_an_image_that_is_held(bench: ArchiveParts, caplog: pytest.LogCaptureFixture) -> None:
    hold_image(bench, measurable(), DERIVED, passed=False)
    found = audited(bench)
    pictures = check(bench).pictures(found)
    assert pictures is not None
    assert [one.shape[:2] for one in pictures.whole] == [(256, 256)] * 3
    for error in (WorkerDied("killed"), NoWorker("no process")):
        with caplog.at_level(logging.WARNING):
            assert check(bench, InlinePool(Failing(error))).pictures(found) is None
        assert f"no pictures of {UID}: {error}" in caplog.text
    bench.index.tombstones.mark_deleted("image", UID, reason="wrong patient", who="user:test")
    bench.index.tombstones.delete_rows()
    assert check(bench).pictures(found) is None
