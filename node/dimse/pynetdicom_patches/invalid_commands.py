"""Let a command set with missing or invalid elements be answered, or say what is wrong with it (PS3.7 9.3, 10.3).

pynetdicom 3.0: ``DIMSEMessage.decode_msg`` raises AttributeError or KeyError for a command without Command Field or
Command Data Set Type, for one of no known operation, and for a C-STORE without its UIDs. An invalid Priority is a
ValueError, whose traceback is logged.
Upstream: not reported.
Remove when such requests reach ``Association._serve_request``, and errors name the element.
"""

from __future__ import annotations

from typing import Any

from pydicom import Dataset
from pydicom.uid import UID
from pynetdicom import dimse_messages
from pynetdicom.dsutils import create_file_meta

_STORE, _EVENT_REPORT = 0x0001, 0x0100
"""Command Fields of a C-STORE-RQ and an N-EVENT-REPORT-RQ (PS3.7 E.1)."""
_RESPONSE = 0x8000
"""The bit of Command Field that responses have."""
_PRIORITIES = (0, 1, 2)
_NO_UID = UID("0.0")
"""Stands in the spooled file for a UID that the command lacks; that file is discarded."""


class InvalidCommand(Exception):
    """A command set that cannot be answered. The message says why, and quotes no value but numbers."""


def check_command(command: Dataset) -> None:
    """Make a command set one that pynetdicom decodes, although it may lack elements. Raises InvalidCommand."""
    try:
        values = {element.keyword: element.value for element in command}
    except Exception as error:
        raise InvalidCommand("an element of its command set cannot be read") from error
    field = values.get("CommandField")
    if field is None:
        raise InvalidCommand("it has no Command Field (0000,0100)")
    if field not in dimse_messages._MESSAGE_TYPES:
        raise InvalidCommand(f"its Command Field (0000,0100) is {field}, which is no operation")
    if field == _EVENT_REPORT:  # pynetdicom would serve each in a thread of its own
        raise InvalidCommand("it is a request N-EVENT-REPORT, and this node asked for no reports")
    if values.get("CommandDataSetType") is None:
        raise InvalidCommand("it has no Command Data Set Type (0000,0800)")
    if field == _STORE:
        for keyword in ("AffectedSOPClassUID", "AffectedSOPInstanceUID"):
            if keyword not in command:
                setattr(command, keyword, "")
    if "Priority" in command and values["Priority"] not in _PRIORITIES:
        command.Priority = 0  # medium
    if not field & _RESPONSE and values.get("MessageID") is not None and "MessageIDBeingRespondedTo" in command:
        del command.MessageIDBeingRespondedTo


def create_meta(*, sop_class_uid: UID, sop_instance_uid: UID, transfer_syntax: UID) -> Any:
    """The file meta information of a data set that is spooled, also if its command lacks a UID."""
    return create_file_meta(
        sop_class_uid=sop_class_uid or _NO_UID,
        sop_instance_uid=sop_instance_uid or _NO_UID,
        transfer_syntax=transfer_syntax,
    )
