"""The DICOM server: presentation contexts, handler table, start, and a stop that finishes running operations."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydicom import Dataset
from pynetdicom import evt
from pynetdicom.presentation import PresentationContext, build_context

from node.archive.intake.ingest import Ingest
from node.archive.originals.storage_commitment import CommitmentJudge
from node.config import Settings
from node.dimse import pynetdicom_patches
from node.dimse.associations import extended_negotiation
from node.dimse.associations.admission import Admission
from node.dimse.associations.connection_log import log_association
from node.dimse.associations.outgoing import Outgoing
from node.dimse.associations.refusals import Refusals, title_of
from node.dimse.dimse_status import NOT_AUTHORIZED, SUCCESS
from node.dimse.handlers.c_find import handle_find
from node.dimse.handlers.c_move_c_get import RetrieveServices, handle_get, handle_move
from node.dimse.handlers.c_store import handle_store
from node.dimse.handlers.n_action import Notifier, handle_action
from node.dimse.pynetdicom_patches import connection_limits
from node.dimse.pynetdicom_patches.alike_contexts import add_alike_contexts
from node.dimse.pynetdicom_patches.association_shutdown import end_associations
from node.dimse.pynetdicom_patches.association_spool import is_receiving, remove_association_spool
from node.dimse.pynetdicom_patches.entity import Acceptor, ArchiveEntity
from node.dimse.pynetdicom_patches.listener import Listener
from node.dimse.sop_classes import (
    MESSAGE_SYNTAXES,
    ROOTS,
    STORAGE_CLASSES,
    STORAGE_COMMITMENT,
    TRANSFER_SYNTAXES,
    VERIFICATION,
    VIDEO_CLASSES,
    VIDEO_SYNTAXES,
    in_order,
    register_storage_classes,
)
from node.dimse.spool import Allowance
from node.dimse.tls import server_context
from storage.dicom.dicomfile import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

LOGGER = logging.getLogger(__name__)

_RESPONSE_SENT = 0.02
"""Seconds after a request was served, by which its response is taken to have been sent. Chosen, not measured."""
_IDLE_AFTER = 1.0
"""Seconds without an operation after which an association is idle, and may be ended at a stop."""
_ABORT_TIME = 2.0
"""Seconds for ending associations after ``shutdown_timeout``: half for A-ABORT, half after their connections are
closed."""


@dataclass(frozen=True)
class ServerDependencies:
    """What the handlers need. ``check_room`` raises StoreFull if there is no space for an instance."""

    ingest: Ingest
    search: Callable[..., Iterator[Dataset]]
    services: RetrieveServices
    check_room: Callable[[], None]
    judge: CommitmentJudge


class Server:
    """Listens for associations until stopped. Ports are known after ``start`` (0 in config.yaml: any free one).

    Raises ConfigError if a file for TLS cannot be used.
    """

    def __init__(self, settings: Settings, dependencies: ServerDependencies, spool: Path) -> None:
        pynetdicom_patches.install()
        self._settings, self._dependencies, self._peer = settings.node, dependencies, settings.peer
        self._tls, self._per_address = settings.tls, settings.limits.connections_per_address
        self._tls_context = server_context(settings.tls) if settings.tls.listens else None
        self.entity = _entity(settings, spool, self._allowance)
        self.outgoing = Outgoing(self.entity, settings)
        self._notifier = Notifier(settings, dependencies.judge, self.outgoing)
        self.entity.after_action = self._notifier.response_sent
        self.entity.refused = dependencies.services.refusals.of_request
        self._admission = Admission(settings, dependencies.services.refusals)
        self._listeners: list[Listener] = []
        self._stopping = threading.Event()
        self._stopping_since = float("inf")
        self._watch = threading.Thread(target=self._end_overdue, name="association watch", daemon=True)

    @property
    def port(self) -> int:
        """The port without TLS."""
        return next(listener.port for listener in self._listeners if listener.tls is None)

    @property
    def tls_port(self) -> int:
        return next(listener.port for listener in self._listeners if listener.tls is not None)

    @property
    def ports(self) -> str:
        """All ports, for people."""
        return " and ".join(f"{one.port} (TLS)" if one.tls else str(one.port) for one in self._listeners)

    def start(self) -> None:
        """Start listening. Raises OSError if a port is in use."""
        host, handlers, most = self._settings.host, self._handlers(), self._per_address
        if not self._tls.only:
            self._listeners.append(Listener(self.entity, (host, self._settings.port), handlers, per_address=most))
        if self._tls_context is not None:
            address = host, self._tls.port
            self._listeners.append(Listener(self.entity, address, handlers, self._tls_context, per_address=most))
        for listener in self._listeners:
            listener.start()
        self._notifier.start()
        self._watch.start()

    def stop(self) -> None:
        """Accept no new associations, wait at most ``shutdown_timeout`` for running operations, then end the rest."""
        listeners, self._listeners = self._listeners, []
        if not self._watch.is_alive():
            for listener in listeners:  # never started, since another port was in use
                listener.server_close()
            return
        self._stopping_since = time.monotonic()
        self._stopping.set()
        for listener in listeners:
            listener.shutdown()
        deadline = time.monotonic() + self._settings.shutdown_timeout
        while time.monotonic() < deadline and self._busy():
            self._end_persistent()
            time.sleep(0.05)
        self._notifier.stop(max(deadline - time.monotonic(), 0.0))
        end_associations(self.entity, _ABORT_TIME)
        self._watch.join()

    def _prefer(self, event: Any) -> None:
        """Put the caller's preferred syntaxes first for SOP classes that it may get (it proposes the SCP role)."""
        assoc = event.assoc
        peer = self._peer(str(assoc.requestor.primitive.calling_ae_title))
        if peer is None or not peer.transfer_syntaxes or assoc.is_rejected:
            return
        order = tuple(dict.fromkeys((*in_order(peer.transfer_syntaxes, TRANSFER_SYNTAXES[0]), *TRANSFER_SYNTAXES)))
        gets = {str(uid) for uid, role in assoc.requestor.role_selection.items() if role.scp_role}
        gets -= {*VIDEO_CLASSES}
        offered = assoc.acceptor.supported_contexts
        assoc.acceptor.supported_contexts = [
            _reordered(context, order) if str(context.abstract_syntax) in gets else context for context in offered
        ]

    def _allowance(self, assoc: Any) -> Allowance:
        may_store = "store" in self._dependencies.services.settings.caller(title_of(assoc)).allow
        return Allowance(self._settings.max_instance if may_store else 0, self._dependencies.check_room)

    def _end_overdue(self) -> None:
        while not self._stopping.wait(timeout=0.5):
            for assoc in self._admission.overdue(self._accepted()):
                LOGGER.warning("association of %s ended: open for too long", assoc.requestor.ae_title)
                # blocks until the peer has closed or a timer has expired
                threading.Thread(target=assoc.abort, name="association end", daemon=True).start()

    def _end_persistent(self) -> None:
        """End associations that go on sending although the node has refused instances because of the stop."""
        for assoc in self._accepted():
            if _ignores_stop(assoc):
                threading.Thread(target=assoc.abort, name="association end", daemon=True).start()

    def _busy(self) -> bool:
        """True while an operation runs or has just run on an association, or a data set is arriving."""
        recently = time.monotonic() - _IDLE_AFTER
        return any(one.operating or one.operated_at > recently or is_receiving(one) for one in self._accepted())

    def _accepted(self) -> list[Acceptor]:
        return [assoc for assoc in self.entity.active_associations if isinstance(assoc, Acceptor)]

    def _handlers(self) -> list[Any]:
        """The handlers of the listeners: their events are those of associations that peers open."""
        needs, services = self._dependencies, self._dependencies.services
        checks: dict[str, Any] = {"settings": services.settings, "refusals": services.refusals}
        store = partial(handle_store, ingest=needs.ingest, stopping_since=lambda: self._stopping_since)
        return [
            (evt.EVT_C_ECHO, partial(_handle_echo, **checks)),
            (evt.EVT_C_STORE, partial(store, **checks)),
            (evt.EVT_C_FIND, partial(handle_find, search=needs.search, **checks)),
            (evt.EVT_C_GET, partial(handle_get, services=services)),
            (evt.EVT_C_MOVE, partial(handle_move, services=services, outgoing=self.outgoing)),
            (evt.EVT_N_ACTION, partial(handle_action, notifier=self._notifier, **checks)),
            (evt.EVT_REQUESTED, self._admission.requested),
            (evt.EVT_REQUESTED, self._prefer),
            (evt.EVT_REJECTED, self._admission.rejected),
            (evt.EVT_SOP_EXTENDED, extended_negotiation.answer),
            (evt.EVT_ACCEPTED, log_association, ["accepted"]),
            (evt.EVT_RELEASED, log_association, ["released"]),
            (evt.EVT_ABORTED, log_association, ["aborted"]),
            (evt.EVT_CONN_CLOSE, lambda event: remove_association_spool(event.assoc)),
        ]


def _handle_echo(event: Any, settings: Settings, refusals: Refusals) -> int:
    caller = title_of(event.assoc)
    if "echo" in settings.caller(caller).allow:
        return SUCCESS
    refusals.of_request(event.assoc, "echo", NOT_AUTHORIZED, f"{caller} may not echo here")
    return NOT_AUTHORIZED


def calling_only(settings: Settings, spool: Path) -> Outgoing:
    """Opens associations for a command, as the node does. Raises ConfigError if a file for TLS cannot be used."""
    pynetdicom_patches.install()
    return Outgoing(_entity(settings, spool, lambda assoc: Allowance(0, lambda: None)), settings)


def _entity(of: Settings, spool: Path, allowance: Callable[[Any], Allowance]) -> ArchiveEntity:
    settings = of.node
    entity = ArchiveEntity(settings.ae_title, spool, allowance)
    entity.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    entity.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    entity.require_called_aet = settings.require_called_ae_title
    # this limits connections; Admission limits associations
    entity.maximum_associations = settings.max_associations + 2 * connection_limits.WAITING
    entity.maximum_pdu_size = settings.max_pdu
    entity.network_timeout = settings.network_timeout
    entity.dimse_timeout = settings.dimse_timeout
    entity.acse_timeout = entity.connection_timeout = min(30.0, settings.network_timeout)
    entity.add_supported_context(VERIFICATION, MESSAGE_SYNTAXES)
    if of.commitment.offered:
        entity.add_supported_context(STORAGE_COMMITMENT, MESSAGE_SYNTAXES, scu_role=True, scp_role=False)
    for model in ROOTS:
        entity.add_supported_context(model, MESSAGE_SYNTAXES)
    register_storage_classes(settings.storage_classes)
    # both roles: C-STORE to us as SCP, and C-GET sub-operations from us as SCU (PS3.7 D.3.3.4)
    add_alike_contexts(entity, VIDEO_CLASSES, VIDEO_SYNTAXES, both_roles=True)
    add_alike_contexts(entity, (*STORAGE_CLASSES, *settings.storage_classes), TRANSFER_SYNTAXES, both_roles=True)
    return entity


def _reordered(context: PresentationContext, order: tuple[str, ...]) -> PresentationContext:
    assert context.abstract_syntax is not None
    made = build_context(context.abstract_syntax, list(order))
    made.scu_role, made.scp_role = context.scu_role, context.scp_role
    return made


def _ignores_stop(assoc: Acceptor) -> bool:
    """True, once, if two stores of a peer were refused because the node stops, and the responses have been sent."""
    answered = not assoc.operating and time.monotonic() - assoc.operated_at > _RESPONSE_SENT
    if not answered or assoc.stop_refusals < 2:
        return False
    assoc.stop_refusals, assoc.operated_at = 0, float("-inf")
    return True
