"""A candidate surveyed against its original: every figure of every tile, so that what fails can be found and mended.

Figures are kept, not verdicts: thresholds are applied by gate.py, to the same survey as often as needed. After exact
pixels were pasted into a candidate, ``resurvey`` measures only the tiles that they touch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from node.fidelity.fsim import TILE, similarity
from node.fidelity.reference import Reference, cut
from node.fidelity.regions import Pixels
from node.fidelity.specks import BLOCK, HALO, kept_and_new

Floats = NDArray[np.float64]
T = TypeVar("T")
R = TypeVar("R")

PATCH = 32
"""Single places are found, and mended, by squares of this many pixels, on a grid from the tile's top left."""
FAINTEST_NEW = 5.0
"""Specks of the candidate below this strength are not listed."""
_SQUARES = TILE // PATCH


class Box(NamedTuple):
    """A rectangle of pixels."""

    row: int
    column: int
    height: int
    width: int


@dataclass(frozen=True)
class TileFigures:
    """One tile. ``worst_error`` in units of local noise and ``outside`` in window widths: per square of 32 pixels."""

    fsim: float
    squares: float
    error_p999: float
    shift: float
    worst_error: NDArray[np.float32]
    outside: NDArray[np.float32]
    kept: NDArray[np.float64]
    """One line per speck of the original: row and column in the image, strength, share of contrast kept."""
    new: NDArray[np.float64]
    """One line per speck of the candidate: row and column in the image, strength, the original's strength there."""


@dataclass(frozen=True)
class Survey:
    """Figures of all tiles of an image, in the order of ``corners``: int (n, 2), row and column of the top left pixel.

    Tiles lie on a grid of 256 pixels; the last ones are moved inward, so they overlap. ``breast``: bool, tiles with
    breast in them; only these have the figures ``fsim``, ``squares`` (sum of squared errors), ``error_p999`` (of the
    absolute error over local noise), ``shift`` (of the mean, in window widths); others have those of no error.
    Local noise: standard deviation of what is finer than a Gaussian of 1.8 pixels, per block of 16 pixels by medians,
    at least that of rounding to the 256 steps of a display. ``worst_error`` (over local noise, in the breast) and
    ``outside`` (over the window's width; out of the breast, and in blocks of it without noise, such as air beside the
    skin) are maxima per square of 32 pixels: float32, shape (n, 8, 8).
    ``kept``: one line per speck of the original, (m, 5): row, column, strength, share of its contrast kept, tile.
    ``new``: one line per speck of the candidate: row, column, strength, the original's strength there, tile.
    Specks belong to the one tile on whose place in the grid they lie.
    """

    corners: NDArray[np.int64]
    breast: NDArray[np.bool_]
    fsim: Floats
    squares: Floats
    error_p999: Floats
    shift: Floats
    worst_error: NDArray[np.float32]
    outside: NDArray[np.float32]
    kept: Floats
    new: Floats
    window_width: float

    def __len__(self) -> int:
        return len(self.corners)

    @property
    def error_max(self) -> Floats:
        """Greatest absolute error in the breast over local noise, per tile."""
        return np.asarray(self.worst_error.max(axis=(1, 2)), dtype=np.float64)

    @property
    def outside_max(self) -> Floats:
        """Greatest absolute error out of the breast over the window's width, per tile."""
        return np.asarray(self.outside.max(axis=(1, 2)), dtype=np.float64)

    def with_exact(self, patched: NDArray[np.bool_]) -> Survey:
        """The same with some tiles (bool, one per tile) stored exactly: no error, nothing lost or invented."""
        figures: dict[str, Any] = {name: getattr(self, name).copy() for name in _PER_TILE}
        for name, values in figures.items():
            values[patched] = 1.0 if name == "fsim" else 0.0
        kept = self.kept.copy()
        kept[patched[kept[:, 4].astype(int)], 3] = 1.0
        new = self.new[~patched[self.new[:, 4].astype(int)]]
        return replace(self, kept=kept, new=new, **figures)

    def touched(self, boxes: Sequence[Box], reach: int = HALO) -> list[int]:
        """Tiles whose figures may change when pixels in ``boxes`` do: filters reach beyond the tile."""
        rows, columns = self.corners[:, 0], self.corners[:, 1]
        hit = np.zeros(len(self), dtype=bool)
        for box in boxes:
            hit |= (
                (rows < box.row + box.height + reach)
                & (rows + TILE + reach > box.row)
                & (columns < box.column + box.width + reach)
                & (columns + TILE + reach > box.column)
            )
        return [int(tile) for tile in np.flatnonzero(hit)]


def survey(reference: Reference, candidate: Pixels, scores: Floats | None = None) -> Survey:
    """Measure ``candidate`` (uint16, the original's shape) on all tiles. ``scores``: FSIM of each of
    ``reference.tiles``, where that, which takes most of the time, has been measured before."""
    inside = set(reference.tiles)
    tiles = reference.all_tiles
    measured = on_all_cores(lambda tile: _figures(reference, candidate, tile, tile in inside, scores is None), tiles)
    if scores is not None:
        known = dict(zip(reference.tiles, scores.tolist(), strict=True))
        measured = [replace(one, fsim=known.get(tile, 1.0)) for one, tile in zip(measured, tiles, strict=True)]
    return Survey(
        corners=np.array(tiles, dtype=np.int64),
        breast=np.array([tile in inside for tile in tiles]),
        window_width=reference.window.width,
        kept=_lines([one.kept for one in measured], range(len(tiles))),
        new=_lines([one.new for one in measured], range(len(tiles))),
        **{name: np.array([getattr(one, name) for one in measured]) for name in _PER_TILE},
    )


def resurvey(
    known: Survey, reference: Reference, candidate: Pixels, changed: Sequence[Box], *, with_fsim: bool = True
) -> Survey:
    """``known`` brought up to date after the candidate's pixels changed in some boxes.

    Without ``with_fsim``, which takes most of the time, ``fsim`` of the touched tiles stays what it was.
    """
    touched = known.touched(changed)
    inside = known.breast
    measured = on_all_cores(
        lambda tile: _figures(reference, candidate, reference.all_tiles[tile], bool(inside[tile]), with_fsim), touched
    )
    arrays: dict[str, Any] = {name: getattr(known, name).copy() for name in _PER_TILE}
    for tile, one in zip(touched, measured, strict=True):
        for name, array in arrays.items():
            if name != "fsim" or with_fsim:
                array[tile] = getattr(one, name)
    lines: dict[str, Any] = {}
    for name in ("kept", "new"):
        before = getattr(known, name)
        others = before[~np.isin(before[:, 4], touched)]
        now = _lines([getattr(one, name) for one in measured], touched)
        lines[name] = np.concatenate([others, now])
    return replace(known, **arrays, **lines)


def noisy_errors(reference: Reference, candidate: Pixels) -> Floats:
    """The figure ``error_p999`` of each of ``reference.tiles``, and nothing else."""

    def one(tile: tuple[int, int]) -> float:
        noisy, breast = _over_noise(reference, tile, _error(reference, candidate, tile))
        return _p999(noisy[breast])

    return np.array(on_all_cores(one, reference.tiles))


def with_similarity(known: Survey, reference: Reference, candidate: Pixels, changed: Sequence[Box]) -> Survey:
    """``known`` with FSIM brought up to date where ``resurvey`` left it out."""
    touched = [tile for tile in known.touched(changed) if known.breast[tile]]
    fsim = known.fsim.copy()
    fsim[touched] = on_all_cores(lambda tile: _fsim(reference, candidate, reference.all_tiles[tile]), touched)
    return replace(known, fsim=fsim)


_PER_TILE = ("fsim", "squares", "error_p999", "shift", "worst_error", "outside")


def on_all_cores(one: Callable[[T], R], tiles: Sequence[T]) -> list[R]:
    """``one`` for every tile, in order. A tile per thread, each with torch on one core: a tile's operations are too
    small to share between cores, and threads that wait for each other lose badly on a busy machine."""
    import torch

    cores = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as threads:
            return list(threads.map(one, tiles))
    finally:
        torch.set_num_threads(cores)


def _figures(
    reference: Reference, candidate: Pixels, tile: tuple[int, int], inside: bool, with_fsim: bool = True
) -> TileFigures:
    error = _error(reference, candidate, tile)
    size, width = np.abs(error), np.float32(reference.window.width)
    if not inside:
        return TileFigures(1.0, 0.0, 0.0, 0.0, _NOTHING, _per_square(size) / width, _NO_LINES, _NO_LINES)
    noisy, breast = _over_noise(reference, tile, error)
    outside = np.where(breast, np.float32(0), size) / width
    kept, new = _specks(reference, candidate, tile)
    return TileFigures(
        fsim=_fsim(reference, candidate, tile) if with_fsim else 0.0,
        squares=float(np.square(error, dtype=np.float64).sum()),
        error_p999=_p999(noisy[breast]),
        shift=float(error.mean(dtype=np.float64)) / float(width),
        worst_error=_per_square(noisy),
        outside=_per_square(outside),
        kept=kept,
        new=new,
    )


def _error(reference: Reference, candidate: Pixels, tile: tuple[int, int]) -> NDArray[np.float32]:
    return np.asarray(cut(candidate, tile).astype(np.float32) - cut(reference.pixels, tile))


def _over_noise(
    reference: Reference, tile: tuple[int, int], error: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The absolute error of a tile over local noise, and where there is breast with noise."""
    grain = reference.truth(tile).grain.repeat(BLOCK, axis=0).repeat(BLOCK, axis=1)
    return np.asarray(np.abs(error) / grain, dtype=np.float32), np.asarray(np.isfinite(grain))


def _fsim(reference: Reference, candidate: Pixels, tile: tuple[int, int]) -> float:
    if np.array_equal(cut(candidate, tile), cut(reference.pixels, tile)):
        return 1.0
    return similarity(reference.features(tile), reference.candidate(candidate, tile))


def _p999(errors: NDArray[np.float32]) -> float:
    """The least that at most one in a thousand exceeds; 0 of nothing."""
    if not errors.size:
        return 0.0
    rank = errors.size - 1 - errors.size // 1000
    return float(np.partition(errors, rank)[rank])


def _specks(reference: Reference, candidate: Pixels, tile: tuple[int, int]) -> tuple[Floats, Floats]:
    """Lines of ``Survey.kept`` and ``Survey.new`` without the tile; specks that are another tile's left out."""
    truth = reference.truth(tile)
    share, found, before = kept_and_new(reference.bright(candidate, tile), truth, FAINTEST_NEW)
    kept = np.column_stack([truth.specks.rows, truth.specks.columns, truth.specks.strengths, share])
    new = np.column_stack([found.rows, found.columns, found.strengths, before])
    return _own(kept, tile), _own(new, tile)


def _own(lines: Floats, tile: tuple[int, int]) -> Floats:
    """Rows and columns in the image, of the specks on the tile's own place in the grid."""
    moved = [-start % TILE for start in tile]  # a tile that was moved inward overlaps the one before by the rest
    own = (lines[:, 0] >= moved[0]) & (lines[:, 1] >= moved[1])
    return lines[own] + (*tile, 0, 0)


def _per_square(values: NDArray[Any]) -> NDArray[np.float32]:
    return np.asarray(values.reshape(_SQUARES, PATCH, _SQUARES, PATCH).max(axis=(1, 3)), dtype=np.float32)


def _lines(each: Sequence[Floats], tiles: Sequence[int]) -> Floats:
    if not len(each):
        return np.zeros((0, 5))
    return np.concatenate(
        [np.column_stack([lines, np.full(len(lines), tile)]) for lines, tile in zip(each, tiles, strict=True)]
    )


_NOTHING = np.zeros((_SQUARES, _SQUARES), dtype=np.float32)
_NO_LINES = np.zeros((0, 4))
