"""The audit trail as the services use it: rows in the index, written down in the journal beside the objects.

The index numbers and chains; the journal follows. What the journal lacks after a kill is in the index and written down
next time; what the index lacks, since it was made anew, comes back from the journal, with holds, labels, classes and
amendments.
"""

from __future__ import annotations

import logging
import queue
import threading
import time

from storage.errors import LatentPacsError
from storage.index import Index
from storage.index.journal_writer import TrailFollower
from storage.index.trail_rows import first_break
from storage.objects.trail_journal import TrailJournal
from storage.records import TrailEntry

LOGGER = logging.getLogger(__name__)

_BATCH = 500
"""Most entries that are added in one commit."""
_GATHERED = 0.25
"""Seconds for which a TrailWriter collects entries before it adds them: a commit and its syncs cost as much for one
entry as for all of a study."""


class AuditTrail:
    """The trail of one archive. Safe to share between threads and processes."""

    def __init__(self, index: Index, journal: TrailJournal) -> None:
        self._index, self._journal = index, journal
        self._follow = TrailFollower(index.trail, journal)

    def append(self, *entries: TrailEntry) -> None:
        """Add entries; on return they are in the index and in the journal."""
        self._index.trail.append(*entries)
        self.write_down()

    def write_down(self) -> None:
        """Bring the journal up to the index; costs a look where nothing is new."""
        self._follow()

    def recover(self) -> int:
        """Take the trail, and what it tells of, from the journal into an index that has none; how many records."""
        if self._index.trail.last()[0]:
            return 0
        with self._journal.locked():
            records = list(self._journal.records())
        for record in records:  # without the lock: what is written is followed into the journal, which takes it
            self._index.replay(record)
        self._index.trail.insert_unchanged(records)
        return len(records)

    def broken(self) -> str:
        """What is wrong with the trail: its chain in the index and in the journal, and whether they agree."""
        self.write_down()
        in_index = first_break(self._index.trail.records())
        if in_index:
            return f"index: {in_index}"
        in_journal = first_break(self._journal.records())
        if in_journal:
            return f"journal: {in_journal}"
        last = self._journal.last()
        if (last.digest if last else "") != (self._index.trail.last()[1] if last else ""):
            return "index and journal end in different records"
        return ""


class TrailWriter:
    """Entries that nobody waits for (every image sent, for one): added in batches by a thread of its own."""

    def __init__(self, trail: AuditTrail) -> None:
        self._trail = trail
        self._queue: queue.SimpleQueue[TrailEntry | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="trail", daemon=True)
        self._thread.start()

    def record(self, entry: TrailEntry) -> None:
        """Hand an entry over; returns at once."""
        self._queue.put(entry)

    def close(self) -> None:
        """Write down what is left, and end."""
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
                LOGGER.error("%d entries of the audit trail could not be written: %s", len(entries), error)
            except Exception:
                LOGGER.exception("%d entries of the audit trail could not be written", len(entries))
            if batch[-1] is None:
                return
