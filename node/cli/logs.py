"""How ``serve`` logs: lines for people, or JSON lines for programs; no patient data in either.

A record is one line, whatever a peer sent: line breaks and escape sequences are written out, and of an unforeseen error
its kind and place are given. Where one place in the code says more than a few lines a minute, the rest is counted.

What pydicom says of values is patient data, and never comes through; pynetdicom is told to keep identifiers to
itself in node/dimse/pynetdicom_patches/__init__.py.
"""

from __future__ import annotations

import json
import logging
import threading
import time
import traceback
import warnings
from datetime import UTC, datetime
from typing import Any

from node.config import LogSettings
from storage.errors import LatentPacsError
from storage.printable import plain

_QUIET = {
    "alembic": logging.WARNING,
    "pydicom": logging.CRITICAL,  # what it says of odd values
    "pynetdicom.acse": logging.CRITICAL,  # three lines for each rejection, which we tell in one
}


ASSOCIATIONS = "node.dimse.associations.connection_log"
"""The logger of each association: who, from where, and how it ended (node/dimse/associations/connection_log.py)."""

_MOST, _WINDOW = 100, 60.0
"""Lines that one place in the code may write within so many seconds."""
_FRAMES = 3
"""Places of an unforeseen error that are named, from where it arose."""


def configure(settings: LogSettings, *, verbose: bool) -> None:
    """Log to standard error; ``verbose``: every association too."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if settings.format == "json" else TextLines())
    handler.addFilter(AtMost())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("pynetdicom").setLevel(logging.WARNING)
    logging.getLogger(ASSOCIATIONS).setLevel(logging.INFO if verbose else logging.WARNING)
    for name, level in _QUIET.items():
        logging.getLogger(name).setLevel(level)
    warnings.simplefilter("ignore")


class AtMost(logging.Filter):
    """Lets so many records through from each place in the code; the next window begins with how many were left out."""

    def __init__(self, most: int = _MOST, window: float = _WINDOW) -> None:
        super().__init__()
        self._most, self._window = most, window
        self._lock = threading.Lock()
        self._seen: dict[tuple[str, int], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        place, now = (record.pathname, record.lineno), time.monotonic()
        with self._lock:
            since, count = self._seen.get(place, (now, 0))
            left_out = count - self._most if now - since >= self._window else 0
            if now - since >= self._window:
                since, count = now, 0
            self._seen[place] = since, count + 1
        if left_out > 0:
            record.msg, record.args = f"{record.getMessage()} (and {left_out} more such lines were left out)", None
        return count < self._most


class TextLines(logging.Formatter):
    """One line a record: local time, level, logger, message; for an unforeseen error its kind and where it arose."""

    def format(self, record: logging.LogRecord) -> str:
        said = record.getMessage()
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            said += f" [{type(error).__name__} at {' < '.join(_places(error)[:_FRAMES])}]"
        return f"{self.formatTime(record)} {record.levelname} {plain(record.name)}: {plain(said)}"


def _places(error: BaseException) -> list[str]:
    """Where an error arose, innermost first."""
    frames = reversed(traceback.extract_tb(error.__traceback__))
    return [f"{at.filename}:{at.lineno} {at.name}" for at in frames]


class JsonLines(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, thread; for an error its type and where it arose.

    The text of an error is only given where the error is ours: others may quote what a peer sent.
    """

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": self._message(record),
            "thread": record.threadName,
        }
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            line["error"] = type(error).__name__
            line["at"] = _places(error)[::-1]
        return json.dumps(line)

    def _message(self, record: logging.LogRecord) -> str:
        if not isinstance(record.args, tuple) or not record.args:
            return record.getMessage()
        return str(record.msg) % tuple(type(one).__name__ if _quotes(one) else one for one in record.args)


def _quotes(argument: object) -> bool:
    """Whether it is an error whose text may quote a peer."""
    return isinstance(argument, BaseException) and not isinstance(argument, (LatentPacsError, OSError))
