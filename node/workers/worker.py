"""The code of a worker process: the requests, their answers, and the state that it keeps between them.

Requests and answers are small picklable dataclasses; images are passed as files. Nothing here uses DIMSE or the index.
A crash in a decoder or in torch ends this process only.
"""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.uid import UID, ExplicitVRLittleEndian

from node.codec.encode.encode_request import EncodeRequest, EncodeResult, ReverifyRequest, encode_and_verify, reverify
from node.codec.rendering import Rendering, read_pair, verified
from node.config import ReconstructSettings
from node.upscalers.catalogue import Catalogue
from node.upscalers.protocol import Installed, installed
from node.workers.auditing import Audited, AuditRequest, audit
from node.workers.memory import give_back, keep_freed, limit_time, limit_to
from storage.dicom.content import same_content
from storage.dicom.decode_limits import DecodeLimits, decode_limits, set_decode_limits
from storage.dicom.dicomfile import HeaderBytes, accept_odd_values
from storage.dicom.pixels import decode_frame, integer_pixels, pixel_digest, transcode
from storage.dicom.self_check import fault_of_object
from storage.errors import OutOfMemory, PixelError
from storage.formats import coders
from storage.formats.packed_original import pack_original, restore_original
from storage.formats.payload import Base
from storage.records import OperatingPoint


@dataclass(frozen=True)
class ReconstructRequest:
    """Append the pixels of a rendition to files that end where pixel data begins.

    ``drawn`` gets those with drawn noise, ``plain`` those of the structure alone. ``model``: a folder with the model
    from the model store, in case it is not installed any more.
    """

    base: Path
    rendition: Path
    drawn: Path | None = None
    plain: Path | None = None
    model: Path | None = None


@dataclass(frozen=True)
class ModelRequest:
    """Describe an installed model: the one for new renditions or, by name and digest, another one."""

    upscaler: str = ""
    weights_digest: str = ""


@dataclass(frozen=True)
class ReadyRequest:
    """Load the libraries that reconstructions need, so that the first viewer does not wait seconds for them."""


@dataclass(frozen=True)
class CheckRequest:
    """Decode the first frame of an encapsulated image; the answer is why it fails, empty if it does not."""

    original: Path


@dataclass(frozen=True)
class DigestRequest:
    """SHA-256 of a single-frame image's stored values, decoded."""

    original: Path


@dataclass(frozen=True)
class CompareRequest:
    """Compare the elements and pixels of two files; the answer is ``same`` or ``different``."""

    one: Path
    other: Path


@dataclass(frozen=True)
class TranscodeRequest:
    """Write ``source`` to ``target`` in another transfer syntax, native or lossless."""

    source: Path
    target: Path
    transfer_syntax_uid: str


@dataclass(frozen=True)
class PackRequest:
    """Write the packed form of an original to ``target``, and prove that it restores its bytes; the answer is empty.

    Raises KeptVerbatim or ProofFailed.
    """

    original: Path
    original_digest: str
    target: Path
    coder: str


@dataclass(frozen=True)
class RestoreRequest:
    """Write the received bytes of a packed original to ``target``, checked against their digest."""

    packed: Path
    original_digest: str
    target: Path


@dataclass(frozen=True)
class ProofRequest:
    """Read a derived object back in each encoding that it is sent in; the answer is its fault, empty if none."""

    path: Path
    pixel_digest: str
    sop_instance_uid: str


DecodeRequest = (
    CheckRequest | DigestRequest | CompareRequest | TranscodeRequest | PackRequest | RestoreRequest | ProofRequest
)
"""Requests that run a decoder on a peer's bytes. They never run in the process that holds the associations: a decoder
written in C may crash on a hostile codestream."""

Request = (
    EncodeRequest | ReverifyRequest | ReconstructRequest | AuditRequest | ModelRequest | ReadyRequest | DecodeRequest
)
Answer = EncodeResult | Installed | Audited | str

NICE = 12
"""Nice value of workers, so that associations come first."""

WHOLE = 30
"""Factor of limits.decoder_time for a request about a whole object, which may have many frames."""

_catalogue: Catalogue | None = None


def start(settings: ReconstructSettings, nice: int = NICE, within: DecodeLimits | None = None) -> None:
    """Initialise a worker process; runs once, before its first request."""
    global _catalogue  # noqa: PLW0603 - the state of a worker process is its module
    set_decode_limits(within or DecodeLimits())
    limit_to(decode_limits().memory)
    _catalogue = Catalogue(settings)
    accept_odd_values()
    keep_freed()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    os.nice(nice)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if settings.threads:
        os.environ["OMP_NUM_THREADS"] = str(settings.threads)


def answer(request: Request) -> Answer:
    """Answer one request. Errors are raised in the parent."""
    assert _catalogue is not None, "the worker was not started"
    limit_time(decode_limits().seconds * (1 if isinstance(request, CheckRequest) else WHOLE))
    try:
        return _answer(request, _catalogue)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "allocate memory" not in str(error):  # torch's message
            raise
        raise OutOfMemory(f"{type(request).__name__} takes more memory than a worker may have (limits)") from error
    finally:
        give_back()


def _answer(request: Request, catalogue: Catalogue) -> Answer:
    if isinstance(request, EncodeRequest):
        return encode_and_verify(request, catalogue)
    if isinstance(request, ReverifyRequest):
        return reverify(request, catalogue)
    if isinstance(request, ReconstructRequest):
        reconstruct_to_files(request, catalogue)
        return ""
    if isinstance(request, AuditRequest):
        return audit(request, catalogue)
    if isinstance(request, ModelRequest):
        return installed(
            catalogue.by_digest(request.upscaler, request.weights_digest)
            if request.upscaler
            else catalogue.configured()
        )
    if isinstance(request, ReadyRequest):
        get_ready(catalogue)
        return ""
    return decode(request)


def decode(request: DecodeRequest) -> str:
    """Answer a request that needs only a decoder."""
    if isinstance(request, CheckRequest):
        return check_codestream(request)
    if isinstance(request, DigestRequest):
        return pixel_digest(integer_pixels(request.original))
    if isinstance(request, CompareRequest):
        return "same" if same_content(request.one, request.other) else "different"
    if isinstance(request, PackRequest):
        request.target.write_bytes(pack_original(request.original, request.coder, request.original_digest))
        return ""
    if isinstance(request, RestoreRequest):
        restore_original(request.packed, request.original_digest, request.target)
        return ""
    if isinstance(request, ProofRequest):
        return fault_of_object(request.path, request.pixel_digest, request.sop_instance_uid)
    transcode(request.source, request.target, UID(request.transfer_syntax_uid))
    return ""


def get_ready(catalogue: Catalogue) -> None:
    """Reconstruct one small black image, which loads everything that is loaded on first use."""
    from node.codec.decode import SideInformation, reconstruct
    from node.codec.encode.noise_fitting import measure_deviation

    upscaler, point, side = catalogue.configured(), OperatingPoint(2, "jpegxl", 1.0), 64
    coded = coders.encode(np.zeros((side, side), dtype=np.uint16), point)
    header = HeaderBytes(ExplicitVRLittleEndian, b"", b"")
    base = Base(point, 2 * side, 2 * side, 12, 0, 1, None, 0.0, 1.0, 1.0, "", "", "OW", header, coded)
    shape = base.rows, base.columns
    missing = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    noise = measure_deviation(missing, np.zeros_like(missing), np.ones(shape, bool), np.ones(shape, bool))
    reconstruct(base, upscaler, SideInformation(noise=noise), seed=0, steps=upscaler.steps)


def reconstruct_to_files(request: ReconstructRequest, catalogue: Catalogue) -> None:
    """Append the rendition's pixels, little endian, to the files of the request.

    Raises RenditionMismatch, and leaves a file as it is, unless they are the pixels that were verified.
    """
    base, rendition = read_pair(request.base, request.rendition)
    rendering = Rendering(base, rendition, catalogue, request.model)
    for target, draw in ((request.drawn, True), (request.plain, False)):
        if target is not None:
            pixels = verified(rendering, rendition, draw=draw)
            with target.open("ab") as out:
                out.write(np.ascontiguousarray(pixels, dtype="<u2").data)


def check_codestream(request: CheckRequest) -> str:
    """Why the first frame cannot be decoded; empty if it can."""
    try:
        decode_frame(request.original)
    except PixelError as error:
        return str(error)
    return ""


def _end_with_parent() -> None:
    """End with the parent: a worker whose parent was killed would wait forever."""
    from multiprocessing import connection, parent_process

    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
