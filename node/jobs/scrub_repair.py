"""What to do about an object that is damaged or missing: make it again, say so, or own up that an image is lost.

- Any object that the replica (``jobs.replicate.to``) holds whole is copied from there.
- A base or rendition whose original is whole: the image goes back to the archivist, which makes the same bytes again
  where it can (node/archive/encode/remake.py). Until then the original is served.
- An original whose rendition is whole: the image stays what it is, with a reason that says so. Peers that may have
  reconstructions get them; bit-exact, it fails.
- An image of which nothing whole is left is ``failed``. Sending it again from its source heals it.

Damaged files are moved aside, not deleted, and everything here can be done twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from storage.errors import LatentPacsError
from storage.index import Index
from storage.index.integrity import Damage, ExpectedObject, Integrity, NewDamage
from storage.objects.inspection import Condition, Inspection, examine, recover, set_aside
from storage.objects.store import ObjectStore
from storage.records import InstanceState, ReasonCode, StoredInstance


@dataclass(frozen=True)
class ScrubFinding:
    """One damaged or missing object, and what was done: recovered, queued, flagged, lost, or only reported."""

    digest: str
    kind: str
    store: str
    condition: str
    detail: str
    action: str
    sop_instance_uid: str


class ScrubRepair:
    """Settles what a scrub finds. ``stores`` by the names that promises use; ``replica``: the folder of a backup."""

    def __init__(
        self, index: Index, upkeep: Integrity, stores: Mapping[str, ObjectStore], replica: Path | None = None
    ) -> None:
        self._index, self._upkeep, self._stores, self._replica = index, upkeep, stores, replica

    def settle(self, promises: list[ExpectedObject], look: Inspection) -> list[ScrubFinding]:
        """Deal with one object that is not whole, for every row that promises it; empty where it is whole after all."""
        first = promises[0]
        moved_to = ""
        if look.condition is Condition.DAMAGED:
            aside = set_aside(self._stores[first.store], first.digest)
            if aside is None and examine(self._stores[first.store], first.digest).whole:
                return []
            moved_to = aside.name if aside else ""
        if look.condition is Condition.MISSING and recover(self._stores[first.store], first.digest):
            return [self._finding(promise, look, "recovered") for promise in promises]
        if look.condition is not Condition.UNREADABLE and self._copied_from_replica(first):
            return [self._finding(promise, look, "recovered") for promise in promises]
        return [self._settle_one(promise, look, moved_to) for promise in promises]

    def _copied_from_replica(self, promise: ExpectedObject) -> bool:
        """Whether the replica held the object whole. One that cannot be read is as good as none."""
        if self._replica is None or not (self._replica / "objects").is_dir():
            return False
        try:
            self._stores[promise.store].take_from(ObjectStore(self._replica), promise.digest)
        except (LatentPacsError, OSError):
            return False
        return True

    def check_again(self) -> list[ScrubFinding]:
        """What earlier scrubs found: closed where it is whole by now, settled once more where it is not."""
        still: list[tuple[Damage, Inspection]] = []
        for known in reversed(self._upkeep.open_damage()):  # newest first: what it set on its instance is undone first
            look = examine(self._stores[known.store], known.digest)
            if look.whole:
                self._upkeep.close(known.key, "whole again")
            elif not self._promised(known):
                self._upkeep.close(known.key, "nothing needs it any more")
            else:
                still.insert(0, (known, look))
        found = []
        for known, look in still:
            found += self.settle([ExpectedObject(known.digest, known.kind, known.store, known.instance_key)], look)
        return found

    def _promised(self, known: Damage) -> bool:
        after = known.digest + "0"  # the next text after the digest itself
        wanted = (known.kind, known.store, known.instance_key)
        return any(
            (one.kind, one.store, one.instance_key) == wanted for one in self._upkeep.expected(known.digest, after)
        )

    def _settle_one(self, promise: ExpectedObject, look: Inspection, moved_to: str) -> ScrubFinding:
        instance = None if promise.instance_key is None else self._index.by_key(promise.instance_key)
        action, state = self._judge(promise, instance, look)
        found = NewDamage(
            promise.digest,
            promise.kind,
            promise.store,
            promise.instance_key,
            look.condition.value,
            look.detail,
            moved_to,
            action,
        )
        self._upkeep.note(found)
        code = ReasonCode.ORIGINAL_LOST if promise.kind == "original" else ReasonCode.PAYLOAD_LOST
        what = f"scrub: {promise.kind} {look.condition}"
        if action == "queued" and promise.instance_key is not None:
            self._upkeep.requeue(promise.instance_key, code, f"{what}; made again from the original")
        elif state is not None:
            left = "its reconstruction is whole" if action == "flagged" else "nothing whole is left; send it again"
            self._upkeep.flag(found, state, code, f"{what}; {left}")
        return self._finding(promise, look, action, instance)

    def _judge(
        self, promise: ExpectedObject, instance: StoredInstance | None, look: Inspection
    ) -> tuple[str, InstanceState | None]:
        """What to do, and the state that the instance comes to, None where it stays."""
        if instance is None or look.condition is Condition.UNREADABLE:
            return "reported", None
        current, needs = instance.rendition, self._upkeep.expected_of(instance.key)
        if promise.kind == "original":
            if current is None or not self._whole(needs, current.base_digest, current.rendition_digest):
                return "lost", InstanceState.FAILED
            return "flagged", self._upkeep.state_with(current.derived_uid)
        if current is None or promise.digest not in (current.base_digest, current.rendition_digest):
            return "reported", None
        if self._whole(needs, *(one.digest for one in needs if one.kind == "original")):
            return "queued", None
        return "lost", InstanceState.FAILED

    def _whole(self, needs: list[ExpectedObject], *digests: str) -> bool:
        """Whether those of an instance's objects are promised and whole; none at all are not."""
        found = [one for one in needs if one.digest in digests]
        return bool(found) and all(examine(self._stores[one.store], one.digest).whole for one in found)

    def _finding(
        self, promise: ExpectedObject, look: Inspection, action: str, instance: StoredInstance | None = None
    ) -> ScrubFinding:
        if instance is None and promise.instance_key is not None:
            instance = self._index.by_key(promise.instance_key)
        uid = instance.sop_instance_uid if instance else ""
        return ScrubFinding(promise.digest, promise.kind, promise.store, look.condition.value, look.detail, action, uid)
