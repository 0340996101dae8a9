"""Requests to a worker process. Each has the code that answers it there.

Images are passed as files. Requests to encode are in node/codec/encode/encode_request.py, those to audit in
node/workers/auditing.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from pydicom.uid import UID

from node.codec.rendering import Rendering, read_pair, verified
from node.upscalers.catalogue import Catalogue
from node.upscalers.protocol import Installed
from storage.dicom.content import same_content
from storage.dicom.pixels import check_frames, decode_frame, integer_pixels, pixel_digest, transcode
from storage.dicom.self_check import fault_of_object
from storage.errors import PixelError
from storage.formats.packed_original import pack_original, restore_original
from storage.formats.payload import Rendition

Answer = TypeVar("Answer")
_Answer_co = TypeVar("_Answer_co", covariant=True)


class Request(Protocol[_Answer_co]):
    """A small picklable data class."""

    def answer(self, catalogue: Catalogue, /) -> _Answer_co:
        """Carry the request out in a worker. ``catalogue``: the upscalers of that worker."""


class Ask(Protocol):
    """Has a worker answer a request, and waits for the answer."""

    def __call__(self, request: Request[Answer], /) -> Answer: ...


@dataclass(frozen=True)
class UnfinishedObject:
    """A derived object without its pixels: the file ``path`` ends where they begin, and ``trailer`` follows them."""

    path: Path
    trailer: bytes

    def append_verified_pixels(self, rendering: Rendering, rendition: Rendition, *, draw: bool) -> None:
        """Append the pixels, little endian, and the trailer. Raises RenditionMismatch, without writing, if they are not
        the pixels that were verified."""
        pixels = verified(rendering, rendition, draw=draw)
        with self.path.open("ab") as out:
            out.write(np.ascontiguousarray(pixels, dtype="<u2").data)
            out.write(self.trailer)


@dataclass(frozen=True)
class ReconstructRequest:
    """Finish the object of a rendition, with drawn noise or without. Raises RenditionMismatch.

    ``model``: a folder with the model from the model store, in case it is no longer installed.
    """

    base: Path
    rendition: Path
    target: UnfinishedObject
    draw: bool = True
    model: Path | None = None

    def answer(self, catalogue: Catalogue) -> None:
        base, rendition = read_pair(self.base, self.rendition)
        rendering = Rendering.of(base, rendition, catalogue, self.model)
        self.target.append_verified_pixels(rendering, rendition, draw=self.draw)


@dataclass(frozen=True)
class ProofRequest:
    """Finish both objects of a rendition, and read each back in explicit and in implicit VR little endian.

    The answer is the fault of an object, empty if there is none. Raises RenditionMismatch. ``drawn``: the object with
    drawn noise; ``plain``: that of the structure alone; ``model``: as in ReconstructRequest.
    """

    base: Path
    rendition: Path
    drawn: UnfinishedObject
    plain: UnfinishedObject
    model: Path | None = None

    def answer(self, catalogue: Catalogue) -> str:
        base, made = read_pair(self.base, self.rendition)
        rendering = Rendering.of(base, made, catalogue, self.model)
        self.drawn.append_verified_pixels(rendering, made, draw=True)
        self.plain.append_verified_pixels(rendering, made, draw=False)
        del rendering  # its memory is free before the objects are read back
        return fault_of_object(self.drawn.path, made.output_digest, made.derived_uid) or fault_of_object(
            self.plain.path, made.structure_digest, made.structure_uid
        )


@dataclass(frozen=True)
class ModelRequest:
    """Describe an installed model: the one for new renditions or, by name and digest, another one."""

    upscaler: str = ""
    weights_digest: str = ""

    def answer(self, catalogue: Catalogue) -> Installed:
        if self.upscaler:
            return Installed.of(catalogue.by_digest(self.upscaler, self.weights_digest))
        return Installed.of(catalogue.configured())


# The following requests run a decoder on a peer's bytes. They never run in the process that holds the associations: a
# decoder written in C may crash on a hostile codestream.


@dataclass(frozen=True)
class CheckRequest:
    """Read the headers of all frames of an encapsulated image, and decode the first frame.

    The answer is why that fails, empty if it does not.
    """

    original: Path

    def answer(self, _: object) -> str:
        try:
            found, stated = check_frames(self.original)
            decode_frame(self.original)
        except PixelError as error:
            return str(error)
        return "" if found == stated else f"{found} frames are found, the header says {stated}"


@dataclass(frozen=True)
class DigestRequest:
    """SHA-256 of a single-frame image's stored values, decoded."""

    original: Path

    def answer(self, _: object) -> str:
        return pixel_digest(integer_pixels(self.original))


@dataclass(frozen=True)
class CompareRequest:
    """Whether two files have the same elements and pixels."""

    one: Path
    other: Path

    def answer(self, _: object) -> bool:
        return same_content(self.one, self.other)


@dataclass(frozen=True)
class TranscodeRequest:
    """Write ``source`` to ``target`` in another transfer syntax, native or lossless."""

    source: Path
    target: Path
    transfer_syntax_uid: str

    def answer(self, _: object) -> None:
        transcode(self.source, self.target, UID(self.transfer_syntax_uid))


@dataclass(frozen=True)
class PackRequest:
    """Write the packed form of an original to ``target``, and prove that it restores the received bytes.

    Raises KeptVerbatim or ProofFailed.
    """

    original: Path
    original_digest: str
    target: Path
    coder: str

    def answer(self, _: object) -> None:
        self.target.write_bytes(pack_original(self.original, self.coder, self.original_digest))


@dataclass(frozen=True)
class RestoreRequest:
    """Write the received bytes of a packed original to ``target``, checked against their digest."""

    packed: Path
    original_digest: str
    target: Path

    def answer(self, _: object) -> None:
        restore_original(self.packed, self.original_digest, self.target)
