"""Storage commitment (PS3.4 Annex J): takes responsibility for instances.

An original is committed if its bytes, read again from the disk, are whole. From then on it is pinned. The UID of a
reconstruction is not committed, since only a payload is stored for it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from enum import IntEnum

from node.archive.originals.original_access import OriginalAccess
from node.config import CommitmentSettings
from storage.errors import LatentPacsError, ObjectDamaged, is_no_fault_of_a_file
from storage.index import Index
from storage.index.commitment_requests import (
    PROCESSING_FAILURE,
    CommitmentAnswer,
    CommitmentItem,
    CommitmentRequest,
    Commitments,
)
from storage.records import StoredInstance

LOGGER = logging.getLogger(__name__)


class FailureReason(IntEnum):
    """Failure Reason (0008,1197), as PS3.3 C.14.1.1 defines it."""

    PROCESSING_FAILURE = PROCESSING_FAILURE
    NO_SUCH_INSTANCE = 0x0112
    CLASS_INSTANCE_CONFLICT = 0x0119
    DUPLICATE_TRANSACTION_UID = 0x0131


COMMITTED = 0
"""Reason of an answer that commits its instance."""
LEASE = 300.0
"""Seconds of the lease on a request, which is renewed while its originals are read. Chosen, not measured."""


class CommitmentJudge:
    """Judges requests. ``fault`` says why an instance's original is missing or not whole; empty if it is whole."""

    def __init__(
        self,
        index: Index,
        commitments: Commitments,
        fault: Callable[[StoredInstance], str],
        settings: CommitmentSettings,
    ) -> None:
        self._index, self.commitments, self._fault = index, commitments, fault
        self._settings = settings

    def judge(self, request: CommitmentRequest) -> tuple[CommitmentAnswer, ...]:
        """The report on a request: the stored one, if there is one. Otherwise each original is read, and the report and
        its pins are committed in one transaction."""
        if request.report is not None:
            return request.report
        contested = self.commitments.contested([one.sop_instance_uid for one in request.references])
        report, renewed = [], time.monotonic()
        for one in request.references:
            report.append(self._judge_one(one, request.duplicate, contested))
            if time.monotonic() - renewed > LEASE / 4:
                self.commitments.renew(request, LEASE)
                renewed = time.monotonic()
        seconds = self._settings.pin_seconds
        return self.commitments.decide(request, report, until=None if seconds is None else time.time() + seconds)

    def _judge_one(self, one: CommitmentItem, duplicate: bool, contested: set[str]) -> CommitmentAnswer:
        if duplicate:
            return _failed(one, FailureReason.DUPLICATE_TRANSACTION_UID)
        held = self._index.by_uid(one.sop_instance_uid)
        if held is None:
            return _failed(one, FailureReason.NO_SUCH_INSTANCE)
        if held.sop_class_uid != one.sop_class_uid:
            return _failed(one, FailureReason.CLASS_INSTANCE_CONFLICT)
        why_not = self._why_not(held, one.sop_instance_uid, contested)
        if why_not:
            LOGGER.warning("not committed: %s, %s", one.sop_instance_uid, why_not)
            return _failed(one, FailureReason.PROCESSING_FAILURE)
        return CommitmentAnswer(one.sop_class_uid, one.sop_instance_uid, COMMITTED, held.key, held.original_digest)

    def _why_not(self, held: StoredInstance, uid: str, contested: set[str]) -> str:
        if held.sop_instance_uid != uid:
            return "it is a reconstruction"
        if uid in contested:
            return "another data set with this UID is in quarantine, and either may be meant"
        return self._fault(held)


def original_fault(originals: OriginalAccess, held: StoredInstance) -> str:
    """Why the original of an instance, read again from the disk, is missing or not whole; empty if it is whole.

    Raises what says nothing about the original: NoWorker, StoreFull, IndexFault, or that the machine is exhausted.
    """
    try:
        with originals.borrowed(held.original_digest):
            originals.check_object(held.original_digest)  # ``borrowed`` may have lent a packed one from the cache
            return ""
    except ObjectDamaged:
        return "its original is damaged"
    except (LatentPacsError, OSError) as error:
        if is_no_fault_of_a_file(error):
            raise
        return f"its original cannot be read: {error}"


def _failed(one: CommitmentItem, reason: FailureReason) -> CommitmentAnswer:
    return CommitmentAnswer(one.sop_class_uid, one.sop_instance_uid, int(reason))
