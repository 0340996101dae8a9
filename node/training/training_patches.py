"""Makes training patches: pieces of mammograms, augmented to resemble other detectors and coded as by the encoder.

A patch is a pure function of the pictures, the seed and its number, so an interrupted training resumes with the same
patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydicom.uid import ExplicitVRLittleEndian
from torch import Tensor

from node.codec.encode.base_coding import make_base
from node.codec.encode.noise_fitting import measure_deviation, missing_energy, with_band_energies, with_spectrum
from node.codec.encode.source_image import Source
from node.codec.noise import unit_noise
from node.fidelity.bands import band_energies, totals
from node.training.image_files import Picture
from node.upscalers.conditioning import point_features, scene
from node.upscalers.network import LATENT, STRIDE, UNSHUFFLE, to_latent, to_pixels
from storage.dicom.dicomfile import HeaderBytes
from storage.formats.geometry import CELL, cell_pixels
from storage.formats.payload import Base
from storage.records import OperatingPoint

Float = NDArray[np.float32]

_ROWS, _COLUMNS = 1024, 768
"""Largest size of a patch, in pixels."""
BITS = 12
"""Bits of the grey levels of a patch."""
_TOP = float((1 << BITS) - 1)
_CLIP = 8.0
"""Limit of the residual, in standard deviations of the missing noise. Larger values are single specks, which would
dominate a batch."""
_FILM_WEIGHT = 0.6
"""Probability of drawing a digitised film, relative to a digital image of the same size."""
_LEAST_QUANTISATION = 0.6
"""Lower bound of the random factor by which the RMS coding error given to the network is multiplied: the RMS of a whole
base averages over breast and air."""
_SCALES = ((1, 0.2), (2, 0.62), (4, 0.18))
"""Scales and their probabilities."""
_DISTANCES = {1: (0.6, 6.0), 2: (0.3, 5.0), 4: (0.2, 2.0)}
"""Range of the quantiser distance per scale. Its logarithm is drawn uniformly."""


@dataclass(frozen=True)
class TrainingPatch:
    """The input and the target of the network for one piece of an image; h and w are in latent cells.

    ``seen``: conditioning channels, float16 (21, h, w). ``wanted``: latent of the residual over the standard deviation
    of the missing noise, float16 (16, h, w). ``share``: 1 in cells of breast that lack noise, else 0, float16 (h, w).
    ``point``: operating point, float32 (3,). ``noise``: latent of drawn noise with the spectrum of the missing noise
    (z of flow.py), float16 (16, h, w).
    """

    seen: Tensor
    wanted: Tensor
    share: Tensor
    point: Tensor
    noise: Tensor


def make_patch(pictures: Sequence[Picture], seed: int, number: int) -> TrainingPatch:
    random = np.random.default_rng((seed, 1, number))
    weights = np.array([picture.pixels.size**0.5 * (_FILM_WEIGHT if picture.film else 1.0) for picture in pictures])
    picture = pictures[int(random.choice(len(pictures), p=weights / weights.sum()))]
    pixels, inside = _crop(picture, random)
    pixels, inside = _rotated(_augmented(pixels, random), inside, random)
    scale, distance = _operating_point(random)
    return degrade(np.rint(pixels).astype(np.float32), inside, scale, distance, random)


def degrade(
    pixels: Float, inside: NDArray[np.bool_], scale: int, distance: float, random: np.random.Generator
) -> TrainingPatch:
    """A patch from whole 12-bit grey levels, float32 (rows, columns). ``inside``: bool, true in the breast."""
    base = code(pixels, scale, distance)
    upsampled = base.operator.lift(base.samples())
    original, kept = (totals(band_energies(image, inside)) for image in (pixels, upsampled))
    model = measure_deviation(pixels, upsampled, inside, inside)
    deviation = model.deviation(upsampled)
    model = with_spectrum(model, pixels, upsampled, inside, deviation)
    model = with_band_energies(model, missing_energy(deviation, inside), original - kept)
    deviation = deviation * inside
    wanted = np.divide(pixels - upsampled, deviation, out=np.zeros_like(pixels), where=deviation > 0)
    rows, columns = (slice(0, length) for length in pixels.shape)
    noise = unit_noise(rows, columns, model.spectrum, int(random.integers(2**32))) * np.float32(model.gain)
    quantisation = base.quantisation_rms * float(random.uniform(_LEAST_QUANTISATION, 1.0))
    return TrainingPatch(
        seen=scene(upsampled, deviation, quantisation, scale).half(),
        wanted=_as_latent(np.clip(wanted, -_CLIP, _CLIP)),
        share=torch.from_numpy((deviation > 0)[::UNSHUFFLE, ::UNSHUFFLE].astype(np.float16)),
        point=point_features(scale, distance),
        noise=_as_latent(noise),
    )


def _as_latent(values: Float) -> Tensor:
    return to_latent(torch.from_numpy(np.ascontiguousarray(values))[None, None])[0].half()


def code(pixels: Float, scale: int, distance: float, bits: int = BITS) -> Base:
    """Code ``pixels``, whole grey levels below 2 ** ``bits``, by JPEG XL as the encoder does."""
    source = Source(
        pixels.astype(np.uint16),
        padding=None,
        padding_pixels=None,
        bits_stored=bits,
        digest="",
        pixel_digest="",
        pixel_vr="OW",
        header_bytes=HeaderBytes(ExplicitVRLittleEndian, b"", b""),
        _extremes=(0, (1 << bits) - 1),
    )
    return make_base(source, OperatingPoint(scale=scale, coder="jpegxl", distance=distance))


def crops(patches: Sequence[TrainingPatch], size: int, count: int, random: np.random.Generator) -> tuple[Tensor, ...]:
    """A batch of ``count`` crops of ``size`` pixels a side, float32: seen, wanted, share (n, 1, h, w), point and noise.

    The noise is cropped at another position than the rest of the patch.
    """
    cells, step = size // UNSHUFFLE, STRIDE // UNSHUFFLE
    parts: list[tuple[Tensor, ...]] = []
    for _ in range(count):
        patch = patches[int(random.integers(len(patches)))]
        rows, columns = patch.share.shape
        for _ in range(8):
            window = _random_window(rows, columns, cells, step, random)
            if float(patch.share[window].float().mean()) > 0.5:
                break
        of_noise = _random_window(rows, columns, cells, 1, random)
        maps = (patch.seen[window], patch.wanted[window], patch.share[window][None], patch.noise[of_noise])
        seen, wanted, share, noise = _symmetric(maps, int(random.integers(8)))
        parts.append((seen, wanted, share, patch.point, noise))
    return tuple(torch.stack(group).float() for group in zip(*parts, strict=True))


def _symmetric(maps: tuple[Tensor, Tensor, Tensor, Tensor], number: int) -> tuple[Tensor, ...]:
    """Apply one of the eight symmetries of the square to seen, wanted, share and noise of a crop.

    A mirrored image has mirrored blocks of the coder, so the sines of the position change sign (conditioning.py).
    """
    seen, wanted, share, noise = maps
    detail, quantisation, phases = seen[:LATENT], seen[LATENT:-4], seen[-4:].clone()
    axes = [axis for bit, axis in ((1, -2), (2, -1)) if number & bit]
    phases[0] *= -1 if number & 1 else 1
    phases[2] *= -1 if number & 2 else 1
    if number & 4:
        phases = phases[[2, 3, 0, 1]]

    def transformed(values: Tensor) -> Tensor:
        values = values.flip(axes) if axes else values
        return values.transpose(-1, -2) if number & 4 else values

    def latent(values: Tensor) -> Tensor:
        return to_latent(transformed(to_pixels(values[None])))[0]

    return (
        torch.cat([latent(detail), transformed(quantisation), transformed(phases)]),
        latent(wanted),
        transformed(share),
        latent(noise),
    )


def _random_window(rows: int, columns: int, cells: int, step: int, random: np.random.Generator) -> tuple[Any, ...]:
    """Index of a square of ``cells`` at a random position, on multiples of ``step``."""
    top = int(random.integers((rows - cells) // step + 1)) * step
    left = int(random.integers((columns - cells) // step + 1)) * step
    return (..., slice(top, top + cells), slice(left, left + cells))


def _crop(picture: Picture, random: np.random.Generator) -> tuple[Float, NDArray[np.bool_]]:
    """A piece around a random position in the breast, float32 in 12-bit grey levels, and its breast mask per pixel."""
    pixels = picture.pixels
    mask: NDArray[np.bool_] = picture.mask
    scaled = pixels.astype(np.float32) * np.float32(2.0 ** (BITS - picture.bits))
    if min(pixels.shape) >= 2 * _ROWS and random.random() < 0.3:  # halve the image: it gets finer detail and less noise
        rows, columns = (size // 2 * 2 for size in pixels.shape)
        scaled = scaled[:rows, :columns].reshape(rows // 2, 2, columns // 2, 2).mean(axis=(1, 3))
        quads = mask[: rows // 32 * 2, : columns // 32 * 2].reshape(rows // 32, 2, columns // 32, 2)
        mask = np.asarray(quads.any(axis=(1, 3)), dtype=bool)
        mask = mask if mask.any() else np.ones_like(mask)
    row, column = random.permutation(np.argwhere(mask))[0] * CELL
    top = int(np.clip(row - _ROWS // 2, 0, max(scaled.shape[0] - _ROWS, 0))) // CELL * CELL
    left = int(np.clip(column - _COLUMNS // 2, 0, max(scaled.shape[1] - _COLUMNS, 0))) // CELL * CELL
    piece = scaled[top : top + _ROWS, left : left + _COLUMNS]
    piece = piece[: piece.shape[0] // CELL * CELL, : piece.shape[1] // CELL * CELL]
    blocks = (piece.shape[0] // CELL, piece.shape[1] // CELL)
    part = mask[top // CELL :, left // CELL :][: blocks[0], : blocks[1]]
    return np.ascontiguousarray(piece), cell_pixels(part, *piece.shape)


def _augmented(pixels: Float, random: np.random.Generator) -> Float:
    """Simulate another detector and another vendor's processing: gamma, gain, noise, blur, sharpening."""
    gamma, gain = np.float32(random.uniform(0.75, 1.35)), np.float32(random.uniform(0.4, 1))
    result = np.clip(pixels / _TOP, 0, 1) ** gamma * gain * np.float32(_TOP)
    noisy, before_processing = random.random() < 0.5, random.random() < 0.5
    if noisy and before_processing:
        result = _with_noise(result, random)
    result = _processed(result, random)
    if noisy and not before_processing:
        result = _with_noise(result, random)
    return np.asarray(np.clip(result, 0, _TOP), dtype=np.float32)


def _processed(pixels: Float, random: np.random.Generator) -> Float:
    """Blur the image, scale its detail by 0.25 to 1.8, or return it unchanged, to imitate vendors' processing."""
    from scipy.ndimage import gaussian_filter

    kind = random.random()
    if kind < 0.2:
        return np.asarray(gaussian_filter(pixels, random.uniform(0.4, 1.0)), dtype=np.float32)
    if kind < 0.55:
        coarse = gaussian_filter(pixels, random.uniform(0.7, 1.6))
        return np.asarray(coarse + (pixels - coarse) * np.float32(random.uniform(0.25, 1.8)), dtype=np.float32)
    return pixels


def _with_noise(pixels: Float, random: np.random.Generator) -> Float:
    """Add quantum noise, white or blurred as by a scintillator, with a deviation up to the largest found (150/4095)."""
    from scipy.ndimage import gaussian_filter

    noise = random.standard_normal(pixels.shape, dtype=np.float32)
    if random.random() < 0.5:
        noise = gaussian_filter(noise, random.uniform(0.4, 0.8))
        noise /= noise.std()
    strength = np.float32(2 ** random.uniform(0, 7.2)) * np.sqrt(np.maximum(pixels, 0) / np.float32(_TOP))
    return pixels + noise * strength


def _rotated(pixels: Float, inside: NDArray[np.bool_], random: np.random.Generator) -> tuple[Float, NDArray[np.bool_]]:
    turns, mirrored = int(random.integers(4)), bool(random.integers(2))
    if mirrored:
        pixels, inside = pixels[:, ::-1], inside[:, ::-1]
    return np.ascontiguousarray(np.rot90(pixels, turns)), np.ascontiguousarray(np.rot90(inside, turns))


def _operating_point(random: np.random.Generator) -> tuple[int, float]:
    scales, chances = zip(*_SCALES, strict=True)
    scale = int(random.choice(scales, p=chances))
    low, high = np.log(_DISTANCES[scale])
    return scale, round(float(np.exp(random.uniform(low, high))), 3)
