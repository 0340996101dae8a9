"""Repairs the single places in which a structure fails the gate: by coded residuals, points and exact patches."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from node.codec.decode import Decoded, SideInformation
from node.codec.encode.point_fitting import points_for
from node.codec.patches import Patches, cells_under, cut, encode_patches
from node.codec.points import joined
from node.codec.residuals import CodedResiduals
from node.fidelity.gate import StructureFigures, broken_cells, cell_any, measure_structure, speck_lists, wrong_specks
from node.fidelity.reference import Reference
from storage.formats.geometry import CELL, cell_grid
from storage.records import Thresholds

Float = NDArray[np.float32]
Pixels = NDArray[np.uint16]
Bools = NDArray[np.bool_]
Places = NDArray[np.intp]
Box = tuple[int, int, int, int]

_ROUNDS = 8
"""Most times that exact patches are added. A patch changes what the gate's filters measure beside it. Chosen, not
measured."""
_EXACT = 2.0
"""Outside the breast, exact patches replace residuals if they take at most this many times the bytes: half of the cells
with residuals there fail the gate and become patches anyway."""
_REACHES = (5, 7, 11, 16)
"""Pixels around a speck that its patch covers, per filter of node/fidelity/specks.py: most of the filter's support."""
_EVEN_SIDE = 5
"""Side in pixels of the squares of one value in which errors show, as in a clipped needle or in air beside a marker."""
_SHOWN = 0.03
"""Error of a served pixel in such a square above which it shows, in window widths: eight grey levels of a display."""


@dataclass(frozen=True)
class Repaired:
    """A structure with points, residuals and patches.

    ``structure``: float32, grey levels, without patches. ``plain``: in whole grey levels with patches, float32.
    """

    side: SideInformation
    structure: Float
    plain: Float
    figures: StructureFigures


@dataclass(frozen=True)
class Repairer:
    """Repairs structures of one original.

    ``pixels``: the original, uint16. ``limits``: those of the gate; with None, only ``regions`` are stored exactly, and
    nothing else is repaired. ``share``: largest share of the image that residuals may cover, and that patches may cover
    in addition to those of ``regions``.
    """

    pixels: Pixels
    reference: Reference
    limits: Thresholds | None
    share: float
    regions: tuple[Box, ...]

    def repaired(self, decoded: Decoded, structure: Float, plain: Float, before: StructureFigures) -> Repaired:
        """A structure with its failing places repaired, as far as the share allows.

        ``plain``: the structure in whole grey levels. ``before``: its figures without specks.
        """
        found = measure_structure(self.reference, plain, limits=self.limits, before=before)
        side = self._side_information(structure, found)
        return self._patched(side, decoded, decoded.with_side(structure.copy(), side), found, structure)

    def with_even_places_patched(
        self, decoded: Decoded, repaired: Repaired, served: Pixels
    ) -> tuple[Repaired | None, tuple[str, ...]]:
        """``repaired`` with patches for places of one value in which an error of the served image shows.

        (None, ()) if there are none; None and a sentence if patches for them would exceed the share.
        """
        side = repaired.side
        uneven = uneven_cells(self._even, served, self.reference)
        if not uneven.any():
            return None, ()
        if patches := extended(self.pixels, side.patches, uneven, self._patch_share):
            return self._patched(replace(side, patches=patches), decoded, repaired.structure, repaired.figures), ()
        share = f"in {uneven.mean():.4g} of the image, with other patches above {self.share:.4g}"
        return None, (f"errors show where the original has one value, {share}",)

    @cached_property
    def _even(self) -> Places:
        return even_places(self.pixels)

    @property
    def _patch_share(self) -> float:
        return self.share + float(cells_under(self.regions, *self.pixels.shape).mean())

    def _patched(
        self,
        side: SideInformation,
        decoded: Decoded,
        structure: Float,
        found: StructureFigures,
        bare: Float | None = None,
    ) -> Repaired:
        """The structure with exact patches for what still fails.

        ``found``: figures of any structure of the image; only what differs is measured again. ``bare``: the structure
        without ``side``, if points may be added. A patch changes the contrast of the specks beside it, and if these got
        patches instead of points, their patches would do the same.
        """
        for _ in range(_ROUNDS):
            plain = decoded.rounded_structure(structure, side)
            found = measure_structure(self.reference, plain, before=found)
            if self.limits is None:
                break
            failing = _failing_cells(found, self.limits) | uneven_cells(self._even, plain, self.reference)
            patches = extended(self.pixels, side.patches, failing, self._patch_share)
            if patches is None:
                break
            side = replace(side, patches=patches)
            if bare is not None:
                plain = decoded.rounded_structure(structure, side)
                near = points_for(
                    *(self.reference, plain, found.specks, patches.cells, patches.cells, self.limits), again=True
                )
                side = replace(side, points=joined(side.points, near))
                structure = decoded.with_side(bare.copy(), side)
        return Repaired(side, structure, plain, found)

    def _side_information(self, structure: Float, found: StructureFigures) -> SideInformation:
        """Residuals for cells that exceed a limit for single places, points for specks, and exact patches for
        ``regions``; also for cells outside the breast, such as letters, if they take few enough bytes (``_EXACT``)."""
        points = repairs = None
        cells = cells_under(self.regions, *self.pixels.shape)
        if self.limits is not None:
            broken = broken_cells(found, self.limits)
            aside = found.outside > self.limits.outside
            if 0 < broken.mean() <= self.share:
                repairs = self._residual(structure, broken)
                within = self._residual(structure, broken & ~aside)
                exact = encode_patches(cut(self.pixels, aside)) if aside.any() else b""
                if _bytes_of(within) + len(exact) <= _EXACT * _bytes_of(repairs):
                    repairs, cells = within, cells | aside
                structure = structure if repairs is None else structure + repairs.field()
            points = points_for(self.reference, structure, found.specks, broken, cells, self.limits)
        patches = cut(self.pixels, cells) if cells.any() else None
        return SideInformation(repairs=repairs, points=points, patches=patches)

    def _residual(self, structure: Float, cells: Bools) -> CodedResiduals | None:
        reference = self.reference
        return CodedResiduals.of(reference.image - structure, cells, reference.grain) if cells.any() else None


def _bytes_of(repairs: CodedResiduals | None) -> int:
    return 0 if repairs is None else len(repairs.coded)


def _failing_cells(found: StructureFigures, limits: Thresholds) -> Bools:
    """Cells that a patch must cover so that the single places of a structure pass."""
    from scipy.ndimage import maximum_filter

    lost, new = wrong_specks(*speck_lists(found.specks), limits)
    boxes = [(row * CELL, column * CELL, CELL, CELL) for row, column in np.argwhere(broken_cells(found, limits))]
    for speck in (*lost, *new):
        reach = _REACHES[speck.size]
        boxes.append((max(speck.row - reach, 0), max(speck.column - reach, 0), 2 * reach + 1, 2 * reach + 1))
    cells = cells_under(boxes, *found.error.shape)
    exact = cells & ~cell_any(found.error != 0)
    if exact.any():  # long filters that fail in a cell without an error respond to errors beside it
        cells |= maximum_filter(exact, 3)
    return cells


def uneven_cells(even: Places, served: Pixels | Float, reference: Reference) -> Bools:
    """Cells with a pixel of an even place whose error shows: drawn noise in a clipped needle, or the coder's ringing in
    the air beside a marker. ``even``: the result of ``even_places``."""
    off = np.abs(served.ravel()[even] - reference.image.ravel()[even]) > _SHOWN * reference.window.width
    rows, columns = np.unravel_index(even[off], served.shape)
    cells = np.zeros(cell_grid(*served.shape), dtype=bool)
    cells[rows // CELL, columns // CELL] = True
    return cells


def even_places(pixels: Pixels) -> Places:
    """Flat indices of the pixels at the centre of a square of ``_EVEN_SIDE`` x ``_EVEN_SIDE`` pixels of one value."""
    margin, rows, columns = _EVEN_SIDE // 2, *pixels.shape
    if min(rows, columns) < _EVEN_SIDE:
        return np.zeros(0, dtype=np.intp)
    across, down = pixels[:, 1:] == pixels[:, :-1], pixels[1:] == pixels[:-1]
    count = _EVEN_SIDE - 1
    lines = np.logical_and.reduce([across[:, at : columns - count + at] for at in range(count)])
    even = np.logical_and.reduce([lines[at : rows - count + at] for at in range(_EVEN_SIDE)])
    for at in range(count):
        even &= down[at : rows - count + at, margin : columns - margin]
    found = np.flatnonzero(even)
    return np.asarray((found // even.shape[1] + margin) * columns + found % even.shape[1] + margin)


def extended(pixels: Pixels, patches: Patches | None, cells: Bools, share: float) -> Patches | None:
    """``patches`` extended to ``cells``; None if they cover them already, or would cover more than ``share``."""
    held = np.zeros_like(cells) if patches is None else patches.cells
    wanted = held | cells
    return cut(pixels, wanted) if (wanted != held).any() and wanted.mean() <= share else None
