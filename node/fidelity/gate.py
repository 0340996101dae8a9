"""The gate: measures a reconstruction against its own original and says pass or why not.

``Reference`` holds what is computed once per original; ``measure`` is called once per candidate. Thresholds come
from config.yaml; the floor of profile ``balanced`` (tile FSIM mean 0.93, 5th percentile 0.90) may only rise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from node.fidelity.fsim import TILE, Features, features, similarity
from node.fidelity.regions import Mask, Pixels, Window, breast_mask, breast_tiles, display_window
from storage.records import Verdict

EXACT_PSNR_DB = 200.0
"""What an identical image is given, since infinity is no JSON number."""


@dataclass(frozen=True)
class Thresholds:
    """The least a reconstruction must reach; see ``gate:`` in config.yaml for where each value comes from."""

    fsim_mean: float
    fsim_p5: float
    psnr_db: float


class Reference:
    """One original, ready to be compared with: its breast tiles, window and features."""

    def __init__(self, pixels: Pixels, header: Dataset, padding: Mask | None = None) -> None:
        self.pixels = pixels
        self.mask = breast_mask(pixels, str(header.get("PhotometricInterpretation", "")), padding)
        self.window: Window = display_window(header, pixels, self.mask)
        self.tiles = breast_tiles(self.mask, *pixels.shape)
        self._features: dict[tuple[int, int], Features] = {}

    def features(self, tile: tuple[int, int]) -> Features:
        """The original's features at a tile, computed at first use."""
        if tile not in self._features:
            self._features[tile] = self._shown(self.pixels, tile)
        return self._features[tile]

    def candidate(self, pixels: Pixels, tile: tuple[int, int]) -> Features:
        """A candidate's features at a tile, seen through the original's window."""
        return self._shown(pixels, tile)

    def _shown(self, pixels: Pixels, tile: tuple[int, int]) -> Features:
        import torch

        return features(torch.from_numpy(self.window.show(_cut(pixels, tile))))


def measure(
    reference: Reference,
    candidate: Pixels,
    thresholds: Thresholds | None,
) -> Verdict:
    """Measure ``candidate`` (uint16, the original's shape) against ``reference``.

    Without thresholds the verdict is a measurement only: ``gated`` is False and it never counts as passed.
    """

    scores, squares = tile_scores(reference, candidate)
    error = sum(squares) / (len(scores) * TILE * TILE)
    verdict = Verdict(
        psnr_db=_psnr(error, reference.window.width),
        fsim_mean=float(np.mean(scores)),
        fsim_p5=float(np.percentile(scores, 5)),
        tiles=len(scores),
        figures={
            "rmse": math.sqrt(error),
            "window_width": reference.window.width,
            "fsim_worst_tile": float(np.min(scores)),
        },
        gated=thresholds is not None,
    )
    return verdict if thresholds is None else _judged(verdict, thresholds)


def tile_scores(reference: Reference, candidate: Pixels) -> tuple[list[float], list[float]]:
    """FSIM and the sum of squared errors (grey levels squared) of each tile of ``reference.tiles``."""

    def one(tile: tuple[int, int]) -> tuple[float, float]:
        score = similarity(reference.features(tile), reference.candidate(candidate, tile))
        return score, _squared_error(reference.pixels, candidate, tile)

    measured = _on_all_cores(one, reference.tiles)
    return [score for score, _ in measured], [square for _, square in measured]


def _on_all_cores(
    one: Callable[[tuple[int, int]], tuple[float, float]], tiles: list[tuple[int, int]]
) -> list[tuple[float, float]]:
    """``one`` for every tile, in order. A tile per thread, each with torch on one core: a tile's operations are too
    small to share between cores, and threads that wait for each other lose badly on a busy machine."""
    import torch

    cores = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as threads:
            return list(threads.map(one, tiles))
    finally:
        torch.set_num_threads(cores)


def _judged(verdict: Verdict, thresholds: Thresholds) -> Verdict:
    checks = [
        ("tile FSIM mean", verdict.fsim_mean, thresholds.fsim_mean),
        ("tile FSIM 5th percentile", verdict.fsim_p5, thresholds.fsim_p5),
        ("PSNR in dB", verdict.psnr_db, thresholds.psnr_db),
    ]
    missed = tuple(f"{name} {value:.4g} is below {least:g}" for name, value, least in checks if value < least)
    return Verdict(**{**verdict.__dict__, "failures": missed})


def _psnr(mean_squared_error: float, peak: float) -> float:
    if mean_squared_error == 0:
        return EXACT_PSNR_DB
    return min(10 * math.log10(peak * peak / mean_squared_error), EXACT_PSNR_DB)


def _squared_error(original: Pixels, candidate: Pixels, tile: tuple[int, int]) -> float:
    difference = _cut(original, tile).astype(np.float64) - _cut(candidate, tile)
    return float(np.square(difference).sum())


def _cut(pixels: Pixels, tile: tuple[int, int]) -> NDArray[np.uint16]:
    row, column = tile
    return pixels[row : row + TILE, column : column + TILE]
