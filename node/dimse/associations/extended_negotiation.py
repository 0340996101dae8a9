"""SOP Class Extended Negotiation of query and retrieve (PS3.4 C.5.1.1, C.5.2.1, C.5.3.1).

The first byte requests relational queries or retrievals. For a query, the second requests combined matching of dates
and times, and the fourth the time zone of the request. These options are accepted.
Others, such as fuzzy matching of names (the third), are not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydicom.uid import UID

from node.dimse.sop_classes import FIND, ROOTS


@dataclass(frozen=True)
class Agreed:
    """The options agreed for one SOP class of an association, by the names of ``find``'s arguments."""

    relational: bool = False
    combined_datetime: bool = False
    adjust_zones: bool = False
    implicit: bool | None = None
    """True for implicit VR, False for explicit VR; None if the presentation context is big endian."""


def answer(event: Any) -> dict[UID, bytes]:
    """Service-class-application-information of the response, for the requested SOP classes that are known."""
    return {uid: _accepted(uid, requested) for uid, requested in event.app_info.items() if uid in ROOTS}


def agreed(event: Any) -> Agreed:
    """The options that apply to the request of an event."""
    uid = UID(event.context.abstract_syntax)
    requested = event.assoc.requestor.sop_class_extended.get(uid, b"")
    accepted = _accepted(uid, requested).ljust(4, b"\0")
    syntax = UID(event.context.transfer_syntax)
    return Agreed(
        relational=accepted[0] == 1,
        combined_datetime=accepted[1] == 1,
        adjust_zones=accepted[3] == 1,
        implicit=syntax.is_implicit_VR if syntax.is_little_endian else None,
    )


def _accepted(uid: UID, requested: bytes) -> bytes:
    known = {0, 1, 3} if uid.endswith(f".{FIND}") else {0}
    return bytes(int(number in known and byte == 1) for number, byte in enumerate(requested))
