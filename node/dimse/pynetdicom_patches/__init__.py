"""Workarounds for pynetdicom 3.0, each in a file of its own. pyproject.toml keeps pynetdicom below 3.1.

The head of each file says what pynetdicom does, the upstream issue, and when the file can be removed. For each file a
test ``test_<file>_is_still_needed`` in tests/unit/node/dimse/pynetdicom_patches fails once pynetdicom itself is fixed.

Connections (entity.py, listener.py):  pdu_limits, send_timeout, tls_session_tickets, tls_handshake, tcp_nodelay,
                                       connection_limits, closed_before_request, shared_contexts
Threads (entity.py):                   association_threads, daemon_threads, unexpected_pdu, undecodable_pdu,
                                       prompt_receive, bounded_responses, several_messages, unanswered_requests
Negotiation (entity.py):               association_request
Services and messages (``install``):   retrieve_responses, after_action, association_spool, message_limits,
                                       command_ae_titles, command_uids, early_cancel, invalid_commands,
                                       meta_length, kept_release
Called on an association:              file_sending, response_timeout, requestor_responses, idle_timer, ended_peer,
                                       event_report, association_shutdown, matched_responses
Called on an entity:                   alike_contexts
"""

from __future__ import annotations

from functools import cache
from typing import Any

from pynetdicom import _config
from pynetdicom.dimse_messages import DIMSEMessage

from node.dimse.pynetdicom_patches import (
    after_action,
    association_spool,
    invalid_commands,
    kept_release,
    message_limits,
    meta_length,
    retrieve_responses,
)
from node.dimse.pynetdicom_patches.command_ae_titles import strip_ae_titles
from node.dimse.pynetdicom_patches.command_uids import shorten_uids
from node.dimse.pynetdicom_patches.early_cancel import forget_older_cancel
from node.dimse.pynetdicom_patches.entity import ArchiveEntity


def install() -> None:
    """Set pynetdicom's switches, and patch its services and its decoder for ``ArchiveEntity``, once in a process."""
    _config.LOG_HANDLER_LEVEL = "none"
    for switch in ("LOG_REQUEST_IDENTIFIERS", "LOG_RESPONSE_IDENTIFIERS"):
        setattr(_config, switch, False)  # identifiers are patient data
    _config.STORE_SEND_CHUNKED_DATASET = True  # send_c_store sends the bytes of a path unchanged
    _patch()


@cache
def _patch() -> None:
    retrieve_responses.install()
    after_action.install()
    association_spool.install()
    invalid_commands.install()
    _repair_commands()
    meta_length.install()
    kept_release.install()
    message_limits.install()  # last: it guards the decoder with the patches before it


def _repair_commands() -> None:
    """Repair the command set of every message that has arrived whole on one of our associations."""
    decoder: Any = DIMSEMessage
    original = decoder.decode_msg

    def decode_msg(self: Any, primitive: Any, assoc: Any = None) -> bool:
        is_whole = bool(original(self, primitive, assoc))
        if is_whole and assoc is not None and isinstance(assoc.ae, ArchiveEntity):
            strip_ae_titles(self.command_set)
            shorten_uids(self.command_set)
            forget_older_cancel(assoc, self.command_set)
        return is_whole

    decoder.decode_msg = decode_msg
