"""The signals that end a command."""

from __future__ import annotations

import signal


def heeded_signals() -> list[signal.Signals]:
    """SIGINT, SIGTERM and SIGHUP, but for ignored ones, as in the background of a script or by nohup."""
    every = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    return [number for number in every if signal.getsignal(number) is not signal.SIG_IGN]
