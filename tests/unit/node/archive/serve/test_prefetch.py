"""Proves that the prefetch waits for other work, goes on after an error, and stops when it is told to."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from node.archive.rendered_cache import RenderedCache
from node.archive.serve.prefetch import Prefetch
from node.archive.serve.retrieve import Retrieve
from node.config import RenditionPolicy
from node.workers.requests import ReconstructRequest
from storage.errors import WorkerDied
from tests.conftest import wait_for
from tests.support.archive_parts import ArchiveParts
from tests.support.coded_images import InlinePool, hold_image, receive, small
from tests.support.samples import write

NEW = "1.2.2"


class Priors:
    """An archive with two earlier images of a patient and the first of a new study."""

    def __init__(self, folder: Path) -> None:
        self.bench = ArchiveParts(folder / "archive", coder="none")
        self.pool, self.made = InlinePool(self._first), 0
        self.fails: list[Exception] = []
        self.busy: Callable[[], bool] = lambda: False
        for number in (1, 2):
            uids = {"StudyInstanceUID": "1.2.1", "StudyDate": "20250102"}
            hold_image(self.bench, small(f"1.2.3.{number}", **uids), f"2.25.{number}")
        new = small("1.2.3.3", StudyInstanceUID=NEW, StudyDate="20260102")
        receive(self.bench, write(new, self.bench.root / "new.dcm").read_bytes(), new)
        self.cache = self.bench.originals.cache = RenderedCache(self.bench.root / "rendered", 1 << 30)
        parts = self.bench.index, self.pool, self.pool, self.bench.originals
        self.retrieve = Retrieve(*parts, threads=1)  # type: ignore[arg-type]
        variants = frozenset({(RenditionPolicy.RECONSTRUCTED, True)})
        self.prefetch = Prefetch(self.bench.index, self.retrieve, variants, 10, self._is_busy)

    def _is_busy(self) -> bool:
        return self.busy()

    def _first(self, request: object) -> None:
        if isinstance(request, ReconstructRequest):
            if self.fails:
                raise self.fails.pop()
            self.made += 1


@pytest.fixture
def priors(tmp_path: Path) -> Iterator[Priors]:
    made = Priors(tmp_path)
    yield made
    made.prefetch.stop()
    made.retrieve.close()


def test_a_prior_that_cannot_be_made_does_not_end_the_others(priors: Priors, caplog: pytest.LogCaptureFixture) -> None:
    priors.fails = [WorkerDied("killed")]
    with caplog.at_level(logging.WARNING):
        assert priors.prefetch.prepare(NEW) == 1
    assert caplog.messages == ["prior 2.25.1 was not prefetched: killed"]
    assert priors.made == 1


def test_nothing_is_prepared_while_there_is_other_work(priors: Priors) -> None:
    looks = iter([True, True, False, False])
    seen: list[int] = []

    def busy() -> bool:
        seen.append(priors.made)
        return next(looks)

    priors.busy = busy
    assert priors.prefetch.prepare(NEW) == 2
    assert seen == [0, 0, 0, 1]


def test_a_prefetch_that_waits_for_other_work_can_be_stopped(priors: Priors) -> None:
    waiting = threading.Event()

    def busy() -> bool:
        waiting.set()
        return True

    priors.busy = busy
    done: list[int] = []
    thread = threading.Thread(target=lambda: done.append(priors.prefetch.prepare(NEW)))
    thread.start()
    assert waiting.wait(60)
    priors.prefetch.stop()
    thread.join(60)
    assert (done, priors.made) == ([0], 0)


def test_the_thread_outlives_an_index_that_cannot_be_read(
    priors: Priors, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    choices, faults = priors.retrieve.choices, [OSError(5, "Input/output error")]

    def once_unreadable(*parts: object, **named: object) -> object:
        if faults:
            raise faults.pop()
        return choices(*parts, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(priors.retrieve, "choices", once_unreadable)
    thread = threading.Thread(target=priors.prefetch.run)
    thread.start()
    with caplog.at_level(logging.ERROR):
        priors.prefetch.study_received("1.2.1")
        wait_for(lambda: "priors could not be prefetched" in caplog.text)
        priors.prefetch.study_received(NEW)
        wait_for(lambda: priors.made == 2)
    priors.prefetch.stop()
    thread.join(60)
    assert not thread.is_alive()


@pytest.mark.slow
def test_a_study_is_prefetched_once(priors: Priors) -> None:
    for _ in range(3):
        priors.prefetch.study_received(NEW)
    assert priors.prefetch._studies.qsize() == 1
