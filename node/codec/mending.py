"""What the gate finds wrong in single places is mended: by points where a spot restores it, else by exact patches.

Nothing is mended where the image as a whole misses the gate: the next rung is cheaper than many patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from node.codec.contrasts import contrast_spots
from node.codec.engine import spotted
from node.codec.patches import CELL, Cells, Patches, cells_under, cut, pasted
from node.codec.points import REACH, Point, Points, grey_levels, profile
from node.codec.spotting import spots_for
from node.fidelity.fsim import TILE
from node.fidelity.gate import (
    Box,
    Reference,
    Survey,
    Thresholds,
    judge,
    mends,
    passes_as_a_whole,
    resurvey,
    spots,
    with_similarity,
)
from node.fidelity.survey import FAINTEST_NEW
from storage.payload import Base
from storage.records import Verdict

Pixels = NDArray[np.uint16]

_SPOT_ROUNDS = 12
"""What is wrong in one place takes a few dozen spots at most, of 3 bytes each; an exact patch takes 200 to 1,400."""
_SAFE = 0.02
"""Specks are restored to more of their contrast than must be kept: what comes after may pull at them."""
_SHIFTED = 0.9
"""Of what the mean of a tile may shift, what points may use that the gate has not asked for."""
_ROUNDS = 6
"""Pasting changes what the gate sees beside a patch, so it looks again this often."""
_RIM = 2
"""Pixels beside a patch whose mean error is the step at its border."""


@dataclass(frozen=True)
class Mended:
    """An image after mending. ``bare``: the verdict before; no ``points`` or ``patches``: None."""

    pixels: Pixels
    verdict: Verdict
    bare: Verdict
    points: Points | None = None
    patches: Patches | None = None


def mended(
    reference: Reference,
    base: Base,
    output: Pixels,
    found: Survey,
    thresholds: Thresholds | None,
    share: float,
    regions: Sequence[Box] = (),
) -> Mended:
    """``output``, surveyed as ``found``, with points and exact patches on what misses the gate, and patches on
    ``regions``; besides those they may cover ``share`` of the tiles with breast. Where that cannot mend it, the verdict
    says so."""
    bare = judge(found, thresholds)
    if thresholds is None and regions:
        return _with_regions(reference, output, regions, found, bare)
    if thresholds is None or not passes_as_a_whole(found, thresholds):
        return Mended(output, bare, bare)
    output, points, found = _spotted(reference, base, output, thresholds, found)
    from scipy.ndimage import binary_dilation

    rows, columns = output.shape
    cells = cells_under([*mends(found, thresholds), *regions], rows, columns)
    breast = len(reference.tiles) * (TILE // CELL) ** 2
    room = share * breast + cells_under(regions, rows, columns).sum()
    pixels, patches, fresh = output, None, cells
    for _ in range(_ROUNDS):
        if cells.sum() > room:
            return Mended(output, _too_much(bare, float(cells.sum()) / breast, share), bare)
        if not fresh.any():
            break
        patches = cut(reference.pixels, cells)
        pixels = pasted(output, patches)
        found = resurvey(found, reference, pixels, _boxes(fresh, rows, columns))
        wanted = cells_under(mends(found, thresholds), rows, columns) | _seams(reference, output, cells)
        if not (wanted & ~cells).any():  # the gate's filters reach farther than a cell: its neighbours join it
            wanted = np.asarray(binary_dilation(wanted, np.ones((3, 3), dtype=bool)))
        fresh, cells = wanted & ~cells, cells | wanted
    return Mended(pixels, _counted(judge(found, thresholds), reference, points, patches), bare, points, patches)


def _with_regions(reference: Reference, output: Pixels, regions: Sequence[Box], found: Survey, bare: Verdict) -> Mended:
    """What was named, and nothing else: for where nothing is gated."""
    cells = cells_under(regions, *output.shape)
    patches = cut(reference.pixels, cells)
    pixels = pasted(output, patches)
    measured = judge(resurvey(found, reference, pixels, _boxes(cells, *output.shape)), None)
    return Mended(pixels, _counted(measured, reference, None, patches), bare, None, patches)


def _spotted(
    reference: Reference, base: Base, output: Pixels, thresholds: Thresholds, found: Survey
) -> tuple[Pixels, Points | None, Survey]:
    """``output`` with the points that mend it, and the survey brought up to date. A point costs next to nothing, so
    more is mended than the gate asks for."""
    rows, columns = output.shape
    asked = replace(thresholds, speck_kept=min(thresholds.speck_kept + _SAFE, 1.0), speck_new=FAINTEST_NEW)
    points, pixels = Points(rows, columns, ()), output
    more = _without_shift(contrast_spots(reference, output), found, thresholds)
    for _ in range(_SPOT_ROUNDS):
        if more:
            points = Points(rows, columns, tuple(sorted((*points.spots, *more))))
            pixels = spotted(output, base, points)
            found = resurvey(found, reference, pixels, _reached(more), with_fsim=False)
        wanted = spots(found, asked)
        more = spots_for(reference, pixels, wanted) if len(wanted) else []
        if not more:
            break
    if not points.spots:
        return output, None, found
    return pixels, points, with_similarity(found, reference, pixels, _reached(points.spots))


def _without_shift(points: Sequence[Point], found: Survey, thresholds: Thresholds) -> list[Point]:
    """Those of ``points``, the greatest first, that leave the mean of every tile within what it may shift: nothing but
    exact pixels takes a shift back, and the gate has not asked for these points."""
    shift, limit = found.shift.copy(), _SHIFTED * thresholds.shift
    area = TILE * TILE * found.window_width
    adding = [(grey_levels(point.height) * float(profile(point.size).sum()) / area, point) for point in points]
    taken = []
    for added, point in sorted(adding, key=lambda pair: -abs(pair[0])):
        tiles = found.touched([Box(point.row, point.column, 1, 1)], reach=0)
        before, after = np.abs(shift[tiles]), np.abs(shift[tiles] + added)
        if ((after <= limit) | (after <= before)).all():
            shift[tiles] += added
            taken.append(point)
    return taken


def _reached(points: Sequence[Point]) -> list[Box]:
    """What points can change: boxes of pixels."""
    side = 2 * REACH + 1
    return [Box(max(point.row - REACH, 0), max(point.column - REACH, 0), side, side) for point in points]


def _counted(verdict: Verdict, reference: Reference, points: Points | None, patches: Patches | None) -> Verdict:
    """With how much was mended among the figures."""
    area = len(reference.tiles) * TILE * TILE
    covered = 0.0 if patches is None else float(patches.cells.sum()) * CELL * CELL / area
    figures = {"patch_share": covered, "points": 0.0 if points is None else float(len(points.spots))}
    return replace(verdict, figures={**verdict.figures, **figures})


def _too_much(bare: Verdict, wanted: float, share: float) -> Verdict:
    sentence = f"exact patches would cover {100 * wanted:.3g} % of the breast, allowed are {100 * share:.3g} %"
    return replace(bare, failures=(*bare.failures, sentence))


def _boxes(cells: Cells, rows: int, columns: int) -> list[Box]:
    """Cells as boxes of pixels."""
    return [
        Box(row, column, min(CELL, rows - row), min(CELL, columns - column))
        for row, column in (np.argwhere(cells) * CELL).tolist()
    ]


def _seams(reference: Reference, output: Pixels, cells: Cells) -> Cells:
    """Neighbours of patches across whose border the mean would step by more than the local noise."""
    grown: Cells = np.zeros_like(cells)
    for down, across in np.argwhere(cells).tolist():
        for by, to in ((-1, 0), (1, 0), (0, -1), (0, 1)):
            row, column = down + by, across + to
            if not (0 <= row < cells.shape[0] and 0 <= column < cells.shape[1]) or cells[row, column]:
                continue
            top = down * CELL + (-_RIM if by < 0 else CELL if by > 0 else 0)
            left = across * CELL + (-_RIM if to < 0 else CELL if to > 0 else 0)
            rim = np.s_[top : top + (_RIM if by else CELL), left : left + (_RIM if to else CELL)]
            step = float(output[rim].mean(dtype=np.float64) - reference.pixels[rim].mean(dtype=np.float64))
            grown[row, column] |= abs(step) > _noise(reference, top, left)
    return grown


def _noise(reference: Reference, row: int, column: int) -> float:
    """Local noise of the original at a pixel, in grey levels; infinite out of the breast."""
    tile = reference.tile_of(row, column)
    if tile not in reference.tiles:
        return float("inf")
    grain = reference.truth(tile).grain
    cell = TILE // len(grain)
    return float(grain[(row - tile[0]) // cell, (column - tile[1]) // cell])
