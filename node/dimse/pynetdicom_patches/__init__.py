"""Workarounds for pynetdicom 3.0, each in a file of its own. pyproject.toml keeps pynetdicom below 3.1.

The head of each file says what pynetdicom does, the upstream issue, and when the file can be removed. For each file a
test ``test_<file>_is_still_needed`` in tests/unit/node/dimse/pynetdicom_patches fails once pynetdicom itself is fixed.

Connections (entity.py, listener.py):  pdu_limits, send_timeout, tls_session_tickets, tls_handshake, tcp_nodelay,
                                       connection_limits, closed_before_request, shared_contexts
Threads (entity.py):                   association_threads, daemon_threads, unexpected_pdu, undecodable_pdu,
                                       prompt_receive, bounded_responses, several_messages, unanswered_requests,
                                       served_requests
Negotiation (entity.py):               association_request
Messages (decoder.py):                 message_limits, invalid_commands, command_ae_titles, command_uids,
                                       early_cancel, association_spool
Services (``install``):                retrieve_responses, meta_length, kept_release
Called on an association:              file_sending, response_timeout, requestor_responses, ended_peer, event_report,
                                       association_shutdown, matched_responses
Called on an entity:                   alike_contexts
"""

from __future__ import annotations

from functools import cache

from pynetdicom import _config

from node.dimse.pynetdicom_patches import (
    association_spool,
    decoder,
    kept_release,
    meta_length,
    retrieve_responses,
)


@cache
def install() -> None:
    """Set pynetdicom's switches, and patch its services and its decoder for ``ArchiveEntity``, once in a process."""
    _config.LOG_HANDLER_LEVEL = "none"
    _config.LOG_REQUEST_IDENTIFIERS = _config.LOG_RESPONSE_IDENTIFIERS = False  # identifiers are patient data
    _config.STORE_SEND_CHUNKED_DATASET = True  # send_c_store sends the bytes of a path unchanged
    retrieve_responses.install()
    decoder.install()
    association_spool.install()
    meta_length.install()
    kept_release.install()
