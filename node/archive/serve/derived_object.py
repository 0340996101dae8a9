"""Makes the whole derived object, header and pixels, to send it and to prove that it can be sent.

An image becomes VERIFIED, and an original is removed, only after the object was made from the stored rendition, encoded
in explicit and in implicit VR little endian, and read back (``RenditionWriter.prove``). A header that cannot be written
is therefore found while the original still exists.
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
"""Names of elements that are not compared: private elements have the name ""; pixels are compared by digest."""


@dataclass(frozen=True)
class DerivedParts:
    """The parts of a derived object.

    ``verified_at`` is in UTC; ``model``: as in ReconstructRequest; ``applied``: the amendments of the image's study;
    ``draw``: whether the object has drawn noise, or is the structure alone.
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

    Raises RenditionMismatch if they are not the verified pixels, and any error that an invalid header causes.
    """
    ask(ReconstructRequest(parts.base, parts.rendition, write_all_but_pixels(parts, target), parts.draw, parts.model))


def write_all_but_pixels(parts: DerivedParts, target: Path) -> UnfinishedObject:
    """Write the part before the pixels to ``target``; the part after them is in the returned object."""
    base, made = read_pair(parts.base, parts.rendition)
    with target.open("wb") as out:
        header = derived_header(base, made, parts.payload_bytes, parts.verified_at, parts.applied, draw=parts.draw)
        trailer = write_header_for_pixels(out, header, base.rows * base.columns * 2)
    return UnfinishedObject(target, trailer)


def changed_attributes(parts: DerivedParts, returned: Path, spool: Path) -> tuple[str, ...]:
    """Keywords of the attributes of a derived object that are missing or different in a returned one.

    Sequences and private elements are not compared, since gateways encode them again. Additional attributes are
    ignored. Raises Unparseable, and any error that an invalid header causes.
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
    """The text of an error without patient data.

    The text of a LatentPacsError is safe unless it is a DataSetError. Of other errors, only the type is given, and of
    an OSError also the message of the operating system.
    """
    if isinstance(error, OSError) and error.strerror:
        return f"{type(error).__name__}: {error.strerror}"
    ours = isinstance(error, LatentPacsError) and not isinstance(error, DataSetError)
    return str(error) if ours else type(error).__name__
