"""Associations that we open: to move destinations, and to those who asked for storage commitment.

Many destinations take one association at a time. Who asks for a further one waits for its turn, first come, first
served: as ``max_associations_to`` of the peer says, and also where the peer itself shows that it is busy.
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

_LOOK = 0.1
"""Seconds between two looks at whether it is our turn."""
_BUSY = {(2, 3, 1), (2, 3, 2)}
"""Rejected as transient, for temporary congestion or for the local limit (PS3.8 Table 9-21)."""
_AGAIN = 2.0
"""Seconds until one that says that it is busy is asked again."""
_PATIENCE = 60.0
"""Seconds for which a peer may say that it is busy while no association of ours is open there."""


class DestinationUnavailable(LatentPacsError):
    """The destination refused the association, dropped it, or took no suitable presentation context."""


class Outgoing:
    """Calls peers as our entity, over TLS where config.yaml says so. Raises ConfigError where that cannot be."""

    def __init__(self, entity: ArchiveEntity, settings: Settings) -> None:
        self._entity = entity
        callable_over_tls = [peer for peer in settings.peers if peer.tls and peer.reachable]
        self._tls = {peer.ae_title: client_context(settings.tls, peer) for peer in callable_over_tls}
        self._lines = {(peer.host, peer.port): _Line() for peer in settings.peers}

    def associate(
        self,
        peer: Peer,
        contexts: list[PresentationContext],
        roles: Sequence[Any] = (),
        *,
        wanted: Callable[[], bool] = lambda: True,
    ) -> Association:
        """An established association with a peer, once it is our turn. Raises DestinationUnavailable.

        Waits as long as the peer is busy with associations of ours, and ``wanted`` says that somebody still waits.
        """
        line = self._lines[peer.host, peer.port]
        with line.turn(peer.max_associations_to, wanted):
            patience = time.monotonic() + _PATIENCE
            while True:
                before = line.opened(), line.added
                assoc = self._ask(peer, contexts, roles)
                if assoc.is_established:
                    line.add(assoc)
                    return assoc
                says_busy = _rejection(assoc) in _BUSY
                # one that serves a single association leaves the next caller without an answer
                with_us = before != (0, line.added) and (says_busy or not assoc.is_rejected)
                if not with_us and not (says_busy and time.monotonic() < patience):
                    raise DestinationUnavailable(f"{self._name(peer)} {_why_not(assoc)}")
                line.wait_for_less(wanted, at_most=_AGAIN if says_busy else None)

    def _ask(self, peer: Peer, contexts: list[PresentationContext], roles: Sequence[Any]) -> Association:
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


class _Line:
    """Who waits for an association to one address, and those of ours that are open there."""

    def __init__(self) -> None:
        self.added = 0
        self._open: list[Association] = []
        self._waiting: deque[object] = deque()
        self._asking = 0
        self._lock = threading.Lock()

    @contextmanager
    def turn(self, limit: int, wanted: Callable[[], bool]) -> Iterator[None]:
        """Wait for a place among ``limit`` (0: any number), and hold it in the block, in which to ask and ``add``."""
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
                self._asking -= 1

    def opened(self) -> int:
        """How many associations of ours are open there."""
        with self._lock:
            self._open = [assoc for assoc in self._open if assoc.is_established]
            return len(self._open)

    def add(self, assoc: Association) -> None:
        """Another one is open."""
        with self._lock:
            self.added += 1
            self._open.append(assoc)

    def wait_for_less(self, wanted: Callable[[], bool], at_most: float | None) -> None:
        """Until one of those has ended, or for ``at_most`` seconds; without either, not at all."""
        now, end = self.opened(), float("inf") if at_most is None else time.monotonic() + at_most
        _wait(lambda: self.opened() < now or time.monotonic() > end or (not now and at_most is None), wanted)

    def _entered(self, ticket: object, limit: int) -> bool:
        opened = self.opened()
        with self._lock:
            if self._waiting[0] is not ticket or (limit and opened + self._asking >= limit):
                return False
            self._waiting.popleft()
            self._asking += 1
            return True


def _wait(until: Callable[[], bool], wanted: Callable[[], bool]) -> None:
    """Raises DestinationUnavailable where it is no longer wanted."""
    while not until():
        if not wanted():
            raise DestinationUnavailable("it is busy, and nobody waits for it any more")
        time.sleep(_LOOK)


def _why_not(assoc: Association) -> str:
    answer = _rejection(assoc)
    if answer is not None:
        result, source, reason = answer
        return f"rejected the association: result {result}, source {source}, reason {reason} (PS3.8 9.3.4)"
    return "cannot be reached, or did not answer an association request"


def _rejection(assoc: Association) -> tuple[int, int, int] | None:
    """Result, source and reason of a rejection (PS3.8 9.3.4)."""
    answer: Any = assoc.acceptor.primitive
    if not assoc.is_rejected or answer is None:
        return None
    return answer.result, answer.result_source, answer.diagnostic
