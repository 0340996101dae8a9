"""The guide: what the encoder, who has the original, tells the decoder about it.

It takes some hundred bytes an image, with texture one or two thousand.

``levels`` says how strong the detail is that the base lacks, per 64-pixel tile: a network is told it, texture is
scaled by it. Per 256-pixel tile ``corrections`` say how far to follow the network, how far to go from consistent back
to plain bicubic, which trusts a lossy base less, and how much to raise or lower two bands of the base's own detail (as
an adaptive loop filter does in video coding); ``amplitude`` says how much texture to add, and ``turns``, per square of
32 pixels, which of some textures: moved, reversed, weaker or stronger. All are small maps of integers; between tile
centres their values are interpolated, so that no tile shows, and squares fade into each other.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from storage.errors import PayloadError

Float = NDArray[np.float32]
Map = NDArray[np.uint8]

LEVEL_TILE = 64
"""Side of a tile of ``levels``, in pixels of the full image."""
WEIGHT_TILE = 256
"""Side of a tile of ``corrections`` and ``amplitude``."""
CORRECTIONS = ("network", "plain", "fine", "coarse")
"""What is weighed, each as a difference to the consistent base: what the network made of it, plain bicubic, and the
base's own detail at about 3 and about 6 pixels."""
NETWORK, PLAIN, FINE, COARSE = range(4)
CORRECTION_ONE = 32
"""The value of a correction that means 1; values are -64..64."""
AMPLITUDE_ONE = 10
"""The value of ``amplitude`` that means 1; the largest, 15, means 1.5."""

TURN_TILE = 32
"""Side of a square of ``turns``."""
TURNS = tuple((down, across, factor) for down in (0, 64) for across in (0, 64) for factor in (1.4, -1.4, 0.8, -0.8))
"""By the value of ``turns``: by how many pixels texture is moved down and across in a square, and what it is multiplied
with. 64 is a multiple of every scale, so what the base does not see stays unseen."""

_QUIETEST = 0.25
_PER_OCTAVE = 3.0
_TOP_LEVEL = 63
_HEADER = struct.Struct("<BHH")
_FORMAT, _WITH_TURNS = 1, 2


@dataclass(frozen=True)
class Guide:
    """The maps of one image of ``rows`` x ``columns`` pixels; see the module.

    ``levels``: uint8, one per 64-pixel tile; 0 means leave the base as it is, k means a standard deviation of
    ``0.25 * 2 ** ((k - 1) / 3)`` grey levels. ``corrections``: int8 -64..64, four per 256-pixel tile, shape (4, tiles
    down, tiles across). ``amplitude``: uint8 0..15, one per 256-pixel tile. ``turns``: uint8, numbers of ``TURNS``, one
    per square of 32 pixels; None where texture is the same everywhere.
    """

    rows: int
    columns: int
    levels: Map
    corrections: NDArray[np.int8]
    amplitude: Map
    turns: Map | None = None

    @classmethod
    def neutral(cls, rows: int, columns: int, levels: Map) -> Guide:
        """Follow the network everywhere, with all of its texture."""
        shape = grid(rows, columns, WEIGHT_TILE)
        corrections = np.zeros((len(CORRECTIONS), *shape), dtype=np.int8)
        corrections[NETWORK] = CORRECTION_ONE
        return cls(rows, columns, levels, corrections, np.full(shape, AMPLITUDE_ONE, dtype=np.uint8))

    @classmethod
    def nothing(cls, rows: int, columns: int) -> Guide:
        """Leave the consistent base as it is."""
        levels = np.zeros(grid(rows, columns, LEVEL_TILE), dtype=np.uint8)
        shape = grid(rows, columns, WEIGHT_TILE)
        corrections = np.zeros((len(CORRECTIONS), *shape), dtype=np.int8)
        return cls(rows, columns, levels, corrections, np.zeros(shape, dtype=np.uint8))


def grid(rows: int, columns: int, tile: int) -> tuple[int, int]:
    """How many tiles cover ``rows`` x ``columns``."""
    return -(-rows // tile), -(-columns // tile)


def measure_levels(residual: Float, inside: NDArray[np.bool_]) -> Map:
    """Levels of a residual (original minus base, float32, full size), 0 where ``inside`` (per tile) is False."""
    variance = tile_means(np.square(residual), LEVEL_TILE)
    deviation = np.sqrt(variance)
    steps = np.rint(_PER_OCTAVE * np.log2(np.maximum(deviation, 1e-9) / _QUIETEST)) + 1
    levels: Map = np.clip(steps, 0, _TOP_LEVEL).astype(np.uint8)
    levels[~inside] = 0
    return levels


def deviations(levels: Map) -> Float:
    """Standard deviation in grey levels per tile: float32; 0 where the level is 0."""
    value = np.exp2((levels.astype(np.float32) - 1) / np.float32(_PER_OCTAVE)) * np.float32(_QUIETEST)
    return np.where(levels > 0, value, np.float32(0)).astype(np.float32)


def tile_means(values: Float, tile: int) -> Float:
    """Means over tiles from the top left; the last ones cover what is left. float32, shape ``grid``."""
    row_starts = np.arange(0, values.shape[0], tile)
    column_starts = np.arange(0, values.shape[1], tile)
    sums = np.add.reduceat(np.add.reduceat(values, row_starts, axis=0), column_starts, axis=1, dtype=np.float64)
    heights = np.diff(np.append(row_starts, values.shape[0]))
    widths = np.diff(np.append(column_starts, values.shape[1]))
    return np.asarray(sums / (heights[:, None] * widths), dtype=np.float32)


def spread(tiles: NDArray[np.generic], tile: int, rows: int, columns: int) -> Float:
    """A value per tile as a smooth map: bilinear between tile centres, float32, shape (rows, columns)."""
    import torch

    small = torch.from_numpy(np.ascontiguousarray(tiles, dtype=np.float32))[None, None]
    size = (small.shape[-2] * tile, small.shape[-1] * tile)
    full = torch.nn.functional.interpolate(small, size=size, mode="bilinear", align_corners=False)
    return full[0, 0, :rows, :columns].numpy()


def turn_maps(turns: Map, rows: int, columns: int) -> Iterator[tuple[tuple[int, int], Float]]:
    """By how many pixels texture is moved down and across, and what it is multiplied with at every pixel, before
    squares fade into each other: float32, 0 where it is moved otherwise."""
    for shift in dict.fromkeys((down, across) for down, across, _ in TURNS):
        factors = [factor if (down, across) == shift else 0.0 for down, across, factor in TURNS]
        values = np.array(factors, dtype=np.float32)[turns]
        if values.any():
            squares = values.repeat(TURN_TILE, axis=0).repeat(TURN_TILE, axis=1)
            yield shift, np.ascontiguousarray(squares[:rows, :columns])


def unit_map(levels: Map, rows: int, columns: int) -> Float:
    """Standard deviation at every pixel, float32; quiet tiles take their loudest neighbour's, else 1."""
    from scipy.ndimage import grey_dilation

    logs = np.log2(np.maximum(deviations(levels), 2.0**-10))
    filled = np.where(levels > 0, logs, grey_dilation(logs, size=(3, 3), mode="nearest"))
    filled = np.where(filled > -10, filled, 0.0)
    return np.exp2(spread(filled, LEVEL_TILE, rows, columns))


def share_map(levels: Map, rows: int, columns: int) -> Float:
    """1 inside tiles with a level, fading to 0 half a tile into those without; float32."""
    return spread(levels > 0, LEVEL_TILE, rows, columns)


# --- bytes ----------------------------------------------------------------------------------------------------


def encode_guide(guide: Guide) -> bytes:
    """A guide as bytes: format, size, then each map as differences to its left neighbour, deflated."""
    maps = [_differences(part) for part in (guide.levels, *guide.corrections.view(np.uint8), guide.amplitude)]
    if guide.turns is not None:
        maps.append(guide.turns.tobytes())  # neighbours have nothing to do with each other
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = deflate.compress(b"".join(maps)) + deflate.flush()
    return _HEADER.pack(_FORMAT if guide.turns is None else _WITH_TURNS, guide.rows, guide.columns) + body


def decode_guide(data: bytes) -> Guide:
    """The inverse of ``encode_guide``. Raises PayloadError."""
    try:
        form, rows, columns = _HEADER.unpack_from(data)
        if form not in (_FORMAT, _WITH_TURNS):
            raise PayloadError(f"guide has format {form}; this release reads {_FORMAT} and {_WITH_TURNS}")
        shapes = [grid(rows, columns, LEVEL_TILE), *[grid(rows, columns, WEIGHT_TILE)] * (len(CORRECTIONS) + 1)]
        if form == _WITH_TURNS:
            shapes.append(grid(rows, columns, TURN_TILE))
        sizes = [height * width for height, width in shapes]
        raw = zlib.decompressobj(-15).decompress(data[_HEADER.size :], sum(sizes) + 1)
    except (struct.error, zlib.error) as error:
        raise PayloadError(f"guide is malformed: {error}") from error
    if len(raw) != sum(sizes) or not sizes[0]:
        raise PayloadError(f"guide holds {len(raw)} values, not {sum(sizes)}")
    parts = np.split(np.frombuffer(raw, np.uint8), np.cumsum(sizes)[:-1])
    turns = parts.pop().reshape(shapes.pop()) if form == _WITH_TURNS else None
    levels, *weights, amplitude = (
        np.add.accumulate(part.reshape(shape), axis=1, dtype=np.uint8)
        for part, shape in zip(parts, shapes, strict=True)
    )
    corrections = np.stack(weights).view(np.int8)
    beyond = levels.max() > _TOP_LEVEL or amplitude.max() > 15 or (turns is not None and turns.max() >= len(TURNS))
    if beyond or np.abs(corrections.astype(int)).max() > 2 * CORRECTION_ONE:
        raise PayloadError("guide has values out of range")
    return Guide(rows, columns, levels, corrections, amplitude, turns)


def _differences(values: Map) -> bytes:
    return np.diff(values, axis=1, prepend=np.uint8(0)).astype(np.uint8).tobytes()
