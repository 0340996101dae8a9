"""Makes signals to plant into tissue at the threshold of visibility, and a model observer's channels for them.

- calcifications of 150, 200, 300 and 500 micrometres: discs blurred as by a detector, one alone or five within 5 mm;
- lines like spiculations, 150 and 250 micrometres wide, 3 to 8 mm long, in random directions;
- masses of 5, 10 and 15 mm: discs whose edge is blurred by an eighth of their diameter.

Every signal has a peak of 1, and is an array of odd side, like its channels. The observer knows the positions of the
specks of a cluster and the direction of a line: it sums the channels of all specks, and aligns those of a line.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.special import erf

from benchmarks.hotelling import hermite_gauss, laguerre_gauss

Float = NDArray[np.float32]

CALCIFICATIONS_UM = (150, 200, 300, 500)
LINES_UM, LENGTHS_MM = (150, 250), (3.0, 8.0)
MASSES_MM = (5, 10, 15)
SPECKS, CLUSTER_MM = 5, 5.0
CHANNELS, LINE_CHANNELS = 6, 5
_PSF = 0.7
"""Blur of detector and pixel, as the standard deviation of a Gaussian in pixels."""
_FULL_WIDTH = 2.355
_FINE = 8


@dataclass(frozen=True)
class Stamp:
    """One signal to plant. ``pattern``: float32 (side, side), peak 1, centred on its position.

    ``extent``: distance from the centre beyond which the signal is about 0, in pixels. ``reach``: half of the side.
    ``size``: width of its smallest part, in pixels. ``strength``: amplitude relative to others of the same kind.
    """

    pattern: Float
    channels: Callable[[], Float]
    extent: int
    size: float
    strength: float = 1.0

    @property
    def reach(self) -> int:
        return len(self.pattern) // 2


@dataclass(frozen=True)
class Signal:
    """A kind of signal: its name, and a function that makes one for a pixel spacing in millimetres.

    ``share``: fraction of the requested number that is planted. Masses have a smaller one, since they need much room.
    """

    name: str
    draw: Callable[[np.random.Generator, float], Stamp]
    share: float = 1.0


def all_signals() -> list[Signal]:
    """Every kind and size, the largest first, so that they find room."""
    masses = [Signal(f"mass {mm} mm", _mass(mm), 0.3) for mm in reversed(MASSES_MM)]
    clusters = [Signal(f"cluster {um} um", _cluster(um)) for um in CALCIFICATIONS_UM]
    lines = [Signal(f"line {um} um", _line(um)) for um in LINES_UM]
    singles = [Signal(f"calcification {um} um", _single(um)) for um in CALCIFICATIONS_UM]
    return [*masses, *clusters, *lines, *singles]


def _single(um: int) -> Callable[[np.random.Generator, float], Stamp]:
    def draw(_: np.random.Generator, spacing: float) -> Stamp:
        return _speck(um / 1000 / spacing)

    return draw


@lru_cache(maxsize=16)
def _speck(diameter: float) -> Stamp:
    """A blurred disc, and channels of the blurred width."""
    across = math.hypot(diameter, _FULL_WIDTH * _PSF)
    reach = math.ceil(1.65 * across) + 2
    channels = laguerre_gauss(_distance(reach), 1.1 * across, CHANNELS)
    return Stamp(_disc(diameter, reach), lambda: channels, math.ceil(diameter / 2 + 2), across)


def _cluster(um: int) -> Callable[[np.random.Generator, float], Stamp]:
    def draw(random: np.random.Generator, spacing: float) -> Stamp:
        one, radius = _speck(um / 1000 / spacing), CLUSTER_MM / 2 / spacing
        places: list[tuple[int, int]] = []
        while len(places) < SPECKS:
            angle, away = random.uniform(0, 2 * math.pi), radius * math.sqrt(random.uniform())
            row, column = round(away * math.sin(angle)), round(away * math.cos(angle))
            if all(math.hypot(row - r, column - c) > one.size + 3 for r, c in places):
                places.append((row, column))
        reach = math.ceil(radius) + one.reach

        def scattered(small: Float) -> Float:
            made = np.zeros((*small.shape[:-2], 2 * reach + 1, 2 * reach + 1), dtype=np.float32)
            for row, column in places:
                top, left = reach + row - one.reach, reach + column - one.reach
                made[..., top : top + small.shape[-2], left : left + small.shape[-1]] += small
            return made

        pattern = np.minimum(scattered(one.pattern), 1)
        return Stamp(pattern, lambda: scattered(one.channels()), math.ceil(radius) + one.extent, one.size)

    return draw


def _line(um: int) -> Callable[[np.random.Generator, float], Stamp]:
    def draw(random: np.random.Generator, spacing: float) -> Stamp:
        width, length = um / 1000 / spacing, random.uniform(*LENGTHS_MM) / spacing
        angle = random.uniform(0, math.pi)
        across = math.hypot(width, _FULL_WIDTH * _PSF)
        extent = math.ceil(length / 2 + 3)
        reach = extent + math.ceil(across)
        y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
        along, aside = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
        profile = _blurred_box(along, length)
        pattern = profile * _blurred_box(aside, width) / _blurred_box(np.zeros(1), width)

        def channels() -> Float:
            return np.asarray(hermite_gauss(aside, 0.5 * across, LINE_CHANNELS) * profile, dtype=np.float32)

        # long lines are easier to see, so each gets the contrast at which it is as hard to see as one of mean length
        strength = math.sqrt(np.mean(LENGTHS_MM) / (length * spacing))
        return Stamp(pattern.astype(np.float32), channels, extent, across, strength)

    return draw


def _mass(mm: int) -> Callable[[np.random.Generator, float], Stamp]:
    def draw(_: np.random.Generator, spacing: float) -> Stamp:
        return _soft_disc(mm / spacing)

    return draw


@lru_cache(maxsize=8)
def _soft_disc(diameter: float) -> Stamp:
    reach = math.ceil(diameter)
    distance = _distance(reach)
    pattern = (1 - erf((distance - diameter / 2) / (math.sqrt(2) * diameter / 8))) / 2
    channels = laguerre_gauss(distance, 1.1 * diameter, CHANNELS)
    return Stamp((pattern / pattern.max()).astype(np.float32), lambda: channels, math.ceil(0.8 * diameter), diameter)


def _distance(reach: int) -> NDArray[np.float64]:
    return np.asarray(np.hypot(*np.mgrid[-reach : reach + 1, -reach : reach + 1]))


def _disc(diameter: float, reach: int) -> Float:
    """A blurred disc with a peak of 1, computed at eight times the resolution."""
    axis = (np.arange((2 * reach + 1) * _FINE) + 0.5) / _FINE - reach - 0.5
    disc = (np.hypot(axis[:, None], axis[None]) <= diameter / 2).astype(np.float32)
    blurred = gaussian_filter(disc, _PSF * _FINE)
    coarse: Float = blurred.reshape(2 * reach + 1, _FINE, 2 * reach + 1, _FINE).mean(axis=(1, 3))
    return coarse / coarse.max()


def _blurred_box(distance: NDArray[np.floating], width: float) -> NDArray[np.float64]:
    scale = math.sqrt(2) * _PSF
    return np.asarray((erf((width / 2 - distance) / scale) + erf((width / 2 + distance) / scale)) / 2)
