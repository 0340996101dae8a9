"""Makes the whole derived object, header and pixels, to send it and to prove that it can be sent.

An image is VERIFIED, and an original removed, only after the object was made from the stored rendition, encoded in
explicit and in implicit VR little endian, and read back (``RenditionWriter.prove``). So a header that cannot be written
is found while the original is still there.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pydicom.datadict import dictionary_VR

from node.archive.serve.derived_header import derived_header
from node.codec.rendering import read_pair
from node.workers.requests import Ask, ReconstructRequest, UnfinishedObject
from storage.dicom.content import differences
from storage.dicom.dicomfile import write_header_for_pixels
from storage.errors import DataSetError, LatentPacsError
from storage.records import Applied

_NOT_COMPARED = ("", "SpecificCharacterSet", "pixel data")
"""Names that are not compared: "" is that of private elements; pixels are compared by their digest."""


@dataclass(frozen=True)
class DerivedParts:
    """The parts of a derived object.

    ``verified_at`` is in UTC; ``model``: as in ReconstructRequest; ``applied``: the amendments of the image's study;
    ``draw``: whether it is the object with drawn noise, or that of the structure alone.
    """

    base: Path
    rendition: Path
    payload_bytes: int
    verified_at: datetime
    model: Path | None = None
    applied: Sequence[Applied] = ()
    draw: bool = True


def make_object(parts: DerivedParts, target: Path, ask: Ask) -> None:
    """Write the derived object as a Part 10 file in explicit VR little endian; a worker makes the pixels.

    Raises RenditionMismatch unless they are those that were verified, and any error of an invalid header.
    """
    ask(ReconstructRequest(parts.base, parts.rendition, write_all_but_pixels(parts, target), parts.draw, parts.model))


def write_all_but_pixels(parts: DerivedParts, target: Path) -> UnfinishedObject:
    """Write the part before the pixels; the returned object has the part after them."""
    base, made = read_pair(parts.base, parts.rendition)
    with target.open("wb") as out:
        header = derived_header(base, made, parts.payload_bytes, parts.verified_at, parts.applied, draw=parts.draw)
        trailer = write_header_for_pixels(out, header, base.rows * base.columns * 2)
    return UnfinishedObject(target, trailer)


def changed_attributes(parts: DerivedParts, returned: Path, spool: Path) -> tuple[str, ...]:
    """Keywords of the attributes of a derived object that are missing or different in a returned one.

    Not compared are sequences and private elements, which gateways encode again, and additional attributes. Raises
    Unparseable, and any error of an invalid header.
    """
    base, made = read_pair(parts.base, parts.rendition)
    header = derived_header(base, made, parts.payload_bytes, parts.verified_at, parts.applied, draw=parts.draw)
    with tempfile.NamedTemporaryFile(dir=spool) as out:
        out.write(write_header_for_pixels(out, header, 0))
        out.flush()
        found = differences(Path(out.name), returned)
    changed = (one.name for one in found if one.one and one.name not in _NOT_COMPARED)
    return tuple(name for name in changed if dictionary_VR(name) != "SQ")


def safe_text(error: BaseException) -> str:
    """The text of an error without patient data: its type, if it is not ours or is an error of a data set.

    An error of the operating system, such as a full disk, says what it is.
    """
    if isinstance(error, OSError) and error.strerror:
        return f"{type(error).__name__}: {error.strerror}"
    ours = isinstance(error, LatentPacsError) and not isinstance(error, DataSetError)
    return str(error) if ours else type(error).__name__
