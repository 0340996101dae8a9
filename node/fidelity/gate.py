"""The gate: measures what an eye would see in the difference from the original, and decides whether it passes.

The gate has two halves. The *structure* (the reconstruction before noise is drawn) may differ from the original by
noise only: no coherent error along lines, no lost octave band, no shift of brightness, no slow error, no lost lines of
a grid, no error outside the breast, and no speck that is lost, raised or invented. The *served* image, with drawn
noise, must have the original's noise: the same energy in every octave band, no repeating pattern, and no noise where
the original is flat. FSIM and PSNR are measured for comparison with the paper, and have no limit.

``Reference`` holds what is computed once per original.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from node.fidelity.bands import BANDS, around, band_energies, tile_sums, totals
from node.fidelity.fsim import similarity
from node.fidelity.lines import WIDTHS, Lines
from node.fidelity.reference import Reference, cut
from node.fidelity.specks import HALO, Speck, specks_of_tile
from node.fidelity.threads import on_all_cores
from storage.formats.geometry import CELL, TILE, cell_means, flat_cells, reduced
from storage.records import Thresholds, Verdict

Float = NDArray[np.float32]
Pixels = NDArray[np.uint16]
Cells = NDArray[np.bool_]
Specks = dict[tuple[int, int], tuple[list[Speck], list[Speck]]]
"""Per tile (its top left corner), the specks of the original and those of the structure (``specks_of_tile``)."""

EXACT_PSNR_DB = 200.0
"""PSNR of an identical image, in dB, since JSON has no infinity. Chosen, not measured."""
CLUSTER = 50.0
"""Greatest distance between specks of one cluster, in pixels: 2.5 to 5 mm at 50 to 100 micrometres per pixel."""
_TAIL = 0.999
"""Quantile of the coherent errors that is compared with the limit. The limits were found for this one."""
_SPARED = 0.1
"""Share of the squares, the worst ones, that this quantile leaves out: film borders, folds and labels, which no
quantiser improves. They must meet ``lines_most``, like every other place."""
_TILES = 0.95
"""Share of the tiles whose band energies must meet the limit of a tile. Chosen, not measured."""
_ENOUGH = 0.25
"""Smallest share of breast in a tile whose band energies, shift and slow error count. Chosen, not measured."""
_ROUNDING = 0.5
"""Error of a speck's contrast that is always allowed, in grey levels: pixels are rounded."""
_ROUNDED = 1 / 12
"""Energy of rounding per pixel, in squared grey levels. Less energy in a band of a tile counts as this much: in a
clipped implant a single pixel would otherwise change the ratio by tens of dB."""
_FSIM_TILES = 8
"""Largest number of tiles whose FSIM is measured. FSIM has no limit, and all tiles of a film would take a quarter of
the time of encoding."""


@dataclass(frozen=True)
class StructureFigures:
    """The figures of a structure against its original.

    ``lines``: coherent errors. ``lost``: float64 (BANDS,), RMS of the error in each octave band over the original's.
    ``shift`` and ``slow``: those of the worst tile, in window widths. ``periodic``: the result of ``Repetition.look``.
    ``outside``: float64, greatest error outside the breast per cell of 16 x 16 pixels, in window widths. ``specks``:
    empty if specks were not measured. ``error``: structure minus original, 0 in padding: float32, grey levels.
    ``bands``: the result of ``band_energies`` for ``error``.
    """

    lines: Lines
    lost: NDArray[np.float64]
    shift: float
    slow: float
    periodic: float
    outside: NDArray[np.float64]
    specks: Specks
    error: Float
    bands: NDArray[np.float64]


def measure_structure(
    reference: Reference,
    structure: Float,
    *,
    specks: bool = True,
    limits: Thresholds | None = None,
    before: StructureFigures | None = None,
) -> StructureFigures:
    """Measure ``structure``: float32, the original's shape, grey levels. ``specks``: whether to measure specks too.

    ``limits``: given for a structure that will be repaired. Places that exceed them are then left out of the figures of
    the whole image, and only appear in ``broken_cells``. ``before``: figures of another structure of this original;
    where both structures are equal, nothing is measured again.
    """
    error = structure - reference.image
    error[~reference.counted] = 0
    width = reference.window.width
    changed = None if before is None else cell_any(error != before.error)
    bands = band_energies(error, reference.core, None if before is None else before.bands, changed)
    inside = reference.tile_counts
    large = inside >= _ENOUGH * TILE * TILE
    large = large if large.any() else inside > 0
    found: Specks = {}
    if specks:
        found = dict(before.specks) if before is not None else {}
        again = [
            tile
            for tile in reference.tiles
            if tile not in found or changed is None or changed[around(tile, HALO)].any()
        ]
        found |= specks_of(reference, structure, again)
    most = _most(limits) if limits else (math.inf,) * len(WIDTHS)
    return StructureFigures(
        lines=reference.line_noise.look(error, most, None if before is None else before.lines, changed),
        lost=np.sqrt(totals(bands) / np.maximum(totals(reference.bands), 1e-12)),
        shift=float(np.abs(tile_sums(np.where(reference.core, error, 0))[large] / inside[large]).max()) / width,
        slow=float(np.sqrt((bands[BANDS][large] / inside[large]).max())) / width,
        periodic=reference.repetition.look(error),
        outside=reduced(np.where(reference.breast, np.float32(0), np.abs(error)), CELL, np.maximum) / np.float64(width),
        specks=found,
        error=error,
        bands=bands,
    )


def burden(found: StructureFigures, limits: Thresholds) -> float:
    """The whole image's figure that is nearest to its limit, over that limit. Above 1 the structure fails.

    Single places are left out because they can be repaired. A band that may be lost entirely (a limit of 1 or more)
    counts only above its limit, since it is near the limit at any quantiser.
    """
    return max(value / limit for _, value, limit in _of_whole(found, limits))


def failures_of_whole(found: StructureFigures, limits: Thresholds) -> Iterator[str]:
    """One sentence per missed limit of the whole image. Repairs of single places cannot correct these."""
    for text, value, limit in _of_whole(found, limits):
        yield from _above(text, value, limit)


def _of_whole(found: StructureFigures, limits: Thresholds) -> Iterator[tuple[str, float, float]]:
    """For each figure of the whole image, the beginning of a sentence, the figure and its limit."""
    for level, value in enumerate(found.lines.percentile(_TAIL, _SPARED)):
        yield f"coherent error at width {WIDTHS[level]:g} is", value, limits.lines[level]
    for number, (lost, limit) in enumerate(zip(found.lost, limits.lost, strict=True), start=1):
        if limit < 1 or lost > limit:
            yield f"lost share of octave band {number} is", float(lost), limit
    yield "slow error of a tile in window widths is", found.slow, limits.slow
    yield "autocorrelation of the error is", found.periodic, limits.periodic


def broken_cells(found: StructureFigures, limits: Thresholds) -> Cells:
    """Cells that exceed a limit for single places, by a coherent error or an error outside the breast: bool."""
    allowed = np.array(_most(limits))
    broken = (found.lines.worst > allowed[:, None, None]).any(axis=0)
    return np.asarray(broken | (found.outside > limits.outside))


def _most(limits: Thresholds) -> tuple[float, ...]:
    """The limit of the coherent error at any single place, per width."""
    return tuple(limit * limits.lines_most for limit in limits.lines)


def speck_lists(specks: Specks) -> tuple[list[Speck], list[Speck]]:
    """The original's specks of all tiles, and the structure's."""
    return [speck for own, _ in specks.values() for speck in own], [
        speck for _, made in specks.values() for speck in made
    ]


def wrong_specks(own: Sequence[Speck], made: Sequence[Speck], limits: Thresholds) -> tuple[list[Speck], list[Speck]]:
    """Specks of the original (``own``) whose contrast is not kept, and specks of the structure that are invented."""
    counted = counting(own, limits)
    wrong = [
        speck
        for speck in counted
        if not limits.speck_least <= speck.share <= limits.speck_most and abs(speck.missing) > _ROUNDING
    ]
    new = [speck for speck in made if speck.strength >= limits.speck_new and speck.share < 0.5]
    return wrong, new


def counting(specks: Sequence[Speck], limits: Thresholds) -> list[Speck]:
    """The specks that must be kept: strong ones, and weaker ones near at least two strong ones."""
    strong = [speck for speck in specks if speck.strength >= limits.speck]
    weak = [speck for speck in specks if limits.speck_near <= speck.strength < limits.speck]
    if not strong or not weak:
        return strong
    from scipy.spatial import KDTree

    tree = KDTree([(speck.row, speck.column) for speck in strong])
    near = tree.query_ball_point([(speck.row, speck.column) for speck in weak], CLUSTER, return_length=True)
    return strong + [speck for speck, count in zip(weak, near, strict=True) if count >= 2]


# --- the noise --------------------------------------------------------------------------------------------------


def measure_noise(
    reference: Reference, structure: Float, served: Pixels, bands: NDArray[np.float64] | None = None
) -> dict[str, float]:
    """Figures of the served image by name; see ``Thresholds`` for their meaning and unit.

    ``structure``: the pixels without noise, float32. ``bands``: ``band_energies`` of the served image, if known.
    """
    image = served.astype(np.float32)
    bands = (band_energies(image, reference.core) if bands is None else bands)[:BANDS]
    own = reference.bands[:BANDS]
    whole = decibels(bands.sum(axis=(1, 2)), own.sum(axis=(1, 2)))
    large = reference.tile_counts >= _ENOUGH * TILE * TILE
    least = _ROUNDED * reference.tile_counts[large]
    tiles = np.abs(decibels(np.maximum(bands[:, large], least), np.maximum(own[:, large], least)))
    drawn = image - structure
    drawn[~reference.counted] = 0
    figures = {f"spectrum_db_{number + 1}": float(value) for number, value in enumerate(whole)}
    figures["spectrum_tile_db"] = float(np.quantile(tiles, _TILES)) if tiles.size else 0.0
    figures["repeat"] = reference.repetition.look(drawn)
    figures["quiet"] = _where_flat(reference.image, drawn) / reference.window.width
    return figures


def decibels(energy: NDArray[np.float64], own: NDArray[np.float64]) -> NDArray[np.float64]:
    """``energy`` over the original's, ``own``, in dB. Both are taken as at least 1e-12."""
    return np.asarray(10 * np.log10(np.maximum(energy, 1e-12) / np.maximum(own, 1e-12)))


def _where_flat(original: Float, drawn: Float) -> float:
    """The greatest RMS of drawn noise in a cell in which the original has one value, in grey levels; 0 without any."""
    flat, energy = flat_cells(original), cell_means(np.square(drawn))
    return float(np.sqrt(energy[flat].max())) if flat.any() else 0.0


# --- the verdict ------------------------------------------------------------------------------------------------


def judge(
    reference: Reference,
    structure: Float,
    found: StructureFigures,
    served: Pixels,
    noise: dict[str, float],
    limits: Thresholds | None,
) -> Verdict:
    """The verdict on one reconstruction. Without ``limits`` it is not gated, and its ``passed`` is false."""
    fsim, served_psnr = paper_figures(reference, served)
    plain_fsim, plain_psnr = paper_figures(reference, structure)
    kept, new = wrong_specks(*speck_lists(found.specks), limits or Thresholds())
    figures = {
        **{
            f"lines_{width:g}": value
            for width, value in zip(WIDTHS, found.lines.percentile(_TAIL, _SPARED), strict=True)
        },
        **{f"lines_most_{width:g}": float(value.max()) for width, value in zip(WIDTHS, found.lines.worst, strict=True)},
        **{f"lost_{number + 1}": float(value) for number, value in enumerate(found.lost)},
        "shift": found.shift,
        "slow": found.slow,
        "periodic": found.periodic,
        "outside": float(found.outside.max()),
        "specks_lost": float(len(kept)),
        "specks_invented": float(len(new)),
        **noise,
        "structure_psnr_db": plain_psnr,
        "structure_fsim_mean": float(np.mean(plain_fsim)),
        "structure_fsim_p5": float(np.percentile(plain_fsim, 5)),
        "window_width": reference.window.width,
    }
    return Verdict(
        psnr_db=round(served_psnr, 3),
        fsim_mean=round(float(np.mean(fsim)), 5),
        fsim_p5=round(float(np.percentile(fsim, 5)), 5),
        tiles=len(fsim),
        figures={name: float(f"{value:.4g}") for name, value in figures.items()},
        failures=() if limits is None else tuple(failures(found, noise, limits)),
        gated=limits is not None,
    )


def failures(found: StructureFigures, noise: dict[str, float], limits: Thresholds) -> Iterator[str]:
    """One sentence per missed limit. ``noise``: figures of ``measure_noise``; those that are absent are not judged."""
    yield from failures_of_whole(found, limits)
    for width, worst, limit in zip(WIDTHS, found.lines.worst, _most(limits), strict=True):
        yield from _above(f"greatest coherent error at width {width:g} is", float(worst.max()), limit)
    yield from _above("shift of a tile's mean in window widths is", found.shift, limits.shift)
    yield from _above("error out of the breast in window widths is", float(found.outside.max()), limits.outside)
    kept, new = wrong_specks(*speck_lists(found.specks), limits)
    yield from _above("number of specks whose contrast is not kept is", float(len(kept)), 0)
    yield from _above("number of specks invented is", float(len(new)), 0)
    for name, value in noise.items():
        if name.startswith("spectrum_db_"):
            yield from _above(f"energy of octave band {name[-1]} in dB is off by", abs(value), limits.spectrum_db)
    for name, limit, text in (
        ("spectrum_tile_db", limits.spectrum_tile_db, "energy of a band in a twentieth of the tiles in dB is off by"),
        ("repeat", limits.repeat, "autocorrelation of the drawn noise is"),
        ("quiet", limits.quiet, "noise drawn where the original is flat, in window widths, is"),
    ):
        if name in noise:
            yield from _above(text, noise[name], limit)


def _above(text: str, value: float, limit: float) -> Iterator[str]:
    if value > limit:
        yield f"{text} {value:.4g}, above {limit:.4g}"


def paper_figures(
    reference: Reference, image: NDArray[np.generic], most: int = _FSIM_TILES
) -> tuple[list[float], float]:
    """FSIM of at most ``most`` tiles with breast, evenly spread; and PSNR over all tiles with breast, in dB.

    The peak of PSNR is the display window's width.
    """

    def error_of(tile: tuple[int, int]) -> float:
        return float(np.square(cut(image, tile).astype(np.float32) - cut(reference.image, tile)).sum(dtype=np.float64))

    def fsim_of(tile: tuple[int, int]) -> float:
        if not error_of(tile):
            return 1.0
        return similarity(reference.features(tile), reference.candidate(image, tile))

    error = sum(on_all_cores(error_of, reference.tiles)) / (len(reference.tiles) * TILE * TILE)
    some = reference.tiles[:: -(-len(reference.tiles) // most)]
    return on_all_cores(fsim_of, some), psnr(error, reference.window.width)


def psnr(mean_squared_error: float, peak: float) -> float:
    """PSNR in dB, at most EXACT_PSNR_DB. ``peak``: the display window's width, in the unit of the error."""
    if mean_squared_error == 0:
        return EXACT_PSNR_DB
    return min(10 * math.log10(peak * peak / mean_squared_error), EXACT_PSNR_DB)


def specks_of(reference: Reference, structure: Float, tiles: Sequence[tuple[int, int]]) -> Specks:
    """The specks of the given tiles. ``structure``: float32, grey levels."""
    structure = as_shown(reference, structure)

    def one(tile: tuple[int, int]) -> tuple[list[Speck], list[Speck]]:
        return specks_of_tile(reference.bright(structure, tile), reference.truth(tile), tile)

    return dict(zip(tiles, on_all_cores(one, tiles), strict=True))


def as_shown(reference: Reference, structure: Float) -> Float:
    """The structure with the original's padding, so that filters see the same step at its border."""
    return structure if reference.counted.all() else np.where(reference.counted, structure, reference.image)


def cell_any(mask: NDArray[np.bool_]) -> Cells:
    """Which cells of 16 x 16 pixels contain a marked pixel: bool (rows / 16, columns / 16), rounded up."""
    return reduced(mask.view(np.uint8), CELL, np.maximum) > 0
