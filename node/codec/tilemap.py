"""A map of coarseness made of one value per tile with breast, and what of those each tile gets."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from node.fidelity.fsim import TILE
from node.fidelity.gate import Reference
from storage.coarseness import LIMIT, PER_OCTAVE, Coarseness, interpolation

Floats = NDArray[np.float64]

SCALED = 24
"""The largest step of a map: what rounding leaves of samples scaled down further would be measured as detail."""
_AWAY = 1.5
"""Octaves by which what is not near the breast is coarser than most of it: in films that is a tenth of the bytes."""
_STANDS_OUT = 1.0
"""Of the display's window, within 8 pixels: what stands out so would be mended more where it is coarser."""
_BLOCK = 8
"""Side of the squares, in pixels, in which something may stand out."""


class TileMap:
    """Maps of one original. Values are octaves by which tiles of ``reference.tiles`` are coarser than the rung."""

    def __init__(self, reference: Reference) -> None:
        from scipy.ndimage import distance_transform_edt

        self._rows, self._columns = rows, columns = reference.pixels.shape
        numbers = np.full((-(-rows // TILE), -(-columns // TILE)), -1)
        for number, tile in enumerate(reference.tiles):
            numbers[place_of(*tile)] = number
        away, nearest = distance_transform_edt(numbers < 0, return_indices=True)
        self._nearest: NDArray[np.int64] = numbers[tuple(nearest)]
        self._far: NDArray[np.bool_] = away > math.sqrt(2)
        for row, column in np.argwhere(self._far):
            self._far[row, column] = _quiet(reference, row * TILE, column * TILE)
        self._shares = _shares(reference, self._nearest)

    def map(self, values: Floats, coder: str) -> Coarseness:
        """The map, rounded to its steps. Tiles beside the breast take their neighbours' values; those farther away, out
        of reach of any tile with breast, are coarser: the gate looks at single errors there, and at nothing else. Not
        with ``avif``, which would save little, and make grey clouds of black air."""
        steps = np.rint(PER_OCTAVE * values)[self._nearest]
        if coder != "avif":
            away = min(PER_OCTAVE * (float(np.median(values)) + _AWAY), SCALED)
            steps[self._far] = np.maximum(steps[self._far], round(away))
        return Coarseness(self._rows, self._columns, steps.astype(np.int8))

    def octaves(self, values: Floats) -> Floats:
        """By how much tiles are coarser, on average, where the map of ``values`` is interpolated between them."""
        return np.asarray(self._shares @ (np.rint(PER_OCTAVE * values) / PER_OCTAVE))


def place_of(row: int, column: int) -> tuple[int, int]:
    """Where in a map a tile of the gate is; the gate's last ones are moved inward."""
    return -(-row // TILE), -(-column // TILE)


def finest_step(headroom: float) -> int:
    """The lowest step of a map whose samples may be scaled up by so many octaves."""
    return max(-LIMIT, -int(PER_OCTAVE * headroom))


def _quiet(reference: Reference, row: int, column: int) -> bool:
    """Whether nothing stands out in a tile, as a marker does."""
    pixels = reference.pixels[row : row + TILE, column : column + TILE]
    rows, columns = (np.arange(0, size, _BLOCK) for size in pixels.shape)
    highest = np.maximum.reduceat(np.maximum.reduceat(pixels, rows, axis=0), columns, axis=1)
    lowest = np.minimum.reduceat(np.minimum.reduceat(pixels, rows, axis=0), columns, axis=1)
    return int((highest - lowest).max()) < _STANDS_OUT * reference.window.width


def _shares(reference: Reference, nearest: NDArray[np.int64]) -> Floats:
    """What each tile with breast has of the values of all of them: (tiles, tiles)."""
    shares = np.zeros((len(reference.tiles), len(reference.tiles)))
    sizes = zip(reference.pixels.shape, nearest.shape, strict=True)
    down, across = (interpolation(size, tiles) for size, tiles in sizes)
    for number, (row, column) in enumerate(reference.tiles):
        own = np.outer(down[row : row + TILE].mean(axis=0), across[column : column + TILE].mean(axis=0))
        np.add.at(shares[number], nearest, own)
    return shares
