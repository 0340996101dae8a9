"""Points for the specks of one image: which ones restore their contrast.

A speck gets up to two Gaussian spots at its middle: those whose heights come nearest, by least squares, to what the
structure lacks around it, under the condition that the filter that found the speck answers as it does in the original.
A single spot restores that answer, too, but leaves the edge of a speck of four pixels or more as soft as it was.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from node.codec.points import REACH, SIGMAS, Point, Points, grey_levels, level_of, profile
from node.fidelity.bands import around
from node.fidelity.gate import Reference, Specks, counting, speck_lists, specks_of, wrong_specks
from node.fidelity.specks import HALO, Speck, spot_responses
from storage.formats.geometry import CELL
from storage.records import Thresholds

Float = NDArray[np.float32]
Doubles = NDArray[np.float64]
Cells = NDArray[np.bool_]

_ROUNDS = 5
"""Times that points are set at most: neighbours pull on each other, and grey levels are whole."""
_AROUND = (3.0, 4.0, 6.0, 8.0)
"""Pixels around a speck within which spots are fitted, per filter that finds it: its core and its edge."""
_PRICE = 16.0
"""Squared error that each spot must take away, in units of the image's grain squared: it takes four bytes."""


def points_for(
    reference: Reference, structure: Float, specks: Specks, changed: Cells, exact: Cells, limits: Thresholds
) -> Points | None:
    """Points that give specks their contrast back, and take away those that the structure invented; None where none is
    needed.

    ``structure``: float32, grey levels; ``specks``: those of all of its tiles before the cells ``changed`` were
    repaired. ``exact``: cells where no point is set, since they are stored exactly. Cells are of 16 pixels, bool.
    Specks are measured as they will be served, in whole grey levels.
    """
    fitting = _Fitting(reference, structure.copy())
    again = [tile for tile in reference.tiles if changed[around(tile, HALO)].any()]
    specks = specks | specks_of(reference, np.rint(structure), again)
    own, _made = speck_lists(specks)
    wrong = _wrong(specks, limits)
    looked_at = {*counting(own, limits), *wrong}  # at first all: those that keep their contrast may have a soft edge
    for _ in range(_ROUNDS):
        moved = [
            speck
            for speck in sorted(looked_at)
            if not exact[speck.row // CELL, speck.column // CELL] and fitting.fit(speck, must=speck in wrong)
        ]
        if not moved:
            break
        tiles = [tile for tile in reference.tiles if any(_touches(tile, speck) for speck in moved)]
        specks = specks_of(reference, np.rint(fitting.image), tiles)
        looked_at = wrong = _wrong(specks, limits)
    return fitting.points()


def _wrong(specks: Specks, limits: Thresholds) -> set[Speck]:
    """Specks that are not kept, and specks that are invented."""
    lost, new = wrong_specks(*speck_lists(specks), limits)
    return {*lost, *new}


class _Fitting:
    """Spots that are fitted to what an image lacks of an original.

    ``image``: a structure with the spots so far, float32, grey levels; written to.
    """

    def __init__(self, reference: Reference, image: Float) -> None:
        self.image = image
        self._original = reference.image
        self._sign = -1 if reference.inverted else 1
        self._price = _PRICE * reference.grain**2
        self._heights: dict[tuple[int, int], dict[int, int]] = {}

    def fit(self, speck: Speck, *, must: bool) -> bool:
        """Set the spots of one speck anew; whether that changed any. ``must``: whether it needs some."""
        before = self._heights.get((speck.row, speck.column), {})
        spots, answers = _spots(), _answers()[speck.size]
        place, inside = self._window(speck)
        lacks = np.zeros(spots.shape[1:])
        lacks[inside] = self._original[place] - np.rint(self.image[place])
        added = _sum_of(before)
        lacks[inside] += added[inside]
        missing = speck.missing * self._sign + sum(
            grey_levels(height) * answers[size] for size, height in before.items()
        )
        weights = np.zeros_like(lacks)
        weights[inside] = _weights(speck.size)[inside]
        sums = np.tensordot(spots, weights * lacks, axes=2)
        best: dict[int, int] = {}
        least = np.inf if must else 0.0  # squared error more than without spots
        for sizes, products, solve in _fits(speck.size):
            own = sums[list(sizes)]
            heights = solve @ np.append(own, missing)
            error = heights @ products @ heights - 2 * heights @ own + self._price * len(sizes)
            if error < least:
                least = float(error)
                best = {size: level for size, height in zip(sizes, heights, strict=True) if (level := level_of(height))}
        if best == before:
            return False
        self._heights[speck.row, speck.column] = best
        self.image[place] += (_sum_of(best) - added)[inside].astype(np.float32)
        return True

    def points(self) -> Points | None:
        """All spots, as the decoder gets them; None where there are none."""
        found = tuple(
            Point(row, column, size, height)
            for (row, column), own in sorted(self._heights.items())
            for size, height in sorted(own.items())
        )
        return Points(self.image.shape[0], self.image.shape[1], found) if found else None

    def _window(self, speck: Speck) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """What a spot covers of the image, and which part of a spot that is: beyond the border it is cut off."""
        place, inside = [], []
        for at, length in zip((speck.row, speck.column), self.image.shape, strict=True):
            first, last = max(at - REACH, 0), min(at + REACH + 1, length)
            place.append(slice(first, last))
            inside.append(slice(first - at + REACH, last - at + REACH))
        return (place[0], place[1]), (inside[0], inside[1])


def _sum_of(heights: dict[int, int]) -> Doubles:
    """Spots of given sizes and heights on top of each other: float64, (2 REACH + 1, 2 REACH + 1), grey levels."""
    total = np.zeros(_spots().shape[1:])
    for size, height in heights.items():
        total += np.float32(grey_levels(height)) * _spots()[size]
    return total


@lru_cache(maxsize=1)
def _spots() -> Doubles:
    """Spots of height 1: float64, (sizes, 2 REACH + 1, 2 REACH + 1)."""
    return np.stack([profile(size) for size in range(len(SIGMAS))]).astype(np.float64)


@lru_cache(maxsize=1)
def _answers() -> Doubles:
    """What each speck filter answers to a spot of height 1 in its middle: float64 (filters, sizes)."""
    return spot_responses(tuple(profile(size).tobytes() for size in range(len(SIGMAS)))).astype(np.float64)


@lru_cache(maxsize=len(_AROUND))
def _weights(number: int) -> Doubles:
    """Where spots are fitted, for specks of one filter: a disc with a soft border, float64, the shape of a spot."""
    away = np.hypot(*np.mgrid[-REACH : REACH + 1, -REACH : REACH + 1])
    return np.asarray(np.clip(_AROUND[number] + 1 - away, 0, 1))


@lru_cache(maxsize=len(_AROUND))
def _fits(number: int) -> list[tuple[tuple[int, ...], Doubles, Doubles]]:
    """For specks of one filter: every one or two sizes of spots, their weighted products with each other, and the
    matrix that takes weighted sums of what is lacking with these spots, and the answer that is missing, to heights
    (least squares with one condition)."""
    spots, answers = _spots(), _answers()[number]
    all_products = np.tensordot(spots * _weights(number), spots, axes=((1, 2), (1, 2)))
    found = []
    for count in (1, 2):
        for sizes in combinations(range(len(SIGMAS)), count):
            products = all_products[np.ix_(sizes, sizes)]
            system = np.zeros((count + 1, count + 1))
            system[:count, :count] = products
            system[:count, count] = system[count, :count] = answers[list(sizes)]
            found.append((sizes, products, np.asarray(np.linalg.inv(system)[:count], dtype=np.float64)))
    return found


def _touches(tile: tuple[int, int], speck: Speck) -> bool:
    return all(start - 32 <= at < start + 256 + 32 for start, at in zip(tile, (speck.row, speck.column), strict=True))
