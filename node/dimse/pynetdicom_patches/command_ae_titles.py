"""Take AE titles in command sets without padding (PS3.7 9.3.1, 9.3.4).

pynetdicom 3.0: ``C_MOVE.MoveDestination`` raises for a title that is padded with NUL, and the association is aborted.
Upstream: pynetdicom#921.
Remove when NUL padding is taken off and an invalid title is answered with a status.
"""

from __future__ import annotations

from typing import Any

from pydicom import Dataset
from pynetdicom.dimse_messages import DIMSEMessage

from node.dimse.pynetdicom_patches.association_request import ae_title
from node.dimse.pynetdicom_patches.entity import ArchiveEntity


def install() -> None:
    """Strip the titles of the messages that our associations receive."""
    decoder: Any = DIMSEMessage
    original = decoder.decode_msg

    def decode_msg(self: Any, primitive: Any, assoc: Any = None) -> bool:
        is_whole = bool(original(self, primitive, assoc))
        if is_whole and assoc is not None and isinstance(assoc.ae, ArchiveEntity):
            strip_ae_titles(self.command_set)
        return is_whole

    decoder.decode_msg = decode_msg


def strip_ae_titles(command: Dataset) -> None:
    """Take the padding off; replace an invalid move destination by "?", which is no peer, and an originator by None."""
    for keyword, otherwise in (("MoveDestination", "?"), ("MoveOriginatorApplicationEntityTitle", None)):
        if keyword in command:
            raw = str(command[keyword].value or "").encode("utf-8", "replace")
            setattr(command, keyword, ae_title(raw).decode("ascii") or otherwise)
