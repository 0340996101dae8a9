"""The whole derived object, header and pixels: made in one place, to be sent, and to prove that it can be sent.

An image is VERIFIED, and an original removed, only after the object was made from what is stored, encoded as it is
sent, and read back. A header that cannot be written is found out while the original is there.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pydicom.datadict import dictionary_VR

from node.archive.derive import derived_header
from node.codec.rendering import read_pair
from node.workers.worker import Answer, ProofRequest, ReconstructRequest
from storage.content import differences
from storage.dicomfile import write_header_for_pixels
from storage.errors import (
    DataSetError,
    LatentPacsError,
    ModelMissing,
    NotReconstructable,
    ObjectDamaged,
    ObjectMissing,
    StoreFull,
    WorkerDied,
)
from storage.records import Applied

_NOT_COMPARED = ("", "SpecificCharacterSet", "pixel data")
"""Names of what a gateway may change: private elements have none, and pixels are compared by their digest."""

Ask = Callable[[ReconstructRequest | ProofRequest], Answer]
"""Has a worker carry out a request, and waits for its answer."""

_PASSING = (WorkerDied, ModelMissing, ObjectMissing, ObjectDamaged, StoreFull, OSError, MemoryError, CancelledError)
"""What says nothing of the image: it may well succeed another time."""


@dataclass(frozen=True)
class Parts:
    """What a derived object is made of.

    ``verified_at`` is in UTC; ``model``: as of ReconstructRequest; ``applied``: the amendments of the image's study.
    """

    base: Path
    rendition: Path
    payload_bytes: int
    verified_at: datetime
    model: Path | None = None
    applied: Sequence[Applied] = ()


def make_object(parts: Parts, target: Path, ask: Ask) -> None:
    """Write the derived object as a Part 10 file in explicit VR little endian; a worker makes the pixels.

    Raises RenditionMismatch where they are not those that were verified, and whatever an odd header leads to.
    """
    base, made = read_pair(parts.base, parts.rendition)
    with target.open("wb") as out:
        header = derived_header(base, made, parts.payload_bytes, parts.verified_at, parts.applied)
        behind = write_header_for_pixels(out, header, base.rows * base.columns * 2)
    ask(ReconstructRequest(parts.base, parts.rendition, target, parts.model))
    with target.open("ab") as out:
        out.write(behind)


def prove_object(parts: Parts, spool: Path, ask: Ask) -> None:
    """Make the derived object in a folder of ``spool``, and read it back from each encoding that it is sent in.

    Raises NotReconstructable where that fails, and would again.
    """
    with tempfile.TemporaryDirectory(dir=spool) as folder:
        target = Path(folder) / "object"
        try:
            make_object(parts, target, ask)
            _, made = read_pair(parts.base, parts.rendition)
            fault = ask(ProofRequest(target, made.output_digest, made.derived_uid))
        except _PASSING:
            raise
        except Exception as error:
            raise NotReconstructable(f"its reconstruction cannot be made as a whole: {told(error)}") from error
    if fault:
        raise NotReconstructable(f"its reconstruction cannot be sent: {fault}")


def changed_attributes(parts: Parts, returned: Path, spool: Path) -> tuple[str, ...]:
    """Keywords of the attributes that a derived object has otherwise than one that came back; sequences and private
    elements, which gateways code anew, and those that it has in addition, are not compared.

    Raises Unparseable, and whatever an odd header leads to.
    """
    base, made = read_pair(parts.base, parts.rendition)
    header = derived_header(base, made, parts.payload_bytes, parts.verified_at, parts.applied)
    with tempfile.NamedTemporaryFile(dir=spool) as out:
        out.write(write_header_for_pixels(out, header, 0))
        out.flush()
        found = differences(Path(out.name), returned)
    return tuple(one.name for one in found if one.one and _is_compared(one.name))


def _is_compared(keyword: str) -> bool:
    return keyword not in _NOT_COMPARED and dictionary_VR(keyword) != "SQ"


def told(error: BaseException) -> str:
    """What may be said of an error: one that is not ours, or is of a data set, may quote a patient's values."""
    ours = isinstance(error, LatentPacsError) and not isinstance(error, DataSetError)
    return str(error) if ours else type(error).__name__
