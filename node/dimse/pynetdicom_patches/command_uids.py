"""Let a command whose instance UID is too long be answered with a status (PS3.7 9.3.1.1, 10.3.5.1).

pynetdicom 3.0: setting ``AffectedSOPInstanceUID`` or ``RequestedSOPInstanceUID`` raises for more than 64 characters.
The association is aborted, so the peer hears no reason, and the next images on it are not sent.
Upstream: not reported.
Remove when such a UID reaches the handler.
"""

from __future__ import annotations

from typing import Any

from pydicom import Dataset
from pynetdicom.dimse_messages import DIMSEMessage

from node.dimse.pynetdicom_patches.entity import ArchiveEntity

_LONGEST = 64
"""Characters of a UID (PS3.5 9.1)."""


def install() -> None:
    """Shorten these UIDs in the messages that our associations receive."""
    decoder: Any = DIMSEMessage
    original = decoder.decode_msg

    def decode_msg(self: Any, primitive: Any, assoc: Any = None) -> bool:
        is_whole = bool(original(self, primitive, assoc))
        if is_whole and assoc is not None and isinstance(assoc.ae, ArchiveEntity):
            shorten_uids(self.command_set)
        return is_whole

    decoder.decode_msg = decode_msg


def shorten_uids(command: Dataset) -> None:
    """Cut a UID that is too long, and end it with a question mark, so that it stays invalid."""
    for keyword in ("AffectedSOPInstanceUID", "RequestedSOPInstanceUID"):
        uid = str(command.get(keyword) or "")
        if len(uid) > _LONGEST:
            setattr(command, keyword, uid[: _LONGEST - 1] + "?")
