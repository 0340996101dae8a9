"""An original down the ladder: code, reconstruct, measure against the original; the first rung that passes is taken."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from node.reconstruct.upscalers.catalogue import Catalogue
from storage.dicomfile import opened
from storage.payload import Base, Rendition, derived_uid, encode_base, encode_rendition, seed_of
from storage.pixels import integer_pixels, pixel_digest
from storage.records import Rung, RungOutcome, Verdict

if TYPE_CHECKING:
    from node.fidelity.gate import Reference, Thresholds
    from node.reconstruct.upscalers.protocol import Upscaler

Pixels = NDArray[np.uint16]

_REACH = 0.02


@dataclass(frozen=True)
class EncodeRequest:
    """Encode an original down the ladder, verifying each rung. Without thresholds the first rung is measured."""

    original: Path
    original_digest: str
    original_uid: str
    ladder: tuple[Rung, ...]
    fsim_mean: float
    fsim_p5: float
    psnr_db: float
    gated: bool


@dataclass(frozen=True)
class EncodeResult:
    """What each rung came to, and, where one was taken, its rendition and both as object bytes."""

    tried: tuple[RungOutcome, ...]
    made: Rendition | None = None
    base: bytes = b""
    rendition: bytes = b""


def encode_and_verify(request: EncodeRequest, catalogue: Catalogue) -> EncodeResult:
    """Take the first rung whose reconstruction passes the gate against this very original.

    Raises NotReconstructable or PixelError where the pixels rule it out.
    """
    from node.fidelity.gate import Reference, Thresholds
    from node.reconstruct.engine import Original, make_base

    pixels = integer_pixels(request.original)
    with opened(request.original) as file:
        header_bytes, pixel_vr = file.header_bytes(), file.layout.pixel_vr
    header = header_bytes.dataset()
    original = Original.of(pixels, header, header_bytes, request.original_digest, pixel_vr)
    reference = Reference(pixels, header, original.padding_pixels)
    thresholds = Thresholds(request.fsim_mean, request.fsim_p5, request.psnr_db) if request.gated else None
    upscaler = catalogue.configured()
    tried: list[RungOutcome] = []
    for rung in request.ladder:
        began = time.monotonic()
        base = make_base(original, rung)
        data = encode_base(base)
        digest = _sha256(data)
        seed = seed_of(digest)
        guide, output, verdict = _attempt(reference, base, upscaler, seed, thresholds)
        tried.append(RungOutcome(str(rung), len(data), verdict, time.monotonic() - began))
        if verdict.gated and not verdict.passed:
            continue
        name, weights = upscaler.name, upscaler.weights_digest
        rendition = Rendition(
            base_digest=digest,
            original_uid=request.original_uid,
            derived_uid=derived_uid(request.original_uid, digest, name, weights, upscaler.steps, seed, _extra(guide)),
            upscaler=name,
            method=upscaler.method,
            generative=upscaler.generative,
            weights_digest=weights,
            numerics=upscaler.numerics,
            steps=upscaler.steps,
            seed=seed,
            output_digest=pixel_digest(output),
            verdict=verdict,
            tried=tuple(tried),
            guide=guide,
            extra=_extremes(output, original.padding_pixels),
        )
        return EncodeResult(tuple(tried), rendition, data, encode_rendition(rendition))
    return EncodeResult(tried=tuple(tried))


def _attempt(
    reference: Reference, base: Base, upscaler: Upscaler, seed: int, thresholds: Thresholds | None
) -> tuple[bytes, Pixels, Verdict]:
    """The guide's bytes (empty for an upscaler that takes none), the pixels, and what the gate says of them.

    A posterior mean is measured after the consistent base itself. Where that is so far below the gate that no mean
    makes up for it, the network is not asked; where it passes and the mean does not (tile FSIM likes what is rough),
    it is what will be served: a guide that follows the network nowhere.
    """
    from node.reconstruct.engine import reconstruct
    from node.reconstruct.guide import Guide, encode_guide
    from node.reconstruct.guiding import guided

    if not upscaler.guided:
        output = reconstruct(base, upscaler, seed=seed, steps=upscaler.steps)
        return b"", output, _verdict(reference, base, output, thresholds)
    plain: tuple[bytes, Pixels, Verdict] | None = None
    if thresholds is not None and upscaler.detail == 0:
        alone = Guide.nothing(base.rows, base.columns)
        output = reconstruct(base, upscaler, seed=seed, steps=upscaler.steps, guide=alone)
        plain = (encode_guide(alone), output, _verdict(reference, base, output, thresholds))
        if _out_of_reach(plain[2], thresholds):
            return plain
    guide, output = guided(reference, base, upscaler, seed=seed, steps=upscaler.steps, detail=upscaler.detail)
    verdict = _verdict(reference, base, output, thresholds)
    if plain is not None and plain[2].passed and not verdict.passed:
        return plain
    return encode_guide(guide), output, verdict


def _out_of_reach(verdict: Verdict, thresholds: Thresholds) -> bool:
    """A posterior mean moves tile FSIM by less than 0.01 and PSNR by tenths of a decibel; texture could do more."""
    return (
        verdict.fsim_mean < thresholds.fsim_mean - _REACH
        or verdict.fsim_p5 < thresholds.fsim_p5 - 2 * _REACH
        or verdict.psnr_db < thresholds.psnr_db - 50 * _REACH
    )


def _verdict(reference: Reference, base: Base, output: Pixels, thresholds: Thresholds | None) -> Verdict:
    """What the gate says, and how consistent the output is with its base."""
    from node.fidelity.gate import measure
    from node.reconstruct.engine import consistency

    verdict = measure(reference, output, thresholds)
    away = consistency(output, base)
    figures = {
        **verdict.figures,
        "consistency_max": away.maximum,
        "consistency_rms": away.rms,
        "quantisation_rms": base.quantisation_rms,
    }
    return replace(verdict, figures=figures)


def _extra(guide: bytes) -> str:
    return _sha256(guide) if guide else ""


def _extremes(pixels: Pixels, padding: NDArray[np.bool_] | None) -> dict[str, int]:
    """Smallest and largest pixel value outside padding, for the derived header."""
    shown = pixels if padding is None else pixels[~padding]
    return {"minimum": int(shown.min()), "maximum": int(shown.max())}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
