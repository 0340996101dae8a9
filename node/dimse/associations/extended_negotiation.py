"""SOP Class Extended Negotiation of query and retrieve (PS3.4 C.5.1.1, C.5.2.1, C.5.3.1).

The first byte asks for relational queries or retrievals; of a query, the second for dates and times matched together,
the fourth for dates and times in the zone of the request: all are agreed to. What further bytes ask for (the third:
fuzzy names) is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydicom.uid import UID

from node.dimse.sop_classes import FIND, ROOTS


@dataclass(frozen=True)
class Agreed:
    """What one requestor and this archive agreed to for one SOP class; without negotiation nothing but the encoding."""

    relational: bool = False
    combined_datetime: bool = False
    time_zones: bool = False
    implicit: bool | None = None
    """The encoding of the presentation context; None where it is big endian."""


def answer(event: Any) -> dict[UID, bytes]:
    """Service-class-application-information of the response, for the SOP classes that are asked about and known."""
    return {uid: _taken(uid, asked) for uid, asked in event.app_info.items() if uid in ROOTS}


def agreed(event: Any) -> Agreed:
    """What holds for the request of an event."""
    uid = UID(event.context.abstract_syntax)
    asked = event.assoc.requestor.sop_class_extended.get(uid, b"")
    taken = _taken(uid, asked).ljust(4, b"\0")
    syntax = UID(event.context.transfer_syntax)
    return Agreed(
        relational=taken[0] == 1,
        combined_datetime=taken[1] == 1,
        time_zones=taken[3] == 1,
        implicit=syntax.is_implicit_VR if syntax.is_little_endian else None,
    )


def _taken(uid: UID, asked: bytes) -> bytes:
    known = {0, 1, 3} if uid.endswith(f".{FIND}") else {0}
    return bytes(int(number in known and byte == 1) for number, byte in enumerate(asked))
