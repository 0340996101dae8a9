"""Storage commitment as SCP (PS3.4 J.3): handles N-ACTION, and sends N-EVENT-REPORT.

A peer with an address gets the report over an association of ours, repeatedly until it accepts it. A peer without one
gets it on the association of its request, as long as that is open.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Sequence
from datetime import UTC
from typing import Any

from pydicom import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import build_role
from pynetdicom.presentation import build_context

from node.archive.intake.ingest import check_uid
from node.archive.originals.storage_commitment import LEASE, CommitmentJudge
from node.config import Settings
from node.dimse.associations.outgoing import DestinationUnavailable, Outgoing
from node.dimse.associations.refusals import Refusals, title_of
from node.dimse.dimse_status import ACTION_ERRORS, NOT_AUTHORIZED, SUCCESS, is_warning, response
from node.dimse.pynetdicom_patches.event_report import report_event
from node.dimse.sop_classes import STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE
from storage.errors import InvalidUid, LatentPacsError, StoreFull
from storage.index.commitment_requests import CommitmentAnswer, CommitmentItem, CommitmentRequest
from storage.index.lease import new_owner

LOGGER = logging.getLogger(__name__)

REQUEST_STORAGE_COMMITMENT = 1
"""Action Type ID (PS3.4 J.3.2)."""

ALL_COMMITTED, FAILURES_EXIST = 1, 2
"""Event Type ID (PS3.4 J.3.3)."""

_LONGEST_WAIT = 3600.0
"""Seconds between two attempts to report, at most."""
_AFTER_A_CRASH = 5.0
"""Seconds after which a request is processed although its response was never sent. Chosen, not measured."""


class ActionRefused(LatentPacsError):
    """An N-ACTION that is refused, with its status."""

    def __init__(self, status: int) -> None:
        super().__init__(ACTION_ERRORS[status])
        self.status = status


def handle_action(event: Any, notifier: Notifier, settings: Settings, refusals: Refusals) -> tuple[Dataset, None]:
    """Handle N-ACTION: store the request durably, and return one status."""
    caller = title_of(event.assoc)
    if "commit" not in settings.caller(caller).allow:
        refusals.of_request(event.assoc, "commit", NOT_AUTHORIZED, f"{caller} may not ask for storage commitment here")
        return response(NOT_AUTHORIZED, f"{caller} may not ask for storage commitment here"), None
    try:
        transaction_uid, references = _request(event)
        notifier.add(event.assoc, transaction_uid, caller, references)
    except ActionRefused as error:
        refusals.of_request(event.assoc, "commit", error.status, str(error))
        return response(error.status, str(error)), None
    except StoreFull as error:
        LOGGER.error("storage commitment request from %s failed: %s", caller, error)
        return response(0x0213, ACTION_ERRORS[0x0213]), None
    except Exception:
        LOGGER.exception("storage commitment request from %s failed", caller)
        return response(0x0110, ACTION_ERRORS[0x0110]), None
    return response(SUCCESS), None


def _request(event: Any) -> tuple[str, list[CommitmentItem]]:
    """Transaction UID and references of an N-ACTION (PS3.4 table J.3-1). Raises ActionRefused."""
    if event.request.RequestedSOPInstanceUID != STORAGE_COMMITMENT_INSTANCE:
        raise ActionRefused(0x0112)
    if event.action_type != REQUEST_STORAGE_COMMITMENT:
        raise ActionRefused(0x0123)
    try:
        information = event.action_information
        transaction_uid = str(information.get("TransactionUID") or "")
        items = [
            CommitmentItem(
                str(item.get("ReferencedSOPClassUID") or ""), str(item.get("ReferencedSOPInstanceUID") or "")
            )
            for item in information.get("ReferencedSOPSequence") or ()
        ]
    except Exception as error:
        raise ActionRefused(0x0115) from error
    if not transaction_uid or not items:
        raise ActionRefused(0x0120)
    try:
        check_uid("Transaction UID", transaction_uid)
        for item in items:
            check_uid("Referenced SOP Class UID", item.sop_class_uid)
            check_uid("Referenced SOP Instance UID", item.sop_instance_uid)
    except InvalidUid as error:
        raise ActionRefused(0x0106) from error
    return transaction_uid, items


class Notifier:
    """Stores requests, and reports their results to peers; a thread of its own processes those that are due."""

    def __init__(self, settings: Settings, judge: CommitmentJudge, outgoing: Outgoing) -> None:
        self._settings, self._commitments = settings, judge.commitments
        self._judge, self._outgoing = judge, outgoing
        self._owner = new_owner()
        self._unanswered: dict[Any, list[int]] = {}
        self._ready: queue.Queue[int | None] = queue.Queue()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="commitment", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, within: float) -> None:
        """Finish the current report if its peer responds within that many seconds. The other requests remain in the
        index, and the next start continues with them."""
        self._stopping.set()
        self._ready.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout=within)

    def add(self, assoc: Any, transaction_uid: str, caller: str, references: Sequence[CommitmentItem]) -> None:
        """Store a request durably; it is processed when its response has been sent."""
        key = self._commitments.add(transaction_uid, caller, references, due=time.time() + _AFTER_A_CRASH)
        self._unanswered.setdefault(assoc, []).append(key)

    def response_sent(self, assoc: Any) -> None:
        """Process requests whose response has been sent. Called in the association's own thread."""
        for key in self._unanswered.pop(assoc, []):
            peer = self._settings.peer(title_of(assoc))
            if peer is not None and peer.reachable:
                self._ready.put(key)
            else:
                self._process(self._commitments.claim(self._owner, LEASE, key=key), assoc)

    def _run(self) -> None:
        poll = min(self._settings.commitment.retry, 5.0)
        while not self._stopping.is_set():
            try:
                self._process_next(poll)
            except (LatentPacsError, OSError) as error:  # such as a read-only disk
                LOGGER.error("storage commitment failed; it will be tried again: %s", error)
            except Exception:
                LOGGER.exception("storage commitment failed; it will be tried again")

    def _process_next(self, within: float) -> None:
        """Process the next request whose response is sent within that many seconds; otherwise, all that are due."""
        try:
            key = self._ready.get(timeout=within)
        except queue.Empty:
            self._process_due()
            return
        if key is not None:
            self._process(self._commitments.claim(self._owner, LEASE, key=key))

    def _process_due(self) -> None:
        while not self._stopping.is_set() and (request := self._commitments.claim(self._owner, LEASE)):
            self._process(request)

    def _process(self, request: CommitmentRequest | None, assoc: Any = None) -> None:
        if request is None:
            return
        try:
            report = self._judge.judge(request)
            self._report(request, report, assoc)
        except Exception as error:
            self._postpone(request, error)
            if not isinstance(error, LatentPacsError):
                raise
            return
        self._commitments.close(request)
        failed = sum(bool(one.reason) for one in report)
        LOGGER.info(
            "reported storage commitment to %s: %s committed, %s not", request.calling_aet, len(report) - failed, failed
        )

    def _postpone(self, request: CommitmentRequest, error: Exception) -> None:
        settings = self._settings.commitment
        wait = min(settings.retry * 2.0 ** min(request.attempts, 20), _LONGEST_WAIT)
        if time.time() + wait - request.requested_at.replace(tzinfo=UTC).timestamp() > settings.give_up:
            LOGGER.error(
                "storage commitment cannot be reported to %s, no further attempt: %s", request.calling_aet, error
            )
            self._commitments.close(request, given_up=True)
            return
        LOGGER.warning(
            "storage commitment not reported to %s, next attempt in %.0f s: %s", request.calling_aet, wait, error
        )
        self._commitments.postpone(request, time.time() + wait)

    def _report(self, request: CommitmentRequest, report: Sequence[CommitmentAnswer], assoc: Any) -> None:
        """Send the report. Raises DestinationUnavailable if the peer did not accept it."""
        information = event_information(request.transaction_uid, report, self._settings.node.ae_title)
        event_type = FAILURES_EXIST if any(one.reason for one in report) else ALL_COMMITTED
        if assoc is not None:
            about = STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE
            status = report_event(assoc, event_type, *about, information)
        else:
            status = self._call(request.calling_aet, event_type, information)
        if status is None:
            raise DestinationUnavailable("no response to the report")
        if status != SUCCESS and not is_warning(status):
            raise DestinationUnavailable(f"the report was answered with status {status:04X}")

    def _call(self, ae_title: str, event_type: int, information: Dataset) -> int | None:
        peer = self._settings.peer(ae_title)
        if peer is None or not peer.reachable:
            raise DestinationUnavailable("config.yaml has no address for it, and its association has ended")
        contexts = [build_context(UID(STORAGE_COMMITMENT), [ExplicitVRLittleEndian, ImplicitVRLittleEndian])]
        # here the requestor is the SCP, and must propose that role (PS3.4 J.3.3, PS3.7 D.3.3.4)
        role = build_role(UID(STORAGE_COMMITMENT), scp_role=True)
        # do not wait for a busy peer: it gets the report later, and others need not wait
        assoc = self._outgoing.associate(peer, contexts, [role], wanted=lambda: False)
        try:
            about = STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE
            status, _ = assoc.send_n_event_report(information, event_type, *about)
        except (ValueError, RuntimeError, OSError) as error:
            raise DestinationUnavailable(str(error)) from error
        finally:
            if assoc.is_established:
                assoc.release()
        return int(status.Status) if "Status" in status else None


def event_information(transaction_uid: str, report: Sequence[CommitmentAnswer], retrieve_ae_title: str) -> Dataset:
    """Event Information of the report (PS3.4 tables J.3-2 and J.3-3)."""
    information = Dataset()
    information.RetrieveAETitle = retrieve_ae_title
    information.TransactionUID = transaction_uid
    committed = [_item(one) for one in report if not one.reason]
    failed = [_item(one) for one in report if one.reason]
    if failed:
        information.FailedSOPSequence = Items(failed)
    if committed:
        information.ReferencedSOPSequence = Items(committed)
    return information


def _item(one: CommitmentAnswer) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = one.sop_class_uid, one.sop_instance_uid
    if one.reason:
        item.FailureReason = one.reason
    return item
