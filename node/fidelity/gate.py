"""The gate: measures a reconstruction against its own original and says pass or why not.

``Reference`` holds what is computed once per original; ``measure`` is called once per candidate, or ``survey`` and then
``judge`` where it matters which tiles fail. Thresholds come from config.yaml; the floor of profile ``balanced`` (tile
FSIM mean 0.93, 5th percentile 0.90, PSNR 28.42 dB) may only rise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from node.fidelity.fsim import TILE, similarity, similarity_of_squares
from node.fidelity.reference import Reference, cut
from node.fidelity.regions import Pixels
from node.fidelity.survey import PATCH, Box, Survey, noisy_errors, on_all_cores, resurvey, survey, with_similarity
from storage.records import Thresholds, Verdict

__all__ = [
    "Box",
    "Reference",
    "Survey",
    "Thresholds",
    "failing",
    "judge",
    "measure",
    "mends",
    "noisy_errors",
    "resurvey",
    "survey",
    "with_similarity",
]

EXACT_PSNR_DB = 200.0
"""What an identical image is given, since infinity is no JSON number."""

CLUSTER = 50.0
"""Specks this near to each other, in pixels, are of one cluster: 2.5 to 5 mm at 50 to 100 micrometres per pixel."""
_AT_A_TIME = 16
"""Squares of a tile, of its 64, that are stored exactly before it is looked at again."""
_RIM = 8
"""Pixels to each side of a speck's middle that are stored exactly with it."""

Tiles = NDArray[np.bool_]


@dataclass(frozen=True)
class Spots:
    """``lost`` and ``invented``: lines of ``Survey.kept`` and ``Survey.new``; ``wrong``: where errors are too great."""

    lost: NDArray[np.float64]
    invented: NDArray[np.float64]
    wrong: list[Box]

    def __len__(self) -> int:
        return len(self.lost) + len(self.invented) + len(self.wrong)


def measure(reference: Reference, candidate: Pixels, thresholds: Thresholds | None) -> Verdict:
    """Measure ``candidate`` (uint16, the original's shape) against ``reference``.

    Without thresholds the verdict is a measurement only: ``gated`` is False and it never counts as passed.
    """
    return judge(survey(reference, candidate), thresholds)


def judge(measured: Survey, thresholds: Thresholds | None, patched: Tiles | None = None) -> Verdict:
    """What the gate says of a survey. ``patched``: tiles that are stored exactly, bool, one per tile."""
    if patched is not None:
        measured = measured.with_exact(patched)
    fsim, squares = measured.fsim[measured.breast], measured.squares[measured.breast]
    error = float(squares.sum()) / (len(squares) * TILE * TILE)
    lost, new = (_lost(measured, thresholds), _invented(measured, thresholds)) if thresholds else (None, None)
    verdict = Verdict(
        psnr_db=psnr(error, measured.window_width),
        fsim_mean=float(np.mean(fsim)),
        fsim_p5=float(np.percentile(fsim, 5)),
        tiles=len(fsim),
        figures={
            "rmse": math.sqrt(error),
            "window_width": measured.window_width,
            "fsim_worst_tile": float(np.min(fsim)),
            "error_p999": float(measured.error_p999.max()),
            "error_max": float(measured.error_max.max()),
            "shift": float(np.abs(measured.shift).max()),
            "outside": float(measured.outside_max.max()),
            **({} if lost is None else {"specks_lost": float(lost.sum())}),
            **({} if new is None else {"specks_invented": float(new.sum())}),
        },
        gated=thresholds is not None,
    )
    return verdict if thresholds is None else _judged(verdict, measured, thresholds)


def passes_as_a_whole(measured: Survey, thresholds: Thresholds) -> bool:
    """Whether the image passes; what single tiles must keep to is left out, since single places can be mended."""
    whole = Thresholds(thresholds.fsim_mean, thresholds.fsim_p5, thresholds.psnr_db)
    return not judge(measured, whole).failures


def failing(measured: Survey, thresholds: Thresholds) -> dict[int, tuple[str, ...]]:
    """Tiles (by their number in the survey) that miss a threshold of a tile, each with its reasons."""
    missed: dict[int, list[str]] = {}
    for name, values, limit, worse in _tile_checks(measured, thresholds):
        for tile in np.flatnonzero(values < limit if worse == "below" else values > limit):
            missed.setdefault(int(tile), []).append(f"{name} {values[tile]:.4g} is {worse} {limit:g}")
    return {tile: tuple(missed[tile]) for tile in sorted(missed)}


def mends(measured: Survey, thresholds: Thresholds) -> list[Box]:
    """What to store exactly next, on the way to where every tile passes: 17 pixels around a speck, squares of 32 pixels
    where single errors are too great, and where the fault is everywhere in a tile, its worst squares that are not exact
    yet. Boxes may overlap."""
    squares = _too_wrong(measured, thresholds)
    whole = (measured.fsim < thresholds.fsim_worst) | (np.abs(measured.shift) > thresholds.shift)
    for tile in np.flatnonzero(whole):
        squares[tile] |= _worst_squares(measured, int(tile), thresholds)
    boxes = []
    for tile, row, column in np.argwhere(squares):
        top, left = measured.corners[tile]
        boxes.append(Box(int(top + row * PATCH), int(left + column * PATCH), PATCH, PATCH))
    lost, new = measured.kept[_lost(measured, thresholds)], measured.new[_invented(measured, thresholds)]
    height, width = (int(size) + TILE for size in measured.corners.max(axis=0))
    for row, column, *_ in np.concatenate([lost, new]):
        top, left = max(int(row) - _RIM, 0), max(int(column) - _RIM, 0)
        bottom, right = min(int(row) + _RIM + 1, height), min(int(column) + _RIM + 1, width)
        boxes.append(Box(top, left, bottom - top, right - left))
    return boxes


def _worst_squares(measured: Survey, tile: int, thresholds: Thresholds) -> Tiles:
    """The ``_AT_A_TIME`` squares of a tile with the greatest errors, each against its limit; all where none has any."""
    limits = max(thresholds.error_max, 1e-9), max(thresholds.outside, 1e-9)
    errors = np.maximum(measured.worst_error[tile] / limits[0], measured.outside[tile] / limits[1])
    if not errors.any():
        return np.ones_like(errors, dtype=bool)
    least = np.sort(errors, axis=None)[-_AT_A_TIME]
    return np.asarray((errors >= least) & (errors > 0))


def spots(measured: Survey, thresholds: Thresholds) -> Spots:
    """Single places that miss a threshold, for an encoder that can mend each by itself."""
    squares = np.argwhere(_too_wrong(measured, thresholds))
    corners = measured.corners[squares[:, 0]] + squares[:, 1:] * PATCH
    return Spots(
        lost=measured.kept[_lost(measured, thresholds)],
        invented=measured.new[_invented(measured, thresholds)],
        wrong=[Box(int(row), int(column), PATCH, PATCH) for row, column in corners],
    )


def wrong_squares(measured: Survey, thresholds: Thresholds) -> NDArray[np.int64]:
    """How many squares of each tile have too great errors: what mending the tile would take."""
    return np.asarray(_too_wrong(measured, thresholds).sum(axis=(1, 2)))


def tile_scores(reference: Reference, candidate: Pixels) -> tuple[list[float], list[float]]:
    """FSIM and the sum of squared errors (grey levels squared) of each tile of ``reference.tiles``, and no more."""

    def one(tile: tuple[int, int]) -> tuple[float, float]:
        difference = cut(candidate, tile).astype(np.float64) - cut(reference.pixels, tile)
        score = similarity(reference.features(tile), reference.candidate(candidate, tile))
        return score, float(np.square(difference).sum())

    measured = on_all_cores(one, reference.tiles)
    return [score for score, _ in measured], [square for _, square in measured]


def square_scores(reference: Reference, candidate: Pixels, side: int) -> list[NDArray[np.float32]]:
    """What each square of ``side`` pixels has of the FSIM of each of ``reference.tiles``, and no more."""

    def one(tile: tuple[int, int]) -> NDArray[np.float32]:
        return similarity_of_squares(reference.features(tile), reference.candidate(candidate, tile), side)

    return on_all_cores(one, reference.tiles)


def _too_wrong(measured: Survey, thresholds: Thresholds) -> NDArray[np.bool_]:
    """Squares of tiles whose greatest error is too great: bool, the shape of ``worst_error``.

    Compared in float64, as ``judge`` does: in float32 a value just above the limit would equal it.
    """
    allowed = np.where(measured.error_p999 > thresholds.error_p999, thresholds.error_p999, thresholds.error_max)
    inside = measured.worst_error > allowed[:, None, None]
    return np.asarray(inside | (measured.outside > np.float64(thresholds.outside)))


def as_a_whole(reference: Reference, candidate: Pixels) -> tuple[float, float, float]:
    """What the gate asks of a whole image, and no more: mean and 5th percentile of tile FSIM, and PSNR in dB."""
    scores, squares = tile_scores(reference, candidate)
    error = sum(squares) / (len(squares) * TILE * TILE)
    return float(np.mean(scores)), float(np.percentile(scores, 5)), psnr(error, reference.window.width)


def _lost(measured: Survey, thresholds: Thresholds) -> Tiles:
    """Which specks of the original are lost; of a cluster, weaker ones count too."""
    places, strength, share = measured.kept[:, :2], measured.kept[:, 2], measured.kept[:, 3]
    counts = strength >= thresholds.speck
    weak = np.flatnonzero((strength >= thresholds.speck_near) & ~counts)
    if len(weak) and counts.any():
        from scipy.spatial import KDTree

        near = KDTree(places[counts]).query_ball_point(places[weak], CLUSTER, return_length=True)
        counts[weak] = near >= 2
    return np.asarray(counts & (share < thresholds.speck_kept))


def _invented(measured: Survey, thresholds: Thresholds) -> Tiles:
    """Which specks of the candidate are new: well above what counts, with nothing like it in the original."""
    strength, before = measured.new[:, 2], measured.new[:, 3]
    return np.asarray((strength >= thresholds.speck_new) & (before < strength / 2))


def _tile_checks(measured: Survey, thresholds: Thresholds) -> Iterator[tuple[str, NDArray[np.float64], float, str]]:
    """Name, figure per tile, limit, and on which side of the limit a figure fails."""

    def count(lines: NDArray[np.float64], hit: Tiles) -> NDArray[np.float64]:
        return np.bincount(lines[hit, 4].astype(int), minlength=len(measured)).astype(np.float64)

    yield "tile FSIM", measured.fsim, thresholds.fsim_worst, "below"
    yield "99.9th percentile of error over noise", measured.error_p999, thresholds.error_p999, "above"
    yield "greatest error over noise", measured.error_max, thresholds.error_max, "above"
    yield "shift of the mean in window widths", np.abs(measured.shift), thresholds.shift, "above"
    yield "greatest error out of the breast in window widths", measured.outside_max, thresholds.outside, "above"
    yield "number of specks lost", count(measured.kept, _lost(measured, thresholds)), 0, "above"
    yield "number of specks invented", count(measured.new, _invented(measured, thresholds)), 0, "above"


def _judged(verdict: Verdict, measured: Survey, thresholds: Thresholds) -> Verdict:
    checks = [
        ("tile FSIM mean", verdict.fsim_mean, thresholds.fsim_mean),
        ("tile FSIM 5th percentile", verdict.fsim_p5, thresholds.fsim_p5),
        ("PSNR in dB", verdict.psnr_db, thresholds.psnr_db),
    ]
    missed = [f"{name} {value:.4g} is below {least:g}" for name, value, least in checks if value < least]
    for name, values, limit, worse in _tile_checks(measured, thresholds):
        bad = values < limit if worse == "below" else values > limit
        if bad.any():
            worst = values.min() if worse == "below" else values.max()
            missed.append(f"{name} is {worse} {limit:g} in {int(bad.sum())} tiles, at worst {worst:.4g}")
    return Verdict(**{**verdict.__dict__, "failures": tuple(missed)})


def psnr(mean_squared_error: float, peak: float) -> float:
    """In dB; ``peak`` is the display window's width, in the grey levels of the error."""
    if mean_squared_error == 0:
        return EXACT_PSNR_DB
    return min(10 * math.log10(peak * peak / mean_squared_error), EXACT_PSNR_DB)
