"""The baseline that figures are compared with: bicubic with the best damping found on training data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from node.training.pictures import Picture
from node.training.plates import BITS, code, piece_of
from node.upscalers.protocol import Upscaled, UpscaleTask
from storage.records import Rung

DISTANCES = (0.1, 0.3, 0.6, 1.2)


class DampedBicubic:
    """The baseline: bicubic, made consistent with its base only so far as it lowers the error on training data."""

    name, method, weights_digest = "bicubic", "BICUBIC_UP_1", ""
    generative = guided = False
    consistent = True
    steps, detail = 0, 0.0
    files: tuple[tuple[str, Path], ...] = ()

    def __init__(self, damping: float) -> None:
        self._damping = np.float32(damping)
        self.numerics: dict[str, str] = {}

    def upscale(self, task: UpscaleTask) -> Upscaled:
        image = task.operator.lift(task.base)
        return Upscaled(image + self._damping * (task.operator.up(task.base) - image))


def damping_at(fitted: Sequence[Sequence[float]] | None, rung: Rung) -> float:
    """The damping for a rung, between the fitted [scale, distance, damping]; 0 (fully consistent) without a fit."""
    points = sorted((distance, value) for scale, distance, value in fitted or () if scale == rung.scale)
    if not points:
        return 0.0
    distances, values = zip(*points, strict=True)
    return float(np.interp(rung.distance, distances, values))


def fit_damping(pictures: Sequence[Picture], seed: int, watch: Callable[[], None] = lambda: None) -> list[list[float]]:
    """[scale, distance, damping] for scales 2 and 4: what leaves the least squared error over one piece a picture."""
    fitted = []
    for scale in (2, 4):
        for distance in DISTANCES:
            rung = Rung(scale=scale, coder="jpegxl", distance=distance, effort=7, sample_bits=BITS)
            agreement = energy = 0.0
            for number, picture in enumerate(pictures):
                pixels, inside = piece_of(picture, np.random.default_rng((seed, 3, number)))
                plain, consistent = code(pixels, rung)[1:3]
                share = np.kron(inside, np.ones((64, 64), dtype=np.float32))
                step = (plain - consistent) * share
                agreement += float((step * (pixels - consistent)).sum(dtype=np.float64))
                energy += float((step * step).sum(dtype=np.float64))
            fitted.append([scale, distance, round(min(max(agreement / max(energy, 1e-9), 0.0), 1.0), 3)])
            watch()
    return fitted
