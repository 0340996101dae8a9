"""The whole derived object, header and pixels: made in one place, to be sent, and to prove that it can be sent.

An image is VERIFIED, and an original removed, only after the object was made from what is stored, encoded as it is
sent, and read back. A header that cannot be written is found out while the original is there.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from pydicom.datadict import dictionary_VR

from node.archive.serve.derived_header import derived_header
from node.codec.rendering import read_pair
from node.workers.worker import Answer, ProofRequest, ReconstructRequest
from storage.dicom.content import differences
from storage.dicom.dicomfile import write_header_for_pixels
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
from storage.records import Applied, ReasonCode

_NOT_COMPARED = ("", "SpecificCharacterSet", "pixel data")
"""Names of what a gateway may change: private elements have none, and pixels are compared by their digest."""

Ask = Callable[[ReconstructRequest | ProofRequest], Answer]
"""Has a worker carry out a request, and waits for its answer."""

_PASSING = (WorkerDied, ModelMissing, ObjectMissing, ObjectDamaged, StoreFull, OSError, MemoryError, CancelledError)
"""What says nothing of the image: it may well succeed another time."""


@dataclass(frozen=True)
class DerivedParts:
    """What a derived object is made of.

    ``verified_at`` is in UTC; ``model``: as of ReconstructRequest; ``applied``: the amendments of the image's study;
    ``draw``: whether it is the object with drawn noise, or the one of the structure alone.
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

    Raises RenditionMismatch where they are not those that were verified, and whatever an odd header leads to.
    """
    behind = _begin(parts, target)
    drawn, plain = (target, None) if parts.draw else (None, target)
    ask(ReconstructRequest(parts.base, parts.rendition, drawn, plain, parts.model))
    _end(target, behind)


def _begin(parts: DerivedParts, target: Path) -> bytes:
    """Write what comes before the pixels; what comes after them."""
    base, made = read_pair(parts.base, parts.rendition)
    with target.open("wb") as out:
        header = derived_header(base, made, parts.payload_bytes, parts.verified_at, parts.applied, draw=parts.draw)
        return write_header_for_pixels(out, header, base.rows * base.columns * 2)


def _end(target: Path, behind: bytes) -> None:
    with target.open("ab") as out:
        out.write(behind)


def prove_object(parts: DerivedParts, spool: Path, ask: Ask) -> None:
    """Make the derived objects, with drawn noise and without, in a folder of ``spool``, and read each back from every
    encoding that it is sent in; ``parts.draw`` does not matter.

    Raises NotReconstructable where that fails, and would again.
    """
    with tempfile.TemporaryDirectory(dir=spool) as folder:
        drawn, plain = Path(folder) / "drawn", Path(folder) / "plain"
        try:
            behind = {target: _begin(replace(parts, draw=target is drawn), target) for target in (drawn, plain)}
            ask(ReconstructRequest(parts.base, parts.rendition, drawn, plain, parts.model))
            _, made = read_pair(parts.base, parts.rendition)
            fault: Answer = ""
            for target, digest, uid in (
                (drawn, made.output_digest, made.derived_uid),
                (plain, made.structure_digest, made.structure_uid),
            ):
                _end(target, behind[target])
                fault = fault or ask(ProofRequest(target, digest, uid))
        except _PASSING:
            raise
        except Exception as error:
            reason = f"its reconstruction cannot be made as a whole: {told(error)}"
            raise NotReconstructable(reason, ReasonCode.NOT_SENDABLE) from error
    if fault:
        raise NotReconstructable(f"its reconstruction cannot be sent: {fault}", ReasonCode.NOT_SENDABLE)


def changed_attributes(parts: DerivedParts, returned: Path, spool: Path) -> tuple[str, ...]:
    """Keywords of the attributes that a derived object has otherwise than one that came back; sequences and private
    elements, which gateways code anew, and those that it has in addition, are not compared.

    Raises Unparseable, and whatever an odd header leads to.
    """
    base, made = read_pair(parts.base, parts.rendition)
    header = derived_header(base, made, parts.payload_bytes, parts.verified_at, parts.applied, draw=parts.draw)
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
