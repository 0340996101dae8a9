"""Plates: pieces of mammograms, varied as detectors vary, sent through the real codec, ready to learn from.

A plate is a pure function of the pictures, the seed and its number, so that an interrupted training goes on with
exactly the plates it would have had.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from node.codec.encode.noise_fitting import matched, measure_deviation, missing_energy, with_spectrum
from node.codec.noise import unit_noise
from node.fidelity.bands import BANDS, band_energies
from node.training.image_files import Picture
from node.upscalers.conditioning import point_features, scene
from node.upscalers.network import LATENT, STRIDE, UNSHUFFLE, to_latent, to_pixels
from storage.formats import coders
from storage.formats.geometry import CELL, cell_pixels
from storage.formats.resample import Operator
from storage.records import OperatingPoint

Float = NDArray[np.float32]

_ROWS, _COLUMNS = 1024, 768
BITS = 12
"""Bits of the grey levels of a plate."""
_TOP = float((1 << BITS) - 1)
SAMPLE_TOP = 65535.0
"""Samples of a base span 16 bits: JPEG XL's distances are made for a full range."""
_LOUDEST = 8.0
"""Deviations at which a residual is clipped: beyond lie single specks, which would drown the rest of a batch."""
_FILM = 0.6
"""Weight of a picture of film: there are many pixels in each."""
_TOLD = 0.6
"""Least share of the quantisation that a network is told: a base's recorded figure averages over breast and air."""
_SCALES = ((1, 0.2), (2, 0.62), (4, 0.18))
_DISTANCES = {1: (0.6, 6.0), 2: (0.3, 5.0), 4: (0.2, 2.0)}


@dataclass(frozen=True)
class TrainingPatch:
    """``seen``: float16 (21, h, w). ``wanted``: float16 (16, h, w), the latent of the residual over its deviation.
    ``share``: float16 (h, w), 1 in the breast. ``point``: float32 (3,). ``noise``: float16 (16, h, w), the latent of
    drawn noise with the spectrum of what is missing: z of flow.py.
    """

    seen: Tensor
    wanted: Tensor
    share: Tensor
    point: Tensor
    noise: Tensor


@dataclass(frozen=True)
class Coded:
    """A base: its samples as decoded and the consistent image, float32 grey levels; the RMS of its error; its bytes."""

    operator: Operator
    samples: Float
    lifted: Float
    quantisation: float
    size: int


def make_patch(pictures: Sequence[Picture], seed: int, number: int) -> TrainingPatch:
    """TrainingPatch ``number``."""
    random = np.random.default_rng((seed, 1, number))
    weights = np.array([picture.pixels.size**0.5 * (_FILM if picture.film else 1.0) for picture in pictures])
    picture = pictures[int(random.choice(len(pictures), p=weights / weights.sum()))]
    pixels, inside = _cut(picture, random)
    pixels, inside = _turned(_varied(pixels, random), inside, random)
    scale, distance = _point(random)
    return degrade(np.rint(pixels).astype(np.float32), inside, scale, distance, random)


def degrade(
    pixels: Float, inside: NDArray[np.bool_], scale: int, distance: float, random: np.random.Generator
) -> TrainingPatch:
    """A plate from 12-bit grey levels. ``inside``: bool, where there is breast."""
    base = coded(pixels, scale, distance)
    upsampled = base.operator.lift(base.samples)
    lacking = [band_energies(image, inside)[:BANDS].sum(axis=(1, 2)) for image in (pixels, base.lifted)]
    model = measure_deviation(pixels, upsampled, inside, inside)
    model = with_spectrum(model, pixels, base.lifted, inside)
    model = matched(model, missing_energy(model, base.lifted, inside), lacking[0] - lacking[1])
    deviation = model.deviation(upsampled) * inside
    wanted = np.divide(pixels - base.lifted, deviation, out=np.zeros_like(pixels), where=deviation > 0)
    rows, columns = (slice(0, length) for length in pixels.shape)
    noise = unit_noise(rows, columns, model.spectrum, int(random.integers(2**32))) * np.float32(model.gain)
    told = float(random.uniform(_TOLD, 1.0))
    return TrainingPatch(
        seen=scene(base.lifted, deviation, base.quantisation * told, scale).half(),
        wanted=_as_latent(np.clip(wanted, -_LOUDEST, _LOUDEST)),
        share=torch.from_numpy((deviation > 0)[::UNSHUFFLE, ::UNSHUFFLE].astype(np.float16)),
        point=point_features(scale, distance),
        noise=_as_latent(noise),
    )


def _as_latent(values: Float) -> Tensor:
    return to_latent(torch.from_numpy(np.ascontiguousarray(values))[None, None])[0].half()


def coded(pixels: Float, scale: int, distance: float, top: float = _TOP) -> Coded:
    """``pixels``, grey levels of 0..``top``, downsampled, coded by JPEG XL over 16 bits, and decoded."""
    operator = Operator(pixels.shape[0], pixels.shape[1], scale)
    point = OperatingPoint(scale=scale, coder="jpegxl", distance=distance)
    gain = np.float32(SAMPLE_TOP / top)
    wanted = operator.down(pixels)
    samples = np.clip(np.rint(wanted * gain), 0, SAMPLE_TOP).astype(np.uint16)
    data = coders.encode(samples, point)
    decoded = coders.decode(data, point, samples.shape).astype(np.float32) / gain
    quantisation = float(np.sqrt(np.mean(np.square(decoded - wanted))))
    return Coded(operator, decoded, operator.lift(decoded), quantisation, len(data))


def crops(plates: Sequence[TrainingPatch], size: int, count: int, random: np.random.Generator) -> tuple[Tensor, ...]:
    """``count`` crops of ``size`` pixels: seen, wanted, share (n, 1, h, w), point and noise z, float32.

    z is cut from the noise of its plate at a place of its own.
    """
    cells, step = size // UNSHUFFLE, STRIDE // UNSHUFFLE
    parts: list[tuple[Tensor, ...]] = []
    for _ in range(count):
        plate = plates[int(random.integers(len(plates)))]
        rows, columns = plate.share.shape
        for _ in range(8):
            here = _somewhere(rows, columns, cells, step, random)
            if float(plate.share[here].float().mean()) > 0.5:
                break
        there = _somewhere(rows, columns, cells, 1, random)
        parts_here = (plate.seen[here], plate.wanted[here], plate.share[here][None], plate.noise[there])
        seen, wanted, share, noise = _symmetric(parts_here, int(random.integers(8)))
        parts.append((seen, wanted, share, plate.point, noise))
    return tuple(torch.stack(group).float() for group in zip(*parts, strict=True))


def _symmetric(maps: tuple[Tensor, Tensor, Tensor, Tensor], number: int) -> tuple[Tensor, ...]:
    """One of the eight symmetries of the square, of latents and of what goes with them.

    A block of the coder lies mirrored in a mirrored image: the sines of its place change sign (conditioning.py).
    """
    seen, wanted, share, noise = maps
    detail, quantisation, phases = seen[:LATENT], seen[LATENT:-4], seen[-4:].clone()
    axes = [axis for bit, axis in ((1, -2), (2, -1)) if number & bit]
    phases[0] *= -1 if number & 1 else 1
    phases[2] *= -1 if number & 2 else 1
    if number & 4:
        phases = phases[[2, 3, 0, 1]]

    def turned(values: Tensor) -> Tensor:
        values = values.flip(axes) if axes else values
        return values.transpose(-1, -2) if number & 4 else values

    def latent(values: Tensor) -> Tensor:
        return to_latent(turned(to_pixels(values[None])))[0]

    return (
        torch.cat([latent(detail), turned(quantisation), turned(phases)]),
        latent(wanted),
        turned(share),
        latent(noise),
    )


def _somewhere(rows: int, columns: int, cells: int, step: int, random: np.random.Generator) -> tuple[Any, ...]:
    """A square of ``cells`` at a random place, on multiples of ``step``: an index."""
    top = int(random.integers((rows - cells) // step + 1)) * step
    left = int(random.integers((columns - cells) // step + 1)) * step
    return (..., slice(top, top + cells), slice(left, left + cells))


def _cut(picture: Picture, random: np.random.Generator) -> tuple[Float, NDArray[np.bool_]]:
    """A piece around a random place of the breast, in 12-bit grey levels, and where in it breast is (bool)."""
    pixels = picture.pixels
    mask: NDArray[np.bool_] = picture.mask
    scaled = pixels.astype(np.float32) * np.float32(2.0 ** (BITS - picture.bits))
    if min(pixels.shape) >= 2 * _ROWS and random.random() < 0.3:  # halved: finer detail, less noise
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


def _varied(pixels: Float, random: np.random.Generator) -> Float:
    """Another detector, another vendor's processing: gain, gamma, noise, blur, sharpening."""
    shown = np.clip(pixels / _TOP, 0, 1) ** np.float32(random.uniform(0.75, 1.35)) * np.float32(random.uniform(0.4, 1))
    varied = shown * np.float32(_TOP)
    noisy, early = random.random() < 0.5, random.random() < 0.5
    if noisy and early:
        varied = _with_noise(varied, random)
    varied = _processed(varied, random)
    if noisy and not early:
        varied = _with_noise(varied, random)
    return np.asarray(np.clip(varied, 0, _TOP), dtype=np.float32)


def _processed(pixels: Float, random: np.random.Generator) -> Float:
    """Blurred, or with its detail weaker or stronger as a vendor's processing makes it, or as it is."""
    from scipy.ndimage import gaussian_filter

    kind = random.random()
    if kind < 0.2:
        return np.asarray(gaussian_filter(pixels, random.uniform(0.4, 1.0)), dtype=np.float32)
    if kind < 0.55:
        coarse = gaussian_filter(pixels, random.uniform(0.7, 1.6))
        return np.asarray(coarse + (pixels - coarse) * np.float32(random.uniform(0.25, 1.8)), dtype=np.float32)
    return pixels


def _with_noise(pixels: Float, random: np.random.Generator) -> Float:
    """Quantum noise, white or as wide as a scintillator makes it, up to the loudest we have seen (std 150 of 4095)."""
    from scipy.ndimage import gaussian_filter

    noise = random.standard_normal(pixels.shape, dtype=np.float32)
    if random.random() < 0.5:
        noise = gaussian_filter(noise, random.uniform(0.4, 0.8))
        noise /= noise.std()
    strength = np.float32(2 ** random.uniform(0, 7.2)) * np.sqrt(np.maximum(pixels, 0) / np.float32(_TOP))
    return pixels + noise * strength


def _turned(pixels: Float, inside: NDArray[np.bool_], random: np.random.Generator) -> tuple[Float, NDArray[np.bool_]]:
    turns, mirrored = int(random.integers(4)), bool(random.integers(2))
    if mirrored:
        pixels, inside = pixels[:, ::-1], inside[:, ::-1]
    return np.ascontiguousarray(np.rot90(pixels, turns)), np.ascontiguousarray(np.rot90(inside, turns))


def _point(random: np.random.Generator) -> tuple[int, float]:
    """Scale and distance."""
    scales, chances = zip(*_SCALES, strict=True)
    scale = int(random.choice(scales, p=chances))
    low, high = np.log(_DISTANCES[scale])
    return scale, round(float(np.exp(random.uniform(low, high))), 3)
