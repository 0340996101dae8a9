"""pynetdicom's decoder with the patches for messages that our associations receive. Other AEs keep its own."""

from __future__ import annotations

import threading
from typing import Any

from pydicom import Dataset
from pynetdicom import dimse_messages
from pynetdicom.dsutils import decode

from node.dimse.pynetdicom_patches.command_ae_titles import strip_ae_titles
from node.dimse.pynetdicom_patches.command_uids import shorten_uids
from node.dimse.pynetdicom_patches.early_cancel import forget_older_cancel
from node.dimse.pynetdicom_patches.entity import ArchiveEntity
from node.dimse.pynetdicom_patches.invalid_commands import check_command, create_meta
from node.dimse.pynetdicom_patches.message_limits import abort_undecodable, check_fragments, check_items

_decoding = threading.local()
"""``association``: as ``receiving_association`` returns it."""


def receiving_association() -> Any:
    """The association of ours whose message this thread decodes; None if it is another's."""
    return getattr(_decoding, "association", None)


def install() -> None:
    """Check the messages of our associations, and repair their command sets, when they are decoded."""
    module: Any = dimse_messages
    original = module.DIMSEMessage.decode_msg

    def decode_msg(self: Any, primitive: Any, assoc: Any = None) -> bool:
        ours = assoc is not None and isinstance(assoc.ae, ArchiveEntity)
        _decoding.association = assoc if ours else None
        if not ours:
            return bool(original(self, primitive, assoc))
        try:
            check_fragments(self, primitive, assoc)
            is_whole = bool(original(self, primitive, assoc))
            if is_whole:
                strip_ae_titles(self.command_set)
                shorten_uids(self.command_set)
                forget_older_cancel(assoc, self.command_set)
                check_items(self, assoc)
            return is_whole
        except Exception as error:  # noqa: BLE001 - a peer's message may be broken in any way
            abort_undecodable(assoc, error)
            return False

    module.DIMSEMessage.decode_msg = decode_msg
    module.decode, module.create_file_meta = _decode_command, create_meta


def _decode_command(encoded: Any, *encoding: bool) -> Dataset:
    command = decode(encoded, *encoding)
    if receiving_association() is not None:
        check_command(command)
    return command
