"""Plates: pieces of mammograms, varied as detectors vary, sent through the real codec, ready to learn from.

A plate is a pure function of the pictures, the seed and its number, so that an interrupted training goes on with
exactly the plates it would have had.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from node.codec.guide import LEVEL_TILE, measure_levels
from node.training.pictures import Picture
from node.upscalers.conditioning import scene
from node.upscalers.network import STRIDE, UNSHUFFLE, to_latent
from storage import coders
from storage.coarseness import PER_OCTAVE, Coarseness
from storage.coarseness import TILE as COARSENESS_TILE
from storage.records import Rung
from storage.resample import Operator

Float = NDArray[np.float32]

_ROWS, _COLUMNS = 1024, 768
BITS = 12
_TOP = float((1 << BITS) - 1)
_BLOCK = 16
_LOUDEST = 6.0
_FILM = 0.4
_SCALES = ((1, 0.12), (2, 0.53), (4, 0.35))
_DISTANCES = {
    "jpegxl": {1: (0.5, 4.0), 2: (0.07, 2.0), 4: (0.07, 1.5)},
    "avif": {1: (0.25, 4.0), 2: (0.15, 1.6), 4: (0.15, 1.2)},
}
_AVIF = 0.35
_BALANCED = 0.3


@dataclass(frozen=True)
class Plate:
    """``seen``: float16 (17, h, w). ``wanted``: float16 (16, h, w), the latent of the residual in units of its
    standard deviation. ``share``: float16 (h, w). ``rung``: float32 (3,).
    """

    seen: Tensor
    wanted: Tensor
    share: Tensor
    rung: Tensor


def make_plate(pictures: Sequence[Picture], seed: int, number: int) -> Plate:
    """Plate ``number``."""
    random = np.random.default_rng((seed, 1, number))
    weights = np.array([picture.pixels.size**0.5 * (_FILM if picture.film else 1.0) for picture in pictures])
    picture = pictures[int(random.choice(len(pictures), p=weights / weights.sum()))]
    pixels, inside = _cut(picture, random)
    pixels, inside = _turned(_varied(pixels, random), inside, random)
    told, rung = float(random.uniform(0.6, 1.0)), _rung(random)
    coarseness = _coarseness(pixels.shape, random) if rung.distance and random.random() < _BALANCED else None
    return degrade(np.rint(pixels).astype(np.uint16), inside, rung, told, coarseness)


def degrade(
    pixels: NDArray[np.uint16], inside: NDArray[np.bool_], rung: Rung, told: float, coarseness: Coarseness | None = None
) -> Plate:
    """A plate from 12-bit pixels. ``inside``: bool per 64-pixel tile. The network is told ``told`` times the
    quantisation it meets: a base's recorded figure is an average over breast and air."""
    _, _, image, rms = code(pixels, rung, coarseness)
    residual = pixels - image
    levels = measure_levels(residual, inside)
    seen = scene(image, levels, rms * told, rung, coarseness)
    wanted = np.clip(residual / seen.unit, -_LOUDEST, _LOUDEST)
    return Plate(
        seen=seen.seen.half(),
        wanted=to_latent(torch.from_numpy(wanted)[None, None])[0].half(),
        share=torch.from_numpy(np.ascontiguousarray(seen.share[::UNSHUFFLE, ::UNSHUFFLE])).half(),
        rung=seen.rung,
    )


def code(
    pixels: NDArray[np.uint16], rung: Rung, coarseness: Coarseness | None = None
) -> tuple[Float, Float, Float, float]:
    """The decoded base of 12-bit pixels, its plain and its consistent bicubic, and its quantisation RMS."""
    operator = Operator(pixels.shape[0], pixels.shape[1], rung.scale)
    ideal = operator.down(pixels)
    scaling = np.float32(1) if coarseness is None else coarseness.scaling(rung.scale)
    samples = np.clip(np.rint(ideal * scaling), 0, _TOP).astype(np.uint16)
    decoded = coders.decode(coders.encode(samples, rung), rung, samples.shape).astype(np.float32) / scaling
    rms = float(np.sqrt(np.mean(np.square(decoded - ideal))))
    return decoded, operator.up(decoded), operator.lift(decoded), rms


def piece_of(picture: Picture, random: np.random.Generator) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
    """A piece of a picture as it is: 12-bit pixels, and which of its 64-pixel tiles hold breast."""
    pixels, inside = _cut(picture, random)
    return np.rint(np.clip(pixels, 0, _TOP)).astype(np.uint16), inside


def crops(plates: Sequence[Plate], size: int, count: int, random: np.random.Generator) -> tuple[Tensor, ...]:
    """``count`` crops of ``size`` pixels: seen, wanted, share (n, 1, h, w) and rung, float32."""
    cells, step = size // UNSHUFFLE, STRIDE // UNSHUFFLE
    parts: list[tuple[Tensor, ...]] = []
    for _ in range(count):
        plate = plates[int(random.integers(len(plates)))]
        rows, columns = plate.share.shape
        for _ in range(8):
            top = int(random.integers((rows - cells) // step + 1)) * step
            left = int(random.integers((columns - cells) // step + 1)) * step
            here = (..., slice(top, top + cells), slice(left, left + cells))
            if float(plate.share[here].float().mean()) > 0.5:
                break
        parts.append((plate.seen[here], plate.wanted[here], plate.share[here][None], plate.rung))
    return tuple(torch.stack(group).float() for group in zip(*parts, strict=True))


def _cut(picture: Picture, random: np.random.Generator) -> tuple[Float, NDArray[np.bool_]]:
    """A piece around a random place of the breast, in 12-bit grey levels, and which of its tiles hold breast."""
    pixels = picture.pixels
    mask: NDArray[np.bool_] = picture.mask
    scaled = pixels.astype(np.float32) * np.float32(2.0 ** (BITS - picture.bits))
    if min(pixels.shape) >= 2 * _ROWS and random.random() < 0.3:  # halved: finer detail, less noise
        rows, columns = (size // 2 * 2 for size in pixels.shape)
        scaled = scaled[:rows, :columns].reshape(rows // 2, 2, columns // 2, 2).mean(axis=(1, 3))
        quads = mask[: rows // 32 * 2, : columns // 32 * 2].reshape(rows // 32, 2, columns // 32, 2)
        mask = np.asarray(quads.any(axis=(1, 3)), dtype=bool)
        mask = mask if mask.any() else np.ones_like(mask)
    row, column = random.permutation(np.argwhere(mask))[0] * _BLOCK
    top = int(np.clip(row - _ROWS // 2, 0, max(scaled.shape[0] - _ROWS, 0))) // LEVEL_TILE * LEVEL_TILE
    left = int(np.clip(column - _COLUMNS // 2, 0, max(scaled.shape[1] - _COLUMNS, 0))) // LEVEL_TILE * LEVEL_TILE
    piece = scaled[top : top + _ROWS, left : left + _COLUMNS]
    piece = piece[: piece.shape[0] // LEVEL_TILE * LEVEL_TILE, : piece.shape[1] // LEVEL_TILE * LEVEL_TILE]
    blocks = LEVEL_TILE // _BLOCK
    part = mask[top // _BLOCK :, left // _BLOCK :][: piece.shape[0] // _BLOCK, : piece.shape[1] // _BLOCK]
    grown = np.zeros((piece.shape[0] // _BLOCK, piece.shape[1] // _BLOCK), dtype=bool)
    grown[: part.shape[0], : part.shape[1]] = part
    tiles = grown.reshape(grown.shape[0] // blocks, blocks, grown.shape[1] // blocks, blocks).any(axis=(1, 3))
    return np.ascontiguousarray(piece), np.asarray(tiles, dtype=bool)


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


def _rung(random: np.random.Generator) -> Rung:
    scales, chances = zip(*_SCALES, strict=True)
    scale = int(random.choice(scales, p=chances))
    coder = "avif" if random.random() < _AVIF else "jpegxl"
    low, high = np.log(_DISTANCES[coder][scale])
    lossless = coder == "jpegxl" and scale > 1 and random.random() < 0.09
    distance = 0.0 if lossless else round(float(np.exp(random.uniform(low, high))), 3)
    return Rung(scale=scale, coder=coder, distance=distance, effort=7, sample_bits=BITS)


def _coarseness(shape: tuple[int, ...], random: np.random.Generator) -> Coarseness:
    """A map such as the encoder makes (balancing.py): up to an octave and a half, mostly coarser than the rung."""
    rows, columns = shape
    grid = (-(-rows // COARSENESS_TILE), -(-columns // COARSENESS_TILE))
    steps = PER_OCTAVE * np.clip(random.normal(random.uniform(-0.2, 0.7), random.uniform(0, 0.6), grid), -1.5, 1.5)
    return Coarseness(rows, columns, np.rint(steps).astype(np.int8))
