"""The encoder's side of exact patches: what the gate finds wrong in single places is stored as it was.

Nothing is mended where the image as a whole misses the gate: the next rung is cheaper than many patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from node.fidelity.fsim import TILE
from node.fidelity.gate import Box, Reference, Thresholds, judge, mends, resurvey, survey
from node.reconstruct.patches import CELL, Cells, Patches, cells_under, cut, pasted
from storage.records import Verdict

Pixels = NDArray[np.uint16]

_ROUNDS = 4
"""Pasting changes what the gate sees beside a patch, so it looks again this often."""
_RIM = 2
"""Pixels beside a patch whose mean error is the step at its border."""


@dataclass(frozen=True)
class Mended:
    """An image after mending. ``bare``: the verdict before; ``patches`` is None where nothing was stored exactly."""

    pixels: Pixels
    verdict: Verdict
    bare: Verdict
    patches: Patches | None = None


def mended(
    reference: Reference, output: Pixels, thresholds: Thresholds | None, share: float, regions: Sequence[Box] = ()
) -> Mended:
    """``output`` with exact patches on what misses the gate and on ``regions``; they may cover ``share`` of the
    tiles with breast. Where they cannot mend it, the verdict says so."""
    found = survey(reference, output)
    bare = judge(found, thresholds)
    if thresholds is None or judge(found, _of_the_image(thresholds)).failures:
        return Mended(output, bare, bare)
    rows, columns = output.shape
    boxes = [*mends(found, thresholds), *regions]
    cells = cells_under(boxes, rows, columns)
    room = share * len(reference.tiles) * (TILE // CELL) ** 2 + cells_under(regions, rows, columns).sum()
    pixels, patches = output, None
    for _ in range(_ROUNDS):
        if cells.sum() > room:
            return Mended(output, _too_much(bare, float(cells.sum() / room * share), share), bare)
        if patches is not None and not (cells & ~patches.cells).any():
            break
        if not cells.any():
            break
        fresh = cells if patches is None else cells & ~patches.cells
        patches = cut(reference.pixels, cells)
        pixels = pasted(output, patches)
        found = resurvey(found, reference, pixels, _boxes(fresh, rows, columns))
        cells = cells | cells_under(mends(found, thresholds), rows, columns) | _seams(reference, output, cells)
    verdict = judge(found, thresholds)
    if patches is not None:
        covered = float(patches.cells.sum()) * CELL * CELL / (len(reference.tiles) * TILE * TILE)
        verdict = replace(verdict, figures={**verdict.figures, "patch_share": covered})
    return Mended(pixels, verdict, bare, patches)


def _of_the_image(thresholds: Thresholds) -> Thresholds:
    """Without what a single tile must keep to."""
    return Thresholds(thresholds.fsim_mean, thresholds.fsim_p5, thresholds.psnr_db)


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
    rows, columns = reference.pixels.shape
    tile = min(row // TILE * TILE, rows - TILE), min(column // TILE * TILE, columns - TILE)
    if tile not in reference.tiles:
        return float("inf")
    grain = reference.truth(tile).grain
    cell = TILE // len(grain)
    return float(grain[(row - tile[0]) // cell, (column - tile[1]) // cell])
