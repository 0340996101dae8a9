"""C-STORE as a sender: to a move destination, or back over the association of a C-GET.

A file goes out in the best transfer syntax that the receiver took, by its peer entry in config.yaml: as its
bytes are where that is the one, else encoded anew by a worker, without loss.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from pydicom.uid import UID
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext, build_context

from node.archive.serve.retrieve import Choice, Retrieve, Sendable
from node.config import Peer, WireSyntax
from node.dimse.associations.outgoing import DestinationUnavailable, Outgoing
from node.dimse.pynetdicom_patches.association_shutdown import close_connection
from node.dimse.pynetdicom_patches.file_sending import send_files_directly
from node.dimse.pynetdicom_patches.response_timeout import reason_for_no_response
from node.dimse.sop_classes import in_order
from storage.records import StoredInstance

LOGGER = logging.getLogger(__name__)

_MAX_CONTEXTS = 128


class Channel:
    """One established association on which images can be sent with C-STORE."""

    def __init__(
        self,
        assoc: Association,
        *,
        prefers: tuple[WireSyntax, ...] = (),
        originator: str = "",
        originator_id: int = 0,
    ) -> None:
        self._assoc, self._originator, self._originator_id = assoc, originator, originator_id
        self._prefers = prefers
        self._message_id = 0
        self._unanswered = False
        self._given_up = ""
        send_files_directly(assoc)

    @property
    def receiver(self) -> str:
        """The AE title of who receives."""
        other = self._assoc.acceptor if self._assoc.is_requestor else self._assoc.requestor
        return str(other.ae_title).strip()

    @property
    def usable(self) -> bool:
        """False from the first C-STORE without an answer: pynetdicom itself sees that a peer aborted only later,
        and would wait a whole DIMSE timeout for the answer to the next one."""
        return not self._unanswered and bool(self._assoc.is_established)

    def fitted(self, sendable: Sendable, retrieve: Retrieve) -> Sendable:
        """The file in the best transfer syntax that the receiver took; ``sendable`` itself where it is that already.

        May take long. Raises DestinationUnavailable where no context fits, else why no encoding does. The caller closes
        what comes back, and ``sendable`` where nothing does.
        """
        if sendable.passed and self.best(sendable.passed) != sendable.transfer_syntax_uid:
            original = retrieve.unpacked(sendable)
            try:
                fitted = self.fitted(original, retrieve)
            except BaseException:
                original.close()
                raise
            sendable.close()
            return fitted
        failure: Exception | None = None
        held = sendable.passed or sendable
        for syntax in self._syntaxes_for(held.sop_class_uid, held.transfer_syntax_uid):
            if syntax == sendable.transfer_syntax_uid:
                return sendable
            try:
                return retrieve.as_syntax(sendable, UID(syntax))
            except Exception as error:  # noqa: BLE001 - this encoding does not fit; another may
                failure = error
        raise failure or DestinationUnavailable(
            f"receiver took no context for SOP class {sendable.sop_class_uid} with transfer syntax "
            f"{sendable.transfer_syntax_uid} or little endian"
        )

    def best(self, held: Choice | StoredInstance) -> str:
        """The transfer syntax in which it goes out where its pixels fit; empty where the receiver took none."""
        return next(iter(self._syntaxes_for(held.sop_class_uid, held.transfer_syntax_uid)), "")

    def _syntaxes_for(self, sop_class: str, held_in: str) -> list[str]:
        taken = {
            str(context.transfer_syntax[0])
            for context in self._assoc.accepted_contexts
            if context.abstract_syntax == sop_class and context.as_scu
        }
        return [syntax for syntax in in_order(self._prefers, held_in) if syntax in taken]

    def store(self, sendable: Sendable) -> int:
        """Send a fitted file; the receiver's status. Raises DestinationUnavailable where no answer came."""
        if not self.usable:
            raise DestinationUnavailable("the association has ended")
        self._message_id = self._message_id % 65535 + 1
        options: dict[str, Any] = {}
        if self._originator:
            options = {"originator_aet": self._originator, "originator_id": self._originator_id}
        try:
            status = self._assoc.send_c_store(sendable.path, msg_id=self._message_id, **options)
        except (ValueError, RuntimeError, OSError) as error:
            raise DestinationUnavailable(str(error)) from error
        if "Status" not in status:
            self._unanswered = True
            raise DestinationUnavailable(self._given_up or reason_for_no_response(self._assoc))
        return int(status.Status)

    def give_up(self, why: str) -> None:
        """End the association at once, under a thread that is in ``store``; that one is told why."""
        self._given_up = why
        close_connection(self._assoc)


class Destination:
    """A move destination: an association is opened at the first image, and again where contexts run out."""

    def __init__(
        self,
        outgoing: Outgoing,
        peer: Peer,
        choices: Sequence[Choice],
        *,
        originator: str,
        originator_id: int,
    ) -> None:
        self._outgoing, self._peer = outgoing, peer
        self._originator, self._originator_id = originator, originator_id
        self._batches = _batches(choices, peer.transfer_syntaxes)
        self._batch_of = {id(choice): number for number, batch in enumerate(self._batches) for choice in batch}
        self._open: tuple[int, Channel, Association] | None = None
        self._refused: str | None = None
        self._ended = threading.Event()
        self._lock = threading.Lock()

    def __enter__(self) -> Destination:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()  # who waits for a turn lets go of the lock
        with self._lock:
            self._refused = "the request has ended"
            self._close()

    def channel(self, choice: Choice) -> Channel:
        """The association for one of the choices. Raises DestinationUnavailable. May be called in another thread."""
        with self._lock:
            return self._channel(self._batch_of[id(choice)])

    def expected(self, choice: Choice) -> str:
        """The transfer syntax in which it is likely to go out: as its entry says until the receiver has answered."""
        now_open = self._open
        if now_open is not None and now_open[0] == self._batch_of[id(choice)]:
            return now_open[1].best(choice)
        return in_order(self._peer.transfer_syntaxes, choice.transfer_syntax_uid)[0]

    def give_up(self, why: str) -> None:
        """End the association at once, whatever is on its way; ``why`` is for the log. Waits for no other thread."""
        if (now_open := self._open) is not None:
            now_open[1].give_up(why)

    def _channel(self, number: int) -> Channel:
        if self._open is not None and self._open[0] == number and self._open[1].usable:
            return self._open[1]
        if self._refused is not None:
            raise DestinationUnavailable(self._refused)
        self._close()
        assoc = self._associate(self._batches[number])
        channel = Channel(
            assoc,
            prefers=self._peer.transfer_syntaxes,
            originator=self._originator,
            originator_id=self._originator_id,
        )
        self._open = (number, channel, assoc)
        return channel

    def _associate(self, batch: Sequence[Choice]) -> Association:
        try:
            contexts = contexts_for(batch, self._peer.transfer_syntaxes)
            assoc = self._outgoing.associate(self._peer, contexts, wanted=lambda: not self._ended.is_set())
        except DestinationUnavailable as error:
            # asked once: a destination that is down would cost a timeout for every further image
            self._refused = str(error)
            raise
        assoc.network_timeout = None  # it is idle while an image is being made, and that is no fault
        return assoc

    def _close(self) -> None:
        if self._open is not None:
            assoc = self._open[2]
            if assoc.is_established:
                assoc.release()
            self._open = None


def contexts_for(choices: Sequence[Choice], prefers: tuple[WireSyntax, ...] = ()) -> list[PresentationContext]:
    """One context per SOP class and transfer syntax that these images can go out in."""
    wanted = dict.fromkeys(pair for choice in choices for pair in _wanted(choice, prefers))
    return [build_context(UID(sop_class), UID(syntax)) for sop_class, syntax in wanted]


def _wanted(choice: Choice, prefers: tuple[WireSyntax, ...]) -> list[tuple[str, str]]:
    """(SOP class, transfer syntax): as the peer prefers, as the file is, as its fall-back is, and little endian.

    A context each, so that the receiver cannot choose one syntax for files that come in several.
    """
    held = (choice.transfer_syntax_uid, choice.instance.transfer_syntax_uid)
    syntaxes = dict.fromkeys(syntax for original in held for syntax in in_order(prefers, original))
    return [(choice.sop_class_uid, syntax) for syntax in syntaxes]


def _batches(choices: Sequence[Choice], prefers: tuple[WireSyntax, ...]) -> list[list[Choice]]:
    """Runs of choices whose contexts fit one association (PS3.8 7.1.1.13: at most 128)."""
    batches: list[list[Choice]] = [[]]
    wanted: set[tuple[str, str]] = set()
    for choice in choices:
        with_this = wanted.union(_wanted(choice, prefers))
        if len(with_this) > _MAX_CONTEXTS:
            batches.append([])
            with_this = set(_wanted(choice, prefers))
        wanted = with_this
        batches[-1].append(choice)
    return batches
