"""Checks each association request against the peers of config.yaml, before anything is negotiated.

A caller that uses a configured AE title from another network, without the TLS that is required, or with a certificate
for another name is rejected, not treated as unknown. Unknown callers may be allowed to store, and it would then store
under that title.
"""

from __future__ import annotations

import ipaddress
import logging
import ssl
import threading
import time
from collections.abc import Iterable
from typing import Any

from node.config import Peer, Settings
from node.dimse.associations.refusals import Refusals, address_of
from node.dimse.pynetdicom_patches.association_request import Rejection
from node.dimse.pynetdicom_patches.entity import Acceptor
from node.dimse.tls import ANY_NAME, names_in
from storage.printable import counted

LOGGER = logging.getLogger(__name__)


def _not_recognized(why: str) -> Rejection:
    """Permanent, service user, calling AE title not recognized. The caller does not learn which check failed."""
    return Rejection(why, 1, 1, 3)


class Admission:
    """Accepts or rejects association requests, and finds associations that have been open too long."""

    def __init__(self, settings: Settings, refusals: Refusals) -> None:
        self._settings, self._refusals = settings, refusals
        self._lock = threading.Lock()

    def requested(self, event: Any) -> None:
        """Reject the request, or let the negotiation continue (pynetdicom's EVT_REQUESTED)."""
        assoc = event.assoc
        try:
            rejection = self._rejection(assoc)
        except Exception:
            LOGGER.exception("an association request could not be checked")
            rejection = _not_recognized("internal error")
        if rejection is None:
            return
        self._refusals.of_association(_title(assoc), address_of(assoc), rejection.why)
        assoc.acse.send_reject(rejection.result, rejection.source, rejection.reason)
        assoc.kill()  # waits until the rejection has left

    def rejected(self, event: Any) -> None:
        """Record an association that pynetdicom has rejected (its EVT_REJECTED)."""
        assoc, node = event.assoc, self._settings.node
        called = str(assoc.requestor.primitive.called_ae_title).strip()
        why = f"the limit of {counted(assoc.ae.maximum_associations, 'connection')} is reached"
        if node.require_called_ae_title and called != node.ae_title:
            why = f"it called {called}, not {node.ae_title}"
        self._refusals.of_association(_title(assoc), address_of(assoc), why)

    def overdue(self, associations: Iterable[Acceptor]) -> list[Acceptor]:
        """The associations that are open for longer than ``node.max_association_time``; each is returned once."""
        limit, now = self._settings.node.max_association_time, time.monotonic()
        admitted = [one for one in associations if one.admitted_as is not None]
        late = [one for one in admitted if limit and now - one.admitted_at > limit]
        for assoc in late:
            assoc.admitted_as = None
        return late

    def _rejection(self, assoc: Any) -> Rejection | None:
        invalid: Rejection | None = assoc.dul.rejection
        if invalid is not None:
            return invalid
        title = _title(assoc)
        peer = self._settings.peer(title)
        if peer is None:
            if not self._settings.allowed_to_unknown_peers:
                return _not_recognized("no such peer in config.yaml")
            limit, caller = self._settings.node.max_associations_per_peer, ""
        else:
            mismatch = _mismatch(peer, assoc)
            if mismatch:
                return _not_recognized(mismatch)
            limit, caller = peer.max_associations or self._settings.node.max_associations_per_peer, title
        with self._lock:
            opened = assoc.ae.active_associations
            admitted = [one.admitted_as for one in opened if isinstance(one, Acceptor) and one.admitted_as is not None]
            for number, most in (
                (admitted.count(caller), limit),
                (len(admitted), self._settings.node.max_associations),
            ):
                if number >= most:
                    # transient, presentation-related, local limit exceeded
                    return Rejection(f"the limit of {counted(most, 'association')} is reached", 2, 3, 2)
            assoc.admitted_at, assoc.admitted_as = time.monotonic(), caller
        return None


def _title(assoc: Any) -> str:
    return str(assoc.requestor.primitive.calling_ae_title).strip()


def _mismatch(peer: Peer, assoc: Any) -> str:
    """Why a caller is not the peer whose AE title it uses; empty if all checks pass."""
    if peer.networks and not _is_in_networks(str(assoc.requestor.address), peer):
        return "not from its networks (peers.from)"
    connection = assoc.dul.socket.socket
    if not isinstance(connection, ssl.SSLSocket):
        return "not over TLS (peers.tls, peers.tls_name)" if peer.tls or peer.tls_name else ""
    certificate = dict(connection.getpeercert() or {})
    if peer.tls_name and not certificate:
        return "without a certificate (peers.tls_name)"
    if peer.tls_name not in ("", ANY_NAME) and peer.tls_name.lower() not in names_in(certificate):
        return f"its certificate is not for {peer.tls_name} (peers.tls_name)"
    return ""


def _is_in_networks(address: str, peer: Peer) -> bool:
    caller = ipaddress.ip_address(address.partition("%")[0])
    mapped = caller.ipv4_mapped if isinstance(caller, ipaddress.IPv6Address) else None
    return any((mapped or caller) in network for network in peer.networks)
