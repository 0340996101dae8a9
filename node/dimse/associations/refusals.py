"""Records what is refused to peers: one log line and one record of the audit trail, with peer, request and reason.

The reason comes from the status table, since the text of an error may quote what the peer sent; the peer gets that text
as Error Comment.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from storage.records import TrailEntry

LOGGER = logging.getLogger(__name__)

Record = Callable[[TrailEntry], None]
"""Hands an entry to the audit trail without waiting for it."""

_REPEAT = 60.0
"""Seconds in which the same rejection is recorded only once, since a caller can cause many. Chosen, not measured."""
_MOST = 1000
"""Most refusals of one address that are recorded in ``_REPEAT`` seconds. They take 1.5 GB a day: one took 1 KB in index
and journal, measured over 6,074 of them. Without a limit one connection wrote 27 GB a day."""
_MOST_REMEMBERED = 1000
"""Most rejections that are remembered to recognise repeated ones, and most addresses whose refusals are counted."""


class Refusals:
    """Writes refusals to the log and the audit trail. ``record`` also takes other entries, without a limit.

    Safe to share between threads.
    """

    def __init__(self, record: Record) -> None:
        self.record = record
        self._lock = threading.Lock()
        self._recorded: dict[tuple[str, str, str], float] = {}
        self._counted: dict[str, tuple[float, int]] = {}

    def of_request(self, assoc: Any, verb: str, status: int, why: str, uids: tuple[str, ...] = ()) -> None:
        """Record a DIMSE request on an association that was answered with a failure; ``uids``: the images it named."""
        who, address = title_of(assoc), address_of(assoc)
        about = f" of {' '.join(uids)}" if uids else ""
        LOGGER.warning("refused %s%s by %s from %s: %04X, %s", verb, about, who, address, status, why)
        level = "image" if uids else ""
        entry = TrailEntry(verb, who, level, uids, outcome=f"refused: {status:04X}", detail=f"{why}; from {address}")
        self._record(entry, address)

    def of_association(self, title: str, address: str, why: str) -> None:
        """Record an association that was rejected."""
        LOGGER.warning("rejected an association of %s from %s: %s", title, address, why)
        now, same = time.monotonic(), (title, address, why)
        with self._lock:
            if now - self._recorded.get(same, -_REPEAT) < _REPEAT:
                return
            if len(self._recorded) >= _MOST_REMEMBERED:
                self._recorded.clear()
            self._recorded[same] = now
        self._record(TrailEntry("associate", title, outcome="refused", detail=f"{why}; from {address}"), address)

    def _record(self, entry: TrailEntry, address: str) -> None:
        """Record a refusal, unless its address has caused too many; a later record says how many were left out."""
        with self._lock:
            now, left_out = time.monotonic(), 0
            if address not in self._counted and len(self._counted) >= _MOST_REMEMBERED:
                self._counted.clear()
            since, count = self._counted.get(address, (now, 0))
            if now - since >= _REPEAT:
                since, count, left_out = now, 0, count - _MOST
            self._counted[address] = since, count + 1
        if left_out > 0:
            entry = replace(entry, detail=f"{entry.detail} (and {left_out} more from there, which were left out)")
        if count < _MOST:
            self.record(entry)


def title_of(assoc: Any) -> str:
    """The AE title of the peer that opened an association."""
    return str(assoc.requestor.ae_title).strip()


def address_of(assoc: Any) -> str:
    """The address of the peer that opened an association."""
    return str(assoc.requestor.address)
