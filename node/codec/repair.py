"""What the encoder does about single places: points for specks, coded residuals for everything else."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from node.codec.points import REACH, SIGMAS, Point, Points, grey_levels, level_of, profile
from node.codec.repairs import CELL
from node.fidelity.gate import Reference, Specks, speck_lists, specks_of, wrong_specks
from node.fidelity.specks import Speck, spot_responses
from storage.records import Thresholds

Float = NDArray[np.float32]
Cells = NDArray[np.bool_]

_ROUNDS = 4
"""Times that points are set at most: neighbours pull on each other, and heights are in steps of a tenth."""
_AROUND = 6
"""Pixels around a speck whose cells are coded where points do not restore it."""


def points_for(
    reference: Reference, structure: Float, specks: Specks, broken: Cells, limits: Thresholds
) -> tuple[Points | None, Cells]:
    """Points that give specks of the original their contrast back, and ``broken`` with the cells of those that fail.

    ``structure``: float32, grey levels; ``specks``: those of all of its tiles. ``broken``: cells of 16 pixels that are
    coded anyway.
    """
    broken, image = broken.copy(), structure.copy()
    heights: dict[tuple[int, int, int], float] = {}
    sizes = _sizes()
    for left in range(_ROUNDS, -1, -1):
        kept, new = wrong_specks(*speck_lists(specks), limits)
        kept = [speck for speck in kept if not broken[speck.row // CELL, speck.column // CELL]]
        for speck in [*new, *(() if left else kept)]:
            _mark(broken, speck)
        if not kept:
            break
        for speck in kept if left else ():
            size, answer = sizes[speck.size]
            missing = speck.missing / answer * (-1 if reference.inverted else 1)
            key = (speck.row, speck.column, size)
            before = heights.get(key, 0.0)
            heights[key] = grey_levels(level_of(before + missing))  # as the decoder will have it
            _add(image, speck, heights[key] - before, size)
        tiles = [tile for tile in reference.tiles if any(_touches(tile, speck) for speck in kept)]
        specks = specks_of(reference, image, tiles)
    points = tuple(
        Point(row, column, size, level_of(height))
        for (row, column, size), height in sorted(heights.items())
        if level_of(height) and not broken[row // CELL, column // CELL]
    )
    return (Points(structure.shape[0], structure.shape[1], points) if points else None), broken


def _sizes() -> list[tuple[int, float]]:
    """Per speck filter: the size of point that it answers to most for its energy, and its answer to height 1."""
    spots = [profile(size) for size in range(len(SIGMAS))]
    answers = spot_responses(tuple(spot.tobytes() for spot in spots))
    energies = np.sqrt([float(np.square(spot).sum()) for spot in spots])
    best = (answers / energies).argmax(axis=1)
    return [(int(size), float(answers[number, size])) for number, size in enumerate(best)]


def _add(image: Float, speck: Speck, height: float, size: int) -> None:
    """Add one point to an image; what lies beyond the border is cut off."""
    top, left = max(speck.row - REACH, 0), max(speck.column - REACH, 0)
    bottom, right = min(speck.row + REACH + 1, image.shape[0]), min(speck.column + REACH + 1, image.shape[1])
    at = (REACH - speck.row, REACH - speck.column)
    spot = profile(size)[top + at[0] : bottom + at[0], left + at[1] : right + at[1]]
    image[top:bottom, left:right] += np.float32(height) * spot


def _mark(broken: Cells, speck: Speck) -> None:
    rows = slice(max(speck.row - _AROUND, 0) // CELL, (speck.row + _AROUND) // CELL + 1)
    broken[rows, max(speck.column - _AROUND, 0) // CELL : (speck.column + _AROUND) // CELL + 1] = True


def _touches(tile: tuple[int, int], speck: Speck) -> bool:
    return all(start - 32 <= at < start + 256 + 32 for start, at in zip(tile, (speck.row, speck.column), strict=True))
