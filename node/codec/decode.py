"""The engine: an original to a base, and a base to the pixels that leave.

``make_base`` downsamples and codes; ``reconstruct`` decodes, upscales (``draw``), weighs what the upscaler drew by the
guide, projects onto the base, rounds, clips, restores padding (``finish``), adds points and pastes exact patches. All
are pure functions of their arguments: same base, same guide, same upscaler, same numerics give the same pixels,
whatever ran before or beside them. The encoder's side of the guide is guiding.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from node.codec.blurring import blurred
from node.codec.guide import (
    AMPLITUDE_ONE,
    CORRECTION_ONE,
    FINE,
    NETWORK,
    PLAIN,
    WEIGHT_TILE,
    Guide,
    Map,
    spread,
    turn_maps,
)
from node.codec.patches import Patches, pasted
from node.codec.points import Points
from node.codec.source import Original
from node.upscalers.protocol import Upscaled, Upscaler, UpscaleTask
from storage import coders
from storage.coarseness import Coarseness
from storage.errors import PayloadError
from storage.padding import pack_mask
from storage.payload import Base, Window
from storage.records import Rung
from storage.resample import Operator

Pixels = NDArray[np.uint16]
Mask = NDArray[np.bool_]
Float = NDArray[np.float32]

_WITHIN = 0.9
"""Share of the quantisation RMS that a reconstruction may use up before it is rounded."""


def make_base(original: Original, rung: Rung, coarseness: Coarseness | None = None) -> Base:
    """Downsample and code one original as ``rung`` says, and more coarsely where ``coarseness`` does."""
    return _coded(original, rung, coarseness)[0]


def make_decoded(original: Original, rung: Rung, coarseness: Coarseness | None = None) -> tuple[Base, Decoded]:
    """As ``make_base``, and what the base decodes to."""
    base, samples = _coded(original, rung, coarseness)
    return base, Decoded(samples, base.operator.lift(samples))


def _coded(original: Original, rung: Rung, coarseness: Coarseness | None) -> tuple[Base, Float]:
    """A base and its decoded samples."""
    low, high = original.extremes
    operator = Operator(original.pixels.shape[0], original.pixels.shape[1], rung.scale)
    exponent = rung.sample_bits - original.bits_stored if rung.sample_bits else 0
    factor = np.float32(2.0**exponent)
    ideal = original.lowered(rung.scale)
    top = float(coders.top_sample(rung.coder))
    window = original.window(rung.scale) if rung.distance else None
    part = (window or Window.whole(*ideal.shape)).part
    scaled = np.clip(ideal[part] * factor, 0, min(((1 << original.bits_stored) - 1) * float(factor), top))
    if coarseness is not None:
        scaled *= coarseness.scaling(rung.scale)[part]
    coded = coders.encode(np.clip(np.rint(scaled), 0, top).astype(np.uint16), rung)
    base = Base(
        rung=rung,
        rows=operator.rows,
        columns=operator.columns,
        bits_stored=original.bits_stored,
        minimum=low,
        maximum=high,
        padding=original.padding,
        padding_value=original.padding_value,
        exponent=exponent,
        quantisation_rms=0.0,
        original_digest=original.digest,
        pixel_digest=original.pixel_digest,
        pixel_vr=original.pixel_vr,
        header=original.header_bytes,
        coded=coded,
        padding_mask=_packed_padding(original),
        coarseness=coarseness,
        window=window,
    )
    samples = base.samples()
    off = np.square(samples - ideal, dtype=np.float64)
    return replace(base, quantisation_rms=float(np.sqrt(np.mean(off)))), samples


def _packed_padding(original: Original) -> bytes:
    """The mask alone where padding has one value, with the values where it has several."""
    if original.padding_pixels is None or original.several_padding_values:
        return original.padding_bytes
    return pack_mask(original.padding_pixels)


def reconstruct(
    base: Base,
    upscaler: Upscaler,
    *,
    seed: int,
    steps: int,
    guide: Guide | None = None,
    points: Points | None = None,
    patches: Patches | None = None,
) -> Pixels:
    """The full-matrix pixels of a base: uint16, shape (base.rows, base.columns), bits above Bits Stored clear.

    Raises PayloadError where guide, points or patches belong to an image of another size.
    """
    if guide is not None and (guide.rows, guide.columns) != (base.rows, base.columns):
        raise PayloadError(f"guide is for {guide.rows} x {guide.columns}, the base for {base.rows} x {base.columns}")
    levels = None if guide is None else guide.levels
    pixels = finish(draw(base, upscaler, seed=seed, steps=steps, levels=levels), guide)
    if points is not None:
        pixels = spotted(pixels, base, points)
    return pixels if patches is None else pasted(pixels, patches)


def spotted(pixels: Pixels, base: Base, points: Points) -> Pixels:
    """``pixels`` with points added: rounded and clipped anew, padding left as it is."""
    if (points.rows, points.columns) != (base.rows, base.columns):
        raise PayloadError(f"points are of {points.rows} x {points.columns} pixels, the base of another size")
    return _rounded(pixels.astype(np.float32) + points.field(), base)


@dataclass(frozen=True)
class Decoded:
    """A base decoded and lifted, for whoever draws from it more than once.

    ``samples``: float32, low resolution. ``image``: the consistent base, float32, full size. Both in grey levels.
    """

    samples: Float
    image: Float

    @classmethod
    def of(cls, base: Base) -> Decoded:
        samples = base.samples()
        return cls(samples, base.operator.lift(samples))

    def pixels(self, base: Base) -> Pixels:
        """The consistent base itself as pixels: what a guide that follows nothing gives."""
        return _rounded(self.image.copy(), base)


@dataclass(frozen=True)
class Draft:
    """What an upscaler made of a base, before anything is weighed. ``samples``: the decoded base, float32.

    ``image``: the consistent base at full size, float32; for a draft without a guide, what the upscaler drew.
    ``changes``: the corrections, where the encoder has worked them out to weigh them more than once.
    """

    base: Base
    samples: Float
    image: Float
    drawn: Upscaled
    consistent: bool
    changes: tuple[Float, ...] = ()


def draw(
    base: Base,
    upscaler: Upscaler,
    *,
    seed: int,
    steps: int,
    levels: Map | None = None,
    decoded: Decoded | None = None,
) -> Draft:
    """Upscale. ``levels``: the guide's, for upscalers that take one; ``decoded``: of this base, where at hand."""
    if decoded is None and levels is not None:
        decoded = Decoded.of(base)
    samples = base.samples() if decoded is None else decoded.samples
    task = UpscaleTask(
        samples,
        base.operator,
        base.minimum,
        base.maximum,
        seed,
        steps,
        base.rung,
        base.quantisation_rms,
        levels,
        None if decoded is None else decoded.image,
        base.coarseness,
    )
    drawn = upscaler.upscale(task)
    image = drawn.image if decoded is None or levels is None else decoded.image
    return Draft(base, samples, image, drawn, upscaler.consistent)


def finish(draft: Draft, guide: Guide | None = None) -> Pixels:
    """Weigh a draft by the guide (without one, take the upscaler's image as it is), project, round, clip, pad."""
    base = draft.base
    if guide is None:
        image = draft.image
        if not draft.consistent:
            image = base.operator.project(image, draft.samples)
        return _rounded(image, base)
    if not guide.corrections.any() and not guide.amplitude.any():
        return _rounded(draft.image.copy(), base)
    return settled(draft, weighed(draft, guide))


def settled(draft: Draft, image: Float) -> Pixels:
    """A weighed image made as consistent as its base deserves, and into pixels; ``image`` may be written to.

    Corrections and texture that were weighed tile by tile are not in the null space of D any more.
    """
    return _rounded(_projected(image, draft.base, draft.samples), draft.base)


def weighed(draft: Draft, guide: Guide) -> Float:
    """The consistent base plus its weighed corrections plus amplitude times texture: float32, full size."""
    return textured(corrected(draft, guide), draft, guide)


def corrected(draft: Draft, guide: Guide) -> Float:
    """The consistent base plus its weighed corrections: float32, full size."""
    rows, columns = draft.image.shape
    image = draft.image.copy()
    wanted = [number for number, weights in enumerate(guide.corrections) if weights.any()]
    for number, change in zip(wanted, corrections(draft, wanted), strict=True):
        weights = guide.corrections[number].astype(np.float32) / CORRECTION_ONE
        _add(image, change, spread(weights, WEIGHT_TILE, rows, columns))
    return image


def textured(image: Float, draft: Draft, guide: Guide) -> Float:
    """``image``, which is written to, plus the guide's amplitude times texture."""
    rows, columns = image.shape
    if draft.drawn.texture is not None and guide.amplitude.any():
        strength = spread(guide.amplitude.astype(np.float32) / AMPLITUDE_ONE, WEIGHT_TILE, rows, columns)
        _add(image, _turned(draft.drawn.texture, guide.turns), strength)
    return image


def _turned(texture: Float, turns: Map | None) -> Float:
    """Texture moved and multiplied square by square, which fade into each other; beyond its border it begins anew."""
    if turns is None:
        return texture
    result = np.zeros_like(texture)
    for shift, factors in turn_maps(turns, *texture.shape):
        _add(result, np.roll(texture, shift, axis=(0, 1)), blurred(factors))
    return result


def _add(image: Float, change: Float, strength: Float) -> None:
    """``image += change * strength``, ``strength`` being used up; with both cores."""
    import torch

    torch.from_numpy(image).add_(torch.from_numpy(strength).mul_(torch.from_numpy(change)))


def _less(one: Float, other: Float) -> Float:
    """``one - other``, with both cores."""
    import torch

    return np.asarray(torch.from_numpy(one).sub(torch.from_numpy(other)).numpy())


def corrections(draft: Draft, numbers: Iterable[int]) -> Iterator[Float]:
    """Some of ``guide.CORRECTIONS`` of a draft, one at a time: float32, full size, in grey levels."""
    once: Float | None = None
    for number in numbers:
        if draft.changes:
            yield draft.changes[number]
        elif number == NETWORK:
            yield _less(draft.drawn.image, draft.image)
        elif number == PLAIN:
            yield _less(draft.base.operator.up(draft.samples), draft.image)
        else:
            once = blurred(draft.image) if once is None else once
            yield _less(draft.image, once) if number == FINE else _less(once, blurred(blurred(once)))


def _projected(image: Float, base: Base, samples: Float) -> Float:
    """``image`` moved so that D of it is as near to a lossy base as the base is to the truth, and no nearer.

    A lossy base is wrong by its recorded quantisation RMS; within that a reconstruction may know better. A lossless
    one is met exactly.
    """
    residual = samples - base.operator.down(image)
    rms = float(np.sqrt(np.mean(np.square(residual, dtype=np.float64))))
    lossless = base.rung.distance == 0
    damping = 1.0 if lossless else max(0.0, 1.0 - _WITHIN * base.quantisation_rms / max(rms, 1e-9))
    if damping == 0.0:
        return image
    lifted = base.operator.lift(residual)
    lifted *= np.float32(damping)
    lifted += image
    return lifted


@dataclass(frozen=True)
class Consistency:
    """How far D of a reconstruction is from its base, in grey levels, where nothing was clipped or padded."""

    maximum: float
    rms: float


def consistency(pixels: Pixels, base: Base) -> Consistency:
    """DESIGN decision 4, measured: clipped and padded pixels and what their operator support touches left out."""
    fixed = (pixels <= base.minimum) | (pixels >= base.maximum)
    if base.padding is not None:
        fixed |= (pixels >= base.padding[0] - 1) & (pixels <= base.padding[1] + 1)
    touched = np.abs(base.operator.down(fixed)) > 1e-5
    difference = (base.operator.down(pixels) - base.samples())[~touched]
    if difference.size == 0:
        return Consistency(0.0, 0.0)
    return Consistency(float(np.abs(difference).max()), float(np.sqrt(np.mean(np.square(difference)))))


def _rounded(image: Float, base: Base) -> Pixels:
    import torch

    # torch rounds half to even as numpy does, with both cores and without float64 temporaries
    values = torch.from_numpy(image).round_().clamp_(base.minimum, base.maximum)
    pixels: Pixels = values.to(torch.int32).to(torch.uint16).numpy()
    if base.padding is None:
        return pixels
    return _restore_padding(pixels, base)


def _restore_padding(pixels: Pixels, base: Base) -> Pixels:
    """Padding where the original had it, with the original's values, and nowhere else (PS3.3 C.7.5.1.1.2)."""
    assert base.padding is not None
    low, high = base.padding
    top = (1 << base.bits_stored) - 1
    content = base.padding_content()
    accidental = (pixels >= low) & (pixels <= high)
    if accidental.any():
        pixels[accidental] = high + 1 if high < top else max(low - 1, 0)
    if content is not None:
        mask, values = content
        pixels[mask] = values
    return pixels
