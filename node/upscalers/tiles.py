"""Tiles for networks that cannot tile exactly: where the tiles lie, and how to join them without a seam.

A network with global attention or group statistics gives a tile other pixels than it would give the whole
image, so neighbours are drawn with an overlap and cross-faded. The border of a tile, where it saw least
context, stays out of the result as far as its neighbours allow.
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
    """Square tiles of ``tile`` pixels over a canvas of ``rows`` x ``columns``; build one with ``cover``.

    ``tops`` and ``lefts`` say where each row and column of tiles begins; neighbours share at least
    ``overlap`` pixels and are cross-faded over that many.
    """

    rows: int
    columns: int
    tile: int
    overlap: int
    tops: tuple[int, ...]
    lefts: tuple[int, ...]

    @classmethod
    def cover(cls, rows: int, columns: int, *, tile: int, overlap: int, align: int = 1) -> TilePlan:
        """The plan for an image of ``rows`` x ``columns`` with the fewest tiles, spread evenly.

        The canvas is the image, grown to a multiple of ``align`` and to one tile at least: every tile has the
        same shape, since another shape may mean another kernel and other rounding. All tiles start on
        multiples of ``align``, for example the stride of an autoencoder.
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
        """(top, left) of every tile, row by row: the order in which ``blend`` takes them."""
        return list(product(self.tops, self.lefts))

    def scaled(self, factor: int) -> TilePlan:
        """The same plan on the canvas of an image ``factor`` times as large."""
        return TilePlan(
            self.rows * factor,
            self.columns * factor,
            self.tile * factor,
            self.overlap * factor,
            tuple(top * factor for top in self.tops),
            tuple(left * factor for left in self.lefts),
        )


def blend(plan: TilePlan, tiles: Iterable[NDArray[np.float32]]) -> Float:
    """Cross-fade ``tiles``, float32 (tile, tile) in the order of ``plan.positions``: float32 (rows, columns).

    One tile is held at a time, and sums run in plan order, so that no schedule can change a rounding.
    """
    canvas = np.zeros((plan.rows, plan.columns), dtype=np.float32)
    vertical = _windows(plan.tops, plan.tile, plan.overlap)
    horizontal = _windows(plan.lefts, plan.tile, plan.overlap)
    windows = product(vertical, horizontal)
    for (top, left), (down, across), tile in zip(plan.positions, windows, tiles, strict=True):
        canvas[top : top + plan.tile, left : left + plan.tile] += tile * (down[:, None] * across)
    return canvas


def _spread(size: int, tile: int, overlap: int, align: int) -> tuple[tuple[int, ...], int]:
    """Starts of the fewest tiles that cover ``size``, and the size they cover; multiples of ``align``."""
    unit, shared = tile // align, -(-overlap // align)
    length = max(-(-size // align), unit)
    if length == unit:
        return (0,), tile
    # Evenly spread starts are at most the mean step, rounded up, apart: never more than unit - shared.
    steps = -(-(length - unit) // (unit - shared))
    return tuple(k * (length - unit) // steps * align for k in range(steps + 1)), length * align


def _windows(starts: tuple[int, ...], tile: int, overlap: int) -> list[Float]:
    """Weights of each tile along one axis: 1 inside, raised-cosine flanks; at every pixel they sum to 1.

    A flank lies in the middle of what two neighbours share. Raised cosine rather than linear: between tiles
    of slightly different tone the ends of a linear ramp are visible as Mach bands.
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
    # Two flanks add up to 1 by themselves; where the last tiles crowd, three may meet.
    return [
        (window / total[start : start + tile]).astype(np.float32) for start, window in zip(starts, windows, strict=True)
    ]


def _rise(t: NDArray[np.float64]) -> NDArray[np.float64]:
    """0 below -1/2, 1 above 1/2, half a cosine between."""
    result: NDArray[np.float64] = np.sin(np.pi / 2 * np.clip(t + 0.5, 0.0, 1.0)) ** 2
    return result
