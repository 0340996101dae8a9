"""A caller that sends any command set, in any PDUs: also those that no library would send."""

from __future__ import annotations

import socket
import struct
from io import BytesIO
from types import TracebackType
from typing import Any

from pydicom import Dataset
from pynetdicom.dsutils import decode, encode

from benchmarks.upper_layer import ACCEPTED, DATA, IMPLICIT, associate, context, pdu, received

NO_DATA_SET, DATA_SET = 0x0101, 0x0001
"""Command Data Set Type (0000,0800)."""
COMMAND, LAST_OF_COMMAND, LAST_OF_DATA_SET = 1, 3, 2
"""Message control headers (PS3.8 E.2)."""


def command_set(**values: Any) -> bytes:
    """A command set in Implicit VR Little Endian, with its group length. ``None`` leaves an element out."""
    command = Dataset()
    for keyword, value in values.items():
        if value is not None:
            setattr(command, keyword, value)
    rest = encode(command, True, True) or b""
    return struct.pack("<HHII", 0, 0, 4, len(rest)) + rest


def pdv(control: int, data: bytes, number: int = 1) -> bytes:
    """A presentation data value item on a presentation context."""
    return struct.pack(">IBB", len(data) + 2, number, control) + data


def in_one_pdu(*values: bytes) -> bytes:
    """A P-DATA-TF PDU of these items."""
    return pdu(DATA, b"".join(values))


class RawCaller:
    """An association, for use in a ``with`` block, with a presentation context for each SOP class: 1, 3, 5, ..."""

    def __init__(self, port: int, *sop_classes: str, calling: str = "MODALITY", seconds: float = 20) -> None:
        self._connection = socket.create_connection(("127.0.0.1", port), seconds)
        contexts = [context(2 * at + 1, one.encode(), IMPLICIT) for at, one in enumerate(sop_classes)]
        self.send(associate(*contexts, calling=calling.encode()))
        assert received(self._connection)[:1] == bytes((ACCEPTED,))

    def __enter__(self) -> RawCaller:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def send(self, data: bytes) -> None:
        self._connection.sendall(data)

    def answer(self) -> Dataset | None:
        """The command set of the next message; None if the association was aborted or closed."""
        command = BytesIO()
        while True:
            found = received(self._connection)
            if found[:1] != bytes((DATA,)):
                return None
            command.write(found[12:])
            if found[11] == LAST_OF_COMMAND:
                return decode(command, True, True)

    def ask(self, command: bytes, data_set: bytes = b"", number: int = 1) -> Dataset | None:
        """The answer to a message."""
        self.send(in_one_pdu(pdv(LAST_OF_COMMAND, command, number)))
        if data_set:
            self.send(in_one_pdu(pdv(LAST_OF_DATA_SET, data_set, number)))
        return self.answer()
