"""The log of ``serve``: lines of text, or JSON lines for programs, without patient data.

A record is always one line: line breaks and escape sequences in data from peers are escaped, and an unforeseen error is
reported by its type and place. If one place in the code logs too often, further records are counted and left out.

Messages of pydicom quote values, which are patient data, and are never logged. node/dimse/pynetdicom_patches
keeps pynetdicom from logging identifiers.
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
    "pydicom": logging.CRITICAL,  # quotes values
    "pynetdicom.acse": logging.CRITICAL,  # logs three lines for each rejection, which we log in one
}


ASSOCIATIONS = "node.dimse.associations.connection_log"
"""The logger of associations: peer, address and outcome (node/dimse/associations/connection_log.py)."""

_MOST, _WINDOW = 100, 60.0
"""Most records that one place in the code may log, and the seconds in which. Chosen, not measured."""
_FRAMES = 3
"""Frames of the traceback of an unforeseen error that are logged, innermost first."""


def configure(settings: LogSettings, *, verbose: bool) -> None:
    """Log to standard error. ``verbose``: log every association too."""
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
    """Limits the records from each place in the code. The next window starts with the number of those left out."""

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
    """One line per record: local time, level, logger, message; for an unforeseen error also its type and place."""

    def format(self, record: logging.LogRecord) -> str:
        message = _message(record)
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            message += f" [{type(error).__name__} at {' < '.join(_places(error)[:_FRAMES])}]"
        when = _time(record).astimezone().isoformat(timespec="milliseconds")
        return f"{when} {record.levelname} {plain(record.name)}: {plain(message)}"


def _time(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, UTC)


def _places(error: BaseException) -> list[str]:
    """The frames of an error's traceback, innermost first."""
    frames = reversed(traceback.extract_tb(error.__traceback__))
    return [f"{at.filename}:{at.lineno} {at.name}" for at in frames]


class JsonLines(logging.Formatter):
    """One JSON object per line: time (UTC), level, logger, message, thread; for an error also its type and place."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _time(record).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
            "thread": record.threadName,
        }
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            line["error"] = type(error).__name__
            line["at"] = _places(error)[::-1]
        return json.dumps(line)


def _message(record: logging.LogRecord) -> str:
    """The message of a record. An error in it is replaced by its type if its text may quote data from a peer."""
    if not isinstance(record.args, tuple) or not record.args:
        return record.getMessage()
    return str(record.msg) % tuple(type(one).__name__ if _quotes(one) else one for one in record.args)


def _quotes(argument: object) -> bool:
    """Whether this is an error whose text may quote data from a peer."""
    return isinstance(argument, BaseException) and not isinstance(argument, (LatentPacsError, OSError))
