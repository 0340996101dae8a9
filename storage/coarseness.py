"""Where a base is coded more coarsely or finely than its rung says: adaptive quantisation, by scaling samples.

A coder quantises alike everywhere, and images are not alike everywhere. Samples are multiplied by a smooth map before
they are coded and divided by it after; where it is a half, the coder's steps are twice as coarse. The map has one value
per 256-pixel tile of the full image, so it takes some dozen bytes, and any coder can be used.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from storage.errors import PayloadError

Float = NDArray[np.float32]

TILE = 256
"""Side of a tile of the map, in pixels of the full image."""
PER_OCTAVE = 8
"""Steps of the map by which quantisation becomes twice as coarse."""
LIMIT = 32
"""The largest value, either way: a sixteenth, or 16 times."""
_FINE = 512
"""Parts of a step that the map is interpolated in."""


@dataclass(frozen=True, eq=False)
class Coarseness:
    """The map of one image of ``rows`` x ``columns`` pixels.

    ``steps``: int8, shape (tiles down, tiles across), -LIMIT..LIMIT; k scales samples by ``2 ** (-k / PER_OCTAVE)``.
    """

    rows: int
    columns: int
    steps: NDArray[np.int8]

    def __post_init__(self) -> None:
        if self.steps.shape != _grid(self.rows, self.columns):
            raise PayloadError(f"coarseness has {self.steps.shape} tiles, not {_grid(self.rows, self.columns)}")
        if np.abs(self.steps.astype(int)).max(initial=0) > LIMIT:
            raise PayloadError(f"coarseness has a step beyond {LIMIT}")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Coarseness):
            return NotImplemented
        return (self.rows, self.columns) == (other.rows, other.columns) and np.array_equal(self.steps, other.steps)

    def __hash__(self) -> int:
        return hash((self.rows, self.columns, self.pack()))

    @property
    def typical_octaves(self) -> float:
        """How much coarser than without the map most tiles are: 1 is twice as coarse."""
        return float(np.median(self.steps)) / PER_OCTAVE

    def scaling(self, scale: int) -> Float:
        """What samples of a base of that scale are multiplied with: float32, shape (ceil(rows / scale),
        ceil(columns / scale)). Bilinear in steps between tile centres, in integers and by a table: the same bits on
        every machine."""
        down, across = (
            _weights(-(-size // scale), TILE // scale, count)
            for size, count in zip((self.rows, self.columns), self.steps.shape, strict=True)
        )
        fine = np.asarray(_FINE * (self.steps.astype(np.int64) + LIMIT))
        lines = _between(fine, *down, TILE // scale)
        table = _table()
        result = np.empty((len(down[0]), len(across[0])), dtype=np.float32)
        for row, line in enumerate(lines):
            result[row] = table[_between(line, *across, TILE // scale)]
        return result

    def pack(self) -> bytes:
        """One byte per tile, row by row, each as the difference to its left neighbour."""
        return np.diff(self.steps.view(np.uint8), axis=1, prepend=np.uint8(0)).astype(np.uint8).tobytes()

    @classmethod
    def unpack(cls, data: bytes, rows: int, columns: int) -> Coarseness:
        """The inverse of ``pack``. Raises PayloadError."""
        shape = _grid(rows, columns)
        if len(data) != shape[0] * shape[1]:
            raise PayloadError(f"coarseness holds {len(data)} bytes, not {shape[0] * shape[1]}")
        steps = np.add.accumulate(np.frombuffer(data, np.uint8).reshape(shape), axis=1, dtype=np.uint8)
        return cls(rows, columns, steps.view(np.int8))


def interpolation(size: int, tiles: int) -> NDArray[np.float64]:
    """What every pixel of a line of ``size`` has of each of its ``tiles``: shape (size, tiles), without rounding."""
    before, after, way = _weights(size, TILE, tiles)
    shares = np.zeros((size, tiles))
    pixels = np.arange(size)
    np.add.at(shares, (pixels, after), way / (2 * TILE))
    np.add.at(shares, (pixels, before), 1 - way / (2 * TILE))
    return shares


def _grid(rows: int, columns: int) -> tuple[int, int]:
    return -(-rows // TILE), -(-columns // TILE)


def _weights(size: int, tile: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """For every sample of a line the tile before it, the one after, and twice its way from one centre to the other."""
    twice = 2 * np.arange(size, dtype=np.int64) + 1 - tile
    before = twice // (2 * tile)
    return np.clip(before, 0, count - 1), np.clip(before + 1, 0, count - 1), twice - 2 * tile * before


def _between(
    values: NDArray[np.int64], before: NDArray[np.int64], after: NDArray[np.int64], way: NDArray[np.int64], tile: int
) -> NDArray[np.int64]:
    """Values along the first axis, interpolated; rounded down to whole parts of a step."""
    share = way.reshape(-1, *[1] * (values.ndim - 1))
    return np.asarray((values[before] * (2 * tile - share) + values[after] * share) // (2 * tile))


@lru_cache(maxsize=1)
def _table() -> Float:
    parts = np.arange(2 * LIMIT * _FINE + 1, dtype=np.float64) - LIMIT * _FINE
    return np.exp2(-parts / (PER_OCTAVE * _FINE)).astype(np.float32)
