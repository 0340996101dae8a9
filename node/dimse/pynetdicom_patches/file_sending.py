"""Send a file's data set from its pages to the socket, without holding it in memory.

pynetdicom 3.0: ``DIMSEMessage.encode_msg`` and ``DULServiceProvider.send_pdu`` read the file of ``send_c_store`` into
a queue of P-DATA primitives, copying each byte five times; the whole file is in memory before the peer has read its
first PDU.
Upstream: pynetdicom#517 asked for limited memory; STORE_SEND_CHUNKED_DATASET, which came of it, still fills the queue.
Remove when the queue of ``send_pdu`` is bounded.
"""

from __future__ import annotations

import mmap
import ssl
import struct
import threading
from collections import deque
from pathlib import Path
from typing import Any

from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.pdu import P_DATA_TF
from pynetdicom.pdu_primitives import P_DATA

from node.dimse.pynetdicom_patches.response_timeout import time_responses
from node.dimse.pynetdicom_patches.send_timeout import TimedSend, send_all

_LARGE_PDU = 2**20
"""Bytes of the largest PDU that we send; larger ones are no faster."""
_PDV = struct.Struct(">BxIIBB")
"""The header of a P-DATA-TF PDU with one presentation data value: PDU type and length, PDV length, context, control."""


class FileSendingSocket(TimedSend):
    """A connection that can send a file."""

    def send_file(self, path: Path, offset: int, context_id: int, most: int) -> None:
        """Send the data set that begins at ``offset``, as P-DATA-TF PDUs of at most ``most`` bytes (PS3.8 9.3.5), each
        with an even number of bytes (PS3.8 E.1)."""
        size = max((most - 6) // 2 * 2, 1)
        connection: Any = self.socket
        try:
            connection.settimeout(self.assoc.ae.network_timeout)
            with (
                path.open("rb") as file,
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
                memoryview(mapped) as whole,
            ):
                for start in range(offset, len(whole), size):
                    with whole[start : start + size] as part:
                        last = 0x02 if start + len(part) == len(whole) else 0x00
                        _send_both(connection, _PDV.pack(4, len(part) + 6, len(part) + 2, context_id, last), part)
        except Exception as error:  # noqa: BLE001 - as in TimedSend.send
            self._treat_as_closed(error)


def send_files_directly(assoc: Any) -> None:
    """Let ``send_c_store`` send a path straight from the file, in the thread that owns the connection.

    The time for a response starts when the last byte has been sent.
    """
    dul, dimse = assoc.dul, assoc.dimse
    if "send_msg" in vars(dimse):
        return  # an earlier C-GET on this association
    send_msg, send = dimse.send_msg, dul._send
    files: deque[tuple[Path, int, int]] = deque()
    sent, awaited = threading.Event(), [None]
    sent.set()

    def send_msg_or_file(primitive: Any, context_id: int) -> None:
        if getattr(primitive, "_dataset_path", None) is None:
            send_msg(primitive, context_id)
            return
        message: Any = C_STORE_RQ()
        message.primitive_to_message(primitive)
        message._data_set_path = None  # leaves the command set, which announces a data set
        sent.clear()
        awaited[0] = primitive.MessageID
        for command in message.encode_msg(context_id, dimse.maximum_pdu_size):
            dul.send_pdu(command)
        files.append((*primitive._dataset_path, context_id))
        dul.send_pdu(P_DATA())  # without a value: it stands for the file

    def send_pdu_or_file(pdu: Any) -> None:
        if isinstance(pdu, P_DATA_TF) and not pdu.presentation_data_value_items:
            try:
                dul.socket.send_file(*files.popleft(), min(dimse.maximum_pdu_size or _LARGE_PDU, _LARGE_PDU))
            finally:
                sent.set()
        else:
            send(pdu)

    dimse.send_msg, dul._send = send_msg_or_file, send_pdu_or_file
    time_responses(assoc, sent, lambda: awaited[0])


def _send_both(connection: Any, header: bytes, part: memoryview) -> None:
    """Send header and data; without a copy of the data unless the connection is TLS."""
    if isinstance(connection, ssl.SSLSocket):
        send_all(connection, memoryview(header + part))
        return
    sent = connection.sendmsg([header, part])
    if sent < len(header):
        connection.sendall(header[sent:])
        sent = len(header)
    send_all(connection, part[sent - len(header) :])
