"""Fits the points that restore the contrast of specks.

A speck gets up to three profiles at one position: its centre or a pixel next to it, since noise moves the maximum of a
filter's response. Their heights are fitted by least squares to the residual around the speck, on the condition that the
filter that found the speck responds as it does in the original. A single profile would restore that response too, but
leaves the edge of a speck of four pixels or more soft.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, product

import numpy as np
from numpy.typing import NDArray

from node.codec.points import PROFILES, REACH, Point, Points, grey_levels, level_of, profile
from node.fidelity.bands import around
from node.fidelity.gate import Specks, counting, speck_lists, specks_of, wrong_specks
from node.fidelity.reference import Reference
from node.fidelity.specks import HALO, Speck, responses_to
from storage.formats.geometry import CELL, TILE
from storage.records import Thresholds

Float = NDArray[np.float32]
Doubles = NDArray[np.float64]
Cells = NDArray[np.bool_]

_ROUNDS = 12
"""Most rounds of fitting. Neighbours influence each other, and grey levels are rounded."""
_APART = 4
"""Side of squares in pixels. Of the specks in neighbouring squares only the strongest is fitted in one round: if two
were fitted to one measurement, both would correct the same error, and they would oscillate."""
_AROUND = (3.0, 4.0, 6.0, 8.0)
"""Radius within which profiles are fitted, in pixels, per filter that finds the speck. It covers core and edge."""
_PRICE = 16.0
"""Squared error that each profile must remove to be worth its four bytes, in units of the noise variance."""
_SHIFTS = tuple(product((-1, 0, 1), repeat=2))
"""Positions of profiles (row, column), in pixels from the centre of their speck."""
_WINDOW = REACH + 1
"""Distance from the centre of a speck beyond which its profiles are 0 at every shift, in pixels."""


def points_for(
    reference: Reference,
    structure: Float,
    specks: Specks,
    changed: Cells,
    exact: Cells,
    limits: Thresholds,
    *,
    again: bool = False,
) -> Points | None:
    """Points that restore lost specks and remove invented ones; None if no point is needed.

    ``structure``: float32, grey levels. ``specks``: the specks of all its tiles, measured before the cells ``changed``
    were repaired. ``exact``: cells that are stored exactly, in which no point is set. Cells have 16 x 16 pixels: bool.
    ``again``: whether the structure has points already; then only specks that fail the gate get further ones. Specks
    are measured in whole grey levels, as they will be served.
    """
    fitting = _Fitting(reference, structure.copy())
    stale = [tile for tile in reference.tiles if changed[around(tile, HALO)].any()]
    specks = specks | specks_of(reference, np.rint(structure), stale)

    def free(some: Iterable[Speck]) -> list[Speck]:
        return [speck for speck in some if not exact[speck.row // CELL, speck.column // CELL]]

    # at first, fit all specks: one that keeps its contrast may have a soft edge
    first = [] if again else free(counting(speck_lists(specks)[0], limits))
    unseen = {(speck.row, speck.column) for speck in first}
    for _ in range(_ROUNDS):
        own, made = speck_lists(specks)
        wrong = {speck for some in wrong_specks(own, made, limits) for speck in free(some)}
        now = _apart({*wrong, *(speck for speck in own if (speck.row, speck.column) in unseen)})
        moved = [speck for speck in now if fitting.fit(speck, must=speck in wrong)]
        unseen -= {(speck.row, speck.column) for speck in now}
        if not moved and not unseen:
            break
        tiles = [tile for tile in reference.tiles if any(_touches(tile, speck) for speck in moved)]
        specks |= specks_of(reference, np.rint(fitting.image), tiles)
    return fitting.points()


def _apart(specks: Iterable[Speck]) -> list[Speck]:
    """The specks to fit in one round: of specks that are near each other, only the strongest."""
    found: dict[tuple[int, int], Speck] = {}
    for speck in sorted(specks, key=lambda each: (-each.strength, each)):
        row, column = speck.row // _APART, speck.column // _APART
        if not any((row + down, column + across) in found for down, across in product((-1, 0, 1), repeat=2)):
            found[row, column] = speck
    return list(found.values())


class _Fitting:
    """Profiles fitted to the residual of an image.

    ``image``: a structure to which the profiles are added in place, float32, grey levels.
    """

    def __init__(self, reference: Reference, image: Float) -> None:
        self.image = image
        self._original = reference.image
        self._sign = -1 if reference.inverted else 1
        self._price = _PRICE * reference.grain**2
        self._heights: dict[tuple[int, int], dict[int, int]] = {}
        """Per speck (row, column), the coded height of each candidate it has, by the candidate's number."""

    def fit(self, speck: Speck, *, must: bool) -> bool:
        """Fit the profiles of one speck anew; returns whether they changed. ``must``: it gets at least one profile."""
        before = self._heights.get((speck.row, speck.column), {})
        place, inside = self._window(speck)
        lacks = np.zeros(_candidates().shape[1:])
        lacks[inside] = self._original[place] - np.rint(self.image[place])
        added = _sum_of(before)
        lacks[inside] += added[inside]
        responses = _responses()[speck.size]
        missing = speck.missing * self._sign + sum(
            grey_levels(height) * responses[number] for number, height in before.items()
        )
        weights = np.zeros_like(lacks)
        weights[inside] = _weights(speck.size)[inside]
        best = self._best(speck, np.tensordot(_candidates(), weights * lacks, axes=2), missing, must=must)
        if best == before:
            return False
        self._heights[speck.row, speck.column] = best
        self.image[place] += (_sum_of(best) - added)[inside].astype(np.float32)
        return True

    def _best(self, speck: Speck, sums: Doubles, missing: float, *, must: bool) -> dict[int, int]:
        """The candidates that leave the least error, with their heights. ``sums``: weighted product of each candidate
        with the residual. ``missing``: the response of the speck's filter to restore, in grey levels."""
        best: dict[int, int] = {}
        least = np.inf if must else 0.0  # change of the squared error, with the price of the profiles
        outside = self._outside(speck)
        for fits in _fits(speck.size):
            own = sums[fits.numbers]
            wanted = np.concatenate([own, np.full((len(own), 1), missing)], axis=1)
            heights = np.einsum("fij,fj->fi", fits.solve, wanted)
            errors = np.einsum("fi,fij,fj->f", heights, fits.products, heights) - 2 * (heights * own).sum(axis=1)
            errors += np.where(outside[fits.numbers[:, 0]], np.inf, self._price * own.shape[1])
            first = int(errors.argmin())
            if errors[first] < least:
                least = float(errors[first])
                found = zip(fits.numbers[first].tolist(), map(level_of, heights[first].tolist()), strict=True)
                best = {number: level for number, level in found if level}
        return best

    def points(self) -> Points | None:
        """All profiles as points, in the order in which the decoder adds them; None if there are none."""
        found = sorted(
            Point(row + _SHIFTS[number // PROFILES][0], column + _SHIFTS[number // PROFILES][1], number % PROFILES, own)
            for (row, column), heights in self._heights.items()
            for number, own in heights.items()
        )
        return Points(self.image.shape[0], self.image.shape[1], tuple(found)) if found else None

    def _outside(self, speck: Speck) -> NDArray[np.bool_]:
        """Which candidates have their centre outside the image: bool (candidates,)."""
        middles = np.array([(speck.row + down, speck.column + across) for down, across in _SHIFTS])
        return np.repeat(((middles < 0) | (middles >= self.image.shape)).any(axis=1), PROFILES)

    def _window(self, speck: Speck) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """The part of the image that a speck's profiles cover, and the part of that window within the image."""
        place, inside = [], []
        for at, length in zip((speck.row, speck.column), self.image.shape, strict=True):
            first, last = max(at - _WINDOW, 0), min(at + _WINDOW + 1, length)
            place.append(slice(first, last))
            inside.append(slice(first - at + _WINDOW, last - at + _WINDOW))
        return (place[0], place[1]), (inside[0], inside[1])


def _sum_of(heights: dict[int, int]) -> Doubles:
    """The sum of candidates with given heights: float64, (2 _WINDOW + 1, 2 _WINDOW + 1), grey levels."""
    total = np.zeros(_candidates().shape[1:])
    for number, height in heights.items():
        total += np.float32(grey_levels(height)) * _candidates()[number]
    return total


@lru_cache(maxsize=1)
def _candidates() -> Doubles:
    """Every profile of height 1 at every shift: float64, (shifts x PROFILES, 2 _WINDOW + 1, 2 _WINDOW + 1)."""
    padded = [np.pad(profile(number), 1) for number in range(PROFILES)]
    return np.stack([np.roll(each, shift, axis=(0, 1)) for shift in _SHIFTS for each in padded]).astype(np.float64)


@lru_cache(maxsize=1)
def _responses() -> Doubles:
    """The response of each speck filter at a speck's centre to every candidate: float64 (filters, candidates)."""
    near = responses_to([profile(number) for number in range(PROFILES)])
    return np.concatenate([near[:, :, 1 - down, 1 - across] for down, across in _SHIFTS], axis=1).astype(np.float64)


@lru_cache(maxsize=len(_AROUND))
def _weights(size: int) -> Doubles:
    """Weights of the fit for the specks of one filter: a disc with a soft border, float64, side 2 _WINDOW + 1."""
    away = np.hypot(*np.mgrid[-_WINDOW : _WINDOW + 1, -_WINDOW : _WINDOW + 1])
    return np.asarray(np.clip(_AROUND[size] + 1 - away, 0, 1))


@dataclass(frozen=True)
class _Fits:
    """All fits with the same number n of candidates, for the specks of one filter.

    ``numbers``: the candidates of each fit, int (fits, n). ``products``: their weighted products with each other,
    float64 (fits, n, n). ``solve``: float64 (fits, n, n + 1), the matrix that maps the candidates' weighted products
    with the residual and the missing response to heights, by least squares with one equality constraint.
    """

    numbers: NDArray[np.intp]
    products: Doubles
    solve: Doubles


@lru_cache(maxsize=len(_AROUND))
def _fits(size: int) -> tuple[_Fits, ...]:
    """The fits of every one, two or three profiles at one shift, for the specks of one filter."""
    candidates, responses = _candidates(), _responses()[size]
    all_products = np.tensordot(candidates * _weights(size), candidates, axes=((1, 2), (1, 2)))

    def fits(count: int) -> _Fits:
        at_one_shift = np.array(list(combinations(range(PROFILES), count)))
        numbers = np.concatenate([at_one_shift + shift * PROFILES for shift in range(len(_SHIFTS))])
        products = all_products[numbers[:, :, None], numbers[:, None]]
        system = np.zeros((len(numbers), count + 1, count + 1))
        system[:, :count, :count] = products
        system[:, :count, count] = system[:, count, :count] = responses[numbers]
        return _Fits(numbers, products, np.asarray(np.linalg.inv(system)[:, :count], dtype=np.float64))

    return fits(1), fits(2), fits(3)


def _touches(tile: tuple[int, int], speck: Speck) -> bool:
    """Whether a tile's filters see the profiles of a speck."""
    reach = HALO + _WINDOW
    return all(
        start - reach <= at < start + TILE + reach for start, at in zip(tile, (speck.row, speck.column), strict=True)
    )
