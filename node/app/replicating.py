"""Builds the replication to a peer: for a command or for the job ``replicate-peer``."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from node.archive.audit_trail import AuditTrail
from node.archive.serve.retrieve import Retrieve
from node.config import Peer, Settings
from node.dimse.associations.outgoing import Outgoing
from node.dimse.replication import JOB, Replication
from node.jobs.job import FunctionJob
from storage.errors import ConfigError
from storage.index import Index


def make_peer_replication(
    settings: Settings,
    index: Index,
    trail: AuditTrail,
    retrieve: Callable[[], AbstractContextManager[Retrieve]],
    outgoing: Callable[[], Outgoing],
    to: str = "",
) -> FunctionJob:
    """The job that sends new originals to a peer. ``to`` replaces ``jobs.replicate_peer.to``."""

    def work(progress: Callable[[int, int], None], cancelled: Callable[[], bool]) -> dict[str, Any]:
        peer = _peer(settings, to or settings.jobs.replicate_peer.to)
        with retrieve() as lent:
            return Replication(index, lent, outgoing(), peer, trail.append).run(progress, cancelled)

    return FunctionJob(JOB, "sends the held originals that it lacks to the peer in jobs.replicate_peer.to", work)


def _peer(settings: Settings, title: str) -> Peer:
    if not title:
        raise ConfigError("jobs.replicate_peer.to names no peer; name one there or on the command line")
    peer = settings.peer(title)
    if peer is None or not peer.reachable:
        raise ConfigError(f"{title} is not a peer with host and port; `latent-pacs peer add` adds one")
    return peer
