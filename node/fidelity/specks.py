"""Finds bright specks of 2 to 8 pixels, such as microcalcifications, and their strength over the local noise.

Four difference-of-Gaussian filters, each matched to a size of speck, are compared with the noise that the same filter
passes nearby, so that a strength of 5 means five times what noise does here, whatever the size, the grain or the dose.
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
"""Gaussians, in pixels; a filter is one less the next but one: specks of about 2, 3, 5 and 8 pixels across."""
FILTERS = len(SIGMAS) - 2
HALO = 24
"""Pixels around a tile that its filters see."""
FAINTEST = 4.0
"""Least strength of the original's specks that are listed: noise alone has dozens of weaker ones in every tile."""
FAINTEST_NEW = 5.0
"""Least strength of a structure's specks that are listed."""
ROUND, ROUND_STRONG = 0.4, 0.3
"""Least ratio of the smallest to the greatest drop of strength over four directions, below and from ``STRONG``.

A thread does not drop along itself. 0.4 keeps 19 of 20 lone specks of strength 6 and excludes most ligaments and
vessels. 0.3 also keeps strong specks beside a thread: of 169 specks planted into a digital image, 7 of strength 6 to 8
had ratios of 0.25 to 0.37, were not listed, and lost up to half of their contrast; 4 of these are kept now.
"""
STRONG = 6.0
"""Strength from which a speck may be less round."""

_TRANSFORM = 320
"""Side of the Fourier transforms: a tile with its halo, and what makes them fast."""
_REACH = (2, 3, 4, 6)
"""How far from a speck's middle each filter's response has dropped, in pixels."""
_GRAIN = 2
"""Index of the Gaussian below which everything counts as noise when errors are compared with it."""
_FLAT = 1.5
"""Multiple of the rounding noise below which there is no noise to compare errors with, as in clipped areas."""
_MAD = 1.4826  # of a normal distribution: its standard deviation over its median absolute deviation
_QUANTISATION = 1 / math.sqrt(12)  # standard deviation of rounding to steps of 1


class Found(NamedTuple):
    """Round specks of one tile: row and column in the tile, filter, strength; one array each."""

    rows: NDArray[np.intp]
    columns: NDArray[np.intp]
    filters: NDArray[np.intp]
    strengths: Float


@dataclass(frozen=True)
class Truth:
    """The noise and the specks of one tile of an original.

    ``grain``: noise per block of 16 pixels in grey levels, float32 (16, 16); infinite where there is no breast or no
    grain. ``noise``: the same of each filter, float32 (4, 16, 16); infinite where there is no breast. ``specks`` and
    their ``responses`` in grey levels. ``strongest``: the greatest strength within 2 pixels, float16 (256, 256).
    """

    grain: Float
    noise: Float
    specks: Found
    responses: Float
    strongest: NDArray[np.float16]


def truth_of(image: Float, blocks: NDArray[np.bool_], step: float) -> Truth:
    """``image``: the tile with a halo, bright as dense tissue is. ``blocks``: breast, bool (16, 16).

    ``step``: grey levels that count as rounding, so that flat air beside the skin is not free of all noise.
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
    """A speck of an image: where, in which filter, how strong.

    ``share``: of a speck of the original, the share of its response that the structure has there; of a speck of the
    structure, how strong the original is there at most, over this strength. ``missing``: the response that the
    structure lacks, in grey levels. Of a speck of the structure: the part of its response that the original does not
    explain, negated.
    """

    row: int
    column: int
    size: int
    strength: float
    share: float
    missing: float


def specks_of_tile(image: Float, truth: Truth, tile: tuple[int, int]) -> tuple[list[Speck], list[Speck]]:
    """The original's specks as ``image`` (the structure's tile with a halo) has kept them, and those of ``image``.

    ``tile``: the tile's top left corner. A tile that was moved inward leaves specks to the tile that it overlaps.
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
    """The responses of each filter to single profiles, in the 3 x 3 pixels around their middle: float32 (FILTERS,
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
    """What filters of these transforms (n, _TRANSFORM, _TRANSFORM / 2 + 1) pass of a tile with a halo: float32
    (n, 256, 256)."""
    import torch  # its transforms take half the time of scipy's

    seen = torch.from_numpy(image - image.mean(dtype=np.float64).astype(np.float32))  # filters ignore the mean
    side = (_TRANSFORM, _TRANSFORM)
    found = torch.fft.irfft2(torch.fft.rfft2(seen, s=side) * transfers, s=side)
    passed: Float = found[:, HALO : HALO + TILE, HALO : HALO + TILE].contiguous().numpy()
    return passed


@lru_cache(maxsize=1)
def _transfers() -> torch.Tensor:
    """Transforms of the four filters and of the grain, which is what a Gaussian of 1.8 pixels takes away: float32
    (5, _TRANSFORM, _TRANSFORM / 2 + 1). They are real, since filters are symmetric; what wraps around stays in the
    halo."""
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
    """What each filter passes of the noise of rounding to steps of 1."""
    point = np.zeros((TILE + 2 * HALO,) * 2, dtype=np.float32)
    point[len(point) // 2, len(point) // 2] = 1
    return tuple(
        _QUANTISATION * float(np.sqrt(np.square(one).sum())) for one in _filtered(point, _transfers()[:FILTERS])
    )


def _noise(values: Float, blocks: NDArray[np.bool_], floor: float) -> Float:
    """Standard deviation of noise per block: the lower median of the 3 x 3 blocks' own, of those with breast."""
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
    """Round specks: places that no other within 2 pixels exceeds, in the filter that is strongest there."""
    strongest = strength.max(axis=0)
    rows, columns = np.nonzero((strongest >= faintest) & (strongest == _dilated(strongest)))
    filters = strength[:, rows, columns].argmax(axis=0)
    found = Found(rows, columns, filters, strongest[rows, columns])
    kept = _roundness(strength, found) >= np.where(found.strengths < STRONG, ROUND, ROUND_STRONG)
    return Found(rows[kept], columns[kept], filters[kept], found.strengths[kept])


def _roundness(strength: Float, found: Found) -> Float:
    """The least drop over the greatest, of the drops to both sides in four directions."""
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
    """The maximum of 5 x 5 pixels, those of the tile."""
    pooled = values
    for across in (False, True):
        lines = pooled.T if across else pooled
        pooled = pooled.copy()
        most = pooled.T if across else pooled
        for by in (1, 2):
            np.maximum(most[by:], lines[:-by], out=most[by:])
            np.maximum(most[:-by], lines[by:], out=most[:-by])
    return pooled
