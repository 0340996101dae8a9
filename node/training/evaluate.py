"""Evaluates ``mammo`` on whole images by the bytes that it saves at the same fidelity of lines.

Each image is coded at a series of quantiser distances. At each distance the structures of ``bicubic`` and ``mammo`` are
measured as the gate measures them (node/fidelity/lines.py). The bytes at which a structure just meets LIMITS are
interpolated between distances: the size of the base that would be needed with and without the network.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from node.codec.encode.noise_fitting import measure_deviation
from node.fidelity.bands import band_energies, totals
from node.fidelity.lines import LineNoise
from node.fidelity.windows import display_window
from node.training.image_files import Picture
from node.training.training_patches import code
from node.upscalers.mammo import Mammo
from node.upscalers.protocol import UpscaleTask
from storage.formats.geometry import CELL, cell_pixels
from storage.records import Thresholds

Float = NDArray[np.float32]
Mask = NDArray[np.bool_]

LIMITS = Thresholds().lines
"""Limits of the line response at the three widths, in units of local noise: those of the profile ``balanced``."""
SHARE = 0.999
"""Quantile of the line responses that is compared with the limits."""
DISTANCES = {1: (0.7, 1.0, 1.5, 2.2, 3.2), 2: (0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0), 4: (0.2, 0.35, 0.6, 1.0)}
"""JPEG XL distances per scale, finest first. A series ends once both structures exceed the limits."""


def evaluate(
    pictures: Sequence[Picture], folder: Path, *, scales: Sequence[int] = (2,), device: str = "auto"
) -> Iterator[dict[str, Any]]:
    """One result per picture and scale, as printed by ``latent-pacs model evaluate --json``.

    ``base_bytes`` and ``model_bytes``: bytes at the limits, or None if the series does not bracket them. In each of
    ``points``, ``base_`` and ``model_`` stand for the two structures: ``base_lines``: quantile per width, in units of
    local noise; ``base_lost``: RMS error per octave band over the original's RMS. ``model_inconsistency``: RMS of
    D(structure) minus the base, over the RMS coding error of the base. ``seconds``: duration of the network.
    """
    mammo = Mammo(folder, device=device)
    for picture in pictures:
        image, inside = _cropped_to_breast(picture)
        noise = LineNoise.of(image, inside, display_window(picture.header, picture.pixels, picture.mask).width)
        for scale in scales:
            points = list(_series(image, inside, noise, picture.bits, scale, mammo))
            yield {
                "image": picture.name,
                "film": picture.film,
                "scale": scale,
                "base_bytes": bytes_at_limits([(excess["base"], figures["bytes"]) for excess, figures in points]),
                "model_bytes": bytes_at_limits([(excess["model"], figures["bytes"]) for excess, figures in points]),
                "points": [figures for _, figures in points],
            }


def bytes_at_limits(series: Sequence[tuple[float, int]]) -> int | None:
    """Bytes at an excess of 1, interpolated log-log in a series of (excess, bytes); None outside the series."""
    points = sorted((float(np.log(excess)), float(np.log(size))) for excess, size in series)
    excesses, sizes = np.array(points).T if points else (np.zeros(0), np.zeros(0))
    if not points or excesses[0] > 0 or excesses[-1] < 0:
        return None
    return round(float(np.exp(np.interp(0.0, excesses, sizes))))


def summary(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per scale, geometric mean and maximum of ``model_bytes`` over ``base_bytes``, for the images that have both."""
    rows = []
    for scale in sorted({result["scale"] for result in results}):
        both = [r for r in results if r["scale"] == scale and r["base_bytes"] and r["model_bytes"]]
        if both:
            ratios = [r["model_bytes"] / r["base_bytes"] for r in both]
            rows.append(
                {
                    "scale": scale,
                    "images": len(both),
                    "bytes_ratio": round(float(np.exp(np.mean(np.log(ratios)))), 4),
                    "worst_bytes_ratio": round(max(ratios), 4),
                }
            )
    return rows


def _cropped_to_breast(picture: Picture) -> tuple[Float, Mask]:
    """Grey levels in the breast's bounding box, and the breast mask per pixel."""
    mask = picture.mask
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = np.s_[rows[0] * CELL : (rows[-1] + 1) * CELL, columns[0] * CELL : (columns[-1] + 1) * CELL]
    image = picture.pixels[box].astype(np.float32)
    inside = cell_pixels(mask, *picture.pixels.shape)[box]
    return image, inside


def _series(
    image: Float, inside: Mask, noise: LineNoise, bits: int, scale: int, mammo: Mammo
) -> Iterator[tuple[dict[str, float], dict[str, Any]]]:
    """Per distance, the largest ratio of a line figure to its limit for each structure, and the figures as printed."""
    energies = totals(band_energies(image, inside))
    for distance in DISTANCES[scale]:
        base = code(image, scale, distance, bits)
        samples = base.samples()
        upsampled = base.operator.lift(samples)
        deviation = measure_deviation(image, upsampled, inside, inside).deviation(upsampled) * inside
        task = UpscaleTask(samples, base.operator, upsampled, base.point, base.quantisation_rms, deviation)
        began = time.monotonic()
        improved = mammo.structure(task)
        seconds = time.monotonic() - began
        excess: dict[str, float] = {}
        figures: dict[str, Any] = {"distance": distance, "bytes": len(base.coded)}
        for name, structure in (("base", upsampled), ("model", improved)):
            error = structure - image
            lines = noise.look(error).percentile(SHARE)
            lost = np.sqrt(totals(band_energies(error, inside)) / np.maximum(energies, 1e-12))
            excess[name] = max(found / limit for found, limit in zip(lines, LIMITS, strict=True))
            figures[f"{name}_lines"] = [round(value, 2) for value in lines]
            figures[f"{name}_lost"] = [round(value, 3) for value in lost.tolist()]
        difference = base.operator.down(improved) - samples
        inconsistency = float(np.sqrt(np.mean(np.square(difference)))) / max(base.quantisation_rms, 1e-9)
        figures |= {"model_inconsistency": round(inconsistency, 3), "seconds": round(seconds, 2)}
        yield excess, figures
        if min(excess.values()) > 1:
            return
