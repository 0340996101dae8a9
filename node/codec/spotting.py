"""The encoder's side of points: which spot restores what the gate finds lost, invented or too wrong in one place."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from node.codec.points import REACH, SIGMAS, Point, level_of, profile
from node.fidelity import specks
from node.fidelity.gate import Box, Reference, Spots

Pixels = NDArray[np.uint16]
Float = NDArray[np.float32]

_TO_SPARE = 1.05
"""A speck is restored by a little more than it lacks, since heights are rounded and its neighbours pull too."""
_PER_SQUARE = 24
"""Spots that a square of 32 pixels gets at a time."""
_ENOUGH = 0.85
"""Of the greatest error in a square: what is below it waits for what the gate says then."""
_UNLIKE = 4.0
"""Where the height that restores a speck's response is this many times what fits the residual best, or this part of it,
the spot takes the speck's own size instead."""


def spots_for(reference: Reference, current: Pixels, found: Spots) -> list[Point]:
    """Points that mend ``found`` in ``current``, greedily: each sees what those before have left."""
    rows, columns = current.shape
    error = np.zeros((rows + 2 * REACH, columns + 2 * REACH), dtype=np.float32)
    error[REACH:-REACH, REACH:-REACH] = reference.pixels.astype(np.float32) - current
    made = []
    for row, column, size, height in _wanted(reference, error, found):
        point = Point(row, column, size, level_of(height))
        if point.height:
            made.append(point)
            _window(error, row, column)[:] -= np.float32(height) * profile(size)
    return made


def _wanted(reference: Reference, error: Float, found: Spots) -> Iterator[tuple[int, int, int, float]]:
    for row, column, _, share, _ in sorted(found.lost.tolist(), key=lambda line: -line[2]):
        place = int(row), int(column)
        found_with, lacking = _lacking(reference, place, float(share))
        if not lacking:
            continue
        size, fitting = _best_fit(_window(error, *place))
        height = lacking / _response(size, found_with)
        if height > _UNLIKE * fitting or height < fitting / _UNLIKE:  # what is missing is not what the residual shows
            size = min(found_with, len(SIGMAS) - 1)
            height = lacking / _response(size, found_with)
        yield *place, size, height
    for row, column, *_ in found.invented.tolist():
        yield int(row), int(column), *_best_fit(_window(error, int(row), int(column)))
    for box in found.wrong:
        place, worst = _worst(error, box)
        first = worst
        for _ in range(_PER_SQUARE):
            yield *place, *_best_fit(_window(error, *place))
            place, worst = _worst(error, box)
            if worst < _ENOUGH * first:
                break


def _window(error: Float, row: int, column: int) -> Float:
    """What a spot at a pixel can change; ``error`` has a rim of REACH pixels."""
    return error[row : row + 2 * REACH + 1, column : column + 2 * REACH + 1]


def _best_fit(window: Float) -> tuple[int, float]:
    """The size whose spot explains most of a window, and its height in grey levels (least squares)."""
    fits = [
        (float((window * profile(size)).sum()), float(np.square(profile(size)).sum())) for size in range(len(SIGMAS))
    ]
    size = max(range(len(SIGMAS)), key=lambda number: fits[number][0] ** 2 / fits[number][1])
    return size, fits[size][0] / fits[size][1]


def _worst(error: Float, box: Box) -> tuple[tuple[int, int], float]:
    """The pixel of greatest error in a box, and that error in grey levels."""
    inside = np.abs(error[REACH + box.row :, REACH + box.column :][: box.height, : box.width])
    row, column = np.unravel_index(int(inside.argmax()), inside.shape)
    return (box.row + int(row), box.column + int(column)), float(inside[row, column])


def _lacking(reference: Reference, place: tuple[int, int], share: float) -> tuple[int, float]:
    """The filter a speck was found with, and the response it lacks, in grey levels; 0 where it is not known."""
    tile = reference.tile_of(*place)
    truth = reference.truth(tile)
    same = (truth.specks.rows == place[0] - tile[0]) & (truth.specks.columns == place[1] - tile[1])
    if not same.any():
        return 0, 0.0
    number = int(np.argmax(same))
    sign = -1.0 if reference.inverted else 1.0
    return int(truth.specks.filters[number]), sign * (_TO_SPARE - share) * float(truth.responses[number])


def _response(size: int, found_with: int) -> float:
    """What a filter of specks.py answers to a spot of height 1 in its middle."""
    variance = SIGMAS[size] ** 2
    narrow, wide = (variance / (variance + specks.SIGMAS[step] ** 2) for step in (found_with, found_with + 2))
    return narrow - wide
