"""The DIMSE status of each outcome (PS3.7 Annex C, PS3.4 Annexes B and C): one table for all handlers."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pydicom import Dataset

from node.archive.query.identifier import IdentifierError
from node.archive.serve.derived_object import safe_text
from storage.errors import (
    ClassMismatch,
    Deleted,
    Duplicate,
    IndexFault,
    InflatesTooFar,
    InstanceTooLarge,
    InvalidUid,
    LatentPacsError,
    MissingUid,
    RepeatedUid,
    StoreFull,
    Unparseable,
    is_exhausted,
)
from storage.objects.durability import FULL

SUCCESS = 0x0000
PENDING = 0xFF00
CANCELLED = 0xFE00
NOT_AUTHORIZED = 0x0124
PIXELS_NOT_SOUND = 0xB007
SUBOPERATIONS_FAILED = 0xB000
CANNOT_COUNT = 0xA701
ALL_SUBOPERATIONS_FAILED = 0xA702
DESTINATION_UNKNOWN = 0xA801
UNABLE_TO_PROCESS = 0xC000


@dataclass(frozen=True)
class Meaning:
    """A status and its meaning, as docs/CONFORMANCE.md lists it."""

    code: int
    means: str


STORE_ERRORS: dict[type[Exception], Meaning] = {
    StoreFull: Meaning(
        0xA700,
        "Out of resources: disk, quota or database full, no memory or process left, or the index cannot be used",
    ),
    InstanceTooLarge: Meaning(0xA701, "Out of resources: the instance is larger than this archive accepts"),
    InflatesTooFar: Meaning(0xA701, "Out of resources: the deflated data set becomes larger than this archive accepts"),
    ClassMismatch: Meaning(0xA900, "Data set does not match the SOP class or instance of the command"),
    InvalidUid: Meaning(0x0117, "Invalid SOP instance: a UID that PS3.5 9.1 does not allow"),
    MissingUid: Meaning(0xC001, "SOP Class, SOP Instance, Study or Series Instance UID missing"),
    Unparseable: Meaning(0xC002, "Data set cannot be parsed, or is truncated"),
    Duplicate: Meaning(0xC003, "Held under this UID with other content; the new instance is quarantined"),
    Deleted: Meaning(0xC004, "Deleted here under this UID; the new instance is quarantined"),
    RepeatedUid: Meaning(0xC005, "UID of the instance, its class, study or series twice, with different values"),
}

QUERY_ERRORS: dict[type[Exception], Meaning] = {
    IdentifierError: Meaning(0xA900, "Identifier does not match the SOP class"),
}

ACTION_ERRORS = {
    0x0106: "Transaction UID, or a referenced UID, is not valid",
    0x0110: "Processing failure; the node's log says why",
    0x0112: "The requested SOP instance is not 1.2.840.10008.1.20.1.1",
    0x0115: "Action Information cannot be read",
    0x0120: "Transaction UID or Referenced SOP Sequence is missing or empty",
    0x0123: "The action type is not 1",
    0x0213: "Resource limitation: disk or database full",
}
"""Statuses of a storage commitment N-ACTION, and their meanings (PS3.7 10.1.4.1.10)."""

OTHER_ERROR = Meaning(UNABLE_TO_PROCESS, "Unable to process; the node's log says why")


_LONG_UID = re.compile(r"\b[0-2](\.\d+){4,}[:,]? ?")
_PATH = re.compile(r"(?<![\w.])/[^\s,;:]+")


def reason_text(error: Exception, table: dict[type[Exception], Meaning]) -> str:
    """The text for log and audit trail: the meaning of the status, since the error may quote the peer's values.

    The text of StoreFull, and of our errors and OSErrors that are not in the table, is given unchanged.
    """
    meaning = next((meaning for kind, meaning in table.items() if isinstance(error, kind)), None)
    if isinstance(error, StoreFull) or meaning is None:
        return (
            str(error) if isinstance(error, (LatentPacsError, OSError)) else f"internal error, {type(error).__name__}"
        )
    return meaning.means


def response(code: int, comment: str = "") -> Dataset:
    """A status data set. The comment is cut to the 64 characters that Error Comment (0000,0902) may have."""
    status = Dataset()
    status.Status = code
    if comment:
        status.ErrorComment = "".join(char if char.isprintable() else " " for char in comment)[:64].replace("\\", "/")
    return status


def of_error(error: Exception, table: dict[type[Exception], Meaning]) -> Dataset:
    """The status for an error. The comment for an unexpected error gives no internal details."""
    cause = error.__cause__ if isinstance(error, StoreFull) else None
    of_the_disk = isinstance(error, OSError) or (isinstance(cause, OSError) and cause.errno not in FULL)
    if is_exhausted(error):
        return response(0xA700, "the archive has no memory, process or file left at present")
    if of_the_disk or (isinstance(error, IndexFault) and table is STORE_ERRORS):
        return response(0xA700, "the archive cannot write at present")
    for kind, meaning in table.items():
        if isinstance(error, kind):
            return response(meaning.code, "not enough space in the archive" if kind is StoreFull else _for_peer(error))
    comment = _for_peer(error) if isinstance(error, LatentPacsError) else "internal error, see the node's log"
    return response(OTHER_ERROR.code, comment)


def _for_peer(error: Exception) -> str:
    """The error's text without paths, and without long UIDs, so that more of it fits into 64 characters."""
    return _PATH.sub("(a path)", _LONG_UID.sub("", str(error))).strip()


def is_warning(status: int) -> bool:
    """Whether the status of a response is in the warning class (PS3.7 C.4.2)."""
    return status & 0xF000 == 0xB000 or status in (0x0001, 0x0107, 0x0116)


def for_log(error: Exception) -> str:
    """The text of an error for our log, without patient data: as ``safe_text``, but an OSError with its whole text."""
    return str(error) if isinstance(error, OSError) else safe_text(error)
