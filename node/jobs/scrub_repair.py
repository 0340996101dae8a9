"""Repair policy for damaged and missing objects: copy them, make them again, flag the image, or mark it as lost.

- Any object that the replica (``jobs.replicate.to``) holds whole is copied from there.
- If a base or rendition is lost and the original is whole, the image goes back to the archivist, which encodes it again
  (node/archive/encode/remake.py). Until then the original is served.
- If the image is EXACT, it is served as its original anyway, and the rendition is withdrawn.
- If an original is lost and the rendition is whole, the image gets the state of its rendition, with a reason. Peers
  that accept reconstructions get them; a bit-exact retrieval fails.
- An image without a whole original or rendition is ``failed``. Sending it again from its source restores it.

Damaged files are moved aside, not deleted, and every step can be repeated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from storage.errors import LatentPacsError
from storage.index import Index
from storage.index.integrity import ExpectedObject, Integrity, NewDamage
from storage.objects.inspection import Condition, Inspection, examine, recover, set_aside
from storage.objects.store import ObjectStore
from storage.records import InstanceState, ReasonCode, StoredInstance


@dataclass(frozen=True)
class ScrubFinding:
    """One damaged or missing object. ``action``: recovered, queued, withdrawn, flagged, lost, or reported."""

    digest: str
    kind: str
    store: str
    condition: str
    detail: str
    action: str
    sop_instance_uid: str


class ScrubRepair:
    """Repairs what a scrub finds. ``stores``: by the names in ExpectedObject; ``replica``: the folder of a backup."""

    def __init__(self, index: Index, stores: Mapping[str, ObjectStore], replica: Path | None = None) -> None:
        self._index, self.stores, self._replica = index, stores, replica
        self.integrity = Integrity(index.engine)

    def settle(self, expected: list[ExpectedObject], inspection: Inspection) -> list[ScrubFinding]:
        """Repair one object for every row that expects it; no findings if it is whole after all."""
        first = expected[0]
        moved_to = ""
        if inspection.condition is Condition.DAMAGED:
            aside = set_aside(self.stores[first.store], first.digest)
            if aside is None and examine(self.stores[first.store], first.digest).whole:
                return []
            moved_to = aside.name if aside else ""
        if inspection.condition is not Condition.UNREADABLE and (
            recover(self.stores[first.store], first.digest) or self._copy_from_replica(first)
        ):
            for one in expected:  # an earlier scrub may have found the damage, and could not repair it
                self.integrity.close_of(one, "recovered")
            return [self._finding(one, inspection, "recovered") for one in expected]
        return [self._settle_one(one, inspection, moved_to) for one in expected]

    def _copy_from_replica(self, expected: ExpectedObject) -> bool:
        """Whether the object was copied from the replica."""
        if self._replica is None or not (self._replica / "objects").is_dir():
            return False
        try:
            self.stores[expected.store].take_from(ObjectStore(self._replica), expected.digest)
        except (LatentPacsError, OSError):
            return False
        return True

    def recheck(self) -> list[ScrubFinding]:
        """Check the damage that earlier scrubs left open: close what is whole by now, and repair the rest."""
        still: list[tuple[ExpectedObject, Inspection]] = []
        # newest first, since its effect on the state of the instance must be undone first
        for known in reversed(self.integrity.open_damage()):
            if known.store not in self.stores:
                continue  # originals.path is not set; the scrub says so
            inspection = examine(self.stores[known.store], known.digest)
            expected = ExpectedObject(known.digest, known.kind, known.store, known.instance_key)
            if inspection.whole:
                self.integrity.close(known.key, "whole again")
            elif expected not in self.integrity.expected_at(known.digest):
                self.integrity.close(known.key, "nothing needs it any more")
            else:
                still.insert(0, (expected, inspection))
        return [found for expected, inspection in still for found in self.settle([expected], inspection)]

    def _settle_one(self, expected: ExpectedObject, inspection: Inspection, moved_to: str) -> ScrubFinding:
        instance = None if expected.instance_key is None else self._index.by_key(expected.instance_key)
        action, state = self._decide(expected, instance, inspection)
        found = NewDamage(
            **asdict(expected),
            condition=inspection.condition.value,
            detail=inspection.detail,
            moved_to=moved_to,
            action=action,
        )
        self.integrity.note(found)
        code = ReasonCode.ORIGINAL_LOST if expected.kind == "original" else ReasonCode.PAYLOAD_LOST
        what = f"scrub: {expected.kind} {inspection.condition}"
        if action == "withdrawn" and instance is not None and instance.rendition is not None:
            self.integrity.withdraw(instance.rendition.derived_uid, f"{what}; the original is whole, and is served")
        elif action == "queued" and expected.instance_key is not None:
            self.integrity.requeue(expected.instance_key, code, f"{what}; made again from the original")
        elif state is not None:
            left = "its reconstruction is whole" if action == "flagged" else "nothing whole is left; send it again"
            self.integrity.flag(found, state, code, f"{what}; {left}")
        return self._finding(expected, inspection, action)

    def _decide(
        self, expected: ExpectedObject, instance: StoredInstance | None, inspection: Inspection
    ) -> tuple[str, InstanceState | None]:
        """The action, and the new state of the instance, None if it keeps its state."""
        if instance is None or inspection.condition is Condition.UNREADABLE:
            return "reported", None
        current, needs = instance.rendition, self.integrity.expected_of(instance.key)
        if expected.kind == "original":
            if current is None or not self._whole(needs, current.base_digest, current.rendition_digest):
                return "lost", InstanceState.FAILED
            return "flagged", current.state
        if current is None or expected.digest not in (current.base_digest, current.rendition_digest):
            return "reported", None
        if self._whole(needs, *(one.digest for one in needs if one.kind == "original")):
            return "withdrawn" if instance.state is InstanceState.EXACT else "queued", None
        return "lost", InstanceState.FAILED

    def _whole(self, needs: list[ExpectedObject], *digests: str) -> bool:
        """Whether an instance's objects of those digests are expected and whole; False if none is expected."""
        found = [one for one in needs if one.digest in digests]
        return bool(found) and all(examine(self.stores[one.store], one.digest).whole for one in found)

    def _finding(self, expected: ExpectedObject, inspection: Inspection, action: str) -> ScrubFinding:
        instance = None if expected.instance_key is None else self._index.by_key(expected.instance_key)
        uid = instance.sop_instance_uid if instance else ""
        return ScrubFinding(
            expected.digest, expected.kind, expected.store, inspection.condition.value, inspection.detail, action, uid
        )
