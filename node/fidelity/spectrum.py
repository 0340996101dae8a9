"""The noise power spectrum of the breast, to see whether a reconstruction has the texture of its original."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from node.fidelity.regions import Mask, Pixels

Power = NDArray[np.float64]

BANDS = 6
"""Bands between half the payload's Nyquist frequency and the image's."""

_TILE = 256
_RESOLUTION = 128
_BLOCK = 16


def power_spectrum(pixels: Pixels, mask: Mask) -> Power:
    """Power by radial frequency in 64 steps from 0 to half a cycle per pixel, in grey levels squared.

    Over 256-pixel tiles wholly inside the breast (``mask``: per block of 16 pixels), Hann window, mean removed
    (IEC 62220-1 without its detrending by a surface).
    """
    window = np.outer(np.hanning(_TILE), np.hanning(_TILE)).astype(np.float32)
    frequency = np.hypot(np.fft.fftfreq(_TILE)[:, None], np.fft.rfftfreq(_TILE))
    step = np.minimum((frequency * _RESOLUTION).astype(int), _RESOLUTION // 2).ravel()
    power = np.zeros(_RESOLUTION // 2 + 1)
    blocks = _TILE // _BLOCK
    for top in range(0, pixels.shape[0] - _TILE + 1, _TILE):
        for left in range(0, pixels.shape[1] - _TILE + 1, _TILE):
            row, column = top // _BLOCK, left // _BLOCK
            if mask[row : row + blocks, column : column + blocks].all():
                tile = pixels[top : top + _TILE, left : left + _TILE].astype(np.float32)
                transformed = np.square(np.abs(np.fft.rfft2((tile - tile.mean()) * window)))
                power += np.bincount(step, transformed.ravel(), minlength=len(power))
    return power[:-1]


def band_edges(scale: int) -> NDArray[np.int64]:
    """Ends of the bands, in steps of ``power_spectrum``, from half the Nyquist frequency of a base of that scale."""
    half_nyquist = _RESOLUTION // 4 // scale
    return np.linspace(half_nyquist, _RESOLUTION // 2, BANDS + 1).round().astype(np.int64)


def relative_power(power: Power, truth: Power, scale: int) -> Power:
    """Power over the original's in each band; 1 is as it was. Where the original has none, 1 by definition."""
    edges = band_edges(scale)
    original = np.array([truth[first:last].sum() for first, last in pairwise(edges)])
    found = np.array([power[first:last].sum() for first, last in pairwise(edges)])
    return np.asarray(np.divide(found, original, out=np.ones_like(found), where=original > 0))


def closer_in_every_band(power: Power, than: Power, truth: Power, scale: int) -> bool:
    """True when ``power`` is nearer to the original's than ``than`` is, by its logarithm, in each band."""
    away, before = (np.abs(np.log(np.maximum(relative_power(one, truth, scale), 1e-12))) for one in (power, than))
    return bool((away < before).all())
