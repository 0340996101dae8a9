"""Measures visible losses in a reconstruction, in up to six squares of 640 x 640 pixels inside the breast.

lost      per octave band (differences of Gaussians of 0, 0.7, 1.4, 2.8 and 5.6 pixels): root mean square of
          (structure - original) over that of the original. At 1 the band is lost; above 1 it is wrong.
spectrum  per band: energy of the served image over that of the original, in dB. At 0 the noise texture is equal.
lines     99.9th percentile of the response to ridges and edges in 12 directions, 1.2, 2.5 and 5 pixels wide, 8 times
          the width plus 13 pixels long, in (structure - original), over the noise of the same filters in the original.
          Missing noise alone gives 3.5 to 4 at the finest width; lost or invented lines give more.
low       root mean square of (structure - original), and of (served - original), below all bands, in thousandths of
          the window's width. Noise of the strength that the structure lost raises it by a factor of 1.4. A higher
          factor means false clouds.
PSNR      in the breast, with the window's width as the peak. FSIM: mean over tiles of 256 x 256 pixels, through the
          window. Both are given for the structure and for the served image. Drawn noise lowers both, which is no fault.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.fft import irfft2, next_fast_len, rfft2
from scipy.ndimage import gaussian_filter, uniform_filter, zoom

from benchmarks.coded import Coded
from node.fidelity.breast_regions import Window
from node.fidelity.fsim import features, similarity
from storage.formats.geometry import TILE

Float = NDArray[np.float32]
Square = tuple[slice, slice]

SIGMAS = (0.7, 1.4, 2.8, 5.6)
WIDTHS = (1.2, 2.5, 5.0)
_SIDE, _SQUARES, _DIRECTIONS = 640, 6, 12
_NOISE_TILE = 128
_MOST_TILES = 48
_NORMAL_MEDIAN = 0.6745  # median of the absolute value of a standard normal variable
_LEAST_STEP = 1 / 256 / math.sqrt(12)  # rounding of a 256-level display, as a share of the window's width


@dataclass(frozen=True)
class Losses:
    """The figures that the module describes; bands and widths are from fine to coarse."""

    lost: list[float]
    spectrum_db: list[float]
    lines: list[float]
    low: float
    low_served: float
    psnr_structure: float
    psnr_served: float
    fsim_structure: float
    fsim_served: float


def losses(coded: Coded) -> Losses:
    """All figures of one coded image."""
    low, high = coded.window
    width = np.float32(high - low)
    squares = list(_squares(coded.breast))
    parts = [
        tuple(image[where].astype(np.float32) / width for image in (coded.original, coded.structure, coded.served))
        for where in squares
    ]
    own, missing, energy, below = np.zeros(4), np.zeros(4), np.zeros(4), np.zeros(2)
    for original, structure, served in parts:
        own += [float(np.square(band).sum()) for band in _bands(original)]
        energy += [float(np.square(band).sum()) for band in _bands(served)]
        missing += [float(np.square(band).sum()) for band in _bands(structure - original)]
        slow = (gaussian_filter(image - original, SIGMAS[-1]) for image in (structure, served))
        below += [float(np.square(each).mean()) / len(parts) for each in slow]
    psnr = [_psnr(coded, image) for image in (coded.structure, coded.served)]
    fsim = _fsim(coded)
    return Losses(
        lost=np.sqrt(missing / own).round(3).tolist(),
        spectrum_db=(10 * np.log10(energy / own)).round(2).tolist(),
        lines=[round(lines_of([(o, s - o) for o, s, _ in parts], width), 2) for width in WIDTHS],
        low=round(1000 * math.sqrt(below[0]), 2),
        low_served=round(1000 * math.sqrt(below[1]), 2),
        psnr_structure=round(psnr[0], 2),
        psnr_served=round(psnr[1], 2),
        fsim_structure=round(fsim[0], 4),
        fsim_served=round(fsim[1], 4),
    )


def _squares(breast: NDArray[np.bool_]) -> Iterator[Square]:
    """Up to six squares with the largest share of breast."""
    side = min(_SIDE, *breast.shape)
    share = uniform_filter(breast.astype(np.float32), side, mode="constant")
    half = side // 2
    inner = share[half : breast.shape[0] - side + half + 1, half : breast.shape[1] - side + half + 1]
    good = np.argwhere(inner >= min(0.999, float(inner.max()) - 1e-3))
    for row, column in good[np.random.default_rng(1).permutation(len(good))[:_SQUARES]]:
        yield slice(row, row + side), slice(column, column + side)


def _bands(image: Float) -> Iterator[Float]:
    before = image
    for sigma in SIGMAS:
        after = gaussian_filter(image, sigma)
        yield before - after
        before = after


def lines_of(pairs: list[tuple[Float, Float]], width: float) -> float:
    """99.9th percentile of the strongest line through each pixel, over (original, error) pairs of one shape."""
    length = 8 * width + 13
    rows, columns = pairs[0][0].shape
    reach = int(length * 0.75)
    shape = next_fast_len(rows + 2 * reach, real=True), next_fast_len(columns + 2 * reach, real=True)
    spectra = [(rfft2(original, s=shape), rfft2(error, s=shape)) for original, error in pairs]
    best = [np.zeros((rows, columns), dtype=np.float32) for _ in pairs]
    for number in range(_DIRECTIONS):
        for kernel in _ridge_and_edge(reach, length, math.pi * number / _DIRECTIONS, width):
            transfer = rfft2(kernel, s=shape)
            for strongest, spectrum in zip(best, spectra, strict=True):
                found = [irfft2(each * transfer, s=shape)[reach:, reach:][:rows, :columns] for each in spectrum]
                noise = np.maximum(_local_deviation(found[0]), _LEAST_STEP)
                np.maximum(strongest, np.abs(found[1]) / noise, out=strongest)
    rim = int(length)
    return float(np.percentile(np.concatenate([each[rim:-rim, rim:-rim].ravel() for each in best]), 99.9))


def _ridge_and_edge(reach: int, length: float, angle: float, width: float) -> Iterator[Float]:
    """Second and first derivative of a Gaussian across the line, constant along it; unit energy, zero mean."""
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float32)
    along, across = x * math.cos(angle) + y * math.sin(angle), (y * math.cos(angle) - x * math.sin(angle)) / width
    envelope = np.exp(-np.square(across) / 2) * (np.abs(along) <= length / 2)
    for raw in ((1 - np.square(across)) * envelope, -across * envelope):
        centred = raw - raw.mean()
        yield (centred / np.sqrt(np.square(centred).sum())).astype(np.float32)


def _local_deviation(values: Float) -> Float:
    """Median-based deviation in tiles of 128 x 128 pixels, interpolated; one tile if the image is smaller."""
    tile = min(_NOISE_TILE, *values.shape)
    rows, columns = values.shape[0] // tile, values.shape[1] // tile
    tiles = np.abs(values[: rows * tile, : columns * tile]).reshape(rows, tile, columns, tile).transpose(0, 2, 1, 3)
    median = np.median(tiles.reshape(rows, columns, -1), axis=2) / _NORMAL_MEDIAN
    smooth = zoom(median, tile, order=1, mode="nearest", grid_mode=True)
    short = [(0, size - made) for size, made in zip(values.shape, smooth.shape, strict=True)]
    return np.pad(smooth, short, mode="edge").astype(np.float32)


def _psnr(coded: Coded, image: NDArray[np.generic]) -> float:
    width = coded.window[1] - coded.window[0]
    error = image[coded.breast].astype(np.float32) - coded.original[coded.breast]
    return -10 * math.log10(float(np.square(error / width).mean(dtype=np.float64)) + 1e-20)


def _fsim(coded: Coded) -> tuple[float, float]:
    """FSIM of the structure and of the served image: mean over at most 48 tiles that are mostly breast."""
    window, rows, columns = Window(*coded.window), *coded.original.shape
    tiles = [
        np.s_[row : row + TILE, column : column + TILE]
        for row in range(0, rows - TILE + 1, TILE)
        for column in range(0, columns - TILE + 1, TILE)
        if coded.breast[row : row + TILE, column : column + TILE].mean() > 0.5
    ]
    found = []
    for where in tiles[:: max(1, -(-len(tiles) // _MOST_TILES))]:
        images = (coded.original, coded.structure, coded.served)
        one = [features(torch.from_numpy(window.show(image[where]))) for image in images]
        found.append([similarity(one[0], each) for each in one[1:]])
    structure, served = np.mean(found, axis=0) if found else (math.nan, math.nan)
    return float(structure), float(served)
