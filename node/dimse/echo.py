"""C-ECHO to a peer of config.yaml: whether it can be reached, and accepts our AE title."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from pynetdicom.presentation import build_context

from node.config import Peer, Settings
from node.dimse.server import calling_only
from node.dimse.sop_classes import VERIFICATION


@dataclass(frozen=True)
class Echo:
    """The answer to a C-ECHO: its status, None if the peer sent none, and the seconds that it took."""

    status: int | None
    seconds: float


def echo(settings: Settings, peer: Peer) -> Echo:
    """Open an association as the node would, and send a C-ECHO. Raises DestinationUnavailable, ConfigError."""
    began = time.monotonic()
    outgoing = calling_only(settings, Path(tempfile.gettempdir()))
    association = outgoing.associate(peer, [build_context(VERIFICATION)])
    try:
        answer = association.send_c_echo()
    finally:
        association.release()
    return Echo(int(answer.Status) if "Status" in answer else None, time.monotonic() - began)
