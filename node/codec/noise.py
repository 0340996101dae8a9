"""The noise model: the noise that a structure lacks, stored in a few hundred bytes and drawn by the decoder.

It is the classical model of quantum and grain noise, a Gaussian field with three parts, which the encoder fits
(encode/noise_fitting.py):

- a two-dimensional power spectrum: the original's noise power spectrum less the structure's, so that it includes
  detector blur, sharpening and film grain (averaged periodograms over local variance, IEC 62220-1);
- a curve of the standard deviation as a function of the structure's grey level;
- a coarse map of the place: the ratio of the local standard deviation to that of the curve.

The decoder draws white noise from a counter-based generator, keyed by the rendition's seed and the pixel's position,
filters it by the root of the spectrum, and multiplies it by curve and map. The result does not depend on how an image
is cut into tiles.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from node.fidelity.threads import on_all_cores
from storage.dicom.codestreams import codestream_header
from storage.errors import PayloadError
from storage.formats.geometry import cell_grid, cell_pixels
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
"""Largest standard deviation at a grey level, over its distance to the nearer extreme value. Clipped air or white
leaves no room for noise, and the nearest knots of the curve describe levels further inward."""
PLACE = 64
"""Side of the cells of the map of the place, in pixels."""
SPECTRUM = (65, 33)
"""Shape of the stored spectrum: vertical frequencies -0.5 to 0.5, horizontal ones 0 to 0.5 cycles per pixel."""
WINDOW = 128
"""Side of the periodograms, in pixels."""
_REACH = 32
"""Half the side of the drawing filter, in pixels."""
_SQUARE = 512
"""Side of the Fourier transforms of the drawing filter: 448 pixels and a rim of ``_REACH`` on each side."""
_BLOCK = 256
"""Side of the blocks of white noise that have a key of their own."""
_PER_OCTAVE = 8.0
"""Steps of the codes of curve and map per doubling of the standard deviation: 0.75 dB."""
POWER_STEP = 0.25
"""Octaves of power per step of the spectrum's codes: 0.75 dB."""
_NEAR = 1
"""Largest error of a spectrum code that JPEG-LS may make: one step of 0.75 dB."""
_STREAM = 0x6C617465
"""Second word of the generator's key, which keeps this use of a seed apart from others."""
_HEADER = struct.Struct("<BHHfffIIIB")
_FORMAT = 1


@dataclass(frozen=True)
class NoiseModel:
    """The noise that is missing in a structure of ``rows`` x ``columns`` pixels.

    ``low`` and ``high``: smallest and largest grey level of the original, without padding. ``curve``: uint8 (LEVELS,),
    code of the standard deviation at knots from ``low`` to ``high`` (``deviations_of``). ``place``: uint8 (rows /
    PLACE, columns / PLACE), rounded up, code of 256 times the ratio to the curve; 0 means no noise. ``spectrum``: uint8
    SPECTRUM, code of the power per frequency over the greatest one (``power_of``); 0 means none. ``gain``: further
    factor of the drawn noise. ``quiet``: bool, cells of CELL pixels in which nothing is drawn, since the original has
    one value there.
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
        """The bounding rectangle of all cells with noise, in pixels; empty slices from 0 if there is none."""
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
        """``deviation`` within ``part``."""
        rows, columns = self.part
        found = self.without_map(structure[self.part])
        cells = self.place[rows.start // PLACE : -(-rows.stop // PLACE), columns.start // PLACE :]
        place = deviations_of(cells) * np.float32(1 / 256)
        found *= _spread(place, rows.stop - rows.start, columns.stop - columns.start)
        return found

    def without_map(self, structure: Float) -> Float:
        """Standard deviation by the curve alone, for any part of a structure: float32, the same shape, grey levels."""
        import torch

        knots = np.linspace(0, LEVELS - 1, _STEPS)
        steps = np.interp(knots, np.arange(LEVELS), deviations_of(self.curve))
        inward = np.minimum(np.arange(_STEPS), np.arange(_STEPS)[::-1]) * ((self.high - self.low) / (_STEPS - 1))
        table: Float = np.minimum(steps, _AT_ENDS * inward).astype(np.float32)
        level = torch.from_numpy(np.ascontiguousarray(structure))
        level = level.sub(self.low).mul_((_STEPS - 1) / max(self.high - self.low, 1e-6)).round_().clamp_(0, _STEPS - 1)
        return table.take(level.to(torch.int32).numpy())

    def draw(self, structure: Float, seed: int, deviation: Float | None = None) -> Float:
        """Noise for a structure (float32, rows x columns): float32, grey levels, keyed by ``seed``.

        ``deviation``: the result of ``deviation(structure)``, if it is known already.
        """
        result = np.zeros(structure.shape, dtype=np.float32)
        rows, columns = self.part
        if rows.stop:
            noise = unit_noise(rows, columns, self.spectrum, seed)
            noise *= self._deviation_of(structure) if deviation is None else deviation[self.part]
            noise *= np.float32(self.gain)
            result[self.part] = noise
        if self.quiet is not None:
            result[cell_pixels(self.quiet, self.rows, self.columns)] = 0
        return result


# --- drawing --------------------------------------------------------------------------------------------------


def unit_noise(rows: slice, columns: slice, spectrum: Codes, seed: int) -> Float:
    """Gaussian noise of unit variance with a given spectrum for a part of an image: float32, the same on any tiling.

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
    """Independent normal values for a part of the plane, float32: Philox (Salmon et al. 2011), keyed by ``seed`` and
    the block of 256 x 256 pixels.

    Each 16 bits of the generator's raw output, which is the same in every release of numpy, select a quantile.
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
    """Transform of the drawing filter of a stored spectrum: complex64 (_SQUARE, _SQUARE / 2 + 1), of unit energy."""
    import torch

    kernel, _ = drawing_filter(power_of(np.frombuffer(codes, np.uint8).reshape(SPECTRUM)))
    placed = np.zeros((_SQUARE, _SQUARE))
    placed[: len(kernel), : len(kernel)] = kernel
    placed = np.roll(placed, (-_REACH, -_REACH), axis=(0, 1))
    return torch.from_numpy(np.fft.rfft2(placed).astype(np.complex64))


def power_of(codes: Codes) -> NDArray[np.float64]:
    """Power per frequency of stored codes, over the greatest one: float64 SPECTRUM."""
    return np.where(codes > 0, 2.0 ** ((codes.astype(np.float64) - 255) * POWER_STEP), 0.0)


def drawing_filter(power: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """The drawing filter of a power spectrum (float64 SPECTRUM), and its energy before it was scaled to unit energy.

    The filter is float64, 2 _REACH + 1 pixels a side. It is tapered, which smooths the spectrum.
    """
    fine = _doubled(_doubled(power).T).T  # (129, 65)
    half = np.fft.ifftshift(fine[:-1], axes=0)
    impulse = np.fft.fftshift(np.fft.irfft2(np.sqrt(half), s=(WINDOW, WINDOW)))
    middle = WINDOW // 2
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
    """Cells interpolated bilinearly between their centres: float32 (rows, columns); pixels of a cell of 0 stay 0."""
    import torch

    tensor = torch.from_numpy(np.ascontiguousarray(cells))[None, None]
    size = (cells.shape[0] * PLACE, cells.shape[1] * PLACE)
    fine = torch.nn.functional.interpolate(tensor, size=size, mode="bilinear", align_corners=False)[0, 0]
    fine = fine[:rows, :columns].contiguous()
    empty = np.repeat(np.repeat(cells == 0, PLACE, axis=0), PLACE, axis=1)[:rows, :columns]
    if empty.any():
        fine[torch.from_numpy(np.ascontiguousarray(empty))] = 0
    return fine.numpy()


def deviation_codes(deviation: NDArray[np.generic]) -> Codes:
    """Standard deviations as uint8 codes: 0 up to 2**-8, else 128 plus ``_PER_OCTAVE`` times the log2, 1 to 255."""
    values = np.asarray(deviation, dtype=np.float64)
    steps = 128 + _PER_OCTAVE * np.log2(np.maximum(values, 1e-9))
    return np.where(values > 2.0**-8, np.clip(np.rint(steps), 1, 255), 0).astype(np.uint8)


def deviations_of(codes: Codes) -> Float:
    """The inverse of ``deviation_codes``: float32."""
    values = 2.0 ** ((codes.astype(np.float64) - 128) / _PER_OCTAVE)
    return np.where(codes > 0, values, 0.0).astype(np.float32)


# --- bytes ----------------------------------------------------------------------------------------------------


def encode_noise(model: NoiseModel) -> bytes:
    """A model as bytes: header, curve, map and spectrum as JPEG-LS, mask of quiet cells.

    Only the spectrum is coded with loss: each code is off by at most ``_NEAR`` steps.
    """
    place = bytes(imagecodecs.jpegls_encode(model.place))
    spectrum = bytes(imagecodecs.jpegls_encode(model.spectrum, level=_NEAR))
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
