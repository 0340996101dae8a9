"""Fits the points that restore the contrast of specks.

A speck gets up to two Gaussians at its middle. Their heights are fitted by least squares to the residual around it,
under the condition that the filter that found the speck responds as it does in the original. One Gaussian restores that
response too, but leaves the edge of a speck of four pixels or more soft.
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
"""Most rounds of fitting: neighbours influence each other, and grey levels are rounded."""
_AROUND = (3.0, 4.0, 6.0, 8.0)
"""Radius within which Gaussians are fitted, in pixels, per filter that finds the speck: its core and its edge."""
_PRICE = 16.0
"""Squared error that each Gaussian must remove, in units of the noise variance: it costs four bytes."""


def points_for(
    reference: Reference, structure: Float, specks: Specks, changed: Cells, exact: Cells, limits: Thresholds
) -> Points | None:
    """Points that restore lost specks and remove invented ones; None if no point is needed.

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
    """Specks whose contrast is not kept, and invented specks."""
    lost, new = wrong_specks(*speck_lists(specks), limits)
    return {*lost, *new}


class _Fitting:
    """Gaussians fitted to the residual of an image.

    ``image``: a structure with the Gaussians so far, float32, grey levels; modified in place.
    """

    def __init__(self, reference: Reference, image: Float) -> None:
        self.image = image
        self._original = reference.image
        self._sign = -1 if reference.inverted else 1
        self._price = _PRICE * reference.grain**2
        self._heights: dict[tuple[int, int], dict[int, int]] = {}

    def fit(self, speck: Speck, *, must: bool) -> bool:
        """Fits the Gaussians of one speck again and returns whether they changed. ``must``: it needs at least one."""
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
        """All Gaussians as the decoder gets them; None if there are none."""
        found = tuple(
            Point(row, column, size, height)
            for (row, column), own in sorted(self._heights.items())
            for size, height in sorted(own.items())
        )
        return Points(self.image.shape[0], self.image.shape[1], found) if found else None

    def _window(self, speck: Speck) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """The part of the image that a Gaussian covers, and the part of the Gaussian within the image."""
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
    """Weights of the fit for one filter: a disc with a soft border, float64."""
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
