"""Points for the specks of one image: which ones restore their contrast."""

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

_ROUNDS = 5
"""Times that points are set at most: neighbours pull on each other, and grey levels are whole."""


def points_for(
    reference: Reference, structure: Float, specks: Specks, broken: Cells, limits: Thresholds
) -> Points | None:
    """Points that give specks of the original their contrast back; None where none is needed.

    ``structure``: float32, grey levels; ``specks``: those of all of its tiles. ``broken``: cells of 16 pixels where no
    point is set, since something else is done there. Specks are measured as they will be served, in whole grey levels.
    """
    image = structure.copy()
    heights: dict[tuple[int, int, int], float] = {}
    sizes = _sizes()
    for _ in range(_ROUNDS):
        lost, _new = wrong_specks(*speck_lists(specks), limits)
        lost = [speck for speck in lost if not broken[speck.row // CELL, speck.column // CELL]]
        if not lost:
            break
        for speck in lost:
            size, answer = sizes[speck.size]
            missing = speck.missing / answer * (-1 if reference.inverted else 1)
            key = (speck.row, speck.column, size)
            before = heights.get(key, 0.0)
            heights[key] = grey_levels(level_of(before + missing))  # as the decoder will have it
            _add(image, speck, heights[key] - before, size)
        tiles = [tile for tile in reference.tiles if any(_touches(tile, speck) for speck in lost)]
        specks = specks_of(reference, np.rint(image), tiles)
    points = tuple(
        Point(row, column, size, level_of(height))
        for (row, column, size), height in sorted(heights.items())
        if level_of(height)
    )
    return Points(structure.shape[0], structure.shape[1], points) if points else None


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


def _touches(tile: tuple[int, int], speck: Speck) -> bool:
    return all(start - 32 <= at < start + 256 + 32 for start, at in zip(tile, (speck.row, speck.column), strict=True))
