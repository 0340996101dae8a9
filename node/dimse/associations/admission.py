"""Who is let in: each association request against the peers of config.yaml, before anything is negotiated.

A caller that claims a configured AE title from another network, without the TLS that the peer speaks, or with a
certificate of another name is rejected, not treated as unknown: an unknown caller may store, and would store under that
title.
"""

from __future__ import annotations

import ipaddress
import logging
import ssl
import threading
import time
from dataclasses import dataclass
from typing import Any

from node.config import Peer, Settings
from node.dimse.associations.refusals import Refusals, address_of
from node.dimse.pynetdicom_patches.association_request import Rejection
from node.dimse.tls import ANY_NAME, names_in

LOGGER = logging.getLogger(__name__)


def _not_recognized(why: str) -> Rejection:
    """Permanent, service user, calling AE title not recognized: a stranger learns nothing of which check failed."""
    return Rejection(why, 1, 1, 3)


def _too_many(why: str) -> Rejection:
    """Transient, presentation-related, local limit exceeded."""
    return Rejection(why, 2, 3, 2)


@dataclass(frozen=True)
class _Admitted:
    caller: str
    since: float


class Admission:
    """Bound to association requests. Counts who is in, and knows who has been for too long."""

    def __init__(self, settings: Settings, refusals: Refusals) -> None:
        self._settings, self._refusals = settings, refusals
        self._lock = threading.Lock()
        self._inside: dict[Any, _Admitted] = {}

    def requested(self, event: Any) -> None:
        """Reject the request, or let the negotiation go on (pynetdicom's EVT_REQUESTED)."""
        assoc = event.assoc
        if not assoc.is_acceptor:
            return
        try:
            refusal = self._refusal(assoc)
        except Exception:
            LOGGER.exception("an association request could not be judged")
            refusal = _not_recognized("internal error")
        if refusal is None:
            return
        self._refusals.of_association(_title(assoc), address_of(assoc), refusal.why)
        assoc.acse.send_reject(refusal.result, refusal.source, refusal.reason)
        assoc.kill()  # waits until the rejection has left

    def rejected(self, event: Any) -> None:
        """Tell of what pynetdicom rejects by itself (its EVT_REJECTED)."""
        assoc, node = event.assoc, self._settings.node
        if not assoc.is_acceptor:
            return
        called = str(assoc.requestor.primitive.called_ae_title).strip()
        other = node.require_called_ae_title and called != node.ae_title
        why = f"it called {called}, not us" if other else f"{node.max_associations} associations are open already"
        self._refusals.of_association(_title(assoc), address_of(assoc), why)

    def overdue(self) -> list[Any]:
        """Associations that have lasted longer than they may; each is told once."""
        limit = self._settings.node.max_association_time
        now = time.monotonic()
        with self._lock:
            self._forget_ended()
            late = [assoc for assoc, one in self._inside.items() if limit and now - one.since > limit]
            for assoc in late:
                del self._inside[assoc]
        return late

    def _refusal(self, assoc: Any) -> Rejection | None:
        unusable: Rejection | None = assoc.dul.rejection
        if unusable is not None:
            return unusable
        title = _title(assoc)
        peer = self._settings.peer(title)
        if peer is None:
            if not self._settings.strangers_may:
                return _not_recognized("no such peer in config.yaml")
            limit, caller = self._settings.node.max_associations_per_peer, ""
        else:
            stranger = _not_that_peer(peer, assoc)
            if stranger:
                return _not_recognized(stranger)
            limit, caller = peer.max_associations or self._settings.node.max_associations_per_peer, title
        with self._lock:
            self._forget_ended()
            if sum(one.caller == caller for one in self._inside.values()) >= limit:
                return _too_many(f"{limit} associations are open already")
            self._inside[assoc] = _Admitted(caller, time.monotonic())
        return None

    def _forget_ended(self) -> None:
        self._inside = {assoc: one for assoc, one in self._inside.items() if assoc.is_alive()}


def _title(assoc: Any) -> str:
    return str(assoc.requestor.primitive.calling_ae_title).strip()


def _not_that_peer(peer: Peer, assoc: Any) -> str:
    """Why a caller is not the peer whose AE title it uses; empty where nothing speaks against it."""
    if peer.networks and not _inside(str(assoc.requestor.address), peer):
        return "not from its networks (peers.from)"
    connection = assoc.dul.socket.socket
    if not isinstance(connection, ssl.SSLSocket):
        return "not over TLS (peers.tls)" if peer.tls else ""
    if peer.tls_name and peer.tls_name != ANY_NAME:
        names = names_in(dict(connection.getpeercert() or {}))
        if peer.tls_name.lower() not in names:
            return f"its certificate is not for {peer.tls_name} (peers.tls_name)"
    return ""


def _inside(address: str, peer: Peer) -> bool:
    caller = ipaddress.ip_address(address.partition("%")[0])
    mapped = caller.ipv4_mapped if isinstance(caller, ipaddress.IPv6Address) else None
    return any((mapped or caller) in network for network in peer.networks)
