"""Access to the received bytes of originals, in every form and store.

A reader borrows a file: a hard link to the object, or the file restored from its packed form. It remains readable until
it is returned, even if the original is packed, moved or removed meanwhile. A reader that does not find the object reads
its row again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from node.archive.rendered_cache import RenderedCache
from storage.errors import ObjectDamaged, ObjectMissing, OriginalPurged, PayloadError
from storage.formats.jpegls_passthrough import pass_through
from storage.index import Index
from storage.objects.durability import FULL
from storage.objects.inspection import Condition, examine, holds_any, is_back
from storage.objects.store import ObjectStore, has_digest
from storage.records import HeldOriginal, OriginalForm, Tier

LOGGER = logging.getLogger(__name__)

_ATTEMPTS = 5
"""Most attempts to find an original that is being packed or moved."""

Restore = Callable[[Path, str, Path], None]
"""Writes the received bytes of a packed original: (packed, digest of the original, target)."""


class OriginalAccess:
    """Lends originals as files. ``cache`` keeps restored files for the next reader.

    The digest of a file is checked whenever it is lent. ``damaged``, which the owner sets, is called with the store and
    the digest of an object that is found damaged.
    """

    def __init__(
        self, index: Index, stores: Mapping[Tier, ObjectStore], cache: RenderedCache, restore: Restore
    ) -> None:
        self._index, self.stores, self.cache, self._restore = index, stores, cache, restore
        self.damaged: Callable[[Tier, str], None] = lambda tier, digest: None

    def lend(self, original_digest: str) -> Path:
        """A file with the received bytes, for one reader, which unlinks it.

        Raises OriginalPurged, ObjectMissing, ObjectDamaged; for a packed one also PayloadError, WorkerDied, NoWorker.
        """
        seen: HeldOriginal | None = None
        for _ in range(_ATTEMPTS):
            held = self._index.originals.of_digest(original_digest)
            if held is None:  # in quarantine, or not indexed yet
                return self._lend_object(Tier.HOT, original_digest)
            if held.purged:
                raise OriginalPurged(f"original {original_digest} was removed by retention at {held.purged_at} UTC")
            try:
                return self._lend(held)
            except ObjectMissing:
                # not moved or packed in between: it really is missing
                if held == seen and not is_back(self._store(held.tier, held.object_digest), held.object_digest):
                    raise
                seen = held
        raise ObjectMissing(f"original {original_digest} was moved or packed at each attempt to read it; try again")

    @contextmanager
    def borrowed(self, original_digest: str) -> Iterator[Path]:
        """Lend a file as ``lend`` does, and unlink it at the end of the block."""
        path = self.lend(original_digest)
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def write_packed_form(self, original_digest: str, target: Path) -> bool:
        """Write a packed original in JPEG-LS Lossless without decoding its codestreams; False, whatever the cause, if
        that is impossible."""
        held = self._index.originals.of_digest(original_digest)
        if held is None or held.purged or held.form is not OriginalForm.PACKED:
            return False
        try:
            packed = self._store(held.tier, held.object_digest).lend(held.object_digest)
            try:
                pass_through(packed, target)
            finally:
                packed.unlink(missing_ok=True)
        except Exception:  # noqa: BLE001 - ``lend`` finds and reports missing or damaged objects
            return False
        return True

    def unpack_ahead(self, original_digest: str) -> bool:
        """Unpack an original for its next reader; False if it is not packed. Raises as ``lend`` does."""
        held = self._index.originals.of_digest(original_digest)
        if held is None or held.form is not OriginalForm.PACKED:
            return False
        if not self.cache.has(original_digest):
            self.lend(original_digest).unlink(missing_ok=True)
        return True

    def check_object(self, original_digest: str) -> None:
        """Read the object of an original from the disk now, whatever is cached. Raises ObjectMissing, ObjectDamaged."""
        seen: HeldOriginal | None = None
        for _ in range(_ATTEMPTS):
            held = self._index.originals.of_digest(original_digest)
            if held is None or held == seen:  # not moved or packed in between
                break
            condition = self.condition(held)
            if condition is Condition.WHOLE:
                return
            if condition is Condition.DAMAGED:
                raise self._found_damaged(held.tier, held.object_digest)
            seen = held
        raise ObjectMissing(f"the object of original {original_digest} is not in its store")

    def whole(self, held: HeldOriginal) -> bool:
        """Whether the object of an original exists and has its digest, read from the disk now."""
        return self.condition(held) is Condition.WHOLE

    def condition(self, held: HeldOriginal) -> Condition | None:
        """The condition of the object of an original, read from the disk now; None if its store is not configured or
        holds no object at all, perhaps because its disk is not mounted."""
        store = self.stores.get(held.tier)
        if store is None or not holds_any(store.root):
            return None
        return examine(store, held.object_digest).condition

    def _lend(self, held: HeldOriginal) -> Path:
        if held.form is OriginalForm.VERBATIM:
            return self._lend_object(held.tier, held.object_digest)
        link = self.cache.link(held.original_digest)
        if link is not None:
            return link
        packed = self._store(held.tier, held.object_digest).lend(held.object_digest)
        try:
            try:
                return self._unpacked(packed, held, self.cache.new_file())
            except OSError as error:
                if error.errno not in FULL:
                    raise
                return self._unpacked(packed, held, self.cache.new_file_elsewhere())
        finally:
            packed.unlink(missing_ok=True)

    def _unpacked(self, packed: Path, held: HeldOriginal, target: Path) -> Path:
        """The received bytes of a packed original, written to ``target`` and kept in the cache if there is room."""
        lent = None
        try:
            self._unpack(packed, held, target)
            lent = self.cache.keep(held.original_digest, target, held.original_digest)
            if self._index.originals.of_digest(held.original_digest) is None:
                self.cache.drop(held.original_digest)
            return lent
        finally:
            if lent != target:
                target.unlink(missing_ok=True)

    def _unpack(self, packed: Path, held: HeldOriginal, target: Path) -> None:
        """Write the received bytes. Unpacking checks the object's checksum and the digest of the bytes. If one of them
        is wrong, the object's own digest is checked too, to report a damaged object. Raises as unpacking does."""
        try:
            self._restore(packed, held.original_digest, target)
        except (PayloadError, ObjectDamaged, OSError):
            self._check(packed, held.tier, held.object_digest)
            raise

    def _lend_object(self, tier: Tier, digest: str) -> Path:
        """An object for one reader, with its digest checked. Raises ObjectMissing, ObjectDamaged."""
        lent = self._store(tier, digest).lend(digest)
        try:
            self._check(lent, tier, digest)
        except ObjectDamaged:
            lent.unlink(missing_ok=True)
            raise
        return lent

    def _check(self, lent: Path, tier: Tier, digest: str) -> None:
        """Raise ObjectDamaged, and report the damage, if a lent object does not have its digest."""
        try:
            if has_digest(lent, digest):
                return
        except OSError as error:
            LOGGER.error("object %s cannot be read: %s", digest, error.strerror)
        raise self._found_damaged(tier, digest)

    def _found_damaged(self, tier: Tier, digest: str) -> ObjectDamaged:
        """Report a damaged object, and return the error to raise."""
        self.damaged(tier, digest)
        return ObjectDamaged(f"object {digest} no longer has that digest: it is damaged")

    def _store(self, tier: Tier, digest: str) -> ObjectStore:
        store = self.stores.get(tier)
        if store is None:
            raise ObjectMissing(f"object {digest} of an original is in the {tier} store; set originals.path")
        return store
