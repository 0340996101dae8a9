"""The noise that a structure lacks: measured by the encoder, told in some hundred bytes, drawn by the decoder.

The model is the classical one of quantum and grain noise, a Gaussian field with three parts:

- its spectrum, two-dimensional: the original's noise power spectrum less the structure's, so that detector blur,
  sharpening and film grain are all in it (averaged periodograms over local variance, IEC 62220-1);
- its standard deviation as a curve of the structure's own grey level;
- a coarse map of the place: by how much more or less it varies there than the curve says.

To draw: white noise from a counter-based generator, keyed by the object and by the pixel's position, filtered by the
root of the spectrum, times curve, times map. The result does not depend on how an image is cut into tiles.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from node.fidelity.threads import on_all_cores
from storage.dicom.codestreams import codestream_header
from storage.errors import PayloadError
from storage.formats.geometry import CELL, cell_grid, cell_pixels, padded_to_cells, reduced
from storage.formats.padding import pack_mask, unpack_mask

if TYPE_CHECKING:
    import torch

Float = NDArray[np.float32]
Mask = NDArray[np.bool_]
Codes = NDArray[np.uint8]

LEVELS = 32
"""Knots of the curve, evenly spaced between the image's extreme values."""
_STEPS = 4096
"""Steps between the image's extreme values in which the curve is looked up, interpolated linearly between its knots."""
_AT_ENDS = 4.0
"""Standard deviation at most, over the distance to the nearer extreme value: where air or white is clipped there is no
room for noise, and what a knot of the curve says of levels further inward does not hold."""
PLACE = 64
"""Side of the cells of the map of the place, in pixels."""
SPECTRUM = (65, 33)
"""Frequencies of the stored spectrum: vertical -0.5 to 0.5, horizontal 0 to 0.5 cycles per pixel."""
_FAINT = 0.25
"""Standard deviations below this many grey levels round to nothing: no cell is marked quiet for them."""
_WINDOW = 128
"""Side of the periodograms, in pixels."""
_REACH = 32
"""Half the side of the drawing filter, in pixels."""
_SQUARE = 512
"""Side of the Fourier transforms of the drawing filter: 448 pixels and a rim of ``_REACH`` on each side."""
_BLOCK = 256
"""Side of the blocks of white noise that have a key of their own."""
_PER_OCTAVE = 8.0
"""Steps of the codes of curve and map per doubling of the standard deviation: 0.75 dB."""
_POWER_STEP = 0.25
"""Octaves of power per step of the spectrum's codes: 0.75 dB."""
_STREAM = 0x6C617465
"""Second word of the generator's key: it sets this use of a seed apart from others."""
_CLIPPED = 4.0
"""Residuals beyond so many local standard deviations are structure, and are cut to that before they are squared."""
_HEADER = struct.Struct("<BHHfffIIIB")
_FORMAT = 1
_MATCHING = 6
"""Rounds in which band energies are matched: bands overlap, so one does not do."""
_MAD = 0.6745


@dataclass(frozen=True)
class NoiseModel:
    """What is missing in a structure of ``rows`` x ``columns`` pixels.

    ``curve``: uint8 (LEVELS,), standard deviation per knot, as ``_deviations`` reads it, of levels from ``low`` to
    ``high``. ``place``: uint8 (rows / PLACE, columns / PLACE), likewise, times 2**-8; 0 is none. ``spectrum``: uint8
    SPECTRUM, power of the noise per frequency over the greatest, 255 less ``_POWER_STEP`` octaves a step; 0 is none.
    ``gain``: what drawn noise is multiplied by besides. ``quiet``: bool, cells of CELL pixels where nothing is drawn:
    the original has one value there.
    """

    rows: int
    columns: int
    low: float
    high: float
    curve: Codes
    place: Codes
    spectrum: Codes
    gain: float = 1.0
    quiet: Mask | None = None

    @cached_property
    def part(self) -> tuple[slice, slice]:
        """The part of the image that holds all cells with noise."""
        found = [np.flatnonzero((self.place > 0).any(axis=axis)) for axis in (1, 0)]
        if not all(each.size for each in found):
            return slice(0, 0), slice(0, 0)
        rows, columns = (slice(int(each[0]) * PLACE, (int(each[-1]) + 1) * PLACE) for each in found)
        return slice(rows.start, min(rows.stop, self.rows)), slice(columns.start, min(columns.stop, self.columns))

    def deviation(self, structure: Float) -> Float:
        """Standard deviation of the missing noise at each pixel of a structure, float32, grey levels; without gain."""
        result = np.zeros(structure.shape, dtype=np.float32)
        if self.part[0].stop:
            result[self.part] = self._deviation_of(structure)
        return result

    def _deviation_of(self, structure: Float) -> Float:
        """The same of ``part``."""
        import torch

        knots = np.linspace(0, LEVELS - 1, _STEPS)
        steps = np.interp(knots, np.arange(LEVELS), _deviations(self.curve))
        inward = np.minimum(np.arange(_STEPS), np.arange(_STEPS)[::-1]) * ((self.high - self.low) / (_STEPS - 1))
        table: Float = np.minimum(steps, _AT_ENDS * inward).astype(np.float32)
        level = torch.from_numpy(np.ascontiguousarray(structure[self.part]))
        level = level.sub(self.low).mul_((_STEPS - 1) / max(self.high - self.low, 1e-6)).round_().clamp_(0, _STEPS - 1)
        found = table.take(level.to(torch.int32).numpy())
        rows, columns = self.part
        cells = self.place[rows.start // PLACE : -(-rows.stop // PLACE), columns.start // PLACE :]
        place = _deviations(cells) * np.float32(1 / 256)
        spread = _spread(place, rows.stop - rows.start, columns.stop - columns.start)
        found *= spread
        return found

    def draw(self, structure: Float, seed: int) -> Float:
        """Noise for a structure (float32, rows x columns): float32, grey levels, keyed by ``seed``."""
        result = np.zeros(structure.shape, dtype=np.float32)
        rows, columns = self.part
        if rows.stop:
            noise = unit_noise(rows, columns, self.spectrum, seed)
            noise *= self._deviation_of(structure)
            noise *= np.float32(self.gain)
            result[self.part] = noise
        if self.quiet is not None:
            result[cell_pixels(self.quiet, self.rows, self.columns)] = 0
        return result


# --- measuring ------------------------------------------------------------------------------------------------


def measure_deviation(original: Float, structure: Float, breast: Mask, counted: Mask) -> NoiseModel:
    """Curve and map of what ``structure`` lacks of ``original`` (float32, rows x columns, grey levels).

    ``breast``: where the curve is measured. ``counted``: everything but padding. The spectrum is left empty.
    """
    rows, columns = original.shape
    energy = np.square(_without_structure(original - structure, counted))
    low, high = np.float32(original[counted].min()), np.float32(original[counted].max())
    curve = _curve(structure, energy, counted & breast, float(low), float(high))
    empty = np.zeros(SPECTRUM, dtype=np.uint8)
    model = NoiseModel(rows, columns, float(low), float(high), curve, np.zeros((0, 0), np.uint8), empty)
    return replace(model, place=_place(energy, model, structure, counted))


def with_spectrum(model: NoiseModel, original: Float, structure: Float, inside: Mask) -> NoiseModel:
    """The model with the spectrum of what ``structure`` lacks, and the cells where nothing is drawn.

    ``inside``: pixels of breast that are coded by base and noise.
    """
    deviation = model.deviation(structure)
    most = reduced(padded_to_cells(deviation, CELL, edge=True), CELL, np.maximum)
    quiet = _flat(original) & (most > _FAINT)
    return replace(
        model,
        spectrum=_spectrum(original, structure, inside, deviation),
        quiet=quiet if quiet.any() else None,
    )


def _flat(image: Float) -> Mask:
    """Cells of CELL pixels that have one value: bool (rows / CELL, columns / CELL), rounded up."""
    whole = padded_to_cells(image, CELL, edge=True)
    return np.asarray(reduced(whole, CELL, np.maximum) == reduced(whole, CELL, np.minimum))


def _without_structure(residual: Float, counted: Mask) -> Float:
    """The residual with what exceeds the noise of its place cut down: noise has no such values, lost edges have."""
    rows, columns = residual.shape
    pad = (-rows % PLACE, -columns % PLACE)
    sizes = np.where(counted, np.abs(residual), np.float32(np.nan))
    cells = np.pad(sizes, ((0, pad[0]), (0, pad[1])), constant_values=np.nan)[::2, ::2]
    half = PLACE // 2
    cells = cells.reshape(cells.shape[0] // half, half, cells.shape[1] // half, half).transpose(0, 2, 1, 3)
    flat = np.sort(cells.reshape(*cells.shape[:2], -1), axis=2)
    known = (~np.isnan(flat)).sum(axis=2)
    middle = np.take_along_axis(flat, (np.maximum(known, 1)[..., None] - 1) // 2, axis=2)[..., 0]
    limit = np.where(known > 0, middle, 0).astype(np.float32) * np.float32(_CLIPPED / _MAD)
    bound = np.repeat(np.repeat(limit, PLACE, axis=0), PLACE, axis=1)[:rows, :columns]
    return np.where(counted, np.clip(residual, -bound, bound), np.float32(0))


def _curve(structure: Float, energy: Float, counted: Mask, low: float, high: float) -> Codes:
    """Standard deviation per knot, from linearly weighted means of squares; knots without pixels take a neighbour's."""
    level = np.clip((structure[counted] - low) * ((LEVELS - 1) / max(high - low, 1e-6)), 0, LEVELS - 1)
    squares = energy[counted]
    lower = np.minimum(level.astype(np.int32), LEVELS - 2)
    share = level - lower
    counts = np.bincount(lower, 1 - share, LEVELS) + np.bincount(lower + 1, share, LEVELS)
    sums = np.bincount(lower, (1 - share) * squares, LEVELS) + np.bincount(lower + 1, share * squares, LEVELS)
    known = counts > 200
    if not known.any():
        return np.zeros(LEVELS, dtype=np.uint8)
    means = np.interp(np.arange(LEVELS), np.flatnonzero(known), sums[known] / counts[known])
    return _codes(np.sqrt(means))


def _place(energy: Float, model: NoiseModel, structure: Float, counted: Mask) -> Codes:
    """By how much the energy of each cell differs from what the curve says, from cells blurred a little."""
    from scipy.ndimage import gaussian_filter

    flat = NoiseModel(
        *(model.rows, model.columns, model.low, model.high, model.curve),
        np.full((-(-model.rows // PLACE), -(-model.columns // PLACE)), _codes(np.array([256.0]))[0]),
        model.spectrum,
    )
    expected = np.square(flat.deviation(structure)) * counted
    found, wanted = (gaussian_filter(_cell_means(values), 0.4) for values in (energy, expected))
    ratio = np.sqrt(np.divide(found, wanted, out=np.zeros_like(found), where=wanted > 0))
    return _codes(np.clip(ratio * 256.0, 0, 256.0 * 16))


def _cell_means(values: Float) -> Float:
    rows, columns = (-(-length // PLACE) for length in values.shape)
    pad = ((0, rows * PLACE - values.shape[0]), (0, columns * PLACE - values.shape[1]))
    whole = np.pad(values, pad, mode="symmetric" if min(values.shape) > PLACE else "edge")
    return (reduced(whole, PLACE, np.add) / np.float32(PLACE**2)).astype(np.float32)


def _spectrum(original: Float, structure: Float, counted: Mask, deviation: Float) -> Codes:
    """Mean periodogram of the original less the structure's, tiles weighed by the variance of what is missing."""
    window = np.outer(np.hanning(_WINDOW), np.hanning(_WINDOW)).astype(np.float32)
    places = [
        np.s_[row : row + _WINDOW, column : column + _WINDOW]
        for row in range(0, original.shape[0] - _WINDOW + 1, _WINDOW // 2)
        for column in range(0, original.shape[1] - _WINDOW + 1, _WINDOW // 2)
        if counted[row : row + _WINDOW, column : column + _WINDOW].all()
    ]

    def one(where: tuple[slice, slice]) -> NDArray[np.float32] | None:
        from scipy import fft

        variance = float(np.square(deviation[where]).mean())
        if variance <= 0:
            return None
        own, made = (np.square(np.abs(fft.rfft2(_detrended(image[where]) * window))) for image in (original, structure))
        return np.asarray((own - made) / np.float32(variance))

    total = np.zeros((_WINDOW, _WINDOW // 2 + 1))
    for power in on_all_cores(one, places):
        if power is not None:
            total += power
    return spectrum_codes(total)


def _detrended(tile: Float) -> Float:
    """A tile less its mean and its slopes, which a periodogram would smear over all frequencies."""
    rows, columns = tile.shape
    down, across = np.linspace(-1, 1, rows, dtype=np.float32), np.linspace(-1, 1, columns, dtype=np.float32)
    slope_down = (tile.mean(axis=1) @ down) / (down @ down)
    slope_across = (tile.mean(axis=0) @ across) / (across @ across)
    return np.asarray(tile - tile.mean() - slope_down * down[:, None] - slope_across * across, dtype=np.float32)


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
    steps = np.log2(np.maximum(coarse / top, 1e-12)) / _POWER_STEP
    return np.asarray(np.maximum(np.rint(255 + steps), 0).astype(np.uint8) * (steps > -80), dtype=np.uint8)


def missing_energy(model: NoiseModel, structure: Float, inside: Mask) -> float:
    """Energy of the model's noise before its gain, summed over ``inside``, in grey levels squared."""
    return float(np.square(model.deviation(structure)[inside], dtype=np.float64).sum())


def matched(model: NoiseModel, energy: float, wanted: NDArray[np.float64]) -> NoiseModel:
    """The model with its spectrum and gain set so that every octave band gets the energy that it lacks.

    ``energy``: of ``missing_energy``. ``wanted``: float64 (BANDS,), energy of the original less that of the structure
    per band, summed over the same pixels, grey levels squared. The drawing filter tells the energy per band, so nothing
    needs to be drawn for this.
    """
    if energy <= 0 or not model.spectrum.any():
        return model
    bands = _band_shares()
    either = np.maximum(sum(bands), 1e-9)
    power, drawn = _power(model.spectrum), energy
    passed, before = _passed(power)
    for _ in range(_MATCHING):
        factor = np.divide(np.maximum(wanted, 0), passed * drawn, out=np.ones_like(passed), where=passed > 0)
        scale = sum(f * band for f, band in zip(np.clip(factor, 0.25, 4.0), bands, strict=True)) / either
        power = power * np.where(either > 0.01, scale, 1.0)
        passed, after = _passed(power)
        drawn *= after / before
        before = after
    gain = float(np.sqrt(drawn / energy))
    steps = np.log2(np.maximum(power / power.max(), 1e-12)) / _POWER_STEP
    spectrum = np.where(steps > -80, np.maximum(np.rint(255 + steps), 1), 0).astype(np.uint8)
    return replace(model, spectrum=spectrum, gain=gain)


def _passed(power: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Of noise that is drawn with a power spectrum, float64 SPECTRUM: the share of its energy in each octave band,
    float64 (BANDS,), and its energy before the filter is scaled to 1."""
    kernel, energy = _filter(power)
    found = np.square(np.abs(np.fft.rfft2(kernel, s=(_WINDOW, _WINDOW))))
    return np.array([(found * band).sum() for band in _band_weights()]), energy


@lru_cache(maxsize=1)
def _band_weights() -> tuple[NDArray[np.float64], ...]:
    """What each octave band passes of a filter's energy, per frequency of ``numpy.fft.rfft2`` of _WINDOW pixels."""
    down = np.fft.fftshift(np.arange(_WINDOW) - _WINDOW // 2) / _WINDOW
    passed = _bands_at(down, np.arange(_WINDOW // 2 + 1) / _WINDOW)
    often = np.full(_WINDOW // 2 + 1, 2.0)
    often[[0, -1]] = 1
    return tuple(band * often / _WINDOW**2 for band in passed)


@lru_cache(maxsize=1)
def _band_shares() -> tuple[NDArray[np.float64], ...]:
    """Energy that each octave band passes, per frequency of SPECTRUM: float64."""
    return _bands_at(np.linspace(-0.5, 0.5, SPECTRUM[0]), np.linspace(0.0, 0.5, SPECTRUM[1]))


def _bands_at(down: NDArray[np.float64], across: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """Energy that each octave band of node/fidelity/bands.py passes at frequencies in cycles per pixel. The two coarser
    bands are halved by means of 2 x 2 pixels first."""
    square = (2 * np.pi) ** 2 * (down[:, None] ** 2 + across[None] ** 2) / 2
    smooth = [np.ones_like(square), *(np.exp(-square * sigma**2) for sigma in (0.7, 1.4, 2.8, 5.6))]
    once, twice = (np.outer(np.cos(np.pi * by * down), np.cos(np.pi * by * across)) for by in (1, 2))
    halved = (1.0, 1.0, once, once * twice)
    return tuple(np.square((before - after) * by) for (before, after), by in zip(pairwise(smooth), halved, strict=True))


def _power(codes: Codes) -> NDArray[np.float64]:
    """Power per frequency of stored codes, over the greatest: float64 SPECTRUM."""
    return np.where(codes > 0, 2.0 ** ((codes.astype(np.float64) - 255) * _POWER_STEP), 0.0)


# --- drawing --------------------------------------------------------------------------------------------------


def unit_noise(rows: slice, columns: slice, spectrum: Codes, seed: int) -> Float:
    """Gaussian noise of unit variance and of that spectrum for a part of an image, float32: the same on any tiling.

    The part's first row and column are multiples of PLACE.
    """
    import torch

    kernel = _kernel(spectrum.tobytes())
    inner, height, width = _SQUARE - 2 * _REACH, rows.stop - rows.start, columns.stop - columns.start
    down, across = -(-height // inner), -(-width // inner)
    white = torch.from_numpy(
        white_noise(
            slice(rows.start, rows.start + down * inner + 2 * _REACH),
            slice(columns.start, columns.start + across * inner + 2 * _REACH),
            seed,
        )
    )
    result = torch.empty((height, width), dtype=torch.float32)

    def one(row: int) -> None:
        squares = white[row : row + _SQUARE].unfold(1, _SQUARE, inner).transpose(0, 1)  # (n, _SQUARE, _SQUARE)
        drawn = torch.fft.irfft2(torch.fft.rfft2(squares) * kernel, s=(_SQUARE, _SQUARE))
        drawn = drawn[:, _REACH:-_REACH, _REACH:-_REACH].transpose(0, 1).reshape(inner, -1)
        result[row : row + inner] = drawn[: height - row, :width]

    on_all_cores(one, range(0, height, inner))
    return result.numpy()


def white_noise(rows: slice, columns: slice, seed: int) -> Float:
    """Independent normal values of a part of the plane, float32: Philox (Salmon et al. 2011) keyed by ``seed`` and the
    block of 256 pixels.

    The raw output of a bit generator is the same in every release of numpy; 16 bits of it look a quantile up.
    """
    quantiles = _quantiles()
    result = np.empty((rows.stop - rows.start, columns.stop - columns.start), dtype=np.float32)
    for row in range(rows.start // _BLOCK * _BLOCK, rows.stop, _BLOCK):
        for column in range(columns.start // _BLOCK * _BLOCK, columns.stop, _BLOCK):
            key = (seed & 0xFFFFFFFF) | (row // _BLOCK) << 32 | (column // _BLOCK) << 48
            raw = np.random.Philox(key=[key, _STREAM]).random_raw(_BLOCK * _BLOCK // 4)
            values = quantiles[raw.view("<u2").reshape(_BLOCK, _BLOCK)]
            top, left = max(row, rows.start), max(column, columns.start)
            place = result[top - rows.start : row + _BLOCK - rows.start, left - columns.start :]
            part = values[top - row :, left - column :][: place.shape[0]]
            place = place[:, : part.shape[1]]
            place[:] = part[:, : place.shape[1]]
    return result


@lru_cache(maxsize=1)
def _quantiles() -> Float:
    """65536 quantiles of the normal distribution, scaled to unit variance: float32."""
    from scipy.special import ndtri

    values = ndtri((np.arange(65536) + 0.5) / 65536)
    return np.asarray(values / values.std(), dtype=np.float32)


@lru_cache(maxsize=4)
def _kernel(codes: bytes) -> torch.Tensor:
    """The transform, complex64 (_SQUARE, _SQUARE / 2 + 1), of a filter of unit energy whose power is the spectrum's."""
    import torch

    kernel, _ = _filter(_power(np.frombuffer(codes, np.uint8).reshape(SPECTRUM)))
    placed = np.zeros((_SQUARE, _SQUARE))
    placed[: len(kernel), : len(kernel)] = kernel
    placed = np.roll(placed, (-_REACH, -_REACH), axis=(0, 1))
    return torch.from_numpy(np.fft.rfft2(placed).astype(np.complex64))


def _filter(power: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """The drawing filter of a power spectrum, float64 SPECTRUM: float64, 2 _REACH + 1 pixels square, of unit energy;
    and its energy before it was scaled to that. Its taper smooths the spectrum."""
    fine = _doubled(_doubled(power).T).T  # (129, 65)
    half = np.fft.ifftshift(fine[:-1], axes=0)
    impulse = np.fft.fftshift(np.fft.irfft2(np.sqrt(half), s=(_WINDOW, _WINDOW)))
    middle = _WINDOW // 2
    part = impulse[middle - _REACH : middle + _REACH + 1, middle - _REACH : middle + _REACH + 1]
    taper = np.hanning(2 * _REACH + 3)[1:-1]
    part = part * np.sqrt(np.outer(taper, taper))
    energy = float(np.square(part).sum())
    return (part / np.sqrt(energy) if energy > 0 else np.zeros_like(part)), energy


def _doubled(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows interpolated linearly between neighbours: n to 2 n - 1."""
    result = np.empty((2 * values.shape[0] - 1, values.shape[1]))
    result[::2] = values
    result[1::2] = (values[:-1] + values[1:]) / 2
    return result


def _spread(cells: Float, rows: int, columns: int) -> Float:
    """Cells interpolated linearly between their middles; next to an empty cell nothing of it is mixed in."""
    import torch

    tensor = torch.from_numpy(np.ascontiguousarray(cells))[None, None]
    size = (cells.shape[0] * PLACE, cells.shape[1] * PLACE)
    fine = torch.nn.functional.interpolate(tensor, size=size, mode="bilinear", align_corners=False)[0, 0]
    fine = fine[:rows, :columns].contiguous()
    empty = np.repeat(np.repeat(cells == 0, PLACE, axis=0), PLACE, axis=1)[:rows, :columns]
    if empty.any():
        fine[torch.from_numpy(np.ascontiguousarray(empty))] = 0
    return fine.numpy()


def _codes(deviation: NDArray[np.generic]) -> Codes:
    """Standard deviations as bytes: 0 for none, else 128 plus ``_PER_OCTAVE`` steps an octave, at least 1."""
    values = np.asarray(deviation, dtype=np.float64)
    steps = 128 + _PER_OCTAVE * np.log2(np.maximum(values, 1e-9))
    return np.where(values > 2.0**-8, np.clip(np.rint(steps), 1, 255), 0).astype(np.uint8)


def _deviations(codes: Codes) -> Float:
    """The inverse of ``_codes``: float32."""
    values = 2.0 ** ((codes.astype(np.float64) - 128) / _PER_OCTAVE)
    return np.where(codes > 0, values, 0.0).astype(np.float32)


# --- bytes ----------------------------------------------------------------------------------------------------


def encode_noise(model: NoiseModel) -> bytes:
    """A model as bytes: header, curve, map and spectrum as JPEG-LS, mask of quiet cells."""
    place, spectrum = (bytes(imagecodecs.jpegls_encode(part)) for part in (model.place, model.spectrum))
    quiet = b"" if model.quiet is None else pack_mask(model.quiet)
    header = _HEADER.pack(
        *(_FORMAT, model.rows, model.columns, model.low, model.high, model.gain),
        *(len(place), len(spectrum), len(quiet), LEVELS),
    )
    return header + model.curve.tobytes() + place + spectrum + quiet


def decode_noise(data: bytes) -> NoiseModel:
    """The inverse of ``encode_noise``. Raises PayloadError."""
    try:
        form, rows, columns, low, high, gain, *sizes, levels = _HEADER.unpack_from(data)
    except struct.error as error:
        raise PayloadError(f"noise model is malformed: {error}") from error
    if form != _FORMAT or levels != LEVELS:
        raise PayloadError(f"noise model has format {form} with {levels} levels; this release reads {_FORMAT}")
    at = _HEADER.size + LEVELS
    ends = tuple(accumulate(sizes, initial=at))
    if len(data) != ends[-1] or not np.isfinite([low, high, gain]).all():
        raise PayloadError("noise model is malformed: its length is not what its header says")
    shape = (-(-rows // PLACE), -(-columns // PLACE))
    try:
        for (begin, end), wanted in zip(pairwise(ends[:3]), (shape, SPECTRUM), strict=True):
            if codestream_header(data[begin:end])[:2] != wanted:
                raise PayloadError(f"noise model is malformed: a part is not of {wanted}")
        place, spectrum = (np.asarray(imagecodecs.jpegls_decode(data[a:b])) for a, b in pairwise(ends[:3]))
    except Exception as error:
        raise PayloadError(f"noise model cannot be decoded: {error}") from error
    if place.shape != shape or spectrum.shape != SPECTRUM or place.dtype != np.uint8 or spectrum.dtype != np.uint8:
        raise PayloadError(f"noise model is malformed: map {place.shape}, spectrum {spectrum.shape}")
    curve = np.frombuffer(data, np.uint8, LEVELS, _HEADER.size)
    quiet = unpack_mask(data[ends[2] :], *cell_grid(rows, columns)) if sizes[2] else None
    return NoiseModel(rows, columns, low, high, curve, place, spectrum, gain, quiet)
