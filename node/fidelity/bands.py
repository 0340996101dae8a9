"""Measures the energy of an image in octave bands, with details of about 2, 4, 8 and 16 pixels, tile by tile.

A band is the difference of the image blurred by two consecutive Gaussians, with standard deviations of 0, 0.7, 1.4, 2.8
and 5.6 pixels. The two coarser bands are measured on an image that is halved once and twice, which changes their
energies little and takes a quarter of the time.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from node.fidelity.threads import on_all_cores
from storage.formats.geometry import CELL, TILE, reduced

if TYPE_CHECKING:
    import torch

Float = NDArray[np.float32]
Mask = NDArray[np.bool_]

BANDS = 4
"""Number of octave bands: the Gaussians' sigma is 0 to 0.7, 0.7 to 1.4, 1.4 to 2.8 and 2.8 to 5.6 pixels."""
_MARGIN = 40
"""Pixels around a strip of tiles that are filtered with it: all Gaussians together reach 38 pixels."""
_FIRST = 0.7
"""Standard deviation of the finest Gaussian, in pixels."""
_STEP = float(np.sqrt(1.4**2 - 0.7**2))
"""Standard deviation that takes a Gaussian of 0.7 pixels to one of 1.4; on a halved image, 1.4 to 2.8 pixels, etc."""


def totals(energies: NDArray[np.float64]) -> NDArray[np.float64]:
    """Energy per octave band over all tiles: float64 (BANDS,). ``energies``: the result of ``band_energies``."""
    return np.asarray(energies[:BANDS].sum(axis=(1, 2)))


def band_energies(
    image: Float, inside: Mask, before: NDArray[np.float64] | None = None, changed: Mask | None = None
) -> NDArray[np.float64]:
    """Energy per tile in each band, and in everything coarser than the bands.

    ``image``: float32 (rows, columns), grey levels. ``inside``: bool, the same shape: the pixels that count.
    Returns float64 (BANDS + 1, tile rows, tile columns): sums of squares over the counted pixels of the full image, in
    grey levels squared. The last plane is that of the image blurred by 5.6 pixels, less the mean of the tile with its
    margin. For a difference image this is the slow error.
    ``before``: the result for an image that differed only in the cells ``changed``, bool (rows / 16, columns / 16).
    Rows of tiles away from these cells are not measured again.
    """
    rows, columns = (-(-length // TILE) for length in image.shape)
    result = np.zeros((BANDS + 1, rows, columns))
    again = []
    for row in range(rows):
        seen = [column for column in range(columns) if inside[_pixels_of(row), _pixels_of(column)].any()]
        if not seen:
            continue
        touched = (changed is None or changed[around((row * TILE, column * TILE), _MARGIN)].any() for column in seen)
        if before is None or any(touched):
            again.append((row, seen[0], seen[-1] + 1))
        else:
            result[:, row, seen] = before[:, row, seen]
    for (row, first, end), energies in zip(again, on_all_cores(partial(_of_strip, image, inside), again), strict=True):
        result[:, row, first:end] = energies
    return result


def tile_sums(values: NDArray[Any]) -> NDArray[np.float64]:
    """Sums over tiles, of which the right and lower ones may be cut off: float64 (tile rows, tile columns)."""
    return reduced(values, TILE, np.add, np.float64)


def around(tile: tuple[int, int], margin: int) -> tuple[slice, slice]:
    """The cells of 16 pixels that a tile with a margin touches. ``tile``: its top left corner, in pixels."""
    row, column = (slice(max(at - margin, 0) // CELL, -(-(at + TILE + margin) // CELL)) for at in tile)
    return row, column


def _pixels_of(tile: int) -> slice:
    """The rows or columns of a tile, by its number."""
    return slice(tile * TILE, (tile + 1) * TILE)


def _of_strip(image: Float, inside: Mask, strip: tuple[int, int, int]) -> NDArray[np.float64]:
    """Energies of the tiles of one strip: float64 (BANDS + 1, tiles). ``strip``: number of the row of tiles, of the
    first tile in it, and of the tile after the last.

    The tiles are filtered together. One by one they would take more than twice the time, since their operations are so
    short that threads mostly wait for the interpreter's lock.
    """
    import torch

    row, first, end = strip
    top, left = row * TILE, first * TILE
    seen = inside[top : top + TILE, left : end * TILE]
    place = (
        slice(max(top - _MARGIN, 0), min(top + seen.shape[0] + _MARGIN, image.shape[0])),
        slice(max(left - _MARGIN, 0), min(left + seen.shape[1] + _MARGIN, image.shape[1])),
    )
    found = np.zeros((BANDS + 1, end - first))
    for band, part in enumerate(octaves(image[place])):
        level = max(0, min(band, BANDS - 1) - 1)
        down, across = (top - place[0].start) >> level, (left - place[1].start) >> level
        mask = seen[:: 1 << level, :: 1 << level]
        own = part[down : down + mask.shape[0], across : across + mask.shape[1]]
        mask = mask[: own.shape[0], : own.shape[1]]
        if band == BANDS:
            means = np.repeat(_means_of_tiles(image, place, first, end), TILE >> level)
            own = np.asarray(own - means[: own.shape[1]])
        squares = torch.from_numpy(own).square().mul_(torch.from_numpy(np.ascontiguousarray(mask)))
        sums = squares.sum(dim=0, dtype=torch.float64).numpy()
        tiles = np.add.reduceat(sums, np.arange(0, len(sums), TILE >> level)) * 4**level
        found[band, : len(tiles)] = tiles
    return found


def _means_of_tiles(image: Float, place: tuple[slice, slice], first: int, end: int) -> Float:
    """The mean of each tile with its margin, less that of the strip ``place``: float32 (tiles,), grey levels."""
    means = []
    for column in range(first, end):
        across = slice(max(column * TILE - _MARGIN, 0), (column + 1) * TILE + _MARGIN)
        means.append(image[place[0], across].mean(dtype=np.float64))
    return np.asarray(means - image[place].mean(dtype=np.float64), dtype=np.float32)


def octaves(image: Float) -> list[Float]:
    """The bands, finest first, and the image that remains: float32. The last three are halved once, twice and twice."""
    import torch

    seen = torch.from_numpy(np.ascontiguousarray(image - image.mean(dtype=np.float64), dtype=np.float32))
    smooth = _blurred(seen, _FIRST)
    found = [seen - smooth]
    for band in range(1, BANDS):
        if band > 1:
            smooth = _halved(smooth)
        after = _blurred(smooth, _STEP)
        found.append(smooth - after)
        smooth = after
    return [part.numpy() for part in (*found, smooth)]


def finest_octave(image: Float) -> Float:
    """The finest octave band of an image, with details of about 2 pixels: float32, the same shape."""
    import torch

    seen = torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32))
    return (seen - _blurred(seen, _FIRST)).numpy()


def _blurred(image: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian blur, float32, with the border repeated. It adds up shifted images, which takes a third of the time of
    torch's convolution for one channel."""
    import torch

    weights = _weights(sigma)
    reach = len(weights) - 1
    padded = torch.nn.functional.pad(image[None, None], (reach, reach, reach, reach), mode="replicate")[0, 0]
    for axis in (0, 1):
        length = padded.shape[axis] - 2 * reach
        blurred = padded.narrow(axis, reach, length) * weights[0]
        for away in range(1, reach + 1):
            blurred.add_(padded.narrow(axis, reach - away, length), alpha=weights[away])
            blurred.add_(padded.narrow(axis, reach + away, length), alpha=weights[away])
        padded = blurred
    return padded


def _halved(image: torch.Tensor) -> torch.Tensor:
    """Means of 2 x 2 pixels, in a quarter of the time of torch's pooling; a last odd line is dropped."""
    rows, columns = (length // 2 * 2 for length in image.shape)
    pairs = image[0:rows:2, :columns] + image[1:rows:2, :columns]
    return (pairs[:, 0::2] + pairs[:, 1::2]).mul_(0.25)


@lru_cache(maxsize=2)
def _weights(sigma: float) -> tuple[float, ...]:
    """Weights of a Gaussian at distances of 0, 1, 2, ... pixels, up to four standard deviations."""
    away = np.arange(int(np.ceil(4 * sigma)) + 1)
    weights = np.exp(-np.square(away) / (2 * sigma * sigma))
    return tuple(float(weight) for weight in weights / (2 * weights.sum() - 1))
