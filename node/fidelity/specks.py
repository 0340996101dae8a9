"""Finds bright specks of 2 to 8 pixels, such as microcalcifications, and their strength over the local noise.

Four difference-of-Gaussian filters are each matched to a size of speck. A response is divided by the standard deviation
of the same filter's response to the noise nearby. A strength of 5 is therefore five times the local noise, whatever the
size, the grain or the dose.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from node.fidelity.lines import medians
from storage.formats.geometry import CELL, TILE

if TYPE_CHECKING:
    import torch

Float = NDArray[np.float32]

SIGMAS = (0.7, 1.1, 1.8, 2.9, 4.6, 7.0)
"""Standard deviations of the Gaussians, in pixels. A filter is one Gaussian less the next but one, for specks that are
about 2, 3, 5 and 8 pixels wide."""
FILTERS = len(SIGMAS) - 2
"""Number of filters."""
HALO = 24
"""Pixels around a tile that its filters need. Chosen, not measured."""
FAINTEST = 4.0
"""Smallest strength of the original's specks that are listed. Noise alone makes dozens of weaker ones in every tile."""
FAINTEST_NEW = 5.0
"""Smallest strength of a structure's specks that are listed. Chosen, not measured."""
ROUND, ROUND_STRONG = 0.4, 0.3
"""Smallest ratio of the least to the greatest drop of strength among four directions, below ``STRONG`` and from it on.

Along a thread the strength does not drop. 0.4 keeps 19 of 20 lone specks of strength 6 and excludes most ligaments and
vessels. 0.3 also keeps strong specks beside a thread: of 169 specks planted into a digital image, 7 of strength 6 to 8
had ratios of 0.25 to 0.37, were not listed, and lost up to half of their contrast; 0.3 keeps 4 of them.
"""
STRONG = 6.0
"""Strength from which a speck may be less round."""

_TRANSFORM = 320
"""Side of the Fourier transforms, in pixels: a tile with its halo, padded to a size whose transform is fast."""
_REACH = (2, 3, 4, 6)
"""Distance from a speck's centre at which each filter's response has dropped, in pixels. Chosen, not measured."""
_GRAIN = 2
"""Index of the Gaussian; anything finer counts as grain. Chosen, not measured."""
_FLAT = 1.5
"""Multiple of the rounding noise; grain below it counts as none, as in clipped areas. Chosen, not measured."""
_MAD = 1.4826  # of a normal distribution: its standard deviation over its median absolute deviation
_QUANTISATION = 1 / math.sqrt(12)  # standard deviation of rounding to steps of 1


class Found(NamedTuple):
    """Round specks of one tile, one array each for row and column in the tile, index of the filter, and strength."""

    rows: NDArray[np.intp]
    columns: NDArray[np.intp]
    filters: NDArray[np.intp]
    strengths: Float


@dataclass(frozen=True)
class Truth:
    """The noise and the specks of one tile of an original.

    ``grain``: standard deviation of the noise per block of 16 x 16 pixels, in grey levels: float32 (16, 16), infinite
    without breast or grain. ``noise``: that of each filter's response, float32 (4, 16, 16), infinite without breast.
    ``responses``: those of the filters to ``specks``, in grey levels. ``strongest``: the greatest strength among the
    5 x 5 pixels around, float16 (256, 256).
    """

    grain: Float
    noise: Float
    specks: Found
    responses: Float
    strongest: NDArray[np.float16]


def truth_of(image: Float, blocks: NDArray[np.bool_], step: float) -> Truth:
    """Measure one tile of an original.

    ``image``: float32, the tile with a halo, dense tissue bright. ``blocks``: bool (16, 16), true for breast. ``step``:
    rounding step in grey levels. The noise is taken as at least that of rounding, as in flat air beside the skin.
    """
    both = _filtered(image, _transfers())
    filtered, rough = both[:FILTERS], both[FILTERS]
    grain = _noise(rough, blocks, step * _QUANTISATION)
    noise = np.stack([_noise(one, blocks, step * floor) for one, floor in zip(filtered, _floors(), strict=True)])
    strength = _strength(filtered, noise)
    found = _peaks(strength, FAINTEST)
    return Truth(
        grain=np.where(grain > _FLAT * step * _QUANTISATION, grain, np.float32(np.inf)),
        noise=noise,
        specks=found,
        responses=filtered[found.filters, found.rows, found.columns],
        strongest=_dilated(strength.max(axis=0)).astype(np.float16),
    )


class Speck(NamedTuple):
    """A speck of the original or of a structure. ``size``: index of the filter that found it.

    ``share``: for a speck of the original, the structure's response there over the original's; for a speck of the
    structure, the greatest strength of the original nearby over this strength. ``missing``: for a speck of the
    original, the response that the structure lacks; for a speck of the structure, the negative of the response that the
    original does not explain. Both are in grey levels.
    """

    row: int
    column: int
    size: int
    strength: float
    share: float
    missing: float


def specks_of_tile(image: Float, truth: Truth, tile: tuple[int, int]) -> tuple[list[Speck], list[Speck]]:
    """The specks of the original, compared with ``image``; and the specks of ``image``.

    ``image``: the structure's tile with a halo, dense tissue bright. ``tile``: its top left corner. Where a tile that
    was moved inward overlaps another one, only the other tile lists specks.
    """
    filtered = _filtered(image, _transfers()[:FILTERS])
    specks = truth.specks
    now = filtered[specks.filters, specks.rows, specks.columns]
    new = _peaks(_strength(filtered, truth.noise), FAINTEST_NEW)
    before = truth.strongest[new.rows, new.columns].astype(np.float32) / new.strengths
    kept = zip(*specks, now / truth.responses, truth.responses - now, strict=True)
    too_much = filtered[new.filters, new.rows, new.columns] * np.maximum(1 - before, 0)
    own = zip(*new, before, -too_much, strict=True)
    return _own(kept, tile), _own(own, tile)


def _own(found: Iterable[tuple[float, ...]], tile: tuple[int, int]) -> list[Speck]:
    moved = [-start % TILE for start in tile]
    return [
        Speck(int(row) + tile[0], int(column) + tile[1], int(size), *map(float, rest))
        for row, column, size, *rest in found
        if row >= moved[0] and column >= moved[1]
    ]


def responses_to(profiles: Sequence[Float]) -> Float:
    """The responses of each filter to single profiles, in the 3 x 3 pixels around their centre: float32 (FILTERS,
    profiles, 3, 3).

    ``profiles``: float32 squares of an odd side.
    """
    near = np.zeros((FILTERS, len(profiles), 3, 3), dtype=np.float32)
    middle = TILE // 2
    for number, profile in enumerate(profiles):
        image = np.zeros((TILE + 2 * HALO,) * 2, dtype=np.float32)
        at = middle + HALO - len(profile) // 2
        image[at : at + len(profile), at : at + len(profile)] = profile
        filtered = _filtered(image, _transfers()[:FILTERS])
        near[:, number] = filtered[:, middle - 1 : middle + 2, middle - 1 : middle + 2]
    return near


def _filtered(image: Float, transfers: torch.Tensor) -> Float:
    """The responses of filters to a tile with a halo: float32 (n, 256, 256).

    ``transfers``: the filters' transforms, (n, _TRANSFORM, _TRANSFORM / 2 + 1).
    """
    import torch  # its transforms take half the time of scipy's

    seen = torch.from_numpy(image - image.mean(dtype=np.float64).astype(np.float32))  # filters ignore the mean
    side = (_TRANSFORM, _TRANSFORM)
    found = torch.fft.irfft2(torch.fft.rfft2(seen, s=side) * transfers, s=side)
    passed: Float = found[:, HALO : HALO + TILE, HALO : HALO + TILE].contiguous().numpy()
    return passed


@lru_cache(maxsize=1)
def _transfers() -> torch.Tensor:
    """Transforms of the four filters and of the grain filter, which passes what a Gaussian of 1.8 pixels removes.

    float32 (5, _TRANSFORM, _TRANSFORM / 2 + 1). They are real because the filters are symmetric. Circular convolution
    affects the halo only.
    """
    import torch

    away = np.arange(-HALO, HALO + 1)
    lines = np.zeros((len(SIGMAS), _TRANSFORM))
    for line, sigma in zip(lines, SIGMAS, strict=True):
        weights = np.exp(-((away / sigma) ** 2) / 2)
        line[away] = weights / weights.sum()
    passed = np.fft.fft(lines, axis=1).real
    planes = passed[:, :, None] * passed[:, None, : _TRANSFORM // 2 + 1]
    both = np.concatenate([planes[:FILTERS] - planes[2:], 1 - planes[_GRAIN, None]])
    return torch.from_numpy(both.astype(np.float32))


@lru_cache(maxsize=1)
def _floors() -> tuple[float, ...]:
    """Standard deviation of each filter's response to the noise of rounding to steps of 1."""
    point = np.zeros((TILE + 2 * HALO,) * 2, dtype=np.float32)
    point[len(point) // 2, len(point) // 2] = 1
    return tuple(
        _QUANTISATION * float(np.sqrt(np.square(one).sum())) for one in _filtered(point, _transfers()[:FILTERS])
    )


def _noise(values: Float, blocks: NDArray[np.bool_], floor: float) -> Float:
    """Standard deviation of noise per block: the lower median over those of the 3 x 3 blocks around that hold breast.

    It is at least ``floor``, and infinite in blocks without breast.
    """
    count = TILE // CELL
    sizes = np.abs(values).reshape(count, CELL, count, CELL).transpose(0, 2, 1, 3)
    own = medians(sizes.reshape(count, count, -1))
    padded = np.pad(np.where(blocks, own, np.nan), 1, constant_values=np.nan)
    around = np.sort(np.lib.stride_tricks.sliding_window_view(padded, (3, 3)).reshape(count, count, 9), axis=2)
    some = (~np.isnan(around)).sum(axis=2)
    median = np.take_along_axis(around, (np.maximum(some, 1) - 1)[..., None] // 2, axis=2)[..., 0]
    return np.where(blocks, np.maximum(median * _MAD, floor), np.inf).astype(np.float32)


def _strength(filtered: Float, noise: Float) -> Float:
    """Responses over the noise of their block."""
    count = TILE // CELL
    shape = (len(filtered), count, CELL, count, CELL)
    over: Float = filtered.reshape(shape) / noise[:, :, None, :, None]
    return over.reshape(filtered.shape)


def _peaks(strength: Float, faintest: float) -> Found:
    """Round specks: the maxima of strength among 5 x 5 pixels, each in the filter that is strongest there."""
    strongest = strength.max(axis=0)
    rows, columns = np.nonzero((strongest >= faintest) & (strongest == _dilated(strongest)))
    filters = strength[:, rows, columns].argmax(axis=0)
    found = Found(rows, columns, filters, strongest[rows, columns])
    kept = _roundness(strength, found) >= np.where(found.strengths < STRONG, ROUND, ROUND_STRONG)
    return Found(rows[kept], columns[kept], filters[kept], found.strengths[kept])


def _roundness(strength: Float, found: Found) -> Float:
    """The least over the greatest drop of strength among four directions, each the mean of both sides."""
    drops = []
    for down, across in ((1.0, 0.0), (0.0, 1.0), (0.71, 0.71), (0.71, -0.71)):
        steps = [np.rint(np.take(_REACH, found.filters) * by).astype(int) for by in (down, across)]
        sides = [
            strength[
                found.filters,
                np.clip(found.rows + sign * steps[0], 0, TILE - 1),
                np.clip(found.columns + sign * steps[1], 0, TILE - 1),
            ]
            for sign in (-1, 1)
        ]
        drops.append(found.strengths - (sides[0] + sides[1]) / 2)
    least, greatest = np.min(drops, axis=0), np.max(drops, axis=0)
    return np.asarray(least / np.maximum(greatest, 1e-9), dtype=np.float32)


def _dilated(values: Float) -> Float:
    """The maximum of the 5 x 5 pixels around each pixel, within the tile."""
    pooled = values
    for across in (False, True):
        lines = pooled.T if across else pooled
        pooled = pooled.copy()
        most = pooled.T if across else pooled
        for by in (1, 2):
            np.maximum(most[by:], lines[:-by], out=most[by:])
            np.maximum(most[:-by], lines[by:], out=most[:-by])
    return pooled
