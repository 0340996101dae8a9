"""Chooses the cells that are stored exactly: those that still fail after repairs, and those in which noise shows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from node.codec.patches import Patches, cells_under, cut
from node.fidelity.gate import Reference, Structure, broken_cells, cell_any, speck_lists, wrong_specks
from storage.formats.geometry import CELL
from storage.records import Thresholds

Pixels = NDArray[np.uint16]
Bools = NDArray[np.bool_]

_REACHES = (5, 7, 11, 16)
"""Pixels around a speck that its patch covers, per filter of node/fidelity/specks.py: most of what the filter sees."""
_EVEN_SIDE = 5
"""Side in pixels of the squares of one value in which errors show: a needle that is clipped, air beside a marker."""
_SHOWN = 0.03
"""Error of a served pixel in such a square, in window widths, from which it shows: eight grey levels of a display."""


def patches_on_failures(
    pixels: Pixels, found: Structure, patches: Patches | None, limits: Thresholds, share: float
) -> Patches | None:
    """``patches`` extended to what still fails; the same object if nothing fails or too much does.

    ``pixels``: the original, uint16; ``share``: largest part of the image that patches may cover.
    """
    from scipy.ndimage import maximum_filter

    lost, new = wrong_specks(*speck_lists(found.specks), limits)
    boxes = [(row * CELL, column * CELL, CELL, CELL) for row, column in np.argwhere(broken_cells(found, limits))]
    for speck in (*lost, *new):
        reach = _REACHES[speck.size]
        boxes.append((max(speck.row - reach, 0), max(speck.column - reach, 0), 2 * reach + 1, 2 * reach + 1))
    cells = cells_under(boxes, *pixels.shape)
    exact = cells & ~cell_any(found.error != 0)
    if exact.any():  # what fails there are errors beside these cells, which long filters see from them
        cells |= maximum_filter(exact, 3)
    return extended(pixels, patches, cells, share)


def uneven_cells(pixels: Pixels, served: Pixels, reference: Reference) -> Bools:
    """Cells in which pixels of an even place are served with other values that show: drawn noise in a clipped needle,
    or the coder's ringing in the air beside a marker."""
    off = np.abs(served - reference.image) > _SHOWN * reference.window.width
    return cell_any(off & _even_places(pixels))


def extended(pixels: Pixels, patches: Patches | None, cells: Bools, share: float) -> Patches | None:
    """``patches`` extended to ``cells``; the same object if they hold them, or would cover more than ``share``."""
    if patches is not None:
        cells = cells | patches.cells
        if (cells == patches.cells).all():
            return patches
    return cut(pixels, cells) if cells.any() and cells.mean() <= share else patches


def _even_places(pixels: Pixels) -> Bools:
    """Pixels in the middle of a square of ``_EVEN_SIDE`` pixels of one value: bool, shape of ``pixels``."""
    margin = _EVEN_SIDE // 2
    even = np.zeros(pixels.shape, dtype=bool)
    if min(pixels.shape) >= _EVEN_SIDE:
        across = _runs(pixels[:, 1:] == pixels[:, :-1], _EVEN_SIDE - 1)
        middle = pixels[:, margin:-margin]
        down = _runs((middle[1:] == middle[:-1]).T, _EVEN_SIDE - 1).T
        even[margin:-margin, margin:-margin] = _runs(across.T, _EVEN_SIDE).T & down
    return even


def _runs(marks: Bools, length: int) -> Bools:
    """Where ``length`` marks follow on each other in a row: bool, shorter by ``length`` - 1 columns."""
    count = marks.shape[1] - length + 1
    runs = marks[:, :count].copy()
    for shift in range(1, length):
        runs &= marks[:, shift : shift + count]
    return runs
