"""The encoder's side of the guide: it has the original, and measures how far the upscaler is to be followed.

``guided`` gives the guide and the pixels that come of it, so that the image that is judged is the image that will be
reconstructed. With the guide an upscaler's mean is never worse than the consistent base; texture is added where it
raises tile FSIM, within a budget of PSNR.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from node.fidelity.fsim import TILE
from node.fidelity.gate import Reference, tile_scores
from node.reconstruct.engine import Draft, Pixels, draw, finish
from node.reconstruct.guide import (
    ALPHA_ONE,
    AMPLITUDE_ONE,
    LEVEL_TILE,
    WEIGHT_TILE,
    Guide,
    Map,
    grid,
    measure_levels,
    tile_means,
)
from node.reconstruct.upscalers.protocol import Upscaler
from storage.payload import Base

Float = NDArray[np.float32]

PSNR_BUDGET_DB = 1.4
"""How much PSNR texture may cost, below the image without texture."""
_AMPLITUDES = (1, 2, 4, 6, 8)
"""Strengths tried on each tile, in units of 1 / AMPLITUDE_ONE: the least, so that the noise spectrum never stays as it
was, to as much as the budget allows anywhere."""


def guided(
    reference: Reference, base: Base, upscaler: Upscaler, *, seed: int, steps: int, detail: float
) -> tuple[Guide, Pixels]:
    """The guide for ``reference`` (the original) and the pixels it leads to."""
    truth = reference.pixels.astype(np.float32)
    image = base.operator.lift(base.samples())
    levels = measure_levels(truth - image, tiles_with_breast(reference))
    draft = draw(base, upscaler, seed=seed, steps=steps, levels=levels)
    guide = Guide.neutral(base.rows, base.columns, levels)
    guide = replace(guide, alpha=_alpha(draft, truth, guide), amplitude=np.zeros_like(guide.amplitude))
    pixels = finish(draft, guide)
    plain = replace(guide, alpha=np.zeros_like(guide.alpha))
    unhelped = finish(draft, plain)
    if _error(truth, pixels) > _error(truth, unhelped):
        guide, pixels = plain, unhelped
    if detail > 0 and draft.drawn.texture is not None:
        guide = replace(guide, amplitude=_amplitude(reference, draft, guide, pixels, detail))
        pixels = finish(draft, guide)
    return guide, pixels


def tiles_with_breast(reference: Reference) -> NDArray[np.bool_]:
    """Which tiles of ``levels`` hold breast: bool, shape of the map."""
    rows, columns = reference.pixels.shape
    blocks = LEVEL_TILE // 16
    mask = reference.mask
    shape = grid(rows, columns, LEVEL_TILE)
    padded = np.zeros((shape[0] * blocks, shape[1] * blocks), dtype=bool)
    padded[: mask.shape[0], : mask.shape[1]] = mask[: padded.shape[0], : padded.shape[1]]
    return np.asarray(padded.reshape(shape[0], blocks, shape[1], blocks).any(axis=(1, 3)), dtype=bool)


def _alpha(draft: Draft, truth: Float, guide: Guide) -> Map:
    """Per tile the share of the network's change that leaves the least squared error, in steps of 1/12."""
    change = draft.drawn.image - draft.image
    missing = truth - draft.image
    agreement = tile_means(change * missing, WEIGHT_TILE)
    energy = tile_means(np.square(change), WEIGHT_TILE)
    best = np.divide(agreement, energy, out=np.zeros_like(energy), where=energy > 0)
    return np.asarray(np.clip(np.rint(best * ALPHA_ONE), 0, 15), dtype=np.uint8)


@dataclass(frozen=True)
class _Trial:
    strength: int
    scores: NDArray[np.float64]
    errors: NDArray[np.float64]


def _amplitude(reference: Reference, draft: Draft, guide: Guide, still: Pixels, detail: float) -> Map:
    """Per tile the strength with the highest FSIM, weakened alike where the PSNR budget is overdrawn."""
    trials = [_tried(reference, draft, guide, 0, still)]
    for strength in _AMPLITUDES:
        scaled = max(1, round(strength * detail))
        if scaled > trials[-1].strength:
            trials.append(_tried(reference, draft, guide, scaled, None))
    scores = np.stack([trial.scores for trial in trials[1:]])
    best = scores.argmax(axis=0)
    strengths = np.array([trial.strength for trial in trials[1:]], dtype=np.float64)[best]
    quiet = trials[0].errors
    spent = np.stack([trial.errors for trial in trials[1:]])[best, np.arange(len(best))] - quiet
    allowed = (10 ** (PSNR_BUDGET_DB / 10) - 1) * quiet.sum()
    if spent.sum() > allowed:  # the error of texture grows with the square of its strength
        strengths *= np.sqrt(allowed / spent.sum())
    chosen = np.maximum(np.floor(strengths + 1e-6), 1).astype(np.uint8)
    amplitude = np.zeros_like(guide.amplitude)
    for (row, column), strength in zip(reference.tiles, chosen, strict=True):
        amplitude[_weight_tile(row, amplitude.shape[0]), _weight_tile(column, amplitude.shape[1])] = strength
    return amplitude


def _tried(reference: Reference, draft: Draft, guide: Guide, strength: int, pixels: Pixels | None) -> _Trial:
    if pixels is None:
        pixels = finish(draft, replace(guide, amplitude=np.full_like(guide.amplitude, strength)))
    scores, errors = tile_scores(reference, pixels)
    return _Trial(strength, np.array(scores), np.array(errors))


def _weight_tile(start: int, count: int) -> int:
    """The tile of the guide that a tile of the gate lies on; the gate's last ones are moved inward."""
    return min(-(-start // WEIGHT_TILE), count - 1)


def _error(truth: Float, pixels: Pixels) -> float:
    return float(np.square(truth - pixels, dtype=np.float64).sum())


assert TILE == WEIGHT_TILE, "amplitudes are chosen on the gate's own tiles"
assert AMPLITUDE_ONE == 10
