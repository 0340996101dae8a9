"""C-ECHO to a peer of config.yaml: whether it can be reached, and accepts our AE title."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from pynetdicom.presentation import build_context

from node.config import Peer, Settings
from node.dimse.server import calling_only
from node.dimse.sop_classes import VERIFICATION


def echo(settings: Settings, peer: Peer) -> tuple[int | None, float]:
    """Open an association as the node would, and send a C-ECHO. Raises DestinationUnavailable, ConfigError.

    Returns the status of the answer, None if the peer sent none, and the seconds that it took.
    """
    began = time.monotonic()
    outgoing = calling_only(settings, Path(tempfile.gettempdir()))
    association = outgoing.associate(peer, [build_context(VERIFICATION)])
    try:
        answer = association.send_c_echo()
    finally:
        association.release()
    return (int(answer.Status) if "Status" in answer else None), time.monotonic() - began
