"""``latent-pacs serve``: the node in the foreground, stopped by a signal."""

from __future__ import annotations

import logging
import signal
import time
from pathlib import Path
from types import FrameType

from node.cli.logs import configure
from node.config import load

LOGGER = logging.getLogger("latent_pacs")

_LOOK = 0.2
"""Seconds after which a signal is seen at the latest."""


def serve_until_stopped(config: Path, *, verbose: bool, accept_empty_index: bool = False) -> None:
    """Run a node as ``config`` says until SIGTERM or SIGINT."""
    settings = load(config)
    configure(settings.log, verbose=verbose)
    if settings.lists_no_peers:
        LOGGER.warning("any AE title may store, since the configuration has neither peers nor unknown_peers; add one")
    stopping: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        LOGGER.info("%s: finishing what is in flight", signal.Signals(number).name)
        stopping.append(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    from node.app import Node

    with Node(settings, accept_empty_index=accept_empty_index) as node:
        LOGGER.info("ready: %s on port %s", settings.node.ae_title, node.server.ports)
        # a signal that comes just before a wait begins does not end it, and a handler must not take an event's lock
        while not stopping:
            time.sleep(_LOOK)
    LOGGER.info("stopped")
