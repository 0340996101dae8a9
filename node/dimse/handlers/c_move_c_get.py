"""C-MOVE and C-GET (PS3.4 C.4.2, C.4.3): the same walk over the same images, over two kinds of association.

The counts are truthful: an image is completed when its receiver said so, and failed with its UID otherwise. While an
image is being made or sent to a move destination, or a busy destination is waited for, the requester gets pending
responses, and may cancel. Nothing can pass an image on the association of a C-GET (PS3.7 6.3.1): there a cancel is
honoured before the next image.
"""

from __future__ import annotations

import functools
import logging
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

from pydicom import Dataset

from node.archive.query.identifier import UNIQUE, IdentifierError, Root, key_values, level_of
from node.archive.query.selection import select
from node.archive.serve.retrieve import Choice, Retrieve, Sendable, discard
from node.config import Peer
from node.dimse.associations.extended_negotiation import agreed
from node.dimse.associations.outgoing import DestinationUnavailable, Outgoing
from node.dimse.associations.peers import Peers
from node.dimse.associations.refusals import Record, Refusals
from node.dimse.associations.sender import Channel, Destination
from node.dimse.associations.side_thread import aside, is_done
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
    of_error,
    why,
)
from node.dimse.pynetdicom_patches.wire import Report, has_gone
from node.dimse.sop_classes import ROOTS
from storage.dicom.query_keys import Level
from storage.errors import LatentPacsError
from storage.index import Index
from storage.records import TrailEntry

LOGGER = logging.getLogger(__name__)

_LOOK = 0.1
"""Seconds between two looks for a cancel while an image is being made, or its destination is busy."""
_GRACE = 2.0
"""Seconds that an image on its way to a move destination has to arrive when nobody waits for it any more."""
_STUDIES_TOLD = 100
"""Studies of one request that the audit trail names."""
MOST_SUBOPERATIONS = 65535
"""The counts in a response are of VR US (PS3.7 E.1)."""


@dataclass
class SubOperations:
    """Counts of sub-operations as they happen."""

    remaining: int
    completed: int = 0
    failed: int = 0
    warning: int = 0
    failed_uids: list[str] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)
    """What receivers answered that was no success: statuses, and how often."""

    def count(self, choice: Choice, status: int | None) -> None:
        """``status``: what the receiver answered to C-STORE, None where it was not sent or not answered."""
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

    def report(self, status: int, *, comment: str = "") -> Report:
        shows_remaining = status in (PENDING, CANCELLED)
        uids = () if status in (PENDING, SUCCESS) else tuple(self.failed_uids)
        return Report(
            status,
            self.remaining if shows_remaining else None,
            self.completed,
            self.failed,
            self.warning,
            uids,
            comment,
        )

    def final(self) -> Report:
        if self.failed and not self.completed and not self.warning:
            return self.report(ALL_SUBOPERATIONS_FAILED)
        return self.report(SUBOPERATIONS_FAILED if self.failed or self.warning else SUCCESS)


@dataclass(frozen=True)
class RetrieveServices:
    """What the retrieve handlers work with."""

    index: Index
    retrieve: Retrieve
    peers: Peers
    keep_alive: float
    record: Record
    refusals: Refusals


def handle_get(event: Any, services: RetrieveServices) -> Iterator[Report]:
    """C-GET: images go back over the requester's own association, as far as it took the SCP role for them."""
    caller = services.peers.calling(event)
    if not services.peers.may(caller, "get"):
        services.refusals.of_request(event, "get", NOT_AUTHORIZED, f"{caller} may not get from here")
        yield Report(NOT_AUTHORIZED, comment=f"{caller} may not get from here")
        return
    try:
        choices = _choices(event, services, caller)
    except IdentifierError as error:
        services.refusals.of_request(event, "get", 0xA900, why(error, QUERY_ERRORS))
        yield _refusal(error)
        return
    channel = Channel(event.assoc, prefers=services.peers.transfer_syntaxes(caller))
    told = TrailEntry("get", caller, detail=f"to {caller}")
    request = _Request(event, lambda: not channel.usable or has_gone(event.assoc), channel.best)
    yield from _send(request, services, choices, lambda _: channel, told)


def handle_move(event: Any, services: RetrieveServices, outgoing: Outgoing) -> Iterator[Report]:
    """C-MOVE: images go to a configured peer over an association of our own, in that peer's rendition."""
    caller = services.peers.calling(event)
    if not services.peers.may(caller, "move"):
        services.refusals.of_request(event, "move", NOT_AUTHORIZED, f"{caller} may not move from here")
        yield Report(NOT_AUTHORIZED, comment=f"{caller} may not move from here")
        return
    title = str(event.move_destination).strip()
    peer = services.peers.destination(title)
    if peer is None:
        why_not = f"move destination {title[:16]} is no peer with host and port"
        services.refusals.of_request(event, "move", DESTINATION_UNKNOWN, why_not)
        yield Report(DESTINATION_UNKNOWN, comment=f"no address for move destination {title}")
        return
    try:
        choices = _choices(event, services, peer.ae_title)
    except IdentifierError as error:
        services.refusals.of_request(event, "move", 0xA900, why(error, QUERY_ERRORS))
        yield _refusal(error)
        return
    yield from _send_to(event, services, choices, outgoing, peer)


def _send_to(
    event: Any, services: RetrieveServices, choices: list[Choice], outgoing: Outgoing, peer: Peer
) -> Iterator[Report]:
    caller, message_id = services.peers.calling(event), int(event.request.MessageID)
    with Destination(outgoing, peer, choices, originator=caller, originator_id=message_id) as destination:
        told = TrailEntry("move", caller, detail=f"to {peer.ae_title}")
        request = _Request(event, lambda: has_gone(event.assoc), destination.expected, destination)
        yield from _send(request, services, choices, destination.channel, told)


def _choices(event: Any, services: RetrieveServices, receiver: str) -> list[Choice]:
    """What the receiver gets for the request's identifier. Raises IdentifierError."""
    try:
        identifier = event.identifier
    except Exception as error:  # pydicom raises many kinds on hostile bytes
        raise IdentifierError(f"identifier cannot be parsed: {error}") from error
    root = _root(event, identifier)
    keys = list(select(services.index, identifier, root, relational=agreed(event).relational))
    asked: frozenset[str] = frozenset()
    if level_of(identifier, root) is Level.IMAGE:
        asked = frozenset(key_values(identifier, UNIQUE[Level.IMAGE]))
    peers = services.peers
    return services.retrieve.choices(
        keys,
        peers.rendition(receiver),
        asked,
        rewrite=peers.rewrites(receiver),
        draw=peers.draws(receiver),
    )


def _root(event: Any, identifier: Dataset) -> Root:
    """The information model; Orthanc asks for patients in the Study Root model, and is understood."""
    root = ROOTS[str(event.context.abstract_syntax)]
    if root is Root.STUDY and str(identifier.get("QueryRetrieveLevel", "")).strip() == Level.PATIENT:
        return Root.PATIENT
    return root


def _refusal(error: IdentifierError) -> Report:
    status: Dataset = of_error(error, QUERY_ERRORS)
    return Report(int(status.Status), comment=str(error))


def _send(
    request: _Request,
    services: RetrieveServices,
    choices: list[Choice],
    channel: Callable[[Choice], Channel],
    told: TrailEntry,
) -> Iterator[Report]:
    tally = SubOperations(len(choices))
    try:
        yield from _walk(request, services, choices, channel, tally)
    finally:
        services.record(_in_the_trail(told, choices, tally))


def _in_the_trail(told: TrailEntry, choices: list[Choice], tally: SubOperations) -> TrailEntry:
    """Who got what: the studies, in which rendition, and what became of it."""
    studies = tuple(dict.fromkeys(choice.instance.study_instance_uid for choice in choices))[:_STUDIES_TOLD]
    kinds = sorted({"reconstructed" if choice.rendition else "original" for choice in choices})
    sent = tally.completed + tally.warning
    outcome = f"{sent} of {len(choices)} sent" + (f", {tally.failed} failed" if tally.failed else "")
    answers = "".join(f"; {status} answered {count} times" for status, count in sorted(tally.answers.items()))
    detail = told.detail + answers
    return replace(told, level="study", uids=studies, rendition="+".join(kinds)[:16], outcome=outcome, detail=detail)


def _walk(
    request: _Request,
    services: RetrieveServices,
    choices: list[Choice],
    channel: Callable[[Choice], Channel],
    tally: SubOperations,
) -> Iterator[Report]:
    if len(choices) > MOST_SUBOPERATIONS:
        yield Report(CANNOT_COUNT, comment=f"{len(choices)} images are more than one request can count")
        return
    patience = services.keep_alive
    for choice, making in services.retrieve.prepare(choices, request.expected):
        if (yield from _over_while(making, tally, patience, request, functools.partial(discard, making))):
            break
        fitting = aside(functools.partial(_fitted, services.retrieve, choice, making, channel))
        if (yield from _over_while(fitting, tally, patience, request, functools.partial(discard, fitting))):
            break
        send = functools.partial(_send_one, choice, fitting, channel)
        if request.destination is None:
            tally.count(choice, send())
        else:
            sending = aside(send)
            cut_short = functools.partial(_cut_short, sending, request.destination)
            over = yield from _over_while(sending, tally, patience, request, cut_short)
            tally.count(choice, sending.result() if sending.done() else None)
            if over:
                break
        if tally.remaining:
            yield tally.report(PENDING)
    else:
        yield tally.final()
        return
    if request.cancelled:
        yield tally.report(CANCELLED)


class _Request:
    """Whether somebody still waits for the images, and in which transfer syntax they are ``expected`` to go out.

    ``destination``: None where they go back over its association.
    """

    def __init__(
        self,
        event: Any,
        gone: Callable[[], bool],
        expected: Callable[[Choice], str],
        destination: Destination | None = None,
    ) -> None:
        self._event, self._gone, self.expected, self.destination = event, gone, expected, destination
        self.cancelled = False

    @property
    def over(self) -> bool:
        """True from when the requester has cancelled, or has gone."""
        self.cancelled = self.cancelled or bool(self._event.is_cancelled)  # it clears itself when read
        return self.cancelled or self._gone()


def _over_while(
    future: Future[Any], tally: SubOperations, keep_alive: float, request: _Request, let_go: Callable[[], None]
) -> Generator[Report, None, bool]:
    """Until that is done, with a pending response each time the keep-alive time has passed.

    Returns early, and True, where the request is over; what is being done is let go then.
    """
    told = time.monotonic()
    try:
        while not request.over:
            if is_done(future, min(_LOOK, keep_alive)):
                return False
            if time.monotonic() - told >= keep_alive:
                told = time.monotonic()
                yield tally.report(PENDING)
    except GeneratorExit:  # the requester has gone
        let_go()
        raise
    let_go()
    return True


def _fitted(
    retrieve: Retrieve, choice: Choice, made: Future[Sendable], channel: Callable[[Choice], Channel]
) -> Sendable:
    """The image as this receiver takes it, its association open. Both may take long.

    Where a reconstruction cannot be encoded for this receiver, its original goes out instead.
    """
    sendable = made.result()
    try:
        return _closing(sendable, lambda: channel(choice).fitted(sendable, retrieve))
    except DestinationUnavailable:
        raise
    except Exception as error:
        if choice.rendition is None or sendable.sop_instance_uid != choice.rendition.uid(draw=choice.draw):
            raise
        original = retrieve.instead(choice, error)
    return _closing(original, lambda: channel(choice).fitted(original, retrieve))


def _closing(sendable: Sendable, work: Callable[[], Sendable]) -> Sendable:
    """What comes of the work; the file is let go where nothing does."""
    try:
        return work()
    except BaseException:
        sendable.close()
        raise


def _send_one(choice: Choice, fitting: Future[Sendable], channel: Callable[[Choice], Channel]) -> int | None:
    try:
        sendable = fitting.result()
    except Exception as error:  # noqa: BLE001 - one image that cannot be made is one failed sub-operation
        LOGGER.error("instance %s cannot be sent: %s", choice.sop_instance_uid, for_log(error))
        return None
    try:
        status = channel(choice).store(sendable)
        if status != SUCCESS:
            LOGGER.warning("instance %s: %s answered %04X", choice.sop_instance_uid, channel(choice).receiver, status)
        return status
    except (LatentPacsError, OSError) as error:
        LOGGER.error("instance %s not sent: %s", choice.sop_instance_uid, for_log(error))
        return None
    finally:
        sendable.close()


def _cut_short(sending: Future[int | None], destination: Destination) -> None:
    """An image on its way arrives soon, or not at all: its association is ended."""
    if not is_done(sending, _GRACE):
        destination.give_up("nobody waits for it any more")
        is_done(sending, _GRACE)
