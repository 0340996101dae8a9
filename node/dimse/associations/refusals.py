"""What a peer is refused: one line of the log and one record of the trail, with who, what and why.

The reason is that of the status table, since the text of an error may quote what the peer sent; the peer itself gets
the whole sentence as Error Comment.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from storage.records import TrailEntry

LOGGER = logging.getLogger(__name__)

Record = Callable[[TrailEntry], None]
"""Hands an entry to the audit trail, and does not wait for it."""

_AGAIN = 60.0
"""Seconds within which the same refusal of an association is not recorded once more: anybody can ask for many."""
_MOST_REMEMBERED = 1000


class Refusals:
    """Tells log and trail. Safe to share between threads."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._lock = threading.Lock()
        self._told: dict[tuple[str, str, str], float] = {}

    def of_request(self, event: Any, verb: str, status: int, why: str, uids: tuple[str, ...] = ()) -> None:
        """A DIMSE request that was answered with a failure; ``uids``: of the images that it was about."""
        who, address = str(event.assoc.requestor.ae_title).strip(), address_of(event.assoc)
        about = f" of {' '.join(uids)}" if uids else ""
        LOGGER.warning("refused %s%s by %s from %s: %04X, %s", verb, about, who, address, status, why)
        level = "image" if uids else ""
        self._record(
            TrailEntry(verb, who, level, uids, outcome=f"refused: {status:04X}", detail=f"{why}; from {address}")
        )

    def of_association(self, title: str, address: str, why: str) -> None:
        """An association that was not let in."""
        LOGGER.warning("rejected an association of %s from %s: %s", title, address, why)
        now, same = time.monotonic(), (title, address, why)
        with self._lock:
            if now - self._told.get(same, -_AGAIN) < _AGAIN:
                return
            if len(self._told) >= _MOST_REMEMBERED:
                self._told.clear()
            self._told[same] = now
        self._record(TrailEntry("associate", title, outcome="refused", detail=f"{why}; from {address}"))


def address_of(assoc: Any) -> str:
    """Where an association comes from."""
    return str(assoc.requestor.address)
