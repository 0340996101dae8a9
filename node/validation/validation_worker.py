"""The process in which a validation's torch runs: features, figures and training, apart from associations.

Functions here run in it; ``ValidationWorker`` asks for them. Requests and answers are small and picklable; images
are files.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import lru_cache
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from node.validation.terms import Arm, Files, Measured
from storage.errors import WorkerDied

if TYPE_CHECKING:
    from node.validation.features import Backbone

Answer = TypeVar("Answer")
Float = NDArray[np.float32]
Bool = NDArray[np.bool_]


@dataclass(frozen=True)
class TrainingTask:
    """Training on one fold's patients and scoring of others: ``features`` (n, count), ``tests`` each (m, count)."""

    features: Float
    truth: Bool
    patients: tuple[str, ...]
    tests: tuple[Float, ...]
    trials: int
    seed: int


@dataclass(frozen=True)
class TrainingResult:
    """Scores of each of the lesson's tests, and the recipe that was chosen."""

    scores: tuple[NDArray[np.float64], ...]
    recipe: dict[str, Any]


class ValidationWorker:
    """One such process. It starts with the first request, and ends with the block."""

    def __init__(self, threads: int) -> None:
        self._executor = ProcessPoolExecutor(
            max_workers=1, mp_context=multiprocessing.get_context("spawn"), initializer=_start, initargs=(threads,)
        )

    def __enter__(self) -> ValidationWorker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)

    def submit(self, work: Callable[..., Answer], *arguments: Any) -> Future[Answer]:
        """Have it done; the future raises what the work raised, or BrokenProcessPool."""
        return self._executor.submit(work, *arguments)

    def ask(self, work: Callable[..., Answer], *arguments: Any) -> Answer:
        """Have it done, and wait. Raises what the work raised, or WorkerDied."""
        try:
            return self.submit(work, *arguments).result()
        except BrokenProcessPool as error:
            raise WorkerDied("the process of the validation ended; was there not enough memory?") from error


def backbone_digest(weights: str) -> str:
    """SHA-256 of the backbone's weights. Raises ModelMissing."""
    return _backbone(weights).digest


def measure_image(files: Files, arms: list[Arm], weights: str) -> dict[Arm, Measured]:
    from node.validation.measuring import measured

    return measured(files, arms, _backbone(weights))


def learn(lesson: TrainingTask) -> TrainingResult:
    """Choose a recipe, train, and score; on one core, since such small layers only lose by sharing."""
    import torch

    from node.validation.dense_layers import trained, tuned

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        recipe = tuned(lesson.features, lesson.truth, lesson.patients, lesson.trials, lesson.seed)
        head = trained(lesson.features, lesson.truth, recipe, lesson.seed)
        return TrainingResult(tuple(head.scores(test) for test in lesson.tests), asdict(recipe))
    finally:
        torch.set_num_threads(threads)


def show_tile(files: Files, corner: tuple[int, int]) -> tuple[NDArray[np.uint8], ...]:
    from node.validation.measuring import side_by_side

    return side_by_side(files, corner)


@lru_cache(maxsize=1)
def _backbone(weights: str) -> Backbone:
    from node.validation.features import load_backbone

    return load_backbone(weights)


def _start(threads: int) -> None:
    import signal

    from storage.dicom.dicomfile import accept_odd_values

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    os.nice(12)  # associations come first
    accept_odd_values()
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)
