"""What pynetdicom 3.0 does not offer in its documented interface, kept in this one file.

1. Its C-GET and C-MOVE services re-encode every data set, turn a failed image into success, and cannot send a pending
   response while an image is being made. Here a handler returns an iterator of ``Report`` and sends its own
   sub-operations; ``install`` puts that behind the two services for our entity, and leaves every other AE alone.
2. A received data set is spooled to the system's temporary folder and left there when a peer dies. Here each
   association spools into a folder of its own on the store's file system, which goes with the association.
3. An association on which a handler works for longer than the network timeout is ended when it is done.
4. ``dimse_timeout`` counts the time that a data set takes to be sent (pynetdicom#792): on a slow line a large image
   could never be moved. Here the clock starts when the last byte is out.
5. ``send_c_store`` sends a file's bytes as they are only by a module-wide switch.
6. A requestor's own reactor thread can take the answer that a ``send_*`` method waits for.
7. A command set or identifier is collected in memory however long it is, and an error while a message is decoded
   leaves the association half dead.
8. A data set that is sent is copied five times, and as a whole into a queue. Here the file's pages go to the socket.
9. A handler cannot do anything after its response, and a report on the same association loses a request that comes
   meanwhile.

Written against pynetdicom 3.0.4; pyproject.toml keeps it below 3.1.
"""

from __future__ import annotations

import logging
import os
import queue
import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from pydicom import Dataset
from pydicom.uid import UID
from pynetdicom import AE, _config, dimse_messages, evt
from pynetdicom.dimse_primitives import C_GET, C_MOVE, N_EVENT_REPORT
from pynetdicom.dsutils import encode
from pynetdicom.pdu import P_DATA_TF
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.service_class import QueryRetrieveServiceClass, StorageServiceClass
from pynetdicom.service_class_n import StorageCommitmentServiceClass
from pynetdicom.sop_class import register_uid, uid_to_service_class

from node.dimse.pynetdicom_patches.listener import BoundedSocket
from node.dimse.pynetdicom_patches.negotiation import plain_titles
from node.dimse.pynetdicom_patches.upper_layer import take_over
from node.dimse.spool import Allowance, SpoolFile

LOGGER = logging.getLogger(__name__)


class ArchiveEntity(AE):
    """Our application entity: an AE with a spool folder on the store's file system.

    ``allowance``: what an association may bring. ``after_action``: called with an association when the response to an
    N-ACTION has been sent on it, in its own thread.
    """

    def __init__(self, ae_title: str, spool: Path, allowance: Callable[[Any], Allowance]) -> None:
        super().__init__(ae_title)
        self.spool, self.allowance = spool, allowance
        self.after_action: Callable[[Any], None] = lambda assoc: None

    def _create_socket(self, assoc: Any, address: Any, tls_args: Any) -> BoundedSocket:
        """For the associations that we open: as those of callers, bounded."""
        take_over(assoc)
        made = BoundedSocket(assoc, address=address)
        made.tls_args = tls_args
        return made


@dataclass(frozen=True)
class Report:
    """One C-GET or C-MOVE response: a status and the counts of sub-operations (PS3.7 9.1.3.1, 9.1.4.1)."""

    status: int
    remaining: int | None = None
    completed: int = 0
    failed: int = 0
    warning: int = 0
    failed_uids: tuple[str, ...] = ()
    comment: str = ""


def install() -> None:
    """Put our services in place, once per process. Other AEs in this process keep pynetdicom's own."""
    _config.LOG_HANDLER_LEVEL = "none"
    for switch in ("LOG_REQUEST_IDENTIFIERS", "LOG_RESPONSE_IDENTIFIERS"):
        setattr(_config, switch, False)  # identifiers are patient data
    _config.STORE_SEND_CHUNKED_DATASET = True  # a path is sent as its bytes are
    decoder: Any = dimse_messages
    if isinstance(decoder._config, _SpoolingConfig):
        return
    for name, event in (("_get_scp", evt.EVT_C_GET), ("_move_scp", evt.EVT_C_MOVE)):
        setattr(QueryRetrieveServiceClass, name, _service(event, getattr(QueryRetrieveServiceClass, name)))
    commit: Any = StorageCommitmentServiceClass
    commit.SCP = _following(commit.SCP)
    decoder.DIMSEMessage.decode_msg = _spooling(decoder.DIMSEMessage.decode_msg)
    decoder.NamedTemporaryFile = _spool_file
    decoder._config = _SpoolingConfig()


def know_storage_classes(uids: Iterable[str]) -> None:
    """Serve C-STORE for these SOP classes too, in this process; pynetdicom aborts where it does not know one."""
    for uid in uids:
        if uid_to_service_class(uid) is not StorageServiceClass:
            register_uid(uid, f"Configured_{uid.replace('.', '_')}", StorageServiceClass)


# --- 1. retrieve services -------------------------------------------------------------------------------------


def _service(event: Any, original: Callable[..., None]) -> Callable[..., None]:
    def serve(self: Any, request: Any, context: Any) -> None:
        if not isinstance(self.assoc.ae, ArchiveEntity):
            original(self, request, context)
            return
        attributes = {"request": request, "context": context.as_tuple, "_is_cancelled": self.is_cancelled}
        try:
            reports: Any = evt.trigger(self.assoc, event, attributes)
            for report in reports:
                if not self.assoc.is_established:
                    return
                self.dimse.send_msg(_message(request, report, context), context.context_id)
        except Exception:
            LOGGER.exception("retrieve failed")
            failure = Report(0xC000, comment="internal error, see the node's log")
            self.dimse.send_msg(_message(request, failure, context), context.context_id)

    return serve


def _message(request: Any, report: Report, context: Any) -> Any:
    message: Any = C_MOVE() if isinstance(request, C_MOVE) else C_GET()
    message.MessageIDBeingRespondedTo = request.MessageID
    message.AffectedSOPClassUID = request.AffectedSOPClassUID
    message.Status = report.status
    if report.remaining is not None:
        message.NumberOfRemainingSuboperations = report.remaining
    message.NumberOfCompletedSuboperations = report.completed
    message.NumberOfFailedSuboperations = report.failed
    message.NumberOfWarningSuboperations = report.warning
    if report.comment:
        message.ErrorComment = report.comment[:64]
    if report.failed_uids:
        identifier = Dataset()
        identifier.FailedSOPInstanceUIDList = list(report.failed_uids)
        syntax = context.transfer_syntax[0]
        encoded = encode(identifier, syntax.is_implicit_VR, syntax.is_little_endian, syntax.is_deflated)
        message.Identifier = BytesIO(encoded or b"")
    return message


# --- 9. what follows an N-ACTION --------------------------------------------------------------------------------


def _following(original: Callable[..., None]) -> Callable[..., None]:
    def serve(self: Any, request: Any, context: Any) -> None:
        original(self, request, context)
        if isinstance(self.assoc.ae, ArchiveEntity):
            self.assoc.ae.after_action(self.assoc)

    return serve


def report_event(assoc: Any, event_type: int, sop_class: str, sop_instance: str, information: Dataset) -> int | None:
    """N-EVENT-REPORT on an association that a peer opened, from that association's own thread; the peer's status.

    None where it did not answer, or wants to release. Requests that come meanwhile stay in line.
    """
    context = next(one for one in assoc.accepted_contexts if one.abstract_syntax == sop_class)
    syntax = context.transfer_syntax[0]
    message: Any = N_EVENT_REPORT()
    message.MessageID = 1
    message.AffectedSOPClassUID, message.AffectedSOPInstanceUID = UID(sop_class), UID(sop_instance)
    message.EventTypeID = event_type
    encoded = encode(information, syntax.is_implicit_VR, syntax.is_little_endian, syntax.is_deflated)
    message.EventInformation = BytesIO(encoded or b"")
    assoc.dimse.send_msg(message, context.context_id)
    waiting: list[Any] = []
    status = _awaited(assoc, waiting)
    arrived = assoc.dimse.msg_queue
    with arrived.mutex:
        arrived.queue.extendleft(reversed(waiting))
    return status


def _awaited(assoc: Any, waiting: list[Any]) -> int | None:
    deadline = time.monotonic() + (assoc.dimse_timeout or 60)
    while time.monotonic() < deadline and assoc.dul.is_alive():
        try:
            entry = assoc.dimse.msg_queue.get(timeout=0.1)
        except queue.Empty:
            if assoc.dul.peek_next_pdu() is not None:  # a release or an abort
                return None
            continue
        if isinstance(entry[1], N_EVENT_REPORT) and entry[1].MessageIDBeingRespondedTo is not None:
            return int(entry[1].Status or 0)
        waiting.append(entry)
    return None


# --- 2. spooling ----------------------------------------------------------------------------------------------

_current = threading.local()

_LARGE_PDU = 2**20
"""Bytes of the largest PDU that we send; larger ones are no faster."""
_LOOK = 0.1
"""Seconds between two looks at whether bytes still leave."""


def association_spool(assoc: Any) -> Path:
    """The folder that an association's arriving data sets lie in."""
    return Path(assoc.ae.spool) / f"association-{id(assoc)}"


def is_receiving(assoc: Any) -> bool:
    """True while a data set of that association is arriving, or is with its handler."""
    try:
        with os.scandir(association_spool(assoc)) as entries:
            return any(True for _ in entries)
    except FileNotFoundError:
        return False


def not_idle(assoc: Any) -> None:
    """Start an association's idle time anew: pynetdicom counts the time a handler works as idle."""
    assoc.dul._idle_timer.restart()


def stream_files(assoc: Any) -> None:
    """Send what ``send_c_store`` is given as a path straight from the file, in the thread that owns the connection.

    The time in which an answer must come starts when the last byte is out.
    """
    dul, dimse = assoc.dul, assoc.dimse
    if "send_msg" in vars(dimse):
        return  # an earlier C-GET on this association
    send_msg, send, take = dimse.send_msg, dul._send, dimse.get_msg
    files: deque[tuple[Path, int, int]] = deque()
    out = threading.Event()
    out.set()

    def send_msg_or_file(primitive: Any, context_id: int) -> None:
        if getattr(primitive, "_dataset_path", None) is None:
            send_msg(primitive, context_id)
            return
        message: Any = dimse_messages.C_STORE_RQ()
        message.primitive_to_message(primitive)
        message._data_set_path = None  # leaves the command set, which says that a data set follows
        out.clear()
        for command in message.encode_msg(context_id, dimse.maximum_pdu_size):
            dul.send_pdu(command)
        files.append((*primitive._dataset_path, context_id))
        dul.send_pdu(P_DATA())  # without a value: it stands for the file

    def send_pdu_or_file(pdu: Any) -> None:
        if isinstance(pdu, P_DATA_TF) and not pdu.presentation_data_value_items:
            try:
                dul.socket.send_file(*files.popleft(), min(dimse.maximum_pdu_size or _LARGE_PDU, _LARGE_PDU))
            finally:
                out.set()
        else:
            send(pdu)

    dimse.send_msg, dul._send = send_msg_or_file, send_pdu_or_file
    dimse.get_msg = lambda block=False: _answer(assoc, out) if block else take(block=False)


def _answer(assoc: Any, out: threading.Event) -> tuple[Any, Any]:
    """The next message; (None, None) where none came within the DIMSE timeout since bytes of ours last left."""
    timeout = assoc.dimse_timeout or float("inf")
    deadline, unsent = time.monotonic() + timeout, 0
    while assoc.dul.is_alive() and time.monotonic() < deadline:
        with suppress(queue.Empty):
            context_id, message = assoc.dimse.msg_queue.get(timeout=_LOOK)
            return context_id, message
        before, unsent = unsent, assoc.dul.socket.unsent() if out.is_set() else -1
        if unsent < 0 or unsent != before:
            deadline = time.monotonic() + timeout
    return None, None


def why_no_answer(assoc: Any) -> str:
    """Why no answer came to what was sent last on an association, in words."""
    lost = getattr(assoc.dul.socket, "lost", "")
    if lost:
        return f"the connection was lost while sending: {lost}"
    if assoc._sent_abort:  # by pynetdicom, when its wait was over
        return f"receiver did not answer within {assoc.dimse_timeout:g} s of the last byte (node.dimse_timeout)"
    return "receiver aborted the association, or closed the connection"


def keep_answers(assoc: Any) -> None:
    """Leave every message of an association we opened to the ``send_*`` method that waits for it.

    The reactor thread polls for requests, which nobody sends to a requestor, and the hand-over between the two has a
    gap: on a loaded machine it took an answer, and the sender waited until its DIMSE timeout.
    """
    if not assoc.is_requestor:
        return  # there the reactor thread is the one that sends
    take = assoc.dimse.get_msg
    assoc.dimse.get_msg = lambda block=False: take(block=True) if block else (None, None)


def end_all(entity: ArchiveEntity, within: float) -> None:
    """Abort every association of ours; those that do not end by half that time, in seconds, are cut off."""
    for end in (_abort, _cut):
        left = [assoc for assoc in entity.active_associations if assoc.dul.is_alive()]
        for assoc in left:
            end(assoc)
        deadline = time.monotonic() + within / 2
        while any(assoc.dul.is_alive() for assoc in left) and time.monotonic() < deadline:
            time.sleep(0.02)


def _abort(assoc: Any) -> None:
    if assoc.is_established:
        assoc.abort(block=False)
    else:  # nothing to abort yet
        _cut(assoc)


def _cut(assoc: Any) -> None:
    if assoc.dul.socket is not None:
        assoc.dul.socket.cut()


def has_gone(assoc: Any) -> bool:
    """True where a peer that called us has ended its association; pynetdicom sees it once our handler is done."""
    return not assoc.is_established or assoc.acse.is_aborted() or not assoc.dul.is_alive()


def remove_association_spool(assoc: Any) -> None:
    """Whatever an association left half received goes with it."""
    half = getattr(getattr(assoc.dimse, "message", None), "_data_set_file", None)
    if half is not None:
        half.close()
    shutil.rmtree(association_spool(assoc), ignore_errors=True)


def _spooling(original: Callable[..., bool]) -> Callable[..., bool]:
    def decode_msg(self: Any, primitive: Any, assoc: Any = None) -> bool:
        if assoc is None or not isinstance(assoc.ae, ArchiveEntity):
            _current.association = None
            return original(self, primitive, assoc)
        _current.association = assoc if assoc.is_acceptor else None
        try:
            _check_size(self, primitive)
            is_whole = original(self, primitive, assoc)
            if is_whole:
                plain_titles(self.command_set)
            return is_whole
        except Exception as error:  # noqa: BLE001 - a peer's message may be broken in any way
            LOGGER.error("message of %s cannot be decoded: %s", assoc.requestor.ae_title, type(error).__name__)
            assoc.dul.event_queue.put("Evt19")  # invalid PDU: the state machine aborts
            return False

    return decode_msg


class _SpoolingConfig:
    """pynetdicom's settings as its message decoder sees them: spooling is on for our associations only."""

    def __getattr__(self, name: str) -> Any:
        if name == "STORE_RECV_CHUNKED_DATASET":
            return getattr(_current, "association", None) is not None
        return getattr(_config, name)


def _spool_file(**options: Any) -> Any:
    assoc = getattr(_current, "association", None)
    if assoc is None:
        return tempfile.NamedTemporaryFile(**options)
    return SpoolFile(association_spool(assoc), assoc.ae.allowance(assoc))


_MOST_COMMAND, _MOST_IDENTIFIER = 2**16, 2**24
"""Bytes of a command set, and of a data set that is collected in memory: 65535 references take 10 MB."""


def _check_size(message: Any, primitive: Any) -> None:
    """Raises ValueError where a message that is collected in memory becomes larger than any real one."""
    fragments = [data for _, data in primitive.presentation_data_value_list]
    command = message.encoded_command_set.tell() + sum(len(data) for data in fragments if data[0] & 1)
    identifier = message.data_set.tell()
    if not message._data_set_file and not any(data[0] & 1 for data in fragments):
        identifier += sum(map(len, fragments))  # beside a command it may belong to a file yet to be opened
    if command > _MOST_COMMAND or identifier > _MOST_IDENTIFIER:
        raise ValueError("command set or identifier too large")
