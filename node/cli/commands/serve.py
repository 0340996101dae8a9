"""``latent-pacs serve``: runs the node in the foreground until a signal stops it."""

from __future__ import annotations

import logging
import signal
import time
from types import FrameType
from typing import Annotated

import typer

from node.cli.logs import configure
from node.cli.options import DEFAULT_CONFIG, ConfigOption
from node.cli.stop_signals import heeded_signals
from node.config import load

LOGGER = logging.getLogger("latent_pacs")

_POLL = 0.2
"""Seconds between two checks for a signal."""


def serve(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log every association.")] = False,
    accept_empty_index: Annotated[
        bool,
        typer.Option(
            "--accept-empty-index",
            help="Start with a new, empty index, even if there are objects that the present index does not know.",
        ),
    ] = False,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Run the node until SIGTERM, SIGHUP or Ctrl-C. Requests in progress are finished first (node.shutdown_timeout)."""
    settings = load(config)
    configure(settings.log, verbose=verbose)
    if settings.lists_no_peers:
        LOGGER.warning("any AE title may store, because the configuration has neither peers nor unknown_peers; add one")
    stopping: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        LOGGER.info("%s: finishing requests in progress", signal.Signals(number).name)
        stopping.append(number)

    for number in {signal.SIGTERM, signal.SIGINT, *heeded_signals()}:
        signal.signal(number, stop)
    from node.app import Node
    from node.dimse.tls import expiries

    for expiry in expiries(settings.tls):
        if expiry.soon:
            LOGGER.warning("%s", expiry)
    with Node(settings, accept_empty_index=accept_empty_index) as node:
        LOGGER.info("ready: %s on port %s", settings.node.ae_title, node.server.ports)
        # a signal handler must not take the lock of an Event, and a signal just before a wait would not end the wait
        while not stopping:
            time.sleep(_POLL)
    LOGGER.info("stopped")
