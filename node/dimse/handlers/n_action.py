"""Storage commitment as SCP (PS3.4 J.3): N-ACTION in, N-EVENT-REPORT out.

A peer with an address is told over an association of ours, again and again until it has taken the report. One without
is told on the association that it asked on, as long as it keeps that open.
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
from node.dimse.associations.peers import Peers
from node.dimse.associations.refusals import Refusals
from node.dimse.dimse_status import ACTION_ERRORS, NOT_AUTHORIZED, SUCCESS, response
from node.dimse.pynetdicom_patches import wire
from node.dimse.sop_classes import STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE
from storage.errors import InvalidUid, LatentPacsError, StoreFull
from storage.index.commitment_requests import CommitmentAnswer, CommitmentItem, CommitmentRequest, Commitments
from storage.index.lease import new_owner

LOGGER = logging.getLogger(__name__)

REQUEST_STORAGE_COMMITMENT = 1
"""Action Type ID (PS3.4 J.3.2)."""

ALL_COMMITTED, FAILURES_EXIST = 1, 2
"""Event Type ID (PS3.4 J.3.3)."""

_LONGEST_WAIT = 3600.0
_AFTER_A_CRASH = 5.0
"""A request whose response never left is worked on this many seconds after it came."""


class ActionRefused(LatentPacsError):
    """An N-ACTION that is not taken, with its status."""

    def __init__(self, status: int) -> None:
        super().__init__(ACTION_ERRORS[status].means)
        self.status = status


def handle_action(event: Any, notifier: Notifier, peers: Peers, refusals: Refusals) -> tuple[Dataset, None]:
    """One N-ACTION to one durable request to one status."""
    caller = peers.calling(event)
    if not peers.may(caller, "commit"):
        refusals.of_request(event, "commit", NOT_AUTHORIZED, f"{caller} may not ask for storage commitment here")
        return response(NOT_AUTHORIZED, f"{caller} may not ask for storage commitment here"), None
    try:
        transaction_uid, references = _request(event)
        notifier.asked(event.assoc, transaction_uid, caller, references)
    except ActionRefused as error:
        refusals.of_request(event, "commit", error.status, str(error))
        return response(error.status, str(error)), None
    except StoreFull as error:
        LOGGER.error("storage commitment request from %s failed: %s", caller, error)
        return response(0x0213, ACTION_ERRORS[0x0213].means), None
    except Exception:
        LOGGER.exception("storage commitment request from %s failed", caller)
        return response(0x0110, ACTION_ERRORS[0x0110].means), None
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
    """Takes requests down, and tells peers what became of them; a thread of its own works on what is due."""

    def __init__(
        self, settings: Settings, commitments: Commitments, committer: CommitmentJudge, outgoing: Outgoing
    ) -> None:
        self._settings, self._commitments = settings, commitments
        self._committer, self._outgoing = committer, outgoing
        self._owner = new_owner()
        self._unanswered: dict[Any, list[int]] = {}
        self._ready: queue.Queue[int | None] = queue.Queue()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="commitment", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, within: float) -> None:
        """Finish the report in hand, if its peer answers within so many seconds; all are rows, and go on at the next
        start."""
        self._stopping.set()
        self._ready.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout=within)

    def asked(self, assoc: Any, transaction_uid: str, caller: str, references: Sequence[CommitmentItem]) -> None:
        """Make a request durable; it is worked on when its response has left."""
        key = self._commitments.add(transaction_uid, caller, references, due=time.time() + _AFTER_A_CRASH)
        self._unanswered.setdefault(assoc, []).append(key)

    def answered(self, assoc: Any) -> None:
        """The response to an N-ACTION has left. Called in the association's own thread."""
        for key in self._unanswered.pop(assoc, []):
            peer = self._settings.peer(str(assoc.requestor.ae_title).strip())
            if peer is not None and peer.reachable:
                self._ready.put(key)
            else:
                self._work(self._commitments.claim(self._owner, LEASE, key=key), assoc)

    def _run(self) -> None:
        poll = min(self._settings.commitment.retry, 5.0)
        while not self._stopping.is_set():
            try:
                key = self._ready.get(timeout=poll)
                if key is None:
                    return
                self._work(self._commitments.claim(self._owner, LEASE, key=key))
            except queue.Empty:
                self._work_on_what_is_due()
            except Exception:
                LOGGER.exception("storage commitment: will be tried again")

    def _work_on_what_is_due(self) -> None:
        while not self._stopping.is_set():
            asked = self._commitments.claim(self._owner, LEASE)
            if asked is None:
                return
            self._work(asked)

    def _work(self, asked: CommitmentRequest | None, assoc: Any = None) -> None:
        if asked is None:
            return
        try:
            report = self._committer.judge(asked)
            self._tell(asked, report, assoc)
        except Exception as error:
            self._put_off(asked, error)
            if not isinstance(error, LatentPacsError):
                raise
            return
        self._commitments.reported(asked)
        failed = sum(bool(one.reason) for one in report)
        LOGGER.info("%s was told: %s committed, %s not", asked.calling_aet, len(report) - failed, failed)

    def _put_off(self, asked: CommitmentRequest, error: Exception) -> None:
        settings = self._settings.commitment
        wait = min(settings.retry * 2.0 ** min(asked.attempts, 20), _LONGEST_WAIT)
        if time.time() + wait - _timestamp(asked) > settings.give_up:
            LOGGER.error("%s cannot be told of its storage commitment, given up: %s", asked.calling_aet, error)
            self._commitments.give_up(asked)
            return
        LOGGER.warning("%s not told of its storage commitment, again in %.0f s: %s", asked.calling_aet, wait, error)
        self._commitments.postpone(asked, time.time() + wait)

    def _tell(self, asked: CommitmentRequest, report: Sequence[CommitmentAnswer], assoc: Any) -> None:
        """Raises DestinationUnavailable where the peer did not take the report."""
        information = event_information(asked.transaction_uid, report, self._settings.node.ae_title)
        event_type = FAILURES_EXIST if any(one.reason for one in report) else ALL_COMMITTED
        if assoc is not None:
            about = STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE
            status = wire.report_event(assoc, event_type, *about, information)
        else:
            status = self._call(asked.calling_aet, event_type, information)
        if status is None:
            raise DestinationUnavailable("no answer to the report")
        if status != SUCCESS and status & 0xF000 != 0xB000:
            raise DestinationUnavailable(f"the report was answered with status {status:04X}")

    def _call(self, ae_title: str, event_type: int, information: Dataset) -> int | None:
        peer = self._settings.peer(ae_title)
        if peer is None or not peer.reachable:
            raise DestinationUnavailable("config.yaml has no address for it, and it has let go of its association")
        contexts = [build_context(UID(STORAGE_COMMITMENT), [ExplicitVRLittleEndian, ImplicitVRLittleEndian])]
        # the requestor is the SCP here, and says so (PS3.4 J.3.3, PS3.7 D.3.3.4)
        role = build_role(UID(STORAGE_COMMITMENT), scp_role=True)
        # one that is busy is told later, so that others need not wait
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


def _timestamp(asked: CommitmentRequest) -> float:
    return asked.requested_at.replace(tzinfo=UTC).timestamp()
