"""The integrity scrub: every object against its digest, every row against the store, once per period.

Objects and rows are walked together in the order of their digests, folder by folder of the store. Digests spread
evenly, so a share of the period is the same share of the digests: a run checks from where the last one ended to
where the period will be when the next one comes. Whatever was added meanwhile is met in the next round at the latest.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Protocol

from node.jobs.job import JSON, Run
from node.jobs.scrub_repair import ScrubFinding, ScrubRepair
from storage.errors import IndexRefused, ObjectMissing
from storage.index.integrity import ExpectedObject, Integrity
from storage.index.job_runs import JobRows
from storage.objects.inspection import Listed, examine, is_empty, listing
from storage.objects.orphans import forget_orphans, move_orphan
from storage.objects.store import ObjectStore

END = "g"
"""Above every digest."""

_REPORTED = 200
"""Findings and orphans listed in a report one by one; all are counted."""

_REMEMBER_EVERY = 10.0


class Extent(StrEnum):
    """How much a scrub looks at."""

    SHARE = "share"
    """What is due until the next run."""
    FULL = "full"
    SAMPLE = "sample"


@dataclass(frozen=True)
class ScrubPlan:
    """What one scrub is to do. Times in seconds; ``sample`` is a share of all objects, drawn anew each time."""

    extent: Extent = Extent.SHARE
    sample: float = 1.0
    period: float = 30 * 86400.0
    gap: float = 86400.0
    orphan_grace: float = 86400.0
    keep_orphans: float = 30 * 86400.0
    remove_orphans: bool = False


class Standing(Protocol):
    """Whether the index may be believed."""

    def doubt(self) -> str:
        """Why it may not say what is an orphan; empty where it may."""

    def damage(self) -> list[str]:
        """Its damaged pages and broken rows, a line each."""


class Trusted:
    """An index that nobody doubts."""

    def doubt(self) -> str:
        return ""

    def damage(self) -> list[str]:
        return []


@dataclass
class ScrubTally:
    """What came of it so far."""

    checked: int = 0
    bytes_read: int = 0
    orphans: int = 0
    orphan_bytes: int = 0
    orphans_moved: int = 0
    orphans_deleted: int = 0
    unclaimed: int = 0
    index_damage: list[str] = field(default_factory=list)
    foreign: int = 0
    actions: Counter[str] = field(default_factory=Counter)
    findings: list[ScrubFinding] = field(default_factory=list)
    orphan_list: list[str] = field(default_factory=list)

    def found(self, findings: list[ScrubFinding]) -> None:
        """Count them all, and keep the first ones."""
        self.actions.update(one.action for one in findings)
        self.findings += findings[: _REPORTED - len(self.findings)]

    def orphan(self, entry: Listed) -> None:
        self.orphans += 1
        self.orphan_bytes += entry.bytes
        if len(self.orphan_list) < _REPORTED:
            self.orphan_list.append(entry.digest)

    def report(self, extent: Extent, *, finished: bool) -> dict[str, JSON]:
        return {
            "extent": extent.value,
            "finished": finished,
            "clean": self.actions.total() == self.actions["recovered"] and not self.index_damage,
            "checked": self.checked,
            "bytes": self.bytes_read,
            "damaged": self.actions.total(),
            **{action: self.actions[action] for action in ("recovered", "queued", "flagged", "lost", "reported")},
            "orphans": self.orphans,
            "orphan_bytes": self.orphan_bytes,
            "orphans_moved": self.orphans_moved,
            "orphans_deleted": self.orphans_deleted,
            "unclaimed": self.unclaimed,
            "index_damage": list(self.index_damage),
            "foreign": self.foreign,
            "findings": [asdict(one) for one in self.findings],
            "orphan_list": list(self.orphan_list),
        }


class Scrub:
    """The job ``scrub``. ``stores`` by the names that promises use. ``standing`` says whether the index may be
    believed, ``would_return`` whether a rebuild of it would bring back an object that has no row (store, digest)."""

    name = "scrub"
    summary = "reads objects and compares them with their digests; repairs what it can, reports the rest"

    def __init__(
        self,
        rows: JobRows,
        upkeep: Integrity,
        stores: Mapping[str, ObjectStore],
        mending: ScrubRepair,
        plan: ScrubPlan,
        standing: Standing | None = None,
        would_return: Callable[[str, str], bool] = lambda store, digest: False,
    ) -> None:
        self._rows, self._upkeep, self._stores = rows, upkeep, stores
        self._mending, self._plan = mending, plan
        self._standing, self._would_return = standing or Trusted(), would_return

    def run(self, run: Run) -> dict[str, JSON]:
        """Walk, and report. Raises ObjectMissing where a store is not there at all, and IndexRefused where the index is
        not that of the objects; nothing was changed then."""
        self._refuse_an_empty_store()
        self._refuse_a_doubtful_index()
        tally, salt = ScrubTally(index_damage=self._standing.damage()), secrets.token_bytes(16)
        again = self._mending.check_again()
        tally.found(again)
        low, high, began = self._range()
        total = self._upkeep.count(low, high)
        known = {found.digest for found in again}
        visited, remembered = 0, time.monotonic()
        for digest, promises, listed in self._walk(low, high):
            if run.cancelled:
                self._remember(digest, began)
                return tally.report(self._plan.extent, finished=False)
            visited += len(promises)
            if self._drawn(digest, salt) and digest not in known:
                self._visit(digest, promises, listed, tally)
            run.progress(visited, total, f"{tally.actions.total()} damaged")
            if time.monotonic() > remembered + _REMEMBER_EVERY:
                self._remember(digest, began)
                remembered = time.monotonic()
        self._remember(max(low, high), began)
        if self._plan.remove_orphans:
            self._forget_orphans(tally)
        return tally.report(self._plan.extent, finished=True)

    def _walk(self, low: str, high: str) -> Iterator[tuple[str, list[ExpectedObject], dict[str, Listed]]]:
        """Every digest that is promised or held, in order: its promises, and its entry in each store that has it."""
        for number in range(int(low[:2] or "0", 16), 256):
            folder = f"{number:02x}"
            if folder >= high:
                return
            listed: dict[str, dict[str, Listed]] = {}
            for name, store in self._stores.items():
                for entry in listing(store, folder):
                    listed.setdefault(entry.digest or f"{folder}~{entry.name}", {})[name] = entry
            promised = itertools.groupby(
                self._upkeep.expected(max(low, folder), min(high, _after(folder))), lambda one: one.digest
            )
            promises = {digest: list(group) for digest, group in promised}
            for digest in sorted({*listed, *promises}):
                if low <= digest < high:
                    yield digest, promises.get(digest, []), listed.get(digest, {})

    def _visit(
        self, digest: str, promises: list[ExpectedObject], listed: Mapping[str, Listed], tally: ScrubTally
    ) -> None:
        for name, group in itertools.groupby(sorted(promises, key=lambda one: one.store), lambda one: one.store):
            look = examine(self._stores[name], digest)
            tally.checked += 1
            tally.bytes_read += look.bytes_read
            if not look.whole:
                still = [one for one in group if one in self._upkeep.expected(digest, digest + "0")]
                tally.found(self._mending.settle(still, look) if still else [])
        promised_in = {one.store for one in promises}
        for name, entry in listed.items():
            if name not in promised_in:
                self._stray(name, entry, tally)

    def _stray(self, store: str, entry: Listed, tally: ScrubTally) -> None:
        """Something in a store that no row speaks of; young objects are on their way in."""
        if not entry.digest:
            tally.foreign += 1
            return
        newest = time.time() - self._plan.orphan_grace
        if entry.written_at >= newest:
            return
        if self._promised(store, entry.digest):
            return
        if self._would_return(store, entry.digest):
            tally.unclaimed += 1
            return
        tally.orphan(entry)
        if self._plan.remove_orphans and move_orphan(self._stores[store], entry.digest, older_than=newest):
            tally.orphans_moved += 1

    def _promised(self, store: str, digest: str) -> bool:
        return any(one.store == store for one in self._upkeep.expected(digest, digest + "0"))

    def _forget_orphans(self, tally: ScrubTally) -> None:
        """What was moved aside long enough ago goes, unless a row has come to need it."""
        for name, store in self._stores.items():
            needed = functools.partial(self._promised, name)
            deleted, restored = forget_orphans(store, self._plan.keep_orphans, needed)
            tally.orphans_deleted += deleted
            tally.actions["recovered"] += restored

    def _drawn(self, digest: str, salt: bytes) -> bool:
        if self._plan.extent is not Extent.SAMPLE:
            return True
        draw = hashlib.blake2b(digest.encode(), key=salt, digest_size=8).digest()
        return int.from_bytes(draw) < self._plan.sample * 2**64

    # --- the share ---

    def _range(self) -> tuple[str, str, float]:
        """Where to begin, where to end, and when this round through all digests began."""
        now = time.time()
        if self._plan.extent is not Extent.SHARE:
            return "", END, now
        memory = self._rows.memory(self.name)
        low = str(memory.get("cursor", END))
        if low >= END:  # a new round; it began when the last one should have ended, unless that is long ago
            began = float(memory.get("began", 0.0)) + self._plan.period
            began = min(began, now) if now - began < self._plan.period else now
            low = ""
        else:
            began = float(memory["began"])
        return low, _place((now + self._plan.gap - began) / self._plan.period), began

    def _remember(self, cursor: str, began: float) -> None:
        if self._plan.extent is Extent.SHARE:
            self._rows.remember(self.name, {"cursor": cursor, "began": began})

    def _refuse_a_doubtful_index(self) -> None:
        doubt = self._standing.doubt()
        if doubt:
            raise IndexRefused(
                f"the index is not that of the objects here: {doubt}. Nothing was changed; stop the node and run "
                "`latent-pacs index rebuild`"
            )

    def _refuse_an_empty_store(self) -> None:
        for name, store in self._stores.items():
            if is_empty(store) and any(one.store == name for one in self._upkeep.expected("", END)):
                raise ObjectMissing(
                    f"{store.root / 'objects'} holds no object at all, though the index knows of some: is its disk "
                    "mounted, and is storage.root right? Nothing was changed"
                )


def _place(share: float) -> str:
    """Where a share of the period is among the digests."""
    return END if share >= 1 else f"{int(max(share, 0.0) * 2**32):08x}"


def _after(folder: str) -> str:
    return END if folder == "ff" else f"{int(folder, 16) + 1:02x}"
