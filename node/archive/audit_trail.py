"""The audit trail: rows in the index, which are copied to the journal beside the objects after each commit.

The index numbers the records and chains their hashes. Records that the journal lacks after a crash are copied from the
index at the next write (storage/index/journal_writer.py). An index that was rebuilt gets its records back from the
journal, with holds, labels, classes and amendments.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Iterable, Iterator

from storage.errors import LatentPacsError
from storage.index import Index
from storage.index.journal_writer import TrailFollower
from storage.index.trail_rows import NOTHING_BEFORE, first_break
from storage.objects.trail_journal import TrailJournal
from storage.printable import counted
from storage.records import TrailEntry, TrailRecord

LOGGER = logging.getLogger(__name__)

_BATCH = 500
"""Most entries that are added in one commit."""
_GATHERED = 0.25
"""Seconds for which a TrailWriter collects entries before it adds them. Chosen, not measured: a commit and its syncs
cost as much for one entry as for all entries of a study."""


class AuditTrail:
    """The trail of one archive. Safe to share between threads and processes."""

    def __init__(self, index: Index, journal: TrailJournal) -> None:
        self._index, self._journal = index, journal
        self._follow = TrailFollower(index.trail, journal)

    def append(self, *entries: TrailEntry) -> None:
        """Add entries. On return they are in the index and in the journal."""
        self._index.trail.append(*entries)

    def recover(self) -> int:
        """Read the records of the journal, and their effects, into an index that has none. Returns their number."""
        if self._index.trail.last()[0]:
            return 0
        with self._journal.locked():
            records = list(self._journal.records())
        # without the lock: a write to the index copies records to the journal, which locks it
        return self._index.replay_trail(records)[1]

    def broken(self) -> str:
        """The first fault of the chain in the index or the journal, or their disagreement; empty if there is none."""
        last = self._journal.last()
        ends = {self._index.trail.last(), (last.number, last.digest) if last else (0, NOTHING_BEFORE)}
        self._follow()  # a node that committed a record may not have journalled it yet
        for place, records in (("index", self._index.trail.records()), ("journal", self._journal.records())):
            lacking = ends - {(0, NOTHING_BEFORE)}  # each place must have both; a node may add more meanwhile
            fault = first_break(_struck_out(lacking, records))
            if fault:
                return f"{place}: {fault}"
            if lacking:
                return "index and journal end in different records"
        return ""


def _struck_out(lacking: set[tuple[int, str]], records: Iterable[TrailRecord]) -> Iterator[TrailRecord]:
    """Yield the records, and remove the number and digest of each from ``lacking``."""
    for record in records:
        lacking.discard((record.number, record.digest))
        yield record


class TrailWriter:
    """Adds entries in batches from a thread of its own, for callers that do not wait, such as the sending of images.

    Entries that cannot be written are lost, and the log says how many. A crash loses those that are still queued.
    """

    def __init__(self, trail: AuditTrail) -> None:
        self._trail = trail
        self._queue: queue.SimpleQueue[TrailEntry | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="trail", daemon=True)
        self._thread.start()

    def record(self, entry: TrailEntry) -> None:
        """Queue an entry; returns at once."""
        self._queue.put(entry)

    def close(self) -> None:
        """Add the queued entries, and end the thread."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while True:
            batch = [self._queue.get()]
            until = time.monotonic() + _GATHERED
            while len(batch) < _BATCH and batch[-1] is not None:
                try:
                    batch.append(self._queue.get(timeout=max(until - time.monotonic(), 0)))
                except queue.Empty:
                    break
            entries = [entry for entry in batch if entry is not None]
            try:
                if entries:
                    self._trail.append(*entries)
            except (LatentPacsError, OSError) as error:
                LOGGER.error(
                    "the audit trail lacks %s, which could not be written: %s", counted(len(entries), "entry"), error
                )
            except Exception:
                LOGGER.exception("the audit trail lacks %s, which could not be written", counted(len(entries), "entry"))
            if batch[-1] is None:
                return
