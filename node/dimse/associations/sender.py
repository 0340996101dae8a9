"""Sends images by C-STORE: to a move destination, or over the association of a C-GET.

A file is sent in the transfer syntax that the receiver accepted and that config.yaml prefers for it: unchanged if it is
in that syntax, otherwise encoded without loss by a worker.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from pydicom.uid import UID, JPEGLossless, JPEGLosslessSV1
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

_MAX_CONTEXTS = 128
"""Presentation contexts of one association (PS3.8 7.1.1.13)."""


class Channel:
    """One established association on which images can be sent with C-STORE.

    ``priority``: that of the request, which each C-STORE gets too. ``originator``: of a C-MOVE, as arguments of
    ``send_c_store`` (PS3.7 9.1.3.1, 9.1.4.1).
    """

    def __init__(
        self, assoc: Association, prefers: tuple[WireSyntax, ...], *, priority: int, **originator: Any
    ) -> None:
        self._assoc, self._prefers, self._options = assoc, prefers, {"priority": priority, **originator}
        self._message_id = 0
        self._unanswered = False
        self._close_reason = ""
        send_files_directly(assoc)

    @property
    def receiver(self) -> str:
        other = self._assoc.acceptor if self._assoc.is_requestor else self._assoc.requestor
        return str(other.ae_title).strip()

    @property
    def usable(self) -> bool:
        """False after a C-STORE without a response: pynetdicom itself notices later that a peer aborted,
        and would wait a whole DIMSE timeout for the next response."""
        return not self._unanswered and bool(self._assoc.is_established)

    def convert(self, sendable: Sendable, retrieve: Retrieve) -> Sendable:
        """The file in the best transfer syntax that the receiver accepted; ``sendable`` itself if it is in that syntax.

        A data set of an odd length is encoded again, if possible, since fragments are even (PS3.8 E.1): DCMTK aborts on
        odd ones. This may take long. Raises DestinationUnavailable if no context fits, or the error of the last
        encoding that failed. The caller closes the result, or ``sendable`` after an error.
        """
        if sendable.packed_form_of and self.expected(sendable.packed_form_of) != sendable.transfer_syntax_uid:
            original = retrieve.original(sendable.packed_form_of)
            try:
                converted = self.convert(original, retrieve)
            except BaseException:
                original.close()
                raise
            sendable.close()
            return converted
        failure: Exception | None = None
        held = sendable.packed_form_of or sendable
        odd = sendable.path.stat().st_size % 2 == 1
        syntaxes = self._syntaxes_for(held.sop_class_uid, held.transfer_syntax_uid)
        for syntax in syntaxes:
            if syntax == sendable.transfer_syntax_uid and not odd:
                return sendable
            try:
                return retrieve.as_syntax(sendable, UID(syntax))
            except Exception as error:  # noqa: BLE001 - another encoding may succeed
                failure = error
        if odd and sendable.transfer_syntax_uid in syntaxes:  # it may be too large for a worker
            return sendable
        raise failure or DestinationUnavailable(
            f"receiver accepted no context for SOP class {sendable.sop_class_uid} with transfer syntax "
            f"{sendable.transfer_syntax_uid} or little endian"
        )

    def channel(self, _: Choice) -> Channel:
        """Itself; a ``Destination`` has a channel for each choice."""
        return self

    def expected(self, held: Choice | StoredInstance) -> str:
        """The transfer syntax in which ``held`` is sent if its pixels allow it; empty if the receiver accepted none."""
        return next(iter(self._syntaxes_for(held.sop_class_uid, held.transfer_syntax_uid)), "")

    def _syntaxes_for(self, sop_class: str, held_in: str) -> list[str]:
        accepted = {
            str(context.transfer_syntax[0])
            for context in self._assoc.accepted_contexts
            if context.abstract_syntax == sop_class and context.as_scu
        }
        return [syntax for syntax in in_order(self._prefers, held_in) if syntax in accepted]

    def store(self, sendable: Sendable) -> int:
        """Send a converted file and return the receiver's status. Raises DestinationUnavailable without a response."""
        if not self.usable:
            raise DestinationUnavailable("the association has ended")
        self._message_id = self._message_id % 65535 + 1
        try:
            status = self._assoc.send_c_store(sendable.path, msg_id=self._message_id, **self._options)
        except (ValueError, RuntimeError, OSError) as error:
            raise DestinationUnavailable(str(error)) from error
        if "Status" not in status:
            self._unanswered = True
            raise DestinationUnavailable(self._close_reason or reason_for_no_response(self._assoc))
        return int(status.Status)

    def close_at_once(self, why: str) -> None:
        """Close the connection while another thread is in ``store``, which raises ``why``."""
        self._close_reason = why
        close_connection(self._assoc)


class Destination:
    """A move destination. Opens an association for the first image, and another when more contexts are needed.

    ``priority``, ``originator``: as for ``Channel``. Leaving the block releases the association.
    """

    def __init__(
        self, outgoing: Outgoing, peer: Peer, choices: Sequence[Choice], *, priority: int, **originator: Any
    ) -> None:
        self._outgoing, self._peer, self._options = outgoing, peer, {"priority": priority, **originator}
        self._batches = _batches(choices, peer.transfer_syntaxes)
        self._batch_of = {id(choice): number for number, batch in enumerate(self._batches) for choice in batch}
        self._open: tuple[int, Channel, Association] | None = None
        self._refused: str | None = None
        self._ended = threading.Event()
        self._lock = threading.Lock()

    def __enter__(self) -> Destination:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()  # a thread that waits in the queue releases the lock
        with self._lock:
            self._refused = "the request has ended"
            self._close()

    def channel(self, choice: Choice) -> Channel:
        """The channel for one of the choices. Raises DestinationUnavailable. May be called in another thread."""
        with self._lock:
            return self._channel(self._batch_of[id(choice)])

    def expected(self, choice: Choice) -> str:
        """The transfer syntax in which a choice is probably sent: by config.yaml until contexts are accepted."""
        now_open = self._open
        if now_open is not None and now_open[0] == self._batch_of[id(choice)]:
            return now_open[1].expected(choice)
        return in_order(self._peer.transfer_syntaxes, choice.transfer_syntax_uid)[0]

    def close_at_once(self, why: str) -> None:
        """Close the connection even while an image is being sent, without the lock; ``store`` then raises ``why``."""
        if (now_open := self._open) is not None:
            now_open[1].close_at_once(why)

    def _channel(self, number: int) -> Channel:
        if self._open is not None and self._open[0] == number and self._open[1].usable:
            return self._open[1]
        if self._refused is not None:
            raise DestinationUnavailable(self._refused)
        self._close()
        assoc = self._associate(self._batches[number])
        channel = Channel(assoc, self._peer.transfer_syntaxes, **self._options)
        self._open = (number, channel, assoc)
        return channel

    def _associate(self, batch: Sequence[Choice]) -> Association:
        try:
            contexts = contexts_for(batch, self._peer.transfer_syntaxes)
            assoc = self._outgoing.associate(self._peer, contexts, wanted=lambda: not self._ended.is_set())
        except DestinationUnavailable as error:
            # do not try again: a destination that is down would cost a timeout for each further image
            self._refused = str(error)
            raise
        assoc.network_timeout = None  # it may be idle while an image is being made
        return assoc

    def _close(self) -> None:
        if self._open is not None:
            assoc = self._open[2]
            if assoc.is_established:
                assoc.release()
            self._open = None


def contexts_for(choices: Sequence[Choice], prefers: tuple[WireSyntax, ...] = ()) -> list[PresentationContext]:
    """One context for each SOP class and transfer syntax in which these images can be sent."""
    wanted = dict.fromkeys(pair for choice in choices for pair in _wanted(choice, prefers))
    return [build_context(UID(sop_class), UID(syntax)) for sop_class, syntax in wanted]


def _wanted(choice: Choice, prefers: tuple[WireSyntax, ...]) -> list[tuple[str, str]]:
    """(SOP class, transfer syntax) of each context: preferred by the peer, of the file, of its original, little endian.

    Each syntax has a context of its own, so that the receiver cannot choose one syntax for files in several.
    """
    held = (choice.transfer_syntax_uid, choice.instance.transfer_syntax_uid)
    syntaxes = dict.fromkeys(syntax for original in held for syntax in in_order(prefers, original))
    if JPEGLossless in syntaxes:
        syntaxes[str(JPEGLosslessSV1)] = None  # the default of lossless JPEG is proposed beside the others (PS3.5 10.2)
    return [(choice.sop_class_uid, syntax) for syntax in syntaxes]


def _batches(choices: Sequence[Choice], prefers: tuple[WireSyntax, ...]) -> list[list[Choice]]:
    """Split the choices, in order, into batches whose contexts fit into one association."""
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
