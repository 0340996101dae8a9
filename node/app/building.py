"""Builds the services of an archive, in the same way for the node, commands, jobs, tests and benchmarks."""

from __future__ import annotations

import fcntl
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from node.app.damage import damage_handler
from node.archive.audit_trail import AuditTrail
from node.archive.deletion import Deletion
from node.archive.encode.rendition_writer import RenditionWriter
from node.archive.index_opening import open_for_command
from node.archive.intake.ingest import examine
from node.archive.intake.marked_regions import MarkedRegions
from node.archive.intake.quarantine import Examine, QuarantineReview
from node.archive.originals.original_access import OriginalAccess, Restore
from node.archive.originals.retention import Prove, Retention
from node.archive.rendered_cache import RenderedCache
from node.archive.serve.retrieve import Retrieve
from node.config import Settings
from node.reports.runs import Reports
from node.workers.pool import Priority, WorkerPool
from storage.dicom.decode_limits import set_decode_limits
from storage.dicom.dicomfile import accept_odd_values
from storage.errors import ConfigError, NodeRunning
from storage.formats.packed_original import restore_original
from storage.index import Index
from storage.index.report_rows import ReportRows
from storage.objects.file_modes import give_to_owner
from storage.objects.store import ObjectStore
from storage.objects.trail_journal import TrailJournal
from storage.printable import counted
from storage.records import Tier


@dataclass(frozen=True)
class Workers:
    """The worker pools of an archive, its rendered cache, and the function that unpacks an original."""

    reconstruct: WorkerPool
    decode: WorkerPool
    cache: RenderedCache
    unpack: Restore = restore_original


@dataclass(frozen=True)
class Services:
    """The services of one archive. A command may use them while a node runs."""

    settings: Settings
    index: Index
    stores: Mapping[Tier, ObjectStore]
    originals: OriginalAccess
    retrieve: Retrieve
    retention: Retention
    deletion: Deletion
    quarantine: QuarantineReview
    trail: AuditTrail
    marked_regions: MarkedRegions
    reports: Reports
    workers: Workers

    @property
    def store(self) -> ObjectStore:
        """The hot store, in ``storage.root``."""
        return self.stores[Tier.HOT]


def build_archive(settings: Settings, index: Index, stores: Mapping[Tier, ObjectStore], workers: Workers) -> Services:
    """Join the parts of an archive. Raises ConfigError if gate.patches.regions cannot be read."""
    root, store = settings.storage.root, stores[Tier.HOT]
    trail = AuditTrail(index, TrailJournal(root / "journal"))
    originals = OriginalAccess(index, stores, workers.cache, workers.unpack)
    originals.damaged = damage_handler(index, stores, trail, settings.jobs.replicate.to)
    deletion = Deletion(index, stores, trail, settings, root / "rendered")
    return Services(
        settings=settings,
        index=index,
        stores=stores,
        originals=originals,
        retrieve=Retrieve(index, workers.reconstruct, workers.decode, originals),
        retention=Retention(index, stores, settings, prover_in(workers.reconstruct, index, store)),
        deletion=deletion,
        quarantine=QuarantineReview(index, originals, deletion, settings, examine_in(workers.decode)),
        trail=trail,
        marked_regions=MarkedRegions(index, store, originals, settings.gate.patches.file),
        reports=reports_of(settings, index),
        workers=workers,
    )


@contextmanager
def open_archive(settings: Settings) -> Iterator[Services]:
    """The services of an archive for a command, whether a node runs or not. Raises as ``open_for_command`` does."""
    accept_odd_values()
    set_decode_limits(settings.limits.decoders)
    with ExitStack() as stack:
        index = stack.enter_context(closing(open_for_command(settings)))
        stores = open_stores(settings, index, open_store(settings))
        folder = stack.enter_context(tempfile.TemporaryDirectory(dir=stores[Tier.HOT].spool))
        reconstruct = WorkerPool(settings.reconstruct, name="reconstruct", within=settings.limits.encoders)
        decode = WorkerPool(settings.reconstruct, name="decode", within=settings.limits.decoders)
        for pool in (reconstruct, decode):
            stack.enter_context(closing(pool))
        workers = Workers(reconstruct, decode, RenderedCache(Path(folder), 0))
        services = build_archive(settings, index, stores, workers)
        stack.enter_context(closing(services.retrieve))
        yield services


@contextmanager
def open_reports(settings: Settings) -> Iterator[Reports]:
    """The reports of an archive, whether a node runs or not. Raises as ``open_for_command`` does."""
    with closing(open_for_command(settings)) as index:
        yield reports_of(settings, index)


def reports_of(settings: Settings, index: Index) -> Reports:
    return Reports(ReportRows(index.engine), settings.storage.root / "reports")


def open_store(settings: Settings) -> ObjectStore:
    """The store in ``storage.root``. Raises ConfigError if that folder cannot be used."""
    root = settings.storage.root
    try:
        return ObjectStore(root, min_free=settings.storage.min_free)
    except OSError as error:
        raise ConfigError(f"storage.root {root} cannot be used: {error.strerror}") from error


def lock_root(store: ObjectStore) -> IO[bytes]:
    """Lock the storage root, whose spool and cache belong to one process. The caller closes the file to unlock it.

    Raises NodeRunning, ConfigError.
    """
    try:
        lock = (store.root / "lock").open("wb")
        give_to_owner(store.root / "lock")
    except OSError as error:
        raise ConfigError(f"storage.root {store.root} cannot be written: {error.strerror}") from error
    for wait in (0.1, 0.0):  # a command that checks for a node holds the lock for a moment
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError:
            time.sleep(wait)
    lock.close()
    raise NodeRunning(f"storage.root {store.root} is in use by another node; stop it first")


def open_stores(settings: Settings, index: Index, hot: ObjectStore) -> dict[Tier, ObjectStore]:
    """The object stores by tier. Raises ConfigError if the cold store is missing although it holds originals."""
    folder = settings.originals.path
    if folder is None:
        return {Tier.HOT: hot}
    held = index.originals.totals().cold
    if held and not (folder / "objects").is_dir():
        raise ConfigError(
            f"originals.path {folder} should hold {counted(held, 'original')} and has no objects; is it mounted?"
        )
    try:
        cold = ObjectStore(folder, min_free=settings.storage.min_free)
        cold.sweep_lent()
    except OSError as error:
        raise ConfigError(f"originals.path {folder} cannot be used: {error.strerror}") from error
    return {Tier.HOT: hot, Tier.COLD: cold}


def examine_in(pool: WorkerPool) -> Examine:
    """A function that examines received files in a worker process, since a decoder may crash on them."""
    return lambda path, calling_aet: examine(path, calling_aet, pool)


def prover_in(pool: WorkerPool, index: Index, store: ObjectStore) -> Prove:
    """A function that proves that a reconstruction can be sent, with its verified pixels and the current amendments."""
    prove = RenditionWriter(index, store).prove
    return lambda key, made: prove(key, made, lambda request: pool.submit(request, Priority.ARCHIVIST).result())
