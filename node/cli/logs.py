"""How ``serve`` logs: lines for people, or JSON lines for programs; no patient data in either.

What pydicom says of values is patient data, and never comes through; pynetdicom is told to keep identifiers to
itself in node/dimse/wire.py.
"""

from __future__ import annotations

import json
import logging
import traceback
import warnings
from datetime import UTC, datetime
from typing import Any

from node.config import LogSettings
from storage.errors import LatentPacsError

_QUIET = {
    "alembic": logging.WARNING,
    "pydicom": logging.CRITICAL,  # what it says of odd values
}


def configure(settings: LogSettings, *, verbose: bool) -> None:
    """Log to standard error; ``verbose``: every association too."""
    handler = logging.StreamHandler()
    text = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(JsonLines() if settings.format == "json" else text)
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("pynetdicom").setLevel(logging.INFO if verbose else logging.WARNING)
    for name, level in _QUIET.items():
        logging.getLogger(name).setLevel(level)
    warnings.simplefilter("ignore")


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
            line["at"] = [f"{at.filename}:{at.lineno} {at.name}" for at in traceback.extract_tb(error.__traceback__)]
        return json.dumps(line, ensure_ascii=False)

    def _message(self, record: logging.LogRecord) -> str:
        if not isinstance(record.args, tuple) or not record.args:
            return record.getMessage()
        return str(record.msg) % tuple(type(one).__name__ if _quotes(one) else one for one in record.args)


def _quotes(argument: object) -> bool:
    """Whether it is an error whose text may quote a peer."""
    return isinstance(argument, BaseException) and not isinstance(argument, (LatentPacsError, OSError))
