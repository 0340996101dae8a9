"""The method of the codec in its simplest form, for benchmarks to run on until the encoder itself can take its place.

The base is the whole frame at half size in JPEG XL, its samples spread over all 16 bits. What the base lacks is drawn
again as Gaussian noise, by three measurements that the encoder takes of ``original - structure`` in the breast:

- the power spectrum of what is missing (64 x 64 frequencies, steps of 1.5 dB), each tile over its own variance;
- the standard deviation by the grey level of the structure (128 levels, steps of 6%);
- how much more or less than that there is at each place (squares of 64 pixels, steps of 1.5 dB in variance).

All three are quantised, and their bytes after zlib count as payload. No noise is drawn outside the breast.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import imagecodecs
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.fft import irfft2, rfft2
from scipy.ndimage import gaussian_filter, zoom

from node.fidelity.fsim import TILE
from node.fidelity.regions import Mask, breast_tiles

Pixels = NDArray[np.uint16]
Float = NDArray[np.float32]
Bools = NDArray[np.bool_]

SCALE, DISTANCE = 2, 0.7
_SPECTRUM, _LEVELS, _PLACE = 64, 128, 64
_FLOOR = 1e-4
"""Least power of a frequency, over the greatest: 40 dB down."""
_HEADER_BYTES = 16
_BLOCK = np.ones((16, 16), dtype=bool)


@dataclass(frozen=True)
class Made:
    structure: Float
    served: Pixels
    payload_bytes: int
    point: str


def coded(
    pixels: Pixels, breast: Bools, bits: int, *, scale: int = SCALE, distance: float = DISTANCE, seed: int = 1
) -> Made:
    """``pixels`` below ``2 ** bits`` through base and drawn noise."""
    top = np.float32((1 << bits) - 1)
    image = pixels / top
    structure, size = _structure(image, scale, distance)
    noise, side = _drawn(image, structure, breast, seed)
    return Made(
        structure=structure * top,
        served=np.clip(np.rint((structure + noise) * top), 0, top).astype(np.uint16),
        payload_bytes=size + side + _HEADER_BYTES,
        point=f"x{scale} JPEG XL d{distance:g}",
    )


def worst_tiles(pixels: Pixels, structure: Float, mask: Mask, count: int = 60) -> list[tuple[int, int]]:
    """Tiles with breast by how far the smoothed error rises out of the original's own noise, the highest first."""
    image = pixels.astype(np.float32)
    error = np.abs(gaussian_filter(structure - image, 1.5))
    grain = np.abs(gaussian_filter(image, 1.5) - gaussian_filter(image, 3.0))
    scored = []
    for row, column in breast_tiles(mask, *pixels.shape):
        where = np.s_[row : row + TILE, column : column + TILE]
        inside = np.kron(mask[row // 16 : -(-(row + TILE) // 16), column // 16 : -(-(column + TILE) // 16)], _BLOCK)
        if inside.mean() > 0.5:
            worst = float(np.percentile(error[where], 99.9)) / max(float(np.median(grain[where])), 0.2)
            scored.append((worst, row, column))
    return [(row, column) for _, row, column in sorted(scored, reverse=True)[:count]]


def _structure(image: Float, scale: int, distance: float) -> tuple[Float, int]:
    """The image, 0..1, after the base; and the bytes of the base."""
    rows, columns = image.shape
    small = _resized(image, -(-rows // scale), -(-columns // scale)) if scale > 1 else image
    samples = np.clip(np.rint(small * 65535), 0, 65535).astype(np.uint16)
    data = imagecodecs.jpegxl_encode(samples, distance=distance, effort=7, numthreads=1)
    decoded = imagecodecs.jpegxl_decode(data, numthreads=1).astype(np.float32) / np.float32(65535)
    return (_resized(decoded, rows, columns) if scale > 1 else decoded), len(data)


def _resized(image: Float, rows: int, columns: int) -> Float:
    tensor = torch.from_numpy(np.ascontiguousarray(image))[None, None]
    size = (rows, columns)
    made = torch.nn.functional.interpolate(tensor, size, mode="bicubic", antialias=True, align_corners=False)
    return np.asarray(made[0, 0].numpy(), dtype=np.float32)


def _drawn(image: Float, structure: Float, breast: Bools, seed: int) -> tuple[Float, int]:
    """Noise as it is missing in the breast, 0 elsewhere; and the bytes of its side information."""
    spectrum, spectrum_bytes = _spectrum(image, structure, breast)
    noise = _shaped(np.random.default_rng(seed).standard_normal(image.shape, dtype=np.float32), spectrum)
    noise /= noise[breast].std()
    missing = np.where(breast, np.square(image - structure), 0).astype(np.float32)
    by_level, level_bytes = _by_level(missing, structure, breast)
    place, place_bytes = _by_place(missing, by_level)
    return np.where(breast, noise * np.sqrt(by_level * place), 0), spectrum_bytes + level_bytes + place_bytes


def _spectrum(image: Float, structure: Float, breast: Bools) -> tuple[Float, int]:
    """Power of what is missing over its variance, shape (64, 33), mean of half-overlapping tiles inside the breast."""
    missing, side = image - structure, _SPECTRUM
    fine, coarse = image - gaussian_filter(image, 8), structure - gaussian_filter(structure, 8)
    taper = np.outer(np.hanning(side), np.hanning(side)).astype(np.float32)
    total, count = np.zeros((side, side // 2 + 1)), 0
    for row in range(0, image.shape[0] - side, side // 2):
        for column in range(0, image.shape[1] - side, side // 2):
            where = np.s_[row : row + side, column : column + side]
            if breast[row, column] and breast[where].all():
                variance = float(np.square(missing[where]).mean()) + 1e-12
                both = [np.square(np.abs(rfft2(part[where] * taper))) for part in (fine, coarse)]
                total, count = total + (both[0] - both[1]) / variance, count + 1
    if not count:
        total[:] = 1
    levels = np.rint(2 * np.log2(np.maximum(total / total.max(), _FLOOR))).astype(np.int8)
    return np.exp2(levels / np.float32(2)).astype(np.float32), len(zlib.compress(levels.tobytes(), 9))


def _shaped(white: Float, spectrum: Float) -> Float:
    """White noise with the given spectrum, filtered by its square root as a kernel of 64 x 64 pixels."""
    kernel = irfft2(np.sqrt(spectrum), s=(_SPECTRUM, _SPECTRUM))
    padded = np.zeros(white.shape, dtype=np.float32)
    rows, columns = (min(_SPECTRUM, size) for size in white.shape)
    padded[:rows, :columns] = np.fft.fftshift(kernel)[:rows, :columns]
    shaped: Float = irfft2(rfft2(white) * rfft2(padded), s=white.shape)
    return shaped


def _by_level(missing: Float, structure: Float, breast: Bools) -> tuple[Float, int]:
    """Variance of what is missing, by the grey level of the structure at each pixel; 0 outside the breast."""
    level = np.clip(structure * _LEVELS, 0, _LEVELS - 1)
    nearest = level.astype(np.intp)
    counts = np.bincount(nearest[breast], minlength=_LEVELS)
    sums = np.bincount(nearest[breast], weights=missing[breast], minlength=_LEVELS)
    known = np.flatnonzero(counts > min(500, counts.max() - 1))
    curve = np.interp(np.arange(_LEVELS), known, sums[known] / counts[known])
    steps = np.rint(6 * np.log2(np.maximum(curve, 1e-12))).astype(np.int16)
    found = np.interp(level - 0.5, np.arange(_LEVELS), np.exp2(steps / 6)) * breast
    return found.astype(np.float32), len(zlib.compress(np.diff(steps, prepend=0).astype(np.int16).tobytes(), 9))


def _by_place(missing: Float, by_level: Float) -> tuple[Float, int]:
    """How much more variance than by the level there is, float32 of the image's shape."""
    ratio = gaussian_filter(missing, 20) / np.maximum(gaussian_filter(by_level, 20), 1e-12)
    half = _PLACE // 2
    coarse = ratio[half::_PLACE, half::_PLACE] if min(ratio.shape) > half else ratio[:1, :1]
    steps = np.clip(np.rint(2 * np.log2(np.maximum(coarse, 1e-3))), -12, 12).astype(np.int8)
    place = zoom(np.exp2(steps / np.float32(2)), _PLACE, order=1, mode="nearest", grid_mode=True)
    short = [(0, max(0, size - made)) for size, made in zip(missing.shape, place.shape, strict=True)]
    place = np.pad(place, short, mode="edge")[: missing.shape[0], : missing.shape[1]]
    return place.astype(np.float32), len(zlib.compress(steps.tobytes(), 9))
