"""Retrieve: chooses the object that a peer gets for an instance, and prepares it as a file.

Files are prepared on a pool of threads, so that the association can send responses meanwhile. Only the verified pixels
are ever sent under a verified UID.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from pydicom.uid import UID, ExplicitVRLittleEndian, JPEGLSLossless

from node.archive.model_store import ModelStore
from node.archive.originals.original_access import OriginalAccess
from node.archive.serve.amended_header import write_amended
from node.archive.serve.annotation_references import write_copy
from node.archive.serve.derived_object import DerivedParts, make_object, safe_text
from node.config import RenditionPolicy
from node.workers.pool import Priority, WorkerPool
from node.workers.requests import TranscodeRequest
from storage.dicom.header_amendments import version_of
from storage.errors import NothingToSend, ObjectDamaged, ObjectMissing, OriginalPurged
from storage.index import Index
from storage.index.reading import batches
from storage.index.rewritten_annotations import copies
from storage.objects.inspection import is_back
from storage.records import ReferencingCopy, StoredInstance, StoredRendition, Tier

LOGGER = logging.getLogger(__name__)

_AHEAD = 3
"""Images prepared ahead of the one being sent. With that one they are 4, the most that a node unpacks at once."""


@dataclass(frozen=True)
class Choice:
    """The object that a peer gets for an instance: the original, or a rendition with the original as a fallback.

    ``draw``: whether the peer gets the rendition's object with drawn noise, or that of the structure alone.
    ``once_purged``: the rendition that the peer gets if the original is purged before it is sent.
    """

    instance: StoredInstance
    rendition: StoredRendition | None
    draw: bool = True
    copy: ReferencingCopy | None = None
    """The copy of an annotation with references to reconstructions."""
    once_purged: StoredRendition | None = None

    @property
    def sop_class_uid(self) -> str:
        return self.instance.sop_class_uid

    @property
    def sop_instance_uid(self) -> str:
        """The UID of the object for the peer, also in the Failed SOP Instance UID List."""
        if self.copy:
            return self.copy.uid
        return self.rendition.uid(draw=self.draw) if self.rendition else self.instance.sop_instance_uid

    @property
    def transfer_syntax_uid(self) -> str:
        return str(ExplicitVRLittleEndian) if self.rendition else self.instance.transfer_syntax_uid


@dataclass(frozen=True)
class Sendable:
    """A Part 10 file that was made for one sub-operation, and that ``close`` removes. ``packed_form_of``: the instance
    whose packed codestreams it contains; other transfer syntaxes are made from its original."""

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    packed_form_of: StoredInstance | None = None

    def close(self) -> None:
        self.path.unlink(missing_ok=True)


def choose(
    instance: StoredInstance,
    policy: RenditionPolicy,
    requested: frozenset[str],
    named: list[StoredRendition],
    *,
    draw: bool,
) -> list[Choice]:
    """The objects of an instance that a peer of that policy gets. ``requested``: SOP Instance UIDs in its request;
    ``named``: renditions that have one of them; ``draw``: whether the peer gets reconstructions with drawn noise.

    A derived UID always leads to its own pixels: the requested object is sent, even if it is of an older rendition, or
    of the texture that the peer does not get otherwise.
    """
    if policy is RenditionPolicy.ORIGINAL:
        return [Choice(instance, None)]
    served = instance.served_rendition
    current = served.uid(draw=draw) if served else None
    others = [
        Choice(instance, one, draws)
        for one in named
        for draws in (True, False)
        if one.uid(draw=draws) in requested and one.uid(draw=draws) != current
    ]
    by_own_uid = instance.sop_instance_uid in requested
    if others and not by_own_uid and current not in requested:
        return others
    if served is None:
        return [Choice(instance, None), *others]
    # a request for the UID of an original that is gone fails instead of returning another object
    wants_original = current not in requested and (by_own_uid or not instance.original_gone)
    if policy is RenditionPolicy.AUTO and wants_original:
        return [Choice(instance, None, draw, once_purged=None if by_own_uid else served), *others]
    return [Choice(instance, served, draw), *others]


class Retrieve:
    """Prepares files for choices on up to ``threads`` threads. Most threads only wait for a worker, and must not delay
    files that are ready. Files are made in the cache of ``originals``."""

    def __init__(
        self, index: Index, pool: WorkerPool, decoders: WorkerPool, originals: OriginalAccess, *, threads: int = 32
    ) -> None:
        self._index, self._pool, self._decoders, self._originals = index, pool, decoders, originals
        self._store, self._cache = originals.stores[Tier.HOT], originals.cache
        self._models = ModelStore(index, self._store)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="retrieve")
        self._making: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)

    def choices(
        self,
        keys: list[int],
        policy: RenditionPolicy,
        requested: frozenset[str] = frozenset(),
        *,
        rewrite: bool = False,
        draw: bool = True,
    ) -> list[Choice]:
        """The objects that a peer gets for those instance keys, in their order. ``rewrite``: annotations as copies;
        ``draw``: reconstructions with drawn noise."""
        named = self._index.renditions(sorted(requested)) if requested else {}
        named_in_copies = None if policy is RenditionPolicy.ORIGINAL else draw
        chosen: list[Choice] = []
        for some in batches(keys):
            rewritten = copies(self._index.engine, some, requested, draw=named_in_copies) if rewrite else {}
            for instance in self._index.by_keys(some):
                for choice in choose(instance, policy, requested, named.get(instance.key, []), draw=draw):
                    chosen.append(replace(choice, copy=rewritten.get(instance.key)))
        return chosen

    def prepare(
        self, choices: list[Choice], expected: Callable[[Choice], str] = lambda choice: ""
    ) -> Generator[tuple[Choice, Future[Sendable]], None, None]:
        """Each choice with the future of its file, a few images ahead of the reader.

        ``expected``: the likely transfer syntax. A future raises LatentPacsError if the image cannot be sent.
        """
        ahead: list[tuple[Choice, Future[Sendable]]] = []
        try:
            for choice in choices:
                ahead.append((choice, self._threads.submit(self.make, choice, expected(choice))))
                if len(ahead) > _AHEAD:
                    yield ahead.pop(0)
            while ahead:
                yield ahead.pop(0)
        finally:
            for _, future in ahead:
                future.cancel()
                discard(future)

    def make(self, choice: Choice, expected: str = "") -> Sendable:
        """The file for one choice; the original if the rendition cannot be made as verified, or the copy not written.

        ``expected``: as in ``prepare``; an original that is packed in that transfer syntax is not unpacked. Raises
        LatentPacsError, OSError.
        """
        if choice.copy is None and choice.rendition is None:
            passed = self._packed_form(choice.instance) if expected == JPEGLSLossless else None
            return passed or self._original_or_what_is_left(choice)
        try:
            return self._copy(choice.instance, choice.copy) if choice.copy else self._reconstruction(choice)
        except Exception as error:  # noqa: BLE001 - the original can still be sent
            return self.fall_back_to_original(choice, error)

    def fall_back_to_original(self, choice: Choice, error: Exception) -> Sendable:
        """The original instead of a rendition or a copy that cannot be sent because of ``error``. Raises
        LatentPacsError."""
        what = "copy" if choice.copy else "rendition"
        try:
            original = self.original(choice.instance)
        except (OriginalPurged, ObjectDamaged, ObjectMissing) as gone:
            raise NothingToSend(
                f"the {what} cannot be sent: {safe_text(error)}; nor can the original: {gone}"
            ) from error
        LOGGER.error("%s %s withheld, original sent: %s", what, choice.sop_instance_uid, safe_text(error))
        return original

    def make_ahead(self, choice: Choice) -> bool:
        """Prefetch a reconstruction or an unpacked original into the cache; False for other originals.

        Raises LatentPacsError.
        """
        if choice.rendition is None:
            return self._originals.unpack_ahead(choice.instance.original_digest)
        if not self._cache.has(_cache_key(choice)):
            self._reconstruction(choice, Priority.AHEAD).close()
        return True

    def as_syntax(self, sendable: Sendable, syntax: UID) -> Sendable:
        """Transcode losslessly to another transfer syntax. Raises PixelError, Unparseable, WorkerDied or NoWorker.

        Closes ``sendable`` unless an error is raised.
        """
        with self._new_file() as target:
            request = TranscodeRequest(sendable.path, target, str(syntax))
            self._decoders.submit(request, Priority.VIEWER).result()
        sendable.close()
        return Sendable(target, sendable.sop_class_uid, sendable.sop_instance_uid, str(syntax))

    def original(self, instance: StoredInstance) -> Sendable:
        """The original as it was received, or as amended. Raises LatentPacsError."""
        path = self._originals.lend(instance.original_digest)
        if instance.amended:
            path = self._edited(path, lambda received, target: write_amended(received, target, instance.amended))
        return Sendable(path, instance.sop_class_uid, instance.sop_instance_uid, instance.transfer_syntax_uid)

    def _packed_form(self, instance: StoredInstance) -> Sendable | None:
        """A packed original in JPEG-LS Lossless without decoding it; None if it has to be unpacked."""
        if instance.amended:
            return None
        target = self._cache.new_file()
        if not self._originals.write_packed_form(instance.original_digest, target):
            target.unlink(missing_ok=True)
            return None
        uids = instance.sop_class_uid, instance.sop_instance_uid
        return Sendable(target, *uids, str(JPEGLSLossless), packed_form_of=instance)

    def _original_or_what_is_left(self, choice: Choice) -> Sendable:
        """The original; if it was purged since it was chosen, the reconstruction, if the peer may get it."""
        try:
            return self.original(choice.instance)
        except OriginalPurged:
            if choice.once_purged is None:
                raise
            return self._reconstruction(replace(choice, rendition=choice.once_purged))

    def _copy(self, instance: StoredInstance, copy: ReferencingCopy) -> Sendable:
        path = self._originals.lend(instance.original_digest)
        path = self._edited(path, lambda received, target: write_copy(received, target, copy, instance.amended))
        return Sendable(path, instance.sop_class_uid, copy.uid, instance.transfer_syntax_uid)

    def _edited(self, received: Path, write: Callable[[Path, Path], None]) -> Path:
        """Write a received file with an edited header, and unlink the received one."""
        try:
            with self._new_file() as target:
                write(received, target)
            return target
        finally:
            received.unlink(missing_ok=True)

    @contextmanager
    def _new_file(self) -> Iterator[Path]:
        """An empty file to write an object to, which is unlinked if the block fails."""
        target = self._cache.new_file()
        try:
            yield target
        except BaseException:
            target.unlink(missing_ok=True)
            raise

    def _reconstruction(self, choice: Choice, priority: Priority = Priority.VIEWER) -> Sendable:
        assert choice.rendition is not None
        key = _cache_key(choice)
        with self._lock:
            making = self._making.setdefault(key, threading.Lock())
        try:
            with making:  # two peers that request the same image share one reconstruction
                link = self._cache.link(key)
                if link is None:
                    link = self._cache.keep(key, self._render(choice, choice.rendition, priority))
                    if self._index.rendition(choice.sop_instance_uid) is None:
                        self._cache.drop(key)
        finally:
            with self._lock:
                self._making.pop(key, None)
        return Sendable(link, choice.sop_class_uid, choice.sop_instance_uid, str(ExplicitVRLittleEndian))

    def _held(self, digest: str) -> Path:
        """The path of an object of a rendition. Raises ObjectMissing."""
        is_back(self._store, digest)
        return self._store.held(digest)

    def _render(self, choice: Choice, rendition: StoredRendition, priority: Priority) -> Path:
        parts = DerivedParts(
            self._held(rendition.base_digest),
            self._held(rendition.rendition_digest),
            rendition.payload_bytes,
            rendition.verified_at,
            self._models.folder(rendition.upscaler, rendition.weights_digest),
            choice.instance.amended,
            choice.draw,
        )
        with self._new_file() as target:
            make_object(parts, target, lambda request: self._pool.submit(request, priority).result())
        return target


def _cache_key(choice: Choice) -> str:
    """The cache key of a reconstruction: its rendition, texture, and the version of its header."""
    assert choice.rendition is not None
    version = version_of(choice.instance.amended)
    parts = [choice.rendition.rendition_digest, "" if choice.draw else "plain", version]
    return "-".join(filter(None, parts))


def discard(future: Future[Sendable]) -> None:
    """Remove a file that will not be sent, now or when it is ready."""
    future.add_done_callback(lambda done: None if done.cancelled() or done.exception() else done.result().close())
