"""The integrity scrub: checks every object against its digest and every row against the store, once per period.

Objects and rows are read together in the order of their digests, folder by folder of the store. Digests are
distributed evenly, so a share of the period corresponds to the same share of the digests. A run starts where the last
one ended, and checks the digests that are due before the next run. Objects added meanwhile are checked in the next
period at the latest.
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

from node.config import ScrubSettings, parse_when
from node.jobs.job import JSON, Progress
from node.jobs.scrub_repair import ScrubFinding, ScrubRepair
from storage.errors import IndexRefused, ObjectMissing
from storage.index.index_trust import IndexStanding
from storage.index.integrity import END, ExpectedObject
from storage.index.job_runs import JobRows
from storage.objects.inspection import Listed, examine, finish_moves, holds_any, listing
from storage.objects.orphans import forget_orphans, move_orphan

SCRUB = "scrub"

_LISTED = 200
"""Most findings, and most orphans, that a report lists one by one; all are counted."""

_ACTIONS = ("recovered", "queued", "withdrawn", "flagged", "lost", "reported")
"""What a scrub does about a finding, as ``ScrubFinding.action`` names it."""
_SAVE_EVERY = 10.0
"""Seconds between two saves of the position."""


class Extent(StrEnum):
    """The objects that a scrub checks."""

    SHARE = "share"
    """Those that are due before the next run."""
    FULL = "full"
    SAMPLE = "sample"


@dataclass(frozen=True)
class ScrubPlan:
    """The options of one scrub. ``sample``: the share of all objects that a run draws at random (Extent.SAMPLE)."""

    settings: ScrubSettings
    extent: Extent = Extent.SHARE
    sample: float = 1.0
    remove_orphans: bool = False


@dataclass
class ScrubTally:
    """The counts and findings of a run.

    ``unclaimed``: objects without a row that a rebuild of the index may need. ``foreign``: files that are no objects.
    """

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

    def add_findings(self, findings: list[ScrubFinding]) -> None:
        """Count all findings, and keep the first ones."""
        self.actions.update(one.action for one in findings)
        self.findings += findings[: _LISTED - len(self.findings)]

    def add_orphan(self, entry: Listed) -> None:
        self.orphans += 1
        self.orphan_bytes += entry.bytes
        if len(self.orphan_list) < _LISTED:
            self.orphan_list.append(entry.digest)

    def report(self, extent: Extent, *, finished: bool) -> dict[str, JSON]:
        others = {name: value for name, value in vars(self).items() if name not in ("checked", "bytes_read", "actions")}
        return {
            "extent": extent.value,
            "finished": finished,
            "clean": self.actions.total() == self.actions["recovered"] and not self.index_damage,
            "checked": self.checked,
            "bytes": self.bytes_read,
            "damaged": self.actions.total(),
            **{action: self.actions[action] for action in _ACTIONS},
            **others,
            "findings": [asdict(one) for one in self.findings],
        }


class Scrub:
    """The job ``scrub``, over the stores of ``repair``. ``standing``: whether the index belongs to these stores.
    ``can_recover``: whether a rebuild of the index may need an object without a row (store, digest)."""

    def __init__(
        self,
        rows: JobRows,
        repair: ScrubRepair,
        plan: ScrubPlan,
        standing: IndexStanding,
        can_recover: Callable[[str, str], bool],
    ) -> None:
        self._rows, self._integrity, self._stores = rows, repair.integrity, repair.stores
        self._repair, self._plan, self._standing, self._can_recover = repair, plan, standing, can_recover

    def run(self, progress: Progress, cancelled: Callable[[], bool]) -> dict[str, JSON]:
        """Scrub, and report. Raises ObjectMissing if a store holds no object at all although the index names some, and
        IndexRefused if the index does not belong to the objects; nothing is changed then."""
        self._refuse_empty_store()
        self._refuse_untrusted_index()
        tally, salt = ScrubTally(index_damage=self._standing.damage()), secrets.token_bytes(16)
        for store in self._stores.values():
            finish_moves(store)
        rechecked = self._repair.recheck()
        tally.add_findings(rechecked)
        low, high, began = self._share()
        total = self._integrity.count(low, high)
        known = {found.digest for found in rechecked}
        visited, saved = 0, time.monotonic()
        for digest, expected, listed in self._walk(low, high):
            if cancelled():
                self._save_position(digest, began)
                return tally.report(self._plan.extent, finished=False)
            visited += len(expected)
            if self._is_in_sample(digest, salt) and digest not in known:
                self._visit(digest, expected, listed, tally)
            progress(visited, total, f"{tally.actions.total()} damaged")
            if time.monotonic() > saved + _SAVE_EVERY:
                self._save_position(digest, began)
                saved = time.monotonic()
        self._save_position(max(low, high), began)
        if self._plan.remove_orphans:
            self._delete_moved_orphans(tally)
        return tally.report(self._plan.extent, finished=True)

    def _walk(self, low: str, high: str) -> Iterator[tuple[str, list[ExpectedObject], dict[str, Listed]]]:
        """Every expected or stored digest, in order: the rows that expect it, and its entry in each store."""
        for number in range(int(low[:2] or "0", 16), 256):
            folder = f"{number:02x}"
            if folder >= high:
                return
            listed: dict[str, dict[str, Listed]] = {}
            for name, store in self._stores.items():
                for entry in listing(store, folder):
                    listed.setdefault(entry.digest or f"{folder}~{entry.name}", {})[name] = entry
            grouped = itertools.groupby(
                self._integrity.expected(max(low, folder), min(high, _after(folder))), lambda one: one.digest
            )
            expected = {digest: list(group) for digest, group in grouped}
            for digest in sorted({*listed, *expected}):
                if low <= digest < high:
                    yield digest, expected.get(digest, []), listed.get(digest, {})

    def _visit(
        self, digest: str, expected: list[ExpectedObject], listed: Mapping[str, Listed], tally: ScrubTally
    ) -> None:
        for name, group in itertools.groupby(sorted(expected, key=lambda one: one.store), lambda one: one.store):
            if name not in self._stores:
                raise ObjectMissing("the index has originals in the cold store, and originals.path is not set; set it")
            inspection = examine(self._stores[name], digest)
            tally.checked += 1
            tally.bytes_read += inspection.bytes_read
            if not inspection.whole:
                still = [one for one in group if one in self._integrity.expected_at(digest)]
                tally.add_findings(self._repair.settle(still, inspection) if still else [])
        expected_in = {one.store for one in expected}
        for name, entry in listed.items():
            if name not in expected_in:
                self._without_row(name, entry, tally)

    def _without_row(self, store: str, entry: Listed, tally: ScrubTally) -> None:
        """Handle an object that no row expects; the row of a recent one may still be committed."""
        if not entry.digest:
            tally.foreign += 1
            return
        newest = time.time() - self._plan.settings.orphan_grace
        if entry.written_at >= newest or self._is_expected(store, entry.digest):
            return
        if self._can_recover(store, entry.digest):
            tally.unclaimed += 1
            return
        tally.add_orphan(entry)
        if self._plan.remove_orphans and move_orphan(self._stores[store], entry.digest, older_than=newest):
            tally.orphans_moved += 1

    def _is_expected(self, store: str, digest: str) -> bool:
        return any(one.store == store for one in self._integrity.expected_at(digest))

    def _delete_moved_orphans(self, tally: ScrubTally) -> None:
        """Delete orphans that were moved aside long enough ago, unless a row expects them now."""
        for name, store in self._stores.items():
            needed = functools.partial(self._is_expected, name)
            deleted, restored = forget_orphans(store, self._plan.settings.keep_orphans, needed)
            tally.orphans_deleted += deleted
            tally.actions["recovered"] += restored

    def _is_in_sample(self, digest: str, salt: bytes) -> bool:
        if self._plan.extent is not Extent.SAMPLE:
            return True
        draw = hashlib.blake2b(digest.encode(), key=salt, digest_size=8).digest()
        return int.from_bytes(draw) < self._plan.sample * 2**64

    # --- the share ---

    def _share(self) -> tuple[str, str, float]:
        """The first digest, the digest to stop before, and the start of this round through all digests."""
        now, period = time.time(), self._plan.settings.period
        if self._plan.extent is not Extent.SHARE:
            return "", END, now
        memory = self._rows.memory(SCRUB)
        low = str(memory.get("cursor", END))
        if low >= END:  # a new round; it began when the last one was due to end, unless that is long ago
            began = float(memory.get("began", 0.0)) + period
            began = min(began, now) if now - began < period else now
            low = ""
        else:
            began = min(float(memory["began"]), now)  # the clock may have been ahead then
        gap = parse_when(self._plan.settings.when).gap
        return low, _position((now + gap - began) / period), began

    def _save_position(self, cursor: str, began: float) -> None:
        if self._plan.extent is Extent.SHARE:
            self._rows.remember(SCRUB, {"cursor": cursor, "began": began})

    def _refuse_untrusted_index(self) -> None:
        doubt = self._standing.doubt()
        if doubt:
            raise IndexRefused(
                f"the index does not belong to the objects here: {doubt}. Nothing was changed; stop the node and run "
                "`latent-pacs index rebuild`"
            )

    def _refuse_empty_store(self) -> None:
        for name, store in self._stores.items():
            if not holds_any(store.root) and any(one.store == name for one in self._integrity.expected()):
                raise ObjectMissing(
                    f"{store.root / 'objects'} holds no object at all, though the index knows of some: is its disk "
                    "mounted, and is storage.root right? Nothing was changed"
                )


def _position(share: float) -> str:
    """The digest at a share of the period."""
    return END if share >= 1 else f"{int(max(share, 0.0) * 2**32):08x}"


def _after(folder: str) -> str:
    return END if folder == "ff" else f"{int(folder, 16) + 1:02x}"
