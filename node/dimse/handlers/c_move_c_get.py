"""Handles C-MOVE and C-GET (PS3.4 C.4.2, C.4.3), which send the same images over two kinds of association.

An image counts as completed when its receiver has responded with success, and as a warning after a warning status;
otherwise its UID is listed as failed. The requester gets pending responses, and may cancel, while an image is being
made or sent to a move destination, or while the request waits for a busy destination. On the association of a C-GET no
message can overtake an image (PS3.7 6.3.1), so there a cancel takes effect before the next image.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any

from pydicom import Dataset

from node.archive.query.identifier import UNIQUE, IdentifierError, Root, key_values, level_of
from node.archive.query.selection import select
from node.archive.serve.retrieve import Choice, Retrieve, Sendable, discard
from node.config import Peer, Settings
from node.dimse.associations.extended_negotiation import agreed
from node.dimse.associations.outgoing import DestinationUnavailable, Outgoing
from node.dimse.associations.refusals import Refusals, title_of
from node.dimse.associations.sender import Channel, Destination
from node.dimse.associations.side_thread import is_done, run_in_thread
from node.dimse.dimse_status import (
    ALL_SUBOPERATIONS_FAILED,
    CANCELLED,
    CANNOT_COUNT,
    DESTINATION_UNKNOWN,
    NOT_AUTHORIZED,
    PENDING,
    QUERY_ERRORS,
    SUBOPERATIONS_FAILED,
    SUCCESS,
    for_log,
    is_warning,
    reason_text,
)
from node.dimse.handlers.c_find import identifier_of
from node.dimse.pynetdicom_patches.ended_peer import has_ended, wants_release
from node.dimse.pynetdicom_patches.retrieve_responses import RetrieveResponse
from node.dimse.sop_classes import ROOTS
from storage.dicom.query_keys import Level
from storage.errors import LatentPacsError
from storage.index import Index
from storage.records import TrailEntry

LOGGER = logging.getLogger(__name__)

_POLL = 0.1
"""Seconds between two checks for a cancel."""
_GRACE = 2.0
"""Seconds that an image may still take to arrive at a move destination after the request has ended. Chosen, not
measured."""
_MOST_STUDIES = 100
"""Most studies of one request that the audit trail names."""
MOST_SUBOPERATIONS = 65535
"""Limit of the counts in a response, which have VR US (PS3.7 E.1)."""


@dataclass
class SubOperations:
    """Counts of sub-operations as they happen."""

    remaining: int
    completed: int = 0
    failed: int = 0
    warning: int = 0
    failed_uids: list[str] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)
    """Number of responses for each status other than success."""

    def count(self, choice: Choice, status: int | None) -> None:
        """Count an image. ``status``: of the C-STORE response; None if the image was not sent, or not answered."""
        self.remaining -= 1
        if status not in (None, SUCCESS):
            self.answers[f"{status:04X}"] += 1
        if status == SUCCESS:
            self.completed += 1
        elif status is not None and is_warning(status):
            self.warning += 1
        else:
            self.failed += 1
            self.failed_uids.append(choice.sop_instance_uid)

    def response(self, status: int) -> RetrieveResponse:
        """A response with the present counts."""
        remaining = self.remaining if status in (PENDING, CANCELLED) else None
        uids = () if status in (PENDING, SUCCESS) else tuple(self.failed_uids)
        return RetrieveResponse(status, remaining, self.completed, self.failed, self.warning, uids)

    def final(self) -> RetrieveResponse:
        if self.failed and not self.completed and not self.warning:
            return self.response(ALL_SUBOPERATIONS_FAILED)
        return self.response(SUBOPERATIONS_FAILED if self.failed or self.warning else SUCCESS)


@dataclass(frozen=True)
class RetrieveServices:
    """What the handlers need."""

    settings: Settings
    index: Index
    retrieve: Retrieve
    refusals: Refusals


def handle_get(event: Any, services: RetrieveServices) -> Iterator[RetrieveResponse]:
    """Handle C-GET: send images over the requester's own association, if it accepted the SCP role for them."""
    caller = title_of(event.assoc)
    peer = services.settings.caller(caller)
    if "get" not in peer.allow:
        services.refusals.of_request(event.assoc, "get", NOT_AUTHORIZED, f"{caller} may not get from here")
        yield RetrieveResponse(NOT_AUTHORIZED, comment=f"{caller} may not get from here")
        return
    try:
        choices = _choices(event, services, peer)
    except IdentifierError as error:
        yield _refusal(event, services, "get", error)
        return
    channel = Channel(event.assoc, peer.transfer_syntaxes, priority=event.request.Priority)
    yield from _Retrieval(event, services, choices, channel).run(TrailEntry("get", caller, detail=f"to {caller}"))


def handle_move(event: Any, services: RetrieveServices, outgoing: Outgoing) -> Iterator[RetrieveResponse]:
    """Handle C-MOVE: send images to a configured peer over an association of ours, in that peer's rendition."""
    caller = title_of(event.assoc)
    if "move" not in services.settings.caller(caller).allow:
        services.refusals.of_request(event.assoc, "move", NOT_AUTHORIZED, f"{caller} may not move from here")
        yield RetrieveResponse(NOT_AUTHORIZED, comment=f"{caller} may not move from here")
        return
    title = str(event.move_destination).strip()
    peer = services.settings.peer(title)
    if peer is None or not peer.reachable:
        failure = f"move destination {title[:16]} is not a peer with host and port"
        services.refusals.of_request(event.assoc, "move", DESTINATION_UNKNOWN, failure)
        yield RetrieveResponse(DESTINATION_UNKNOWN, comment=f"no address for move destination {title}")
        return
    try:
        choices = _choices(event, services, peer)
    except IdentifierError as error:
        yield _refusal(event, services, "move", error)
        return
    originator = {"originator_aet": caller, "originator_id": int(event.request.MessageID)}
    with Destination(outgoing, peer, choices, priority=event.request.Priority, **originator) as destination:
        entry = TrailEntry("move", caller, detail=f"to {peer.ae_title}")
        yield from _Retrieval(event, services, choices, destination).run(entry)


def _choices(event: Any, services: RetrieveServices, receiver: Peer) -> list[Choice]:
    """The objects that the request's identifier selects for a receiver. Raises IdentifierError."""
    identifier = identifier_of(event)
    root = _root(event, identifier)
    found = select(services.index, identifier, root, relational=agreed(event).relational)
    keys = list(islice(found, MOST_SUBOPERATIONS + 1))  # one more makes the request fail
    requested: frozenset[str] = frozenset()
    if level_of(identifier, root) is Level.IMAGE:
        requested = frozenset(key_values(identifier, UNIQUE[Level.IMAGE]))
    draw = services.settings.draws(receiver)
    return services.retrieve.choices(keys, receiver.rendition, requested, rewrite=receiver.rewrites, draw=draw)


def _root(event: Any, identifier: Dataset) -> Root:
    """The information model; Patient Root if PATIENT level is requested in Study Root, as Orthanc does."""
    root = ROOTS[str(event.context.abstract_syntax)]
    if root is Root.STUDY and str(identifier.get("QueryRetrieveLevel", "")).strip() == Level.PATIENT:
        return Root.PATIENT
    return root


def _refusal(event: Any, services: RetrieveServices, verb: str, error: IdentifierError) -> RetrieveResponse:
    """The response to a request whose identifier is invalid, which is recorded."""
    status = QUERY_ERRORS[IdentifierError].code
    services.refusals.of_request(event.assoc, verb, status, reason_text(error, QUERY_ERRORS))
    return RetrieveResponse(status, comment=str(error))


class _Retrieval:
    """The images of one request on their way to ``receiver``: the association of a C-GET, or a move destination."""

    def __init__(
        self, event: Any, services: RetrieveServices, choices: list[Choice], receiver: Channel | Destination
    ) -> None:
        self._event, self._services, self._choices, self._receiver = event, services, choices, receiver
        self._counts, self._cancelled = SubOperations(len(choices)), False

    def run(self, entry: TrailEntry) -> Iterator[RetrieveResponse]:
        """Send the images, and yield the responses to the requester. ``entry`` is completed and recorded at the end."""
        try:
            yield from self._send_all()
        finally:
            self._services.refusals.record(_completed_entry(entry, self._choices, self._counts))

    def _send_all(self) -> Iterator[RetrieveResponse]:
        choices, counts, receiver, retrieve = self._choices, self._counts, self._receiver, self._services.retrieve
        if len(choices) > MOST_SUBOPERATIONS:
            yield RetrieveResponse(
                CANNOT_COUNT, comment=f"more than the {MOST_SUBOPERATIONS} images that one request can count"
            )
            return
        for choice, making in retrieve.prepare(choices, receiver.expected):
            if (yield from self._ends_before(making, partial(discard, making))):
                break
            converting = run_in_thread(partial(_converted, retrieve, choice, making, receiver))
            if (yield from self._ends_before(converting, partial(discard, converting))):
                break
            send = partial(_send_one, choice, converting, receiver)
            if isinstance(receiver, Channel):
                counts.count(choice, send())
            else:
                sending = run_in_thread(send)
                over = yield from self._ends_before(sending, partial(_cut_short, sending, receiver))
                counts.count(choice, sending.result() if sending.done() else None)
                if over:
                    break
            if counts.remaining:
                yield counts.response(PENDING)
        else:
            yield counts.final()
            return
        if self._cancelled:
            yield counts.response(CANCELLED)

    def _is_over(self) -> bool:
        """True once the requester has cancelled, or its association has ended.

        A request for release cancels a C-GET, since the requester would not respond to another image.
        """
        assoc, own = self._event.assoc, self._receiver if isinstance(self._receiver, Channel) else None
        released = own is not None and wants_release(assoc)
        self._cancelled = self._cancelled or released or bool(self._event.is_cancelled)  # reading clears it
        return self._cancelled or has_ended(assoc) or (own is not None and not own.usable)

    def _ends_before(self, future: Future[Any], abandon: Callable[[], None]) -> Generator[RetrieveResponse, None, bool]:
        """Wait for a future, with a pending response at each keep-alive interval.

        Returns True, after calling ``abandon``, if the request ends before the future is done.
        """
        keep_alive, responded = self._services.settings.node.keep_alive, time.monotonic()
        try:
            while not self._is_over():
                if is_done(future, min(_POLL, keep_alive)):
                    return False
                if time.monotonic() - responded >= keep_alive:
                    responded = time.monotonic()
                    yield self._counts.response(PENDING)
        except GeneratorExit:  # the association has ended
            abandon()
            raise
        abandon()
        return True


def _completed_entry(entry: TrailEntry, choices: list[Choice], counts: SubOperations) -> TrailEntry:
    """The entry for the audit trail, with studies, rendition and outcome."""
    studies = tuple(dict.fromkeys(choice.instance.study_instance_uid for choice in choices))[:_MOST_STUDIES]
    kinds = sorted({"reconstructed" if choice.rendition else "original" for choice in choices})
    sent = counts.completed + counts.warning
    outcome = f"{sent} of {len(choices)} sent" + (f", {counts.failed} failed" if counts.failed else "")
    answers = "".join(f"; {status} answered {count} times" for status, count in sorted(counts.answers.items()))
    detail = entry.detail + answers
    return replace(entry, level="study", uids=studies, rendition="+".join(kinds)[:16], outcome=outcome, detail=detail)


def _converted(retrieve: Retrieve, choice: Choice, made: Future[Sendable], receiver: Channel | Destination) -> Sendable:
    """The image in a transfer syntax of this receiver, after opening the association. Both may take long.

    If a reconstruction cannot be encoded for this receiver, its original is sent instead.
    """
    sendable = made.result()
    try:
        return _closing(sendable, lambda: receiver.channel(choice).convert(sendable, retrieve))
    except DestinationUnavailable:
        raise
    except Exception as error:
        if choice.rendition is None or sendable.sop_instance_uid != choice.rendition.uid(draw=choice.draw):
            raise
        original = retrieve.fall_back_to_original(choice, error)
    return _closing(original, lambda: receiver.channel(choice).convert(original, retrieve))


def _closing(sendable: Sendable, work: Callable[[], Sendable]) -> Sendable:
    """The result of the work; closes the file if the work fails."""
    try:
        return work()
    except BaseException:
        sendable.close()
        raise


def _send_one(choice: Choice, converting: Future[Sendable], receiver: Channel | Destination) -> int | None:
    try:
        sendable = converting.result()
    except Exception as error:  # noqa: BLE001 - an image that cannot be made is one failed sub-operation
        LOGGER.error("instance %s cannot be sent: %s", choice.sop_instance_uid, for_log(error))
        return None
    try:
        channel = receiver.channel(choice)
        status = channel.store(sendable)
        if status != SUCCESS:
            LOGGER.warning("instance %s: %s answered %04X", choice.sop_instance_uid, channel.receiver, status)
        return status
    except (LatentPacsError, OSError) as error:
        LOGGER.error("instance %s not sent: %s", choice.sop_instance_uid, for_log(error))
        return None
    finally:
        sendable.close()


def _cut_short(sending: Future[int | None], destination: Destination) -> None:
    """Give an image that is being sent a short time to arrive, then close the association."""
    if not is_done(sending, _GRACE):
        destination.close_at_once("the request has ended")
        is_done(sending, _GRACE)
