"""Associations that we open: to move destinations, and to those who asked for storage commitment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext

from node.config import Peer, Settings
from node.dimse.tls import client_context
from node.dimse.wire import ArchiveEntity, keep_answers
from storage.errors import LatentPacsError


class DestinationUnavailable(LatentPacsError):
    """The destination refused the association, dropped it, or took no suitable presentation context."""


class Outgoing:
    """Calls peers as our entity, over TLS where config.yaml says so. Raises ConfigError where that cannot be."""

    def __init__(self, entity: ArchiveEntity, settings: Settings) -> None:
        self._entity = entity
        callable_over_tls = [peer for peer in settings.peers if peer.tls and peer.reachable]
        self._tls = {peer.ae_title: client_context(settings.tls, peer) for peer in callable_over_tls}

    def associate(self, peer: Peer, contexts: list[PresentationContext], roles: Sequence[Any] = ()) -> Association:
        """An established association with a peer. Raises DestinationUnavailable."""
        where = f"{peer.ae_title} at {peer.host}:{peer.port}"
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
            raise DestinationUnavailable(f"{where} cannot be reached: {error}") from error
        if not assoc.is_established:
            over = " over TLS" if peer.ae_title in self._tls else ""
            raise DestinationUnavailable(f"{where} did not accept an association{over}")
        keep_answers(assoc)
        return assoc
