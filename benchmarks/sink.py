"""A Storage SCP that accepts and discards everything, so that a benchmark measures the sender.

DCMTK's storescp, even with --ignore, takes longer to receive 17 MB than the archives take to send them.

    python -m benchmarks.sink PORT
"""

from __future__ import annotations

import argparse
import socket
import socketserver
import struct
from io import BytesIO
from typing import Any

from pydicom import Dataset
from pydicom.uid import UID
from pynetdicom.dsutils import decode, encode
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import A_ASSOCIATE, MaximumLengthNotification
from pynetdicom.presentation import PresentationContext

ASSOCIATE, DATA, RELEASE = 1, 4, 5
MOST = 2**17


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", type=int)
    options = parser.parse_args()
    socketserver.ThreadingTCPServer.allow_reuse_address = True
    with socketserver.ThreadingTCPServer(("127.0.0.1", options.port), Association) as server:
        server.serve_forever()


class Association(socketserver.BaseRequestHandler):
    """One association, from its request to its release."""

    def handle(self) -> None:
        connection: socket.socket = self.request
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        buffer, command = memoryview(bytearray(2**20)), b""
        while len(header := connection.recv(6, socket.MSG_WAITALL)) == 6:
            kind, length = struct.unpack(">BxI", header)
            connection.recv_into(buffer, length, socket.MSG_WAITALL)
            if kind == ASSOCIATE:
                connection.sendall(accepted(header + bytes(buffer[:length])))
            elif kind == DATA:
                context, control = buffer[4], buffer[5]
                if control & 1:
                    command = bytes(buffer[6:length])
                elif control & 2:
                    connection.sendall(success(context, command))
            else:
                if kind == RELEASE:
                    connection.sendall(b"\x06\x00\x00\x00\x00\x04\x00\x00\x00\x00")
                return


def accepted(asked: bytes) -> bytes:
    """The A-ASSOCIATE-AC that accepts every context with its first transfer syntax."""
    pdu = A_ASSOCIATE_RQ()
    pdu.decode(asked)
    answer: A_ASSOCIATE = pdu.to_primitive()
    contexts = []
    for proposed in answer.presentation_context_definition_list:
        context = PresentationContext()
        context.context_id, context.result = proposed.context_id, 0
        context.transfer_syntax = proposed.transfer_syntax[:1]
        contexts.append(context)
    answer.presentation_context_definition_list = []
    answer.presentation_context_definition_results_list = contexts
    answer.result, answer.result_source = 0, 1
    most = MaximumLengthNotification()
    most.maximum_length_received = MOST
    answer.user_information = [
        most if isinstance(item, MaximumLengthNotification) else item for item in answer.user_information
    ]
    made: Any = A_ASSOCIATE_AC()
    made.from_primitive(answer)
    return bytes(made.encode())


def success(context: int, command: bytes) -> bytes:
    """The C-STORE-RSP with status 0000 for a C-STORE-RQ."""
    asked, answer = decode(BytesIO(command), True, True), Dataset()
    answer.AffectedSOPClassUID = UID(asked.AffectedSOPClassUID)
    answer.CommandField = 0x8001
    answer.MessageIDBeingRespondedTo = asked.MessageID
    answer.CommandDataSetType = 0x0101
    answer.Status = 0x0000
    answer.AffectedSOPInstanceUID = UID(asked.AffectedSOPInstanceUID)
    body = encode(answer, True, True) or b""
    group = struct.pack("<HHII", 0, 0, 4, len(body)) + body
    return struct.pack(">BxIIBB", DATA, len(group) + 6, len(group) + 2, context, 3) + group


if __name__ == "__main__":
    main()
