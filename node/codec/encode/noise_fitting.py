"""Fits the noise model of an image: how much noise a structure lacks, where, at which grey levels and frequencies."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from node.codec.noise import (
    LEVELS,
    PLACE,
    POWER_STEP,
    SPECTRUM,
    WINDOW,
    Codes,
    Float,
    Mask,
    NoiseModel,
    deviation_codes,
    drawing_filter,
    power_of,
)
from node.fidelity.bands import finest_octave
from node.fidelity.threads import on_all_cores
from storage.formats.geometry import CELL, cell_pixels, cell_quantiles, counts_at_half_steps, flat_cells, reduced

_FAINT = 0.25
"""Standard deviation below which noise rounds to 0, in grey levels: cells with less need not be marked quiet."""
_CLIPPED = 4.0
"""Size above which a residual is structure, in local standard deviations. It is clipped to this before it is squared.
Chosen, not measured."""
_OUTLYING = 4.0
"""Power of a tile, over the median of all tiles, above which it is left out of the spectrum. Such a tile contains an
edge, such as a dead line or the border of collimation, which would be drawn as bars everywhere. Of 900 tiles of four
images without such an edge none exceeded 3.7; those with a dead line reached 12."""
_MATCHING = 6
"""Rounds in which band energies are matched. Bands overlap, so one round is not enough. Chosen, not measured."""
_MAD = 0.6745
"""Median of the absolute value of a normal distribution, in standard deviations."""
_STRIP = 4 * PLACE
"""Rows that one thread measures at once."""
_MARGIN = 4
"""Rows above and below a strip that its finest octave needs."""


def measure_deviation(
    original: Float, structure: Float, breast: Mask, counted: Mask, held: Mask | None = None
) -> NoiseModel:
    """Fit curve and map of the noise that ``structure`` lacks; both images are float32 (rows, columns), grey levels.

    ``breast``: where the curve is measured. ``counted``: the pixels that are not padding. ``held``: pixels in cells
    with coded residuals or patches, which get no noise and are not measured. The spectrum of the result is empty.

    The residual also contains errors at edges, such as those of a marker's letters, which have less energy in the
    finest octave than noise has. The curve is therefore measured in the finest octave and scaled, and the map gets the
    smaller of two ratios: that of the finest octave, and that of all frequencies.
    """
    rows, columns = original.shape
    low, high = _range(original, counted)
    counted = counted if held is None else counted & ~held
    parts = [slice(row, row + _STRIP) for row in range(0, rows, _STRIP)]
    strips = on_all_cores(lambda part: _Strip.of(original, structure, breast, counted, part, (low, high)), parts)
    whole, fine = np.sum([strip.energies for strip in strips], axis=0)
    counts, sums = np.sum([strip.knots for strip in strips], axis=0)
    factor = whole / max(fine, 1e-12)
    empty = np.zeros(SPECTRUM, dtype=np.uint8)
    curve = _curve(counts, sums * factor)
    model = NoiseModel(rows, columns, low, high, curve, np.zeros((0, 0), np.uint8), empty)

    def expected(part: slice) -> Float:
        return reduced(np.square(model.without_map(structure[part])) * counted[part], PLACE, np.add)

    cells = np.concatenate([strip.cells for strip in strips], axis=1) * np.array([1, factor], np.float32)[:, None, None]
    return replace(model, place=_place(cells, np.concatenate(on_all_cores(expected, parts))))


def with_spectrum(model: NoiseModel, original: Float, structure: Float, inside: Mask, deviation: Float) -> NoiseModel:
    """The model with the spectrum of the missing noise, and with the quiet cells.

    ``inside``: pixels of breast without residuals and patches. ``deviation``: ``model.deviation(structure)``.
    """
    most = reduced(deviation, CELL, np.maximum)
    quiet = flat_cells(original) & (most > _FAINT)
    return replace(
        model,
        spectrum=_spectrum(original, structure, inside, deviation),
        quiet=quiet if quiet.any() else None,
    )


def _range(image: Float, counted: Mask) -> tuple[float, float]:
    """The smallest and the largest value of the counted pixels."""
    if counted.all():
        return float(image.min()), float(image.max())
    return float(image.min(where=counted, initial=np.inf)), float(image.max(where=counted, initial=-np.inf))


@dataclass(frozen=True)
class _Strip:
    """Energies of one strip of rows: index 0 is the residual, index 1 is its finest octave.

    ``cells``: float32 (2, rows / PLACE, columns / PLACE), sums over cells. ``energies``: float64 (2,), sums over the
    pixels of breast. ``knots``: float64 (2, LEVELS), the number of pixels of breast per knot of the curve, and the
    energy of their finest octave. Each pixel is shared linearly by the two nearest knots.
    """

    cells: Float
    energies: NDArray[np.float64]
    knots: NDArray[np.float64]

    @classmethod
    def of(
        cls, original: Float, structure: Float, breast: Mask, counted: Mask, rows: slice, ends: tuple[float, float]
    ) -> _Strip:
        top = max(rows.start - _MARGIN, 0)
        near = slice(top, rows.stop + _MARGIN)
        residual = np.where(counted[near], original[near] - structure[near], np.float32(0))
        seen, own = counted[rows], slice(rows.start - top, rows.start - top + len(counted[rows]))
        clipped = (_without_structure(part[own], seen) for part in (residual, finest_octave(residual)))
        energies = [np.square(part) for part in clipped]
        measured = seen & breast[rows]
        low, high = ends
        level = (structure[rows][measured] - np.float32(low)) * np.float32((LEVELS - 1) / max(high - low, 1e-6))
        level = np.clip(level, 0, LEVELS - 1)
        lower = np.minimum(level.astype(np.int32), LEVELS - 2)
        share, (whole, fine) = level - lower, (each[measured] for each in energies)
        weighed = [(1 - share, share), ((1 - share) * fine, share * fine)]
        knots = [np.bincount(lower, near, LEVELS) + np.bincount(lower + 1, far, LEVELS) for near, far in weighed]
        return cls(
            cells=np.stack([reduced(each, PLACE, np.add) for each in energies]),
            energies=np.array([whole.sum(dtype=np.float64), fine.sum(dtype=np.float64)]),
            knots=np.array(knots),
        )


def _without_structure(residual: Float, counted: Mask) -> Float:
    """The residual clipped to the local noise, since larger values are lost edges; 0 where pixels do not count."""
    limit = cell_quantiles(np.abs(residual), counted, PLACE, 0.5) * np.float32(_CLIPPED / _MAD)
    rows, columns = residual.shape
    bound = cell_pixels(limit, rows, columns, PLACE)
    return np.where(counted, np.minimum(np.maximum(residual, -bound), bound), np.float32(0))


def _curve(counts: NDArray[np.float64], sums: NDArray[np.float64]) -> Codes:
    """Codes of the standard deviation per knot; knots with too few pixels are interpolated between their neighbours."""
    known = counts > 200
    if not known.any():
        return np.zeros(LEVELS, dtype=np.uint8)
    means = np.interp(np.arange(LEVELS), np.flatnonzero(known), sums[known] / counts[known])
    return deviation_codes(np.sqrt(means))


def _place(energies: Float, expected: Float) -> Codes:
    """Codes of the ratio of each cell's standard deviation to the one by the curve alone, from slightly blurred cells.

    ``energies``: (2, cells down, cells across), of which the smaller counts. ``expected``: the energy by the curve.
    """
    from scipy.ndimage import gaussian_filter

    wanted, *sizes = (gaussian_filter(values, 0.4) for values in (expected, *energies))
    found = np.minimum.reduce(sizes)
    ratio = np.sqrt(np.divide(found, wanted, out=np.zeros_like(found), where=wanted > 0))
    return deviation_codes(np.clip(ratio * 256.0, 0, 256.0 * 16))


def _spectrum(original: Float, structure: Float, counted: Mask, deviation: Float) -> Codes:
    """Codes of the mean periodogram of the original less that of the structure, limited to that of their difference.

    The limit is needed because a structure with 1% less contrast lacks energy, but no noise. Each tile is divided by
    its missing variance, and outlying tiles are left out. If no tile is wholly ``counted``, as in a small image with a
    patch in its middle, the tiles with the largest counted share are measured. Their other pixels add nothing.
    """
    window = np.outer(np.hanning(WINDOW), np.hanning(WINDOW)).astype(np.float32)
    counts = counts_at_half_steps(counted, WINDOW)
    most = counts.max(initial=1)
    places = np.argwhere(counts == most) * (WINDOW // 2)
    structure = structure if most == WINDOW**2 else np.where(counted, structure, original)

    def of_row(row: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Missing power, and power of the difference, of the tiles at one row: float32 (n, WINDOW, WINDOW / 2 + 1)."""
        from scipy import fft

        def tiles(image: Float) -> Float:
            return np.stack([image[row : row + WINDOW, at : at + WINDOW] for at in places[places[:, 0] == row, 1]])

        variance = np.square(tiles(deviation)).mean(axis=(1, 2), keepdims=True)
        some = variance[:, 0, 0] > 0
        own, made = (fft.rfft2(_detrended(tiles(image)[some]) * window) for image in (original, structure))
        own_power, made_power, lost = (np.square(each.real) + np.square(each.imag) for each in (own, made, own - made))
        return (own_power - made_power) / variance[some], lost / variance[some]

    rows = [both for both in on_all_cores(of_row, np.unique(places[:, 0])) if len(both[0])]
    if not rows:
        return np.zeros(SPECTRUM, dtype=np.uint8)
    sizes = [np.abs(missing).sum(axis=(1, 2)) for missing, _ in rows]
    largest = _OUTLYING * np.median(np.concatenate(sizes))
    missing, lost = np.zeros((2, WINDOW, WINDOW // 2 + 1))
    for (missing_here, lost_here), size in zip(rows, sizes, strict=True):
        missing += missing_here[size <= largest].sum(axis=0, dtype=np.float64)
        lost += lost_here[size <= largest].sum(axis=0, dtype=np.float64)
    return spectrum_codes(np.minimum(missing, lost))


def _detrended(tiles: Float) -> Float:
    """Tiles without their mean and their linear trend, which would leak into all frequencies of a periodogram: float32
    (n, rows, columns)."""
    rows, columns = tiles.shape[1:]
    down, across = np.linspace(-1, 1, rows, dtype=np.float32), np.linspace(-1, 1, columns, dtype=np.float32)
    slope_down = (tiles.mean(axis=2) @ down) / (down @ down)
    slope_across = (tiles.mean(axis=1) @ across) / (across @ across)
    trend = slope_down[:, None, None] * down[:, None] + slope_across[:, None, None] * across
    return np.asarray(tiles - tiles.mean(axis=(1, 2), keepdims=True) - trend, dtype=np.float32)


def spectrum_codes(power: NDArray[np.float64]) -> Codes:
    """A power spectrum, float64 (128, 65) in the order of ``numpy.fft.rfft2``, as the codes of SPECTRUM."""
    shifted = np.maximum(np.fft.fftshift(power, axes=0), 0)
    around = np.concatenate([shifted, shifted[:1]])  # -0.5 to 0.5
    around = np.pad(around, ((1, 1), (1, 1)), mode="reflect")
    weights = np.outer([0.25, 0.5, 0.25], [0.25, 0.5, 0.25])
    coarse = sum(weights[i, j] * around[i : i + 129 : 2, j : j + 65 : 2] for i in range(3) for j in range(3))
    top = float(np.max(coarse))
    if top <= 0:
        return np.zeros(SPECTRUM, dtype=np.uint8)
    steps = np.log2(np.maximum(coarse / top, 1e-12)) / POWER_STEP
    return np.asarray(np.maximum(np.rint(255 + steps), 0).astype(np.uint8) * (steps > -80), dtype=np.uint8)


def missing_energy(deviation: Float, inside: Mask) -> float:
    """Energy of noise with the standard deviation ``deviation``, summed over ``inside``, in grey levels squared."""
    return float(np.square(deviation[inside], dtype=np.float64).sum())


def with_band_energies(model: NoiseModel, energy: float, wanted: NDArray[np.float64]) -> NoiseModel:
    """Scale spectrum and gain so that every octave band gets the energy that it lacks.

    ``energy``: the result of ``missing_energy``. ``wanted``: float64 (BANDS,), energy of the original less that of the
    structure per band, summed over the same pixels, in grey levels squared. The energy per band is computed from the
    drawing filter, without drawing noise.
    """
    if energy <= 0 or not model.spectrum.any():
        return model
    bands = _band_shares()
    either = np.maximum(sum(bands), 1e-9)
    power, drawn = power_of(model.spectrum), energy
    passed, before = _passed(power)
    for _ in range(_MATCHING):
        factor = np.divide(np.maximum(wanted, 0), passed * drawn, out=np.ones_like(passed), where=passed > 0)
        scale = sum(f * band for f, band in zip(np.clip(factor, 0.25, 4.0), bands, strict=True)) / either
        power = power * np.where(either > 0.01, scale, 1.0)
        passed, after = _passed(power)
        drawn *= after / before
        before = after
    gain = float(np.sqrt(drawn / energy))
    steps = np.log2(np.maximum(power / power.max(), 1e-12)) / POWER_STEP
    spectrum = np.where(steps > -80, np.maximum(np.rint(255 + steps), 1), 0).astype(np.uint8)
    return replace(model, spectrum=spectrum, gain=gain)


def _passed(power: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Share of the energy in each octave band, float64 (BANDS,), of noise with a power spectrum (float64 SPECTRUM);
    and the energy of the drawing filter before it is scaled to unit energy."""
    kernel, energy = drawing_filter(power)
    found = np.square(np.abs(np.fft.rfft2(kernel, s=(WINDOW, WINDOW))))
    return np.array([(found * band).sum() for band in _band_weights()]), energy


@lru_cache(maxsize=1)
def _band_weights() -> tuple[NDArray[np.float64], ...]:
    """Weights that sum a filter's power at the frequencies of ``numpy.fft.rfft2`` to its energy in each octave band."""
    down = np.fft.fftshift(np.arange(WINDOW) - WINDOW // 2) / WINDOW
    passed = _bands_at(down, np.arange(WINDOW // 2 + 1) / WINDOW)
    often = np.full(WINDOW // 2 + 1, 2.0)
    often[[0, -1]] = 1
    return tuple(band * often / WINDOW**2 for band in passed)


@lru_cache(maxsize=1)
def _band_shares() -> tuple[NDArray[np.float64], ...]:
    """Share of the energy that each octave band passes, per frequency of SPECTRUM: float64."""
    return _bands_at(np.linspace(-0.5, 0.5, SPECTRUM[0]), np.linspace(0.0, 0.5, SPECTRUM[1]))


def _bands_at(down: NDArray[np.float64], across: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """Share of the energy that each octave band of node/fidelity/bands.py passes, at frequencies in cycles per pixel.

    For the two coarser bands the image is halved first, by means of 2 x 2 pixels.
    """
    square = (2 * np.pi) ** 2 * (down[:, None] ** 2 + across[None] ** 2) / 2
    smooth = [np.ones_like(square), *(np.exp(-square * sigma**2) for sigma in (0.7, 1.4, 2.8, 5.6))]
    once, twice = (np.outer(np.cos(np.pi * by * down), np.cos(np.pi * by * across)) for by in (1, 2))
    halved = (1.0, 1.0, once, once * twice)
    return tuple(np.square((before - after) * by) for (before, after), by in zip(pairwise(smooth), halved, strict=True))
