"""Overlapping tiles for networks that cannot be tiled exactly: their positions, and blending without seams.

A network with global attention or group statistics gives a tile other pixels than the whole image, so neighbouring
tiles overlap and are cross-faded. The border of a tile, where the network has least context, is used as little as its
neighbours allow.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]


@dataclass(frozen=True)
class TilePlan:
    """Tiles of ``tile`` x ``tile`` pixels over a canvas of ``rows`` x ``columns`` pixels; built by ``cover``.

    ``tops`` and ``lefts``: first rows and first columns of the tiles. Neighbours share at least ``overlap`` pixels, and
    are cross-faded over ``overlap`` pixels.
    """

    rows: int
    columns: int
    tile: int
    overlap: int
    tops: tuple[int, ...]
    lefts: tuple[int, ...]

    @classmethod
    def cover(cls, rows: int, columns: int, *, tile: int, overlap: int, align: int = 1) -> TilePlan:
        """The plan with the fewest tiles, evenly spaced, for an image of ``rows`` x ``columns``.

        The canvas is the image, extended to a multiple of ``align`` and to at least one tile. All tiles have the same
        shape, because another shape may select another kernel and round differently. They start on multiples of
        ``align``, for example the stride of an autoencoder. Raises ValueError if the arguments do not fit together.
        """
        if min(rows, columns) < 1:
            raise ValueError(f"no tiles for an image of {rows} x {columns}")
        if align < 1 or tile % align:
            raise ValueError(f"tile {tile} is not a multiple of {align}")
        if not 0 < overlap <= tile // 2:
            raise ValueError(f"overlap {overlap} is outside 1 .. {tile // 2}, half a tile")
        tops, height = _spread(rows, tile, overlap, align)
        lefts, width = _spread(columns, tile, overlap, align)
        return cls(height, width, tile, overlap, tops, lefts)

    @property
    def positions(self) -> list[tuple[int, int]]:
        """(top, left) of every tile, row by row: the order that ``blend`` expects."""
        return list(product(self.tops, self.lefts))

    def scaled(self, factor: int) -> TilePlan:
        """The same plan for an image ``factor`` times as large."""
        return TilePlan(
            self.rows * factor,
            self.columns * factor,
            self.tile * factor,
            self.overlap * factor,
            tuple(top * factor for top in self.tops),
            tuple(left * factor for left in self.lefts),
        )


def blend(plan: TilePlan, tiles: Iterable[NDArray[np.float32]]) -> Float:
    """Cross-fade ``tiles``, float32 (tile, tile) in the order of ``plan.positions``, to float32 (rows, columns).

    One tile is in memory at a time. Sums run in plan order, so rounding does not depend on scheduling.
    """
    canvas = np.zeros((plan.rows, plan.columns), dtype=np.float32)
    vertical = _windows(plan.tops, plan.tile, plan.overlap)
    horizontal = _windows(plan.lefts, plan.tile, plan.overlap)
    windows = product(vertical, horizontal)
    for (top, left), (down, across), tile in zip(plan.positions, windows, tiles, strict=True):
        canvas[top : top + plan.tile, left : left + plan.tile] += tile * (down[:, None] * across)
    return canvas


def _spread(size: int, tile: int, overlap: int, align: int) -> tuple[tuple[int, ...], int]:
    """Starts of the fewest tiles that cover ``size``, and the covered size; all multiples of ``align``."""
    unit, shared = tile // align, -(-overlap // align)
    length = max(-(-size // align), unit)
    if length == unit:
        return (0,), tile
    # Evenly spaced starts differ by at most the mean step, rounded up, which never exceeds unit - shared.
    steps = -(-(length - unit) // (unit - shared))
    return tuple(k * (length - unit) // steps * align for k in range(steps + 1)), length * align


def _windows(starts: tuple[int, ...], tile: int, overlap: int) -> list[Float]:
    """Weights of each tile along one axis: 1 inside, raised-cosine flanks; they sum to 1 at every pixel.

    A flank is centred in the overlap of two neighbours. Linear ramps would show Mach bands at their ends between tiles
    of slightly different tone.
    """
    seams = [(after + before + tile) / 2 for before, after in pairwise(starts)]
    windows = []
    total = np.zeros(starts[-1] + tile)
    for k, start in enumerate(starts):
        centres = start + np.arange(tile) + 0.5
        window = np.ones(tile)
        if k > 0:
            window *= _rise((centres - seams[k - 1]) / overlap)
        if k < len(seams):
            window *= _rise((seams[k] - centres) / overlap)
        windows.append(window)
        total[start : start + tile] += window
    # Two flanks sum to 1 already; near the end of the axis three tiles may overlap.
    return [
        (window / total[start : start + tile]).astype(np.float32) for start, window in zip(starts, windows, strict=True)
    ]


def _rise(t: NDArray[np.float64]) -> NDArray[np.float64]:
    """0 below -1/2, 1 above 1/2, a raised cosine in between."""
    result: NDArray[np.float64] = np.sin(np.pi / 2 * np.clip(t + 0.5, 0.0, 1.0)) ** 2
    return result
