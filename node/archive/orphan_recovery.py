"""Recovery of orphans: originals and renditions in the object store that no row refers to.

The change journal has every row, so a rebuilt index leaves orphans only if the journal was lost or damaged too. Then an
original is added as if it had just been received, and a rendition becomes its image's current one again. The sender
and the time of receipt are lost. If two originals have the same SOP Instance UID, one of them was in quarantine, and
one is put there again. If the audit trail says that a missing original was purged, it is recorded as purged.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from node.archive.encode.rendition_writer import new_rendition
from node.archive.intake.quarantine import Examine
from node.archive.model_store import ModelStore
from storage.dicom.levels import levels_of
from storage.errors import LatentPacsError, is_no_fault_of_a_file
from storage.formats.container import MAGIC
from storage.formats.packed_original import unpack_original
from storage.formats.payload import Base, Rendition, decode_base, decode_rendition
from storage.index import Index
from storage.index.recovered_rows import (
    FoundObject,
    adopt_original,
    adopt_purge,
    adopt_rendition,
    has_rendition,
    is_acceptable,
    known_digests,
)
from storage.objects.store import ObjectStore
from storage.records import HeldOriginal, NewInstance, OriginalForm, StoredInstance, Tier, TrailRecord

_HEAD = 132
"""Bytes at the start of an object that tell its kind: the preamble and prefix of a Part 10 file (PS3.10 7.1)."""
_KINDS = {b"O": "packed", b"B": "base", b"R": "rendition"}
_RETURNS = ("original.again", "delete", "quarantine.accept")
"""Records after which a purged original may be held again."""
_UNREADABLE = (LatentPacsError, OSError, ValueError)
"""Errors of files that are damaged, of an unknown kind, or no objects. Such files are left to a scrub."""


@contextmanager
def _without_the_unreadable() -> Iterator[None]:
    """Leave out a file that cannot be read, unless a later attempt may read it."""
    try:
        yield
    except _UNREADABLE as error:
        if is_no_fault_of_a_file(error):
            raise


class OrphanRecovery:
    """Recovers the orphans of an archive. ``examine`` makes the row of a received file, as ingest does."""

    def __init__(self, index: Index, stores: Mapping[Tier, ObjectStore], examine: Examine) -> None:
        self._index, self._stores, self._examine = index, stores, examine

    def can_recover(self, store: str, digest: str) -> bool:
        """Whether ``recover`` may need an object, which a scrub then leaves in place. Nothing is changed.

        A base is needed unless its image has a rendition. False for originals that would only return to quarantine.
        """
        try:
            path = self._stores[Tier(store)].path(digest)
            kind = _kind(path)
            if kind in ("original", "packed"):
                with self._received(path, kind) as new:
                    return self._is_wanted(new, self._index.by_uid(new.sop_instance_uid))
            if not kind:  # it may be a file of a model without which renditions cannot be decoded
                return bool(ModelStore(self._index, self._stores[Tier.HOT]).missing())
            if kind == "rendition":
                return self._base_for(decode_rendition(path.read_bytes())) is not None
            return kind == "base" and not has_rendition(
                self._index.engine, decode_base(path.read_bytes()).original_digest
            )
        except _UNREADABLE as error:
            return is_no_fault_of_a_file(error)

    def recover(self) -> int:
        """Add rows for all orphans that can be recovered. Returns the number of their objects.

        Raises NoWorker, StoreFull, IndexFault and OSError if the machine lacks something, since it would leave out
        whole images.
        """
        known, found = known_digests(self._index.engine), 0
        originals: list[tuple[Tier, Path, str]] = []
        renditions: list[Path] = []
        for tier, store in self._stores.items():
            for digest in store.digests():
                if digest in known:
                    continue
                with _without_the_unreadable():
                    path = store.path(digest)
                    kind = _kind(path)
                    if kind in ("original", "packed"):
                        originals.append((tier, path, kind))
                    elif kind == "rendition":
                        renditions.append(path)
        for one in sorted(originals, key=_likely_held_first):
            with _without_the_unreadable():
                found += self._recover_original(*one)
        for path in renditions:
            with _without_the_unreadable():
                found += self._recover_rendition(path)
        self._note_purges()
        return found

    def _note_purges(self) -> None:
        """Record missing originals as PURGED if the last record on them in the audit trail is their purge."""
        purges: dict[str, TrailRecord] = {}
        for record in self._index.trail.records():
            if record.entry.action == "original.purge":
                purges[record.entry.uids[0]] = record
            elif record.entry.action in _RETURNS:
                purges.pop(record.entry.uids[0], None)
        for uid, record in purges.items():
            held = self._index.by_uid(uid)
            same = held is not None and f"original {held.original_digest}," in record.entry.detail
            if held is not None and same and self._is_lost(held.held):
                adopt_purge(self._index.engine, held, record.at)

    def _recover_original(self, tier: Tier, path: Path, kind: str) -> int:
        form = OriginalForm.VERBATIM if kind == "original" else OriginalForm.PACKED
        with self._received(path, kind) as new:
            held = self._index.by_uid(new.sop_instance_uid)
            if not self._is_wanted(new, held):
                return self._quarantine(new, held, tier, form)
            missing = held.held.object_digest if held is not None and held.held is not None else ""
            found = FoundObject(form, tier, path.name, path.stat().st_size)
            return int(adopt_original(self._index, new, found, missing=missing))

    def _quarantine(self, new: NewInstance, held: StoredInstance | None, tier: Tier, form: OriginalForm) -> int:
        """Put a received file in quarantine if another one is held under its UID: one of them was there before."""
        if held is None or held.original_digest == new.original_digest:
            return 0
        if (tier, form) != (Tier.HOT, OriginalForm.VERBATIM) or not is_acceptable(
            self._index.engine, new.sop_instance_uid
        ):
            return 0
        reason = "was found by a rebuild of the index; another data set is held under this SOP Instance UID"
        quarantine, present = self._index.quarantine, self._stores[Tier.HOT].has
        return int(quarantine.put(new.original_digest, new.sop_instance_uid, "", reason, present=present))

    def _recover_rendition(self, path: Path) -> int:
        rendition = decode_rendition(path.read_bytes())
        base = self._base_for(rendition)
        if base is None:
            return 0
        held = self._index.by_uid(rendition.original_uid)
        if held is None:
            purged = FoundObject(OriginalForm.PURGED, Tier.HOT, "", 0)
            adopt_original(self._index, _of_base(base, rendition), purged)
        base_bytes = self._stores[Tier.HOT].path(rendition.base_digest).stat().st_size
        stored = base_bytes, path.name, path.stat().st_size
        row = new_rendition(rendition, base.point, *stored, recipe=f"steps {rendition.steps}")
        return 2 * adopt_rendition(self._index.engine, rendition.original_uid, row)

    def _base_for(self, rendition: Rendition) -> Base | None:
        """The base of a rendition that may be recovered; None if the image has another rendition, or may not return."""
        uid = rendition.original_uid
        if self._index.rendition(rendition.derived_uid) is not None or not is_acceptable(self._index.engine, uid):
            return None
        base = decode_base(self._stores[Tier.HOT].read(rendition.base_digest))
        held = self._index.by_uid(uid)
        if held is not None and (held.original_digest != base.original_digest or held.rendition is not None):
            return None
        return None if has_rendition(self._index.engine, base.original_digest) else base

    def _is_wanted(self, new: NewInstance, held: StoredInstance | None) -> bool:
        """Whether an original may be added: its UID is acceptable, and its image is not held or lacks its original."""
        lacking = held is None or (held.original_digest == new.original_digest and self._is_lost(held.held))
        return lacking and is_acceptable(self._index.engine, new.sop_instance_uid)

    def _is_lost(self, original: HeldOriginal | None) -> bool:
        """Whether the row of an original is missing, or names a missing object, such as the one before packing.

        An original that was purged, or whose store is not configured, is not lost.
        """
        if original is None:
            return True
        store = self._stores.get(original.tier)
        return not original.purged and store is not None and not store.path(original.object_digest).exists()

    @contextmanager
    def _received(self, path: Path, kind: str) -> Iterator[NewInstance]:
        """The row of the received file that an object holds."""
        if kind == "original":
            yield replace(self._examine(path, ""), original_digest=path.name)
            return
        with tempfile.NamedTemporaryFile(dir=self._stores[Tier.HOT].spool) as restored:
            digest = hashlib.sha256()
            for piece in unpack_original(path.read_bytes()):
                digest.update(piece)
                restored.write(piece)
            restored.flush()
            yield replace(self._examine(Path(restored.name), ""), original_digest=digest.hexdigest())


def _likely_held_first(found: tuple[Tier, Path, str]) -> tuple[bool, bool, float]:
    """A sort key that puts an original before a quarantined object with its UID, which is never packed or moved, and
    arrived later."""
    tier, path, kind = found
    return kind != "packed", tier is Tier.HOT, path.stat().st_mtime


def _kind(path: Path) -> str:
    """``original``, ``packed``, ``base`` or ``rendition`` by an object's first bytes; empty if it is none of them."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if head[128:132] == b"DICM":
        return "original"
    return _KINDS.get(head[6:7], "") if head[:6] == MAGIC else ""


def _of_base(base: Base, rendition: Rendition) -> NewInstance:
    """The row of an image whose original was purged, from the header in its base."""
    header = base.header.dataset()
    return NewInstance(
        sop_instance_uid=rendition.original_uid,
        sop_class_uid=str(header.SOPClassUID),
        study_instance_uid=str(header.StudyInstanceUID),
        transfer_syntax_uid=base.header.transfer_syntax_uid,
        levels=levels_of(header),
        original_digest=base.original_digest,
        original_bytes=0,
        pixel_bytes=base.rows * base.columns * 2,
        calling_aet="",
    )
