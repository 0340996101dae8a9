"""What runs in the worker process of a validation, which uses torch: features, fidelity figures and training.

Arguments and results are small and picklable; images are passed as files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from node.validation.terms import Arm, Files, Measured

if TYPE_CHECKING:
    from node.validation.features import Backbone

Result = TypeVar("Result")
Float = NDArray[np.float32]
Bool = NDArray[np.bool_]


@dataclass(frozen=True)
class ValidationCall(Generic[Result]):
    """Call a function of this module."""

    work: Callable[..., Result]
    arguments: tuple[Any, ...]

    def answer(self, _: object) -> Result:
        return self.work(*self.arguments)


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
