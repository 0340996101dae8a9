"""What runs inside a worker process: the requests, their answers, and the state a worker keeps between them.

Requests and answers are small picklable dataclasses; images travel as files. Nothing here knows of DIMSE or the
index. A crash in a decoder or in torch ends this process only.
"""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydicom.uid import UID

from node.config import ReconstructSettings
from node.reconstruct.upscalers.catalogue import Catalogue
from storage.content import same_content
from storage.dicomfile import accept_odd_values, opened
from storage.errors import PayloadError, PixelError, RenditionMismatch
from storage.payload import (
    Base,
    Rendition,
    decode_base,
    decode_rendition,
    derived_uid,
    encode_base,
    encode_rendition,
    seed_of,
)
from storage.pixels import decode_frame, integer_pixels, pixel_digest, transcode
from storage.records import Rung, RungOutcome

if TYPE_CHECKING:
    from node.fidelity.gate import Reference
    from node.reconstruct.upscalers.protocol import Upscaler


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


@dataclass(frozen=True)
class ReconstructRequest:
    """Append the pixels of a rendition to ``target`` (a file that ends where pixel data begins)."""

    base: Path
    rendition: Path
    target: Path


@dataclass(frozen=True)
class CheckRequest:
    """Decode the first frame of an encapsulated image, to see whether it can be decoded."""

    original: Path


@dataclass(frozen=True)
class DigestRequest:
    """SHA-256 of a single-frame image's stored values, decoded."""

    original: Path


@dataclass(frozen=True)
class CompareRequest:
    """Whether two files hold the same elements and pixels; the answer is ``same`` or ``different``."""

    one: Path
    other: Path


@dataclass(frozen=True)
class TranscodeRequest:
    """Write ``source`` to ``target`` in a native little-endian transfer syntax."""

    source: Path
    target: Path
    transfer_syntax_uid: str


DecodeRequest = CheckRequest | DigestRequest | CompareRequest | TranscodeRequest
"""Requests that run a decoder on a peer's bytes: never in the process that holds the associations, since a decoder
written in C may end its process on a hostile codestream."""

Request = EncodeRequest | ReconstructRequest | DecodeRequest
Answer = EncodeResult | str

_catalogue: Catalogue | None = None


def start(settings: ReconstructSettings) -> None:
    """Process initialiser: runs once in each worker, before its first request."""
    global _catalogue  # noqa: PLW0603 - the state of a worker process is its module
    _catalogue = Catalogue(settings)
    accept_odd_values()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    os.nice(5)  # associations come first
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if settings.threads:
        os.environ["OMP_NUM_THREADS"] = str(settings.threads)


def answer(request: Request) -> Answer:
    """Carry out one request. Errors travel back to the parent as exceptions."""
    assert _catalogue is not None, "the worker was not started"
    if isinstance(request, EncodeRequest):
        return encode_and_verify(request, _catalogue)
    if isinstance(request, ReconstructRequest):
        return reconstruct_to_file(request, _catalogue)
    return decode(request)


def decode(request: DecodeRequest) -> str:
    """Carry out what only needs a decoder."""
    if isinstance(request, CheckRequest):
        return check_codestream(request)
    if isinstance(request, DigestRequest):
        return pixel_digest(integer_pixels(request.original))
    if isinstance(request, CompareRequest):
        return "same" if same_content(request.one, request.other) else "different"
    transcode(request.source, request.target, UID(request.transfer_syntax_uid))
    return ""


def encode_and_verify(request: EncodeRequest, catalogue: Catalogue) -> EncodeResult:
    """Take the first rung whose reconstruction passes the gate against this very original.

    Raises NotReconstructable or PixelError where the pixels rule it out.
    """
    from node.fidelity.gate import Reference, Thresholds, measure
    from node.reconstruct.engine import Original, consistency, make_base

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
        guide, output = _first_reconstruction(reference, base, upscaler, seed)
        verdict = measure(reference, output, thresholds)
        away = consistency(output, base)
        figures = {
            **verdict.figures,
            "consistency_max": away.maximum,
            "consistency_rms": away.rms,
            "quantisation_rms": base.quantisation_rms,
        }
        verdict = replace(verdict, figures=figures)
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


def _first_reconstruction(
    reference: Reference, base: Base, upscaler: Upscaler, seed: int
) -> tuple[bytes, NDArray[np.uint16]]:
    """The guide's bytes, empty for an upscaler that takes none, and the pixels."""
    from node.reconstruct.engine import reconstruct
    from node.reconstruct.guide import encode_guide
    from node.reconstruct.guiding import guided

    if not upscaler.guided:
        return b"", reconstruct(base, upscaler, seed=seed, steps=upscaler.steps)
    guide, pixels = guided(reference, base, upscaler, seed=seed, steps=upscaler.steps, detail=upscaler.detail)
    return encode_guide(guide), pixels


def _extra(guide: bytes) -> str:
    return _sha256(guide) if guide else ""


def _extremes(pixels: NDArray[np.uint16], padding: NDArray[np.bool_] | None) -> dict[str, int]:
    """Smallest and largest pixel value outside padding, for the derived header."""
    shown = pixels if padding is None else pixels[~padding]
    return {"minimum": int(shown.min()), "maximum": int(shown.max())}


def reconstruct_to_file(request: ReconstructRequest, catalogue: Catalogue) -> str:
    """Append the rendition's pixels, little endian, to the target; returns their digest.

    Raises RenditionMismatch, and leaves the target alone, where they are not the pixels that were verified.
    """
    from node.reconstruct.engine import reconstruct
    from node.reconstruct.guide import decode_guide

    base, rendition = read_pair(request.base, request.rendition)
    upscaler = catalogue.for_rendition(rendition)
    guide = decode_guide(rendition.guide) if rendition.guide else None
    pixels = reconstruct(base, upscaler, seed=rendition.seed, steps=rendition.steps, guide=guide)
    digest = pixel_digest(pixels)
    if digest != rendition.output_digest:
        raise RenditionMismatch(
            f"reconstruction of {rendition.derived_uid} gives pixels {digest}, verified were "
            f"{rendition.output_digest} with numerics {rendition.numerics}; now {upscaler.numerics}"
        )
    with request.target.open("ab") as out:
        out.write(np.ascontiguousarray(pixels, dtype="<u2").data)
    return digest


def read_pair(base_path: Path, rendition_path: Path) -> tuple[Base, Rendition]:
    """A base and its rendition from their files. Raises PayloadError where they do not belong together."""
    data = base_path.read_bytes()
    rendition = decode_rendition(rendition_path.read_bytes())
    if rendition.base_digest != _sha256(data):
        raise PayloadError(f"rendition {rendition_path.name} belongs to base {rendition.base_digest}")
    return decode_base(data), rendition


def check_codestream(request: CheckRequest) -> str:
    """Why the first frame cannot be decoded; empty when it can."""
    try:
        decode_frame(request.original)
    except PixelError as error:
        return str(error)
    return ""


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _end_with_parent() -> None:
    """A worker whose parent was killed would otherwise wait for work for ever."""
    from multiprocessing import connection, parent_process

    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
