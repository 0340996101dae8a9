"""Limit how much of a message is collected in memory, and abort the association if the message cannot be decoded.

pynetdicom 3.0: ``DIMSEMessage.decode_msg`` collects a command set or an identifier of any length in memory, and
``Event.identifier`` inflates a deflated one to any length. A second command set in a message replaces the first, and
leaves its spooled data set behind. An exception in ``decode_msg`` ends the thread of the connection, with a traceback,
and leaves the connection open.
Upstream: pynetdicom#629 (closed) is a MemoryError of this kind.
Remove when ``decode_msg`` has limits and its errors abort.
"""

from __future__ import annotations

import logging
import zlib
from typing import Any

from node.dimse.pynetdicom_patches.invalid_commands import InvalidCommand

LOGGER = logging.getLogger(__name__)

_MOST_COMMAND = 2**16
"""Most bytes of a command set."""
_MOST_IDENTIFIER = 2**24
"""Most bytes of a data set that is collected in memory, also after inflating: 65535 references take 10 MB."""
_MOST_QUERY = 2**21
"""The same for a C-FIND, C-GET or C-MOVE: 10,000 UIDs take 650 KB. Once parsed, an element of 8 bytes takes 250 bytes
of memory."""
_QUERIES = {0x0010, 0x0020, 0x0021}
"""Command Fields of C-GET, C-FIND and C-MOVE requests (PS3.7 E.1)."""
_MOST_ITEMS = 70_000
"""Most items of a data set in memory: 65535 references, and a few more."""
_ITEM_TAGS = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")
"""The item tag (FFFE,E000) in both byte orders."""


def check_fragments(message: Any, primitive: Any, assoc: Any) -> None:
    """Raise InvalidCommand if a message that is collected in memory becomes larger than any real one, if a fragment is
    on a presentation context that was not accepted or not that of the message (PS3.8 9.3.5.1), or if its command set
    does not come before its data set (PS3.7 6.3.1)."""
    fragments = [data for _, data in primitive.presentation_data_value_list]
    command = message.encoded_command_set.tell() + sum(len(data) for data in fragments if data[0] & 1)
    identifier = message.data_set.tell()
    if not message._data_set_file and not any(data[0] & 1 for data in fragments):
        identifier += sum(map(len, fragments))  # next to a command, data may be for a file that is not open yet
    if command > _MOST_COMMAND or identifier > _most(message, assoc):
        raise InvalidCommand("its command set or identifier is too large")
    for number, data in primitive.presentation_data_value_list:
        if number not in assoc._accepted_cx:
            raise InvalidCommand(f"presentation context {number} was not accepted")
        if number != vars(message).setdefault("_began_on", number):
            raise InvalidCommand("its fragments are on two presentation contexts")
        if bool(data[0] & 1) == (message.context_id is not None):  # set at the end of the command set
            raise InvalidCommand("its command set is not before its data set")


def check_items(message: Any, assoc: Any) -> None:
    """Raise InvalidCommand if the data set of a message in memory has too many items. A parsed item takes 1 KB."""
    if message._data_set_file:
        return
    data = _inflated(message, assoc)
    if max(data.count(tag) for tag in _ITEM_TAGS) > _MOST_ITEMS:
        raise InvalidCommand("its identifier has too many items")


def abort_undecodable(assoc: Any, error: Exception) -> None:
    """Abort an association whose message cannot be decoded. The log quotes no value of the peer."""
    reason = error if isinstance(error, InvalidCommand) else type(error).__name__
    LOGGER.error("message of %s cannot be decoded: %s", str(assoc.requestor.ae_title).strip(), reason)
    assoc.dul.event_queue.put("Evt19")  # invalid PDU: the state machine aborts


def _most(message: Any, assoc: Any) -> int:
    """Bytes that a data set in memory may have, also after it is inflated."""
    if not getattr(assoc, "admitted_as", True):  # unknown peers may neither query nor retrieve nor ask to commit
        return _MOST_COMMAND
    is_query = message.context_id is not None and message.command_set.CommandField in _QUERIES
    return _MOST_QUERY if is_query else _MOST_IDENTIFIER


def _inflated(message: Any, assoc: Any) -> bytes:
    """The data set of a message in memory. Raises InvalidCommand if a deflated one becomes larger than any may be."""
    received: bytes = message.data_set.getvalue()
    if not assoc._accepted_cx[message.context_id].transfer_syntax[0].is_deflated:
        return received
    most = _most(message, assoc)
    try:
        inflated = zlib.decompressobj(-zlib.MAX_WBITS).decompress(received, most)
    except zlib.error:
        return b""  # its handler says that it cannot be read
    if len(inflated) == most:
        raise InvalidCommand("its deflated identifier becomes too large")
    return inflated
