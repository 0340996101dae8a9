"""The process that runs torch for a validation: features, fidelity figures and training.

``ValidationWorker`` calls the functions of this module in that process. Arguments and results are small and picklable;
images are passed as files.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from node.validation.terms import Arm, Files, Measured
from storage.errors import WorkerDied

if TYPE_CHECKING:
    from node.validation.features import Backbone

Result = TypeVar("Result")
Float = NDArray[np.float32]
Bool = NDArray[np.bool_]


class ValidationWorker(ProcessPoolExecutor):
    """One worker process. It starts with the first call and ends with the ``with`` block."""

    def __init__(self, threads: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        super().__init__(max_workers=1, mp_context=spawn, initializer=_start, initargs=(threads,))

    def call(self, work: Callable[..., Result], *arguments: Any) -> Result:
        """Run ``work`` in the process and wait for the result. Raises the exception of ``work``, or WorkerDied."""
        try:
            return self.submit(work, *arguments).result()
        except BrokenProcessPool as error:
            raise WorkerDied("the worker process of the validation ended unexpectedly; check free memory") from error


def backbone_digest(weights: str) -> str:
    """SHA-256 of the backbone's weights. Raises ModelMissing."""
    return _backbone(weights).digest


def measure_image(files: Files, arms: list[Arm], weights: str) -> dict[Arm, Measured]:
    from node.validation.measuring import measured

    return measured(files, arms, _backbone(weights))


def train_and_score(
    features: Float, truth: Bool, patients: list[str], tests: list[Float], trials: int, seed: int
) -> tuple[list[NDArray[np.float64]], dict[str, Any]]:
    """Choose a recipe and train on ``features`` (n, count); return the scores (m,) of each of ``tests`` (m, count), and
    the recipe. It uses one core, because more cores slow such small layers down."""
    import torch

    from node.validation.dense_layers import train_head, tune

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        recipe = tune(features, truth, patients, trials, seed)
        head = train_head(features, truth, recipe, seed)
        return [head.scores(test) for test in tests], asdict(recipe)
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

    for number in (signal.SIGINT, signal.SIGHUP):  # a terminal sends them to the whole group; the parent handles them
        signal.signal(number, signal.SIG_IGN)
    os.nice(12)  # associations have priority
    accept_odd_values()
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)
