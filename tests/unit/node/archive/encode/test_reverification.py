"""Proves that re-verification leaves an image its rendition unless another one passes, and when it tries again."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, select, update

from node.archive.encode.reverification import Reverification
from node.codec.encode.encode_request import EncodeResult, ReverifyRequest
from node.config import Profile, Settings
from node.workers.rendering_again import RenderAgainRequest, RenderedAgain
from node.workers.requests import ProofRequest
from storage.errors import ModelMissing, NoWorker, WorkerDied
from storage.index.connection import writing
from storage.index.tables import original, rendition, reverification
from storage.records import InstanceState, Trial
from tests.support.archive_parts import ArchiveParts
from tests.support.coded_images import InlinePool, PoolThatOutlastsLeases, hold_image, small
from tests.support.index_rows import digest
from tests.support.inline_archivist import SETTINGS

UID, DERIVED = "1.2.3.1", "2.25.7"


@pytest.fixture
def bench(tmp_path: Path) -> ArchiveParts:
    return ArchiveParts(tmp_path / "archive", coder="none")


@pytest.fixture
def held(bench: ArchiveParts) -> ArchiveParts:
    """An archive with one image, whose rendition was made with other parameters than today's model has."""
    hold_image(bench, small(UID), DERIVED)
    return bench


def run(
    bench: ArchiveParts,
    pool: InlinePool | None = None,
    cancelled: Callable[[], bool] = lambda: False,
    settings: Settings = SETTINGS,
    busy: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    used: Any = pool or InlinePool()
    work = Reverification(bench.index, bench.hot, settings, used, bench.originals.borrowed, busy)
    return work.run(lambda done, of: None, cancelled)


def current(bench: ArchiveParts) -> str:
    found = bench.index.by_uid(UID)
    assert found is not None
    assert found.rendition is not None
    assert found.state is InstanceState.VERIFIED
    return found.rendition.derived_uid


def recorded(bench: ArchiveParts) -> list[tuple[str, str, int]]:
    """Outcome, reason and attempts of each image that was tried."""
    with bench.index.engine.connect() as connection:
        rows = connection.execute(select(reverification)).all()
    assert all(row.lease_owner is None for row in rows)
    return [(row.outcome, row.reason, row.attempts) for row in rows]


def failing(kind: type, error: Exception) -> InlinePool:
    def first(request: object) -> None:
        if isinstance(request, kind):
            raise error

    return InlinePool(first)


def test_a_rendition_that_passes_becomes_the_current_one_and_the_former_stays(held: ArchiveParts) -> None:
    report = run(held)
    assert (report["finished"], report["tried"], report["passed"]) == (True, 1, 1)
    assert current(held) != DERIVED
    former = held.index.rendition(DERIVED)
    assert former is not None
    assert former.withdrawn == ""
    assert held.hot.read(former.rendition_digest)
    assert run(held)["tried"] == 0


def test_images_wait_while_the_archivist_has_work(held: ArchiveParts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.archive.encode.reverification._POLL", 0)
    work, left_when_tried = [True] * 5, []

    def tried(request: object) -> None:
        if isinstance(request, ReverifyRequest):
            left_when_tried.append(len(work))

    assert run(held, InlinePool(tried), lambda: len(work) < 3, busy=lambda: bool(work and work.pop()))["tried"] == 0
    assert (recorded(held), len(work)) == ([], 2)
    assert run(held, InlinePool(tried), busy=lambda: bool(work and work.pop()))["passed"] == 1
    assert left_when_tried == [0]


def test_the_lease_of_an_image_is_renewed_while_a_worker_has_it(
    held: ArchiveParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise another process would try it too."""
    pool = PoolThatOutlastsLeases(ReverifyRequest, held.index.engine, reverification.c.lease_until, monkeypatch)
    assert run(held, pool)["passed"] == 1


def test_an_image_is_given_up_after_as_many_attempts_as_configured(
    held: ArchiveParts, caplog: pytest.LogCaptureFixture
) -> None:
    pool = failing(ReverifyRequest, WorkerDied("killed by signal 9"))
    with caplog.at_level(logging.ERROR):
        reports = [run(held, pool) for _ in range(3)]
    assert [report["untried"] for report in reports] == [1, 1, 0]
    reason = "WorkerDied: killed by signal 9"
    assert reports[0]["untried_list"] == [{"sop_instance_uid": UID, "reason": reason}]
    assert caplog.messages == [f"re-verifying {UID}: killed by signal 9"] * 2
    assert recorded(held) == [("untried", reason, 2)]
    assert current(held) == DERIVED


def test_what_the_machine_lacks_costs_an_image_no_attempt(held: ArchiveParts, caplog: pytest.LogCaptureFixture) -> None:
    """Otherwise three nights with a full disk would leave all images with the former model."""
    pool = failing(ReverifyRequest, NoWorker("no worker process can start"))
    with caplog.at_level(logging.ERROR):
        reports = [run(held, pool) for _ in range(3)]
    assert [report["untried"] for report in reports] == [1, 1, 1]
    assert not caplog.records[0].exc_info
    assert recorded(held) == [("", "", 0)]
    assert run(held)["passed"] == 1


def test_an_image_without_its_original_is_tried_at_every_run(held: ArchiveParts) -> None:
    """The disk of the original may be mounted later."""
    found = held.index.by_uid(UID)
    assert found is not None
    path = held.hot.path(found.original_digest)
    data = path.read_bytes()
    path.unlink()
    reports = [run(held) for _ in range(3)]
    assert [report["untried"] for report in reports] == [1, 1, 1]
    assert recorded(held) == [("", "", 0)]
    path.write_bytes(data)
    assert run(held)["passed"] == 1


class OtherPixels(InlinePool):
    def submit(self, request: object, priority: object) -> Any:
        done = super().submit(request, priority)
        if isinstance(request, RenderAgainRequest):
            done = type(done)()
            done.set_result(RenderedAgain(same=False, difference="other pixels"))
        return done


def test_an_image_that_passed_the_gate_passes_it_again_on_a_node_without_one(held: ArchiveParts) -> None:
    """The image stays VERIFIED, and its original may be purged."""
    with writing(held.index.engine) as connection:
        connection.execute(update(rendition).values(numerics_digest="1" * 64))
    ungated = SETTINGS.model_copy(update={"codec": SETTINGS.codec.model_copy(update={"profile": Profile.PAPER})})
    assert not ungated.codec.gated
    assert run(held, OtherPixels(), settings=ungated)["passed"] == 1
    assert current(held) != DERIVED
    found = held.index.by_uid(UID)
    assert found is not None and found.rendition is not None
    assert found.rendition.verdict.passed


def test_an_image_whose_model_is_missing_is_tried_at_every_run(held: ArchiveParts) -> None:
    """Somebody may install the model later."""
    assert len(held.retention.purge().purged) == 1
    pool = failing(RenderAgainRequest, ModelMissing("not installed"))
    with writing(held.index.engine) as connection:
        connection.execute(update(rendition).values(numerics_digest="1" * 64))
    reports = [run(held, pool) for _ in range(3)]
    assert [entry["reason"] for report in reports for entry in report["untried_list"]] == ["not installed"] * 3
    assert ("", "", 0) in recorded(held)


@pytest.mark.parametrize("original", ["purged", "lost"])
def test_other_pixels_of_an_image_without_its_original_change_nothing(held: ArchiveParts, original: str) -> None:
    """They cannot be measured. An original that is lost may be back later, so that the image is tried again then."""
    found = held.index.by_uid(UID)
    assert found is not None
    if original == "purged":
        assert len(held.retention.purge().purged) == 1
    else:
        held.hot.delete(found.original_digest)
    with writing(held.index.engine) as connection:
        connection.execute(update(rendition).values(numerics_digest="1" * 64))
    report = run(held, OtherPixels())
    outcome = "kept" if original == "purged" else "untried"
    assert [report[name] for name in ("same", "passed", outcome)] == [0, 0, 1 if original == "purged" else 2]
    assert report[f"{outcome}_list"][0]["reason"].startswith("other pixels; ")
    assert current(held) == DERIVED
    assert [row[0] for row in recorded(held) if row[0]] == (["kept"] if original == "purged" else [])


def test_no_other_model_is_tried_on_a_purged_image(held: ArchiveParts) -> None:
    """It could only be measured against the original."""
    assert len(held.retention.purge().purged) == 1
    report = run(held)
    assert (report["finished"], report["tried"]) == (True, 0)
    assert (recorded(held), current(held)) == ([], DERIVED)


def test_an_image_without_a_row_of_its_original_is_due_after_other_numerics(held: ArchiveParts) -> None:
    """It is served from its rendition alone."""
    with writing(held.index.engine) as connection:
        connection.execute(delete(original))
        connection.execute(update(rendition).values(numerics_digest="1" * 64))
    assert run(held, failing(RenderAgainRequest, ModelMissing("not installed")))["untried"] == 1


def test_a_rendition_that_cannot_be_sent_is_not_kept(held: ArchiveParts) -> None:
    before = held.files()
    report = run(held, failing(ProofRequest, ValueError("no such header")))
    reason = "its reconstruction cannot be made as a whole: ValueError"
    assert report["kept_list"] == [{"sop_instance_uid": UID, "reason": reason}]
    assert recorded(held) == [("kept", reason, 1)]
    held.index.garbage.collect(held.stores)
    assert (held.files(), current(held)) == (before, DERIVED)


class NonePasses(InlinePool):
    def submit(self, request: object, priority: object) -> Any:
        done = super().submit(request, priority)
        if isinstance(request, ReverifyRequest):
            done = type(done)()
            done.set_result(EncodeResult((Trial("x2 jpegls", "bicubic", 9, ("too coarse", "too dark"), 0.1),), None))
        return done


@pytest.mark.slow
def test_an_image_keeps_its_rendition_if_the_new_model_does_not_pass(held: ArchiveParts) -> None:
    assert run(held, NonePasses())["kept"] == 1
    assert recorded(held) == [("kept", "too coarse; too dark", 1)]
    assert current(held) == DERIVED


def test_workers_that_end_with_the_node_are_no_failed_attempt(held: ArchiveParts) -> None:
    """The worker ends while its answer is awaited, before the job sees that it is cancelled."""
    ended: list[bool] = []

    class Ending(InlinePool):
        def submit(self, request: object, priority: object) -> Any:
            done = super().submit(request, priority)
            if isinstance(request, ReverifyRequest):
                done = EndsWhileAwaited()
            return done

    class EndsWhileAwaited(Future[Any]):
        def result(self, timeout: float | None = None) -> Any:
            ended.append(True)
            raise NoWorker("the node is stopping")

    report = run(held, Ending(), lambda: bool(ended))
    assert (report["finished"], report["tried"]) == (False, 0)
    assert recorded(held) == [("", "", 0)]
    assert run(held)["passed"] == 1


def test_an_older_model_that_is_not_installed_any_more_is_logged(
    bench: ArchiveParts, caplog: pytest.LogCaptureFixture
) -> None:
    bench.receive(UID)  # by the model "mammo", with weights that nobody has
    with caplog.at_level(logging.WARNING):
        assert run(bench)["finished"]
    assert any(f"mammo weights {digest('weights')} are not installed" in line for line in caplog.messages)
    assert current(bench) == "2.25.1"
