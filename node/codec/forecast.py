"""A forecast of what a rung will come to: the same coder, operator and gate on a sample of the image's tiles.

The sample is one small picture, a mosaic of tiles of the gate with what surrounds them, so that coding and measuring
it takes a fraction of the time that the image takes. What is forecast decides only which rungs are tried; what is
served is always measured on the whole image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from node.codec.engine import Decoded, make_decoded
from node.codec.guide import WEIGHT_TILE, grid
from node.codec.guiding import RAISES, TYPICAL_RAISE, Raise, Raising, equalised, helped, raised
from node.codec.source import Original, without_padding
from node.fidelity.fsim import TILE
from node.fidelity.gate import Reference, as_a_whole, tile_scores
from node.upscalers.protocol import Upscaler
from storage.payload import Base
from storage.records import Rung, Thresholds

TILES = 12
"""Tiles in a sample; images with fewer are sampled whole."""
FEW = 4
"""Tiles in a sample that a network is run on: what goes through ours at once."""
_HARDLY = 0.0004
"""Tile FSIM that a step of ``RAISES`` may cost; it saves some hundred points, one or two in a hundred bytes."""
_HALO = 32
"""Pixels around each: the support of the operator's inverse is 24 at scale 2; at 4 it is 49, with little beyond 32."""
_GUIDED = 2 * WEIGHT_TILE
"""From one tile to the next where the guide is to weigh each on its own, as in the image."""


class Figures(NamedTuple):
    """What the gate asks of a whole image."""

    fsim_mean: float
    fsim_p5: float
    psnr_db: float


@dataclass(frozen=True)
class Forecast:
    """What the consistent base of a rung measures on the sample, and the bytes that a whole base will take."""

    figures: Figures
    payload_bytes: int


@dataclass(frozen=True)
class Gain:
    """What an image has over another: tile FSIM, one per tile of the sample, and PSNR in dB."""

    fsim: NDArray[np.float64]
    psnr_db: float


class Sample:
    """A sample of one original: some of ``reference.tiles``, by default ``TILES`` of them from all over the breast.

    ``equalised``: whether the encoder will raise the base's fine detail. ``guided``: whether a guide is to weigh what
    an upscaler makes of it: then each tile is where a tile of the guide is.
    """

    def __init__(
        self,
        original: Original,
        reference: Reference,
        *,
        equalised: bool,
        tiles: Sequence[tuple[int, int]] = (),
        guided: bool = False,
    ) -> None:
        self._equalised = equalised
        chosen = tiles or spread_over(reference.tiles, TILES)
        across = math.ceil(math.sqrt(len(chosen)))
        side = _GUIDED if guided else TILE + 2 * _HALO
        halo = (side - TILE) // 2
        shape = (-(-len(chosen) // across) * side, across * side)
        pixels = np.zeros(shape, dtype=np.uint16)
        around = np.pad(without_padding(original), halo, mode="edge")
        corners = []
        for number, (row, column) in enumerate(chosen):
            top, left = number // across * side, number % across * side
            pixels[top : top + side, left : left + side] = around[row : row + side, column : column + side]
            corners.append((top + halo, left + halo))
        if guided:  # the outer ones' borders are the sample's, as in an image
            pixels = pixels[halo : shape[0] - halo, halo : shape[1] - halo]
            corners = [(row - halo, column - halo) for row, column in corners]
        self._original = original.excerpt(pixels)
        self._reference = reference.excerpt(pixels, corners)
        self._raises: dict[int, Raise] = {}
        self._made: dict[Rung, tuple[Base, Decoded]] = {}
        self._share = pixels.size / (len(reference.tiles) * TILE * TILE)

    def forecast(self, rung: Rung) -> Forecast:
        """What the rung comes to on the sample."""
        base, decoded = self._coded(rung)
        return Forecast(self._bare(base, decoded, self._raise(rung)), round(len(base.coded) / self._share))

    def gains(self, rung: Rung, upscaler: Upscaler, *, seed: int, by: Raise) -> list[Gain]:
        """By how much each of the images that ``guiding.helped`` gives differs from the base alone, on the sample."""
        base, decoded = self._coded(rung)
        scores, errors = tile_scores(self._reference, raised(base, decoded, equalised(base, _everywhere(base, by))))
        images = helped(self._reference, base, upscaler, seed=seed, raising=_everywhere(base, by), decoded=decoded)
        gains = []
        for _, pixels in images:
            now, left = tile_scores(self._reference, pixels)
            gains.append(Gain(np.array(now) - scores, 10 * math.log10(max(sum(errors), 1) / max(sum(left), 1))))
        return gains

    def best_raise(self, rung: Rung, thresholds: Thresholds) -> Raise:
        """By how much to raise the fine detail of this rung: what leaves most room above the gate on the sample, or
        the next steps up where they leave hardly less, since they save points. Found once for each scale: the rungs
        that are tried are near each other."""
        if rung.distance == 0 or rung.scale in self._raises:  # nothing was quantised, and nothing will be raised
            return self._raise(rung)
        base, decoded = self._coded(rung)
        rooms: dict[int, float] = {}

        def room(number: int) -> float:
            if not 0 <= number < len(RAISES):
                return -math.inf
            if number not in rooms:
                mean, p5, _ = self._bare(base, decoded, RAISES[number])
                rooms[number] = min(mean - thresholds.fsim_mean, p5 - thresholds.fsim_p5)
            return rooms[number]

        number = RAISES.index(self._raise(rung))
        while room(number + 1) > room(number):
            number += 1
        while room(number - 1) > room(number):
            number -= 1
        best = room(number)
        while room(number + 1) >= best - _HARDLY:
            number += 1
        self._raises[rung.scale] = RAISES[number]
        return RAISES[number]

    def _raise(self, rung: Rung) -> Raise:
        return self._raises.get(rung.scale, TYPICAL_RAISE[rung.scale])

    def _coded(self, rung: Rung) -> tuple[Base, Decoded]:
        if rung not in self._made:
            self._made[rung] = make_decoded(self._original, rung)
        return self._made[rung]

    def _bare(self, base: Base, decoded: Decoded, by: Raise) -> Figures:
        if self._equalised:
            pixels = raised(base, decoded, equalised(base, _everywhere(base, by)))
        else:
            pixels = decoded.pixels(base)
        return Figures(*as_a_whole(self._reference, pixels))


def _everywhere(base: Base, by: Raise) -> Raising:
    return Raising(by, np.ones(grid(base.rows, base.columns, WEIGHT_TILE), dtype=bool))


def spread_over(tiles: list[tuple[int, int]], count: int) -> list[tuple[int, int]]:
    """At most ``count`` of them, from all over the breast."""
    numbers = np.unique(np.linspace(0, len(tiles) - 1, min(count, len(tiles))).round().astype(int))
    return [tiles[number] for number in numbers]
