"""Replicates to a peer: sends every held original that the peer has not acknowledged by C-STORE.

Each response 0x0000 is recorded at once, so that a run continues where the last one ended. Images with any other
response, warnings included, are reported and sent again by the next run.
"""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import closing
from typing import Any

from node.archive.serve.retrieve import Choice, Retrieve, Sendable, discard
from node.config import Peer, RenditionPolicy
from node.dimse.associations.outgoing import DestinationUnavailable, Outgoing
from node.dimse.associations.sender import Destination
from node.dimse.associations.side_thread import is_done, run_in_thread
from node.dimse.dimse_status import SUCCESS, for_log, is_warning
from storage.index import Index
from storage.index.replicas import Replicas
from storage.printable import counted
from storage.records import TrailEntry

LOGGER = logging.getLogger(__name__)

JOB = "replicate-peer"
"""Name of the job."""
_MOST_STUDIES = 100
"""Most studies that one record of the audit trail names."""
_BATCH = 500
"""Most images that are sent before the association is released, and the audit trail written. Chosen, not measured."""
_LOW = 2
"""The priority of images that nobody waits for (PS3.7 E.1)."""
_POLL = 0.1
"""Seconds between two checks for a cancellation."""
_MOST_UNANSWERED = 3
"""Consecutive images without a response after which the run ends."""
_MOST_REPORTED = 100
"""Most images that the report lists as not taken."""


class Replication:
    """Sends the originals that one peer lacks. ``run`` is the work of a job (node/jobs/job.py)."""

    def __init__(
        self, index: Index, retrieve: Retrieve, outgoing: Outgoing, peer: Peer, record: Callable[[TrailEntry], None]
    ) -> None:
        self._index, self._retrieve, self._outgoing, self._peer = index, retrieve, outgoing, peer
        self._record = record
        self._replicas = Replicas(index.engine)

    def run(self, progress: Callable[[int, int], None], cancelled: Callable[[], bool]) -> dict[str, Any]:
        """Send, and report what was and was not taken. Raises DestinationUnavailable if the peer cannot be reached."""
        keys, sent = self._replicas.candidates(self._peer.ae_title), _Sent()
        for start in range(0, len(keys), _BATCH):
            some = keys[start : start + _BATCH]
            lacking = {one.key for one in self._replicas.lacking(self._peer.ae_title, self._index.by_keys(some))}
            choices = self._retrieve.choices([key for key in some if key in lacking], RenditionPolicy.ORIGINAL)
            before = sent.counts.copy()
            try:
                self._send(choices, sent, cancelled, functools.partial(_further, progress, start, len(keys)))
            finally:
                self._record_outcome(choices, before, sent.counts)
            if cancelled():
                break
            progress(start + len(some), len(keys))
        return {**sent.report(), "to": self._peer.ae_title, "held_there": self._replicas.count(self._peer.ae_title)}

    def _record_outcome(self, choices: list[Choice], before: Counter[str], after: Counter[str]) -> None:
        """Record in the audit trail what was sent to the peer."""
        if choices:
            studies = tuple(dict.fromkeys(choice.instance.study_instance_uid for choice in choices))[:_MOST_STUDIES]
            of_these = after - before
            outcome = ", ".join(f"{number} {what}" for what, number in of_these.items()) or "nothing was sent"
            detail = f"to {self._peer.ae_title}, of {counted(len(choices), 'image')}"
            self._record(TrailEntry("replicate", f"job:{JOB}", "study", studies, "original", outcome, detail))

    def _send(
        self, choices: list[Choice], sent: _Sent, cancelled: Callable[[], bool], progress: Callable[[int], None]
    ) -> None:
        unanswered = 0
        with (
            Destination(self._outgoing, self._peer, choices, priority=_LOW) as destination,
            closing(self._retrieve.prepare(choices, destination.expected)) as preparing,
        ):
            for done, (choice, made) in enumerate(preparing, 1):
                sending = run_in_thread(functools.partial(self._send_one, choice, made, destination))
                while not is_done(sending, _POLL):
                    if cancelled():
                        destination.close_at_once("the run was cancelled")
                        return
                unanswered = self._count(choice, sending, sent, unanswered)
                progress(done)
                if cancelled():
                    return

    def _count(self, choice: Choice, sending: Future[int], sent: _Sent, unanswered: int) -> int:
        """Record the outcome of one image and return the number of consecutive images without a response.

        Raises DestinationUnavailable if there are too many, or if the peer accepts no association.
        """
        try:
            status = sending.result()
        except _NoResponse as error:
            if not error.sent or unanswered + 1 >= _MOST_UNANSWERED:
                before = sent.counts["acknowledged"]
                raise DestinationUnavailable(f"{error}; acknowledged before: {before}") from error
            sent.failed(choice, str(error))
            return unanswered + 1
        except Exception as error:  # noqa: BLE001 - one image that cannot be sent does not stop the others
            sent.failed(choice, for_log(error))
            return unanswered
        if status == SUCCESS:
            self._replicas.acknowledged(self._peer.ae_title, choice.instance)
            sent.counts["acknowledged"] += 1
        else:
            sent.answered(choice, status)
        return 0

    def _send_one(self, choice: Choice, made: Future[Sendable], destination: Destination) -> int:
        """Send one image; the status of the response. Raises _NoResponse, or the error for which it cannot be sent."""
        try:
            channel = destination.channel(choice)
        except DestinationUnavailable as error:
            discard(made)
            raise _NoResponse(str(error), sent=False) from error
        sendable = made.result()
        try:
            sendable = channel.convert(sendable, self._retrieve)
            try:
                return channel.store(sendable)
            except DestinationUnavailable as error:
                raise _NoResponse(str(error), sent=True) from error
        finally:
            sendable.close()


def _further(progress: Callable[[int, int], None], before: int, total: int, done: int) -> None:
    progress(before + done, total)


class _NoResponse(DestinationUnavailable):
    """The peer accepted no association, or did not respond to an image that was ``sent``."""

    def __init__(self, message: str, *, sent: bool) -> None:
        super().__init__(message)
        self.sent = sent


class _Sent:
    """The outcomes of a run's images."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        """Images acknowledged, warned and failed."""
        self._answers: Counter[str] = Counter()
        self._not_taken: dict[str, str] = {}

    def answered(self, choice: Choice, status: int) -> None:
        """Record a response other than success."""
        self._answers[f"{status:04X}"] += 1
        warned = is_warning(status)
        self.counts["warned" if warned else "failed"] += 1
        self._note(choice, f"answered {status:04X}" + (", a warning" if warned else ""))

    def failed(self, choice: Choice, why: str) -> None:
        """Record an image that was not sent, or not answered."""
        self.counts["failed"] += 1
        self._note(choice, why)

    def report(self) -> dict[str, Any]:
        """The report for the job's history and --json."""
        return {
            **{name: self.counts[name] for name in ("acknowledged", "warned", "failed")},
            "answers": dict(self._answers),
            "not_taken": [{"uid": uid, "why": why} for uid, why in self._not_taken.items()],
            "clean": not self.counts["warned"] and not self.counts["failed"],
        }

    def _note(self, choice: Choice, why: str) -> None:
        LOGGER.warning("instance %s is not replicated: %s", choice.sop_instance_uid, why)
        if len(self._not_taken) < _MOST_REPORTED:
            self._not_taken[choice.sop_instance_uid] = why
