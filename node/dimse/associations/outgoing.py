"""Opens associations: to move destinations, to replication peers, and to report storage commitment.

Many destinations accept one association at a time. Requests beyond ``max_associations_to`` of the peer wait in a queue,
first come, first served, and so do requests while the peer itself shows that it is busy.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext

from node.config import Peer, Settings
from node.dimse.pynetdicom_patches.entity import ArchiveEntity
from node.dimse.pynetdicom_patches.requestor_responses import keep_responses_from_reactor
from node.dimse.tls import client_context
from storage.errors import LatentPacsError

_POLL = 0.1
"""Seconds between two checks of the queue."""
_BUSY_REJECTIONS = {(2, 3, 1), (2, 3, 2)}
"""Result, source and reason: transient, for temporary congestion or the local limit (PS3.8 table 9-21)."""
_RETRY = 2.0
"""Seconds until a peer that has rejected us as busy is called again."""
_BUSY_LIMIT = 60.0
"""Seconds for which a peer may reject us as busy while no association of ours is open there. Chosen, not measured."""


class DestinationUnavailable(LatentPacsError):
    """The destination rejected the association, ended it, or accepted no suitable presentation context."""


class Outgoing:
    """Calls peers as our entity, over TLS if config.yaml says so. Raises ConfigError if TLS cannot be set up."""

    def __init__(self, entity: ArchiveEntity, settings: Settings) -> None:
        self._entity = entity
        callable_over_tls = [peer for peer in settings.peers if peer.tls and peer.reachable]
        self._tls = {peer.ae_title: client_context(settings.tls, peer) for peer in callable_over_tls}
        self._queues = {(peer.host, peer.port): _Queue() for peer in settings.peers}

    def associate(
        self,
        peer: Peer,
        contexts: list[PresentationContext],
        roles: Sequence[Any] = (),
        *,
        wanted: Callable[[], bool] = lambda: True,
    ) -> Association:
        """Wait for our turn and open an association with a peer. Raises DestinationUnavailable.

        Waits while the peer is busy with associations of ours and ``wanted`` returns True.
        """
        queue = self._queues[peer.host, peer.port]
        with queue.turn(peer.max_associations_to, wanted):
            deadline = time.monotonic() + _BUSY_LIMIT
            while True:
                before = queue.opened(), queue.added
                assoc = self._request(peer, contexts, roles)
                if assoc.is_established:
                    queue.add(assoc)
                    return assoc
                says_busy = _rejection(assoc) in _BUSY_REJECTIONS
                # a peer that serves a single association does not answer the next caller
                unanswered = assoc.acceptor.primitive is None
                busy_with_us = before != (0, queue.added) and (says_busy or unanswered)
                if not busy_with_us and not (says_busy and time.monotonic() < deadline):
                    raise DestinationUnavailable(f"{self._name(peer)} {_failure(assoc)}")
                queue.wait_for_fewer(wanted, at_most=_RETRY if says_busy else None)

    def _request(self, peer: Peer, contexts: list[PresentationContext], roles: Sequence[Any]) -> Association:
        try:
            assoc = self._entity.associate(
                peer.host,
                peer.port,
                contexts=contexts,
                ae_title=peer.ae_title,
                max_pdu=self._entity.maximum_pdu_size,
                ext_neg=list(roles),
                tls_args=self._tls.get(peer.ae_title),
            )
        except OSError as error:  # a host name that cannot be resolved
            raise DestinationUnavailable(f"{self._name(peer)} cannot be reached: {error}") from error
        if assoc.is_established:
            keep_responses_from_reactor(assoc)
        return assoc

    def _name(self, peer: Peer) -> str:
        over = " over TLS" if peer.ae_title in self._tls else ""
        return f"{peer.ae_title} at {peer.host}:{peer.port}{over}"


class _Queue:
    """The requests that wait for an association with one address, and our associations that are open there."""

    def __init__(self) -> None:
        self.added = 0
        self._open: list[Association] = []
        self._waiting: deque[object] = deque()
        self._requesting = 0
        self._lock = threading.Lock()

    @contextmanager
    def turn(self, limit: int, wanted: Callable[[], bool]) -> Iterator[None]:
        """Wait for one of ``limit`` places (0: no limit), and hold it in the block, which calls ``add``."""
        ticket = object()
        with self._lock:
            self._waiting.append(ticket)
        try:
            _wait(lambda: self._entered(ticket, limit), wanted)
        except DestinationUnavailable:
            with self._lock:
                self._waiting.remove(ticket)
            raise
        try:
            yield
        finally:
            with self._lock:
                self._requesting -= 1

    def opened(self) -> int:
        """The number of our associations that are open at this address."""
        with self._lock:
            self._open = [assoc for assoc in self._open if assoc.is_established]
            return len(self._open)

    def add(self, assoc: Association) -> None:
        """Count an association that has been opened."""
        with self._lock:
            self.added += 1
            self._open.append(assoc)

    def wait_for_fewer(self, wanted: Callable[[], bool], at_most: float | None) -> None:
        """Wait until one of our open associations has ended, or for ``at_most`` seconds. Return at once if none is open
        and ``at_most`` is None."""
        now, end = self.opened(), float("inf") if at_most is None else time.monotonic() + at_most
        _wait(lambda: self.opened() < now or time.monotonic() > end or (not now and at_most is None), wanted)

    def _entered(self, ticket: object, limit: int) -> bool:
        opened = self.opened()
        with self._lock:
            if self._waiting[0] is not ticket or (limit and opened + self._requesting >= limit):
                return False
            self._waiting.popleft()
            self._requesting += 1
            return True


def _wait(until: Callable[[], bool], wanted: Callable[[], bool]) -> None:
    """Wait for a condition. Raises DestinationUnavailable if the association is no longer wanted."""
    while not until():
        if not wanted():
            raise DestinationUnavailable("it is busy, and the request has ended")
        time.sleep(_POLL)


def _failure(assoc: Association) -> str:
    answer = _rejection(assoc)
    if answer is not None:
        result, source, reason = answer
        return f"rejected the association: result {result}, source {source}, reason {reason} (PS3.8 9.3.4)"
    if assoc.acceptor.primitive is not None:
        return "accepted the association, but none of its presentation contexts"
    return "cannot be reached, or did not answer an association request"


def _rejection(assoc: Association) -> tuple[int, int, int] | None:
    """Result, source and reason of a rejection (PS3.8 9.3.4)."""
    answer: Any = assoc.acceptor.primitive
    if not assoc.is_rejected or answer is None:
        return None
    return answer.result, answer.result_source, answer.diagnostic
