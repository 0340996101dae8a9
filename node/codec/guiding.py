"""The encoder's side of the guide: it has the original, and measures how far the upscaler is to be followed.

``guided`` gives the guide and the pixels that come of it, so that the image that is judged is the image that will be
reconstructed. With the guide an upscaler's mean is never worse than the consistent base; texture is added where it
raises tile FSIM, within a budget of PSNR.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from node.codec.engine import Decoded, Draft, Pixels, corrected, corrections, draw, finish, settled, textured
from node.codec.guide import (
    AMPLITUDE_ONE,
    COARSE,
    CORRECTION_ONE,
    CORRECTIONS,
    FINE,
    LEVEL_TILE,
    NETWORK,
    TURN_TILE,
    TURNS,
    WEIGHT_TILE,
    Guide,
    Map,
    grid,
    measure_levels,
    share_map,
    tile_means,
)
from node.fidelity.fsim import TILE
from node.fidelity.gate import Reference, noisy_errors, square_scores, tile_scores
from node.fidelity.spectrum import closer_in_every_band, power_spectrum
from node.fidelity.survey import on_all_cores
from node.upscalers.protocol import Upscaled, Upscaler
from storage.payload import Base

Float = NDArray[np.float32]

PSNR_BUDGET_DB = 1.4
"""How much PSNR texture may cost, below the image without texture."""
Raise = tuple[int, int]
"""Steps of 1 / CORRECTION_ONE by which ``equalised`` raises the fine and the coarse band."""
RAISES: tuple[Raise, ...] = ((6, 6), (6, 10), (6, 16), (10, 16))
"""What is chosen from. How much suits an image is for its sample to say (forecast.py): where the best is passed, tile
FSIM falls again. More of the fine band would raise FSIM on films still, but the borders of JPEG XL's blocks with it;
more of the coarse one would give specks that lost nothing more contrast than they had."""
TYPICAL_RAISE = {1: RAISES[2], 2: RAISES[3], 4: RAISES[3]}
"""By scale: what is nearly the best for most images."""
_ROUNDS = 2
"""How often tiles that got worse are let go of before the whole image is."""
_RIDGE = 1e-3
"""Of the least squares, relative: corrections that are alike must not be set against each other."""
_TOLERATED = 1.01
"""A tile counts as worse above this; what single tiles lose below it, the image has gained elsewhere."""
_EXTRA = 3
"""Steps of strength that may be added for the noise spectrum."""
_WORTH_A_BAND = 0.005
"""Gain in tile FSIM for which a band of the noise spectrum may be farther from the original's."""
_RAISES_UNDER_TEXTURE: tuple[Raise, ...] = ((10, 16), (20, 28))
"""What texture is tried on, beside the base as it is."""
_AMPLITUDES = (2, 6)
"""Strengths tried on each tile, in units of 1 / AMPLITUDE_ONE; every one costs a measurement of the whole image."""


@dataclass(frozen=True)
class Raising:
    """By how much ``equalised`` raises the base's own fine detail, and where: bool, per tile of ``corrections``."""

    by: Raise
    inside: NDArray[np.bool_]


def guided(
    reference: Reference,
    base: Base,
    upscaler: Upscaler,
    *,
    seed: int,
    steps: int,
    detail: float,
    decoded: Decoded | None = None,
) -> tuple[Guide, Pixels]:
    """The guide for ``reference`` (the original) and the pixels it leads to. ``decoded``: the base, where at hand."""
    draft, levels = drafted(reference, base, upscaler, seed=seed, steps=steps, decoded=decoded)
    guide, pixels = followed(reference, draft, levels)
    if detail > 0 and draft.drawn.texture is not None:
        return _textured(reference, draft, guide, pixels, detail)
    return guide, pixels


def drafted(
    reference: Reference, base: Base, upscaler: Upscaler, *, seed: int, steps: int, decoded: Decoded | None = None
) -> tuple[Draft, Map]:
    """What the upscaler makes of the base with the levels of the original, its corrections at hand; and the levels."""
    truth = reference.pixels.astype(np.float32)
    decoded = decoded or Decoded.of(base)
    levels = measure_levels(truth - decoded.image, tiles_with_breast(reference))
    draft = draw(base, upscaler, seed=seed, steps=steps, levels=levels, decoded=decoded)
    # A lossless base is met exactly: the projection undoes what is not the network's.
    count = 1 if base.rung.distance == 0 else len(CORRECTIONS)
    return replace(draft, changes=tuple(corrections(draft, range(count)))), levels


def followed(reference: Reference, draft: Draft, levels: Map) -> tuple[Guide, Pixels]:
    """The guide with the corrections that leave the least squared error, never worse than the base, and its pixels."""
    truth = reference.pixels.astype(np.float32)
    unhelped = finish(draft, Guide.nothing(*truth.shape))
    return _never_worse(draft, truth, _followed(draft, truth, levels), unhelped)


def helped(
    reference: Reference,
    base: Base,
    upscaler: Upscaler,
    *,
    seed: int,
    raising: Raising,
    decoded: Decoded | None = None,
) -> Iterator[tuple[Guide, Pixels]]:
    """What the upscaler's mean makes of the base, guide and pixels: first with all corrections for the least error,
    then with the network's beside the equalisation, which is rougher and has the higher tile FSIM."""
    draft, levels = drafted(reference, base, upscaler, seed=seed, steps=upscaler.steps, decoded=decoded)
    guide, pixels = followed(reference, draft, levels)
    yield guide, pixels
    guide = equalised(base, raising, guide)
    yield guide, finish(draft, guide)


def equalised(base: Base, raising: Raising, network: Guide | None = None) -> Guide:
    """The guide that raises the base's own fine detail.

    Quantisation damps what is fine; raising what is left of it gives specks their contrast back, and raises tile FSIM.
    ``network``: a guide whose share of the network is kept beside it.
    """
    guide = network or Guide.nothing(base.rows, base.columns)
    corrections = np.zeros_like(guide.corrections)
    corrections[NETWORK] = guide.corrections[NETWORK]
    if base.rung.distance > 0:
        corrections[FINE], corrections[COARSE] = (by * raising.inside for by in raising.by)
    return replace(guide, corrections=corrections)


def raised(base: Base, decoded: Decoded, guide: Guide) -> Pixels:
    """The pixels that a guide without network and texture gives."""
    return finish(Draft(base, decoded.samples, decoded.image, Upscaled(decoded.image), consistent=True), guide)


def calmed(reference: Reference, raising: Raising, pixels: Pixels, limit: float) -> Raising:
    """``raising`` without the tiles in which ``pixels``, which came of it, err by more than ``limit`` times the noise:
    edges and markers, whose ringing it raises too. What is wrong there would be stored exactly."""
    inside = raising.inside.copy()
    errors = noisy_errors(reference, pixels)
    for number in np.flatnonzero(errors > limit):
        row, column = reference.tiles[number]
        inside[_weight_tile(row, inside.shape[0]), _weight_tile(column, inside.shape[1])] = False
    return replace(raising, inside=inside)


def weight_tiles_with_breast(reference: Reference) -> NDArray[np.bool_]:
    """Which tiles of ``corrections`` hold breast: bool, shape of the map."""
    inside = tiles_with_breast(reference)
    starts = [np.arange(0, size, WEIGHT_TILE // LEVEL_TILE) for size in inside.shape]
    return np.asarray(np.logical_or.reduceat(np.logical_or.reduceat(inside, starts[0], axis=0), starts[1], axis=1))


def tiles_with_breast(reference: Reference) -> NDArray[np.bool_]:
    """Which tiles of ``levels`` hold breast: bool, shape of the map."""
    rows, columns = reference.pixels.shape
    blocks = LEVEL_TILE // 16
    mask = reference.mask
    shape = grid(rows, columns, LEVEL_TILE)
    padded = np.zeros((shape[0] * blocks, shape[1] * blocks), dtype=bool)
    padded[: mask.shape[0], : mask.shape[1]] = mask[: padded.shape[0], : padded.shape[1]]
    return np.asarray(padded.reshape(shape[0], blocks, shape[1], blocks).any(axis=(1, 3)), dtype=bool)


def _never_worse(draft: Draft, truth: Float, guide: Guide, unhelped: Pixels) -> tuple[Guide, Pixels]:
    """``guide`` without the tiles that it makes worse than ``unhelped``, the consistent base; and the pixels it gives.

    Between tiles weights are interpolated, so a tile can suffer from its neighbour: both are then left alone.
    """
    from scipy.ndimage import binary_dilation

    before = tile_means(np.square(truth - unhelped), WEIGHT_TILE)
    pixels = finish(draft, guide)
    for _ in range(_ROUNDS):
        worse = tile_means(np.square(truth - pixels), WEIGHT_TILE) > _TOLERATED * before
        if not worse.any():
            break
        left = ~np.asarray(binary_dilation(worse, np.ones((3, 3), dtype=bool)))
        guide = replace(guide, corrections=guide.corrections * left)
        pixels = finish(draft, guide)
    if _error(truth, pixels) <= _error(truth, unhelped):
        return guide, pixels
    return replace(guide, corrections=np.zeros_like(guide.corrections)), unhelped


def _followed(draft: Draft, truth: Float, levels: Map) -> Guide:
    """Per tile the corrections that together leave the least squared error, rounded to their steps."""
    count = len(draft.changes)
    products = _products((*draft.changes, truth - draft.image))
    rows, columns = products.shape[:2]
    normal, wanted = products[..., :count, :count], products[..., :count, count]
    diagonal = np.einsum("...ii->...i", normal)
    diagonal += _RIDGE * diagonal + 1e-6
    best = np.linalg.solve(normal, wanted[..., None])[..., 0]
    corrections = np.zeros((len(CORRECTIONS), rows, columns), dtype=np.int8)
    limit = 2 * CORRECTION_ONE
    corrections[:count] = np.clip(np.rint(best * CORRECTION_ONE), -limit, limit).transpose(2, 0, 1)
    inside = tile_means(share_map(levels, *truth.shape), WEIGHT_TILE) > 0
    nothing = np.zeros((rows, columns), dtype=np.uint8)
    return Guide(draft.base.rows, draft.base.columns, levels, corrections * inside, nothing)


def _products(images: Sequence[Float]) -> NDArray[np.float64]:
    """Means over each tile of every image times every other: shape (tile rows, tile columns, images, images)."""
    height, width = images[0].shape
    rows, columns = grid(height, width, WEIGHT_TILE)
    products = np.zeros((rows, columns, len(images), len(images)))

    def one(tile: tuple[int, int]) -> None:
        top, left = (number * WEIGHT_TILE for number in tile)
        parts = [image[top : top + WEIGHT_TILE, left : left + WEIGHT_TILE].ravel() for image in images]
        stack = np.stack(parts).astype(np.float64)
        products[tile] = stack @ stack.T / stack.shape[1]

    on_all_cores(one, [(row, column) for row in range(rows) for column in range(columns)])
    return products


def _textured(reference: Reference, draft: Draft, guide: Guide, still: Pixels, detail: float) -> tuple[Guide, Pixels]:
    """``guide`` with texture: per tile the strength with the highest FSIM, on the corrected base, on the consistent
    one, or on one whose fine detail is raised.

    FSIM likes what is rough, so corrections are left out where that raises it. And the noise spectrum is to be closer
    to the original's than the consistent base's is, in every band: else all corrections go, then strength is added, at
    last only tiles that gain get texture. Where none of that helps there is no texture, unless tile FSIM gains much.
    FSIM never falls below the consistent base's, nor PSNR by more than allowed. At last each square gets the texture
    that suits it best.
    """
    allowed = sum(tile_scores(reference, still)[1]) * 10 ** (PSNR_BUDGET_DB / 10)
    bare = replace(guide, corrections=np.zeros_like(guide.corrections))
    plain = finish(draft, bare)
    scores, _ = tile_scores(reference, plain)
    least = _mean_and_p5(scores)
    truth, before = (power_spectrum(pixels, reference.mask) for pixels in (reference.pixels, plain))
    inside = weight_tiles_with_breast(reference)
    raised_bases = [equalised(draft.base, Raising(by, inside), guide) for by in _RAISES_UNDER_TEXTURE]
    bases = (bare, guide, *raised_bases)
    choice = _best_strengths(reference, draft, bases, detail, allowed)
    kept = _on_weight_tiles(reference, guide, choice.bases)
    mixed = replace(guide, corrections=np.choose(kept, [base.corrections for base in bases]))

    def closer(pixels: Pixels) -> bool:
        power = power_spectrum(pixels, reference.mask)
        return closer_in_every_band(power, before, truth, draft.base.rung.scale)

    def strengthened(guide: Guide, strengths: NDArray[np.float64]) -> Guide:
        return replace(guide, amplitude=_on_weight_tiles(reference, guide, np.minimum(strengths, 15)))

    helped = np.where(choice.scores > np.array(scores), choice.strengths, 0.0)
    candidates = (
        strengthened(mixed, choice.strengths),
        *(strengthened(bare, choice.strengths + more) for more in range(_EXTRA)),
        strengthened(bare, helped),
    )
    rougher: tuple[Guide, Pixels] | None = None
    for candidate in candidates:
        pixels = finish(draft, candidate)
        measured = tile_scores(reference, pixels)
        if not _acceptable(measured, allowed, least):
            continue
        if closer(pixels):
            turned = _turned(reference, draft, candidate)
            better = _acceptable(tile_scores(reference, turned[1]), allowed, _mean_and_p5(measured[0]))
            return turned if better and closer(turned[1]) else (candidate, pixels)
        if rougher is None and np.mean(measured[0]) >= least[0] + _WORTH_A_BAND:
            rougher = candidate, pixels
    return rougher or (bare, plain)


def _turned(reference: Reference, draft: Draft, guide: Guide) -> tuple[Guide, Pixels]:
    """``guide`` with that of ``TURNS`` in each square of 32 pixels with which FSIM is highest there, and the pixels.

    Squares of tiles that were moved inward are the nearest of the map.
    """
    shape, side = grid(guide.rows, guide.columns, TURN_TILE), TILE // TURN_TILE
    scores = np.zeros((len(TURNS), *shape), dtype=np.float32)
    still = corrected(draft, guide)
    for number in range(len(TURNS)):
        tried = textured(still.copy(), draft, replace(guide, turns=np.full(shape, number, dtype=np.uint8)))
        measured = square_scores(reference, settled(draft, tried), TURN_TILE)
        for (top, left), squares in zip(reference.tiles, measured, strict=True):
            row, column = min(top // TURN_TILE, shape[0] - side), min(left // TURN_TILE, shape[1] - side)
            scores[number, row : row + side, column : column + side] = squares
    turned = replace(guide, turns=scores.argmax(axis=0).astype(np.uint8))
    return turned, finish(draft, turned)


def _acceptable(measured: tuple[list[float], list[float]], allowed: float, least: NDArray[np.float64]) -> bool:
    """No more error than allowed, and neither figure of tile FSIM below the consistent base's."""
    scores, errors = measured
    return sum(errors) <= allowed and bool((_mean_and_p5(scores) >= least).all())


@dataclass(frozen=True)
class _Choice:
    """Per tile of the gate: which base, the strength of texture, and the FSIM it had when tried."""

    bases: NDArray[np.float64]
    strengths: NDArray[np.float64]
    scores: NDArray[np.float64]


def _best_strengths(
    reference: Reference, draft: Draft, bases: Sequence[Guide], detail: float, allowed: float
) -> _Choice:
    """The best of each tile, all weakened where PSNR is overdrawn."""
    tried = [(which, max(1, round(each * detail))) for which in range(len(bases)) for each in _AMPLITUDES]
    scores, errors = [], []
    texture = draft.drawn.texture
    assert texture is not None
    still = [corrected(draft, guide) for guide in bases]
    for which, strength in tried:
        score, error = tile_scores(
            reference, settled(draft, still[which] + np.float32(strength / AMPLITUDE_ONE) * texture)
        )
        scores.append(score)
        errors.append(error)
    best = np.argmax(scores, axis=0)
    chosen, strengths = np.array(tried, dtype=np.float64)[best].T
    quiet = allowed / 10 ** (PSNR_BUDGET_DB / 10)
    spent = float(np.array(errors)[best, np.arange(len(best))].sum()) - quiet
    if spent > allowed - quiet:  # the error of texture grows with the square of its strength
        strengths = strengths * np.sqrt((allowed - quiet) / spent)
    return _Choice(chosen, np.maximum(np.floor(strengths + 1e-6), 1), np.max(scores, axis=0))


def _on_weight_tiles(reference: Reference, guide: Guide, strengths: NDArray[np.float64]) -> Map:
    amplitude = np.zeros_like(guide.amplitude)
    for (row, column), strength in zip(reference.tiles, strengths, strict=True):
        amplitude[_weight_tile(row, amplitude.shape[0]), _weight_tile(column, amplitude.shape[1])] = int(strength)
    return amplitude


def _mean_and_p5(scores: list[float]) -> NDArray[np.float64]:
    return np.array([np.mean(scores), np.percentile(scores, 5)])


def _weight_tile(start: int, count: int) -> int:
    """The tile of the guide that a tile of the gate lies on; the gate's last ones are moved inward."""
    return min(-(-start // WEIGHT_TILE), count - 1)


def _error(truth: Float, pixels: Pixels) -> float:
    return float(np.square(truth - pixels, dtype=np.float64).sum())


assert TILE == WEIGHT_TILE, "amplitudes are chosen on the gate's own tiles"
assert AMPLITUDE_ONE == 10
