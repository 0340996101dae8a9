"""Our application entity, whose associations use the patched classes. Other AEs keep pynetdicom's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pynetdicom import AE

from node.dimse.pynetdicom_patches.association_request import RepairedNegotiation
from node.dimse.pynetdicom_patches.association_threads import GuardedAcceptor
from node.dimse.pynetdicom_patches.bounded_responses import BoundedResponses
from node.dimse.pynetdicom_patches.daemon_threads import make_connection_thread_daemon
from node.dimse.pynetdicom_patches.early_cancel import KeptCancels
from node.dimse.pynetdicom_patches.file_sending import FileSendingSocket
from node.dimse.pynetdicom_patches.pdu_limits import LimitedReceive
from node.dimse.pynetdicom_patches.prompt_receive import PromptReceive, receive_promptly
from node.dimse.pynetdicom_patches.served_requests import ServingAcceptor
from node.dimse.pynetdicom_patches.several_messages import PacedReceive, SeparateMessages
from node.dimse.pynetdicom_patches.tcp_nodelay import NoDelaySocket
from node.dimse.pynetdicom_patches.tls_session_tickets import TicketTolerantSocket
from node.dimse.pynetdicom_patches.unanswered_requests import AnsweringAcceptor
from node.dimse.pynetdicom_patches.undecodable_pdu import UndecodablePduAbort
from node.dimse.pynetdicom_patches.unexpected_pdu import UnexpectedPduClosing
from node.dimse.spool import Allowance


class ArchiveSocket(TicketTolerantSocket, LimitedReceive, FileSendingSocket, NoDelaySocket):
    """The connection of one of our associations."""


class UpperLayer(UnexpectedPduClosing, UndecodablePduAbort, RepairedNegotiation, PacedReceive, PromptReceive):
    """The thread that owns the connection of one of our associations."""


class Messages(KeptCancels, SeparateMessages, BoundedResponses):
    """The messages that one of our associations sends and receives."""


class Acceptor(GuardedAcceptor, AnsweringAcceptor, ServingAcceptor):
    """An association that a peer opens."""

    admitted_as: str | None = None
    """The AE title by which it counts for the limit of a peer; empty for all unknown peers, None before."""
    admitted_at = 0.0
    """The monotonic time (s) at which it was admitted."""
    gave_way = False
    """Whether it was closed, before it asked for anything, for a new connection."""
    stop_refusals = 0
    """Stores that were refused because the node stops."""


class ArchiveEntity(AE):
    """An AE with a spool folder on the store's file system.

    ``allowance``: limits for an association's incoming data sets. ``after_action``: called with an association when the
    response to an N-ACTION has been sent on it, in the association's own thread. ``refused``: called with an
    association, verb, status, reason and UIDs when a request is answered with a failure without its handler.
    """

    def __init__(self, ae_title: str, spool: Path, allowance: Callable[[Any], Allowance]) -> None:
        super().__init__(ae_title)
        self.spool, self.allowance = spool, allowance
        self.after_action: Callable[[Any], None] = lambda assoc: None
        self.refused: Callable[[Any, str, int, str, tuple[str, ...]], None] = lambda *_: None

    def _create_socket(self, assoc: Any, address: Any, tls_args: Any) -> ArchiveSocket:
        """The connection of an association that we open."""
        use_patched_classes(assoc)
        made = ArchiveSocket(assoc, address=address)
        made.tls_args = tls_args
        return made


def use_patched_classes(assoc: Any) -> None:
    """Replace the classes of an association that has not started."""
    assoc.dul.__class__, assoc.dimse.__class__ = UpperLayer, Messages
    make_connection_thread_daemon(assoc)
    receive_promptly(assoc)
    if assoc.is_acceptor:
        assoc.__class__ = Acceptor
