"""The services of an archive for those who work on it without a node: the commands."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from node.app.damage import settle_in
from node.archive.audit_trail import AuditTrail
from node.archive.deletion import Deletion
from node.archive.index_opening import open_for_command
from node.archive.intake.ingest import examine
from node.archive.intake.marked_regions import MarkedRegions, read_regions
from node.archive.intake.quarantine import Examine, QuarantineReview
from node.archive.model_store import ModelStore
from node.archive.originals.original_access import OriginalAccess
from node.archive.originals.retention import Retention
from node.archive.rendered_cache import RenderedCache
from node.archive.serve.derived_object import DerivedParts, prove_object
from node.config import Settings
from node.reports.runs import Reports
from node.workers.pool import Priority, WorkerPool
from storage.dicom.decode_limits import set_decode_limits
from storage.dicom.dicomfile import accept_odd_values
from storage.errors import ConfigError
from storage.formats.packed_original import restore_original
from storage.index import Index
from storage.index.report_rows import ReportRows
from storage.objects.store import ObjectStore
from storage.objects.trail_journal import TrailJournal
from storage.records import StoredRendition, Tier


@dataclass(frozen=True)
class Services:
    """What the command line works with on an archive, whether its node runs or not."""

    index: Index
    store: ObjectStore
    originals: OriginalAccess
    retention: Retention
    deletion: Deletion
    quarantine: QuarantineReview
    trail: AuditTrail
    named: MarkedRegions
    reports: Reports


@contextmanager
def services(settings: Settings) -> Iterator[Services]:
    """The services of an archive without a node. Raises ConfigError where there is no archive yet."""
    accept_odd_values()
    set_decode_limits(settings.limits.decoders)
    index = open_for_command(settings)
    try:
        store = open_store(settings)
        stores = open_stores(settings, index, store)
        trail = AuditTrail(index, TrailJournal(settings.storage.root / "journal"))
        with tempfile.TemporaryDirectory(dir=store.spool) as folder:
            pool = WorkerPool(settings.reconstruct, name="reconstruct", within=settings.limits.encoders)
            try:
                originals = OriginalAccess(index, stores, RenderedCache(Path(folder), 0), restore_original)
                originals.damaged = settle_in(index, stores, trail, settings.jobs.replicate.to)
                retention = Retention(index, stores, trail, settings, render_in(pool, index, store))
                file = settings.gate.patches.file
                named = MarkedRegions(index, store, originals, file, read_regions(file) if file else {})
                deletion = Deletion(index, stores, trail, settings, settings.storage.root / "rendered")
                desk = QuarantineReview(index, store, originals, deletion, trail, settings, examine_in(pool))
                reports = Reports(ReportRows(index.engine), settings.storage.root / "reports")
                yield Services(index, store, originals, retention, deletion, desk, trail, named, reports)
            finally:
                pool.close()
    finally:
        index.close()


@contextmanager
def open_reports(settings: Settings) -> Iterator[Reports]:
    """The reports of an archive, node or no node. Raises ConfigError where there is no archive yet."""
    index = open_for_command(settings)
    try:
        yield Reports(ReportRows(index.engine), settings.storage.root / "reports")
    finally:
        index.close()


def open_store(settings: Settings) -> ObjectStore:
    """The store in ``storage.root``. Raises ConfigError where that folder cannot be used."""
    root = settings.storage.root
    try:
        return ObjectStore(root, min_free=settings.storage.min_free)
    except OSError as error:
        raise ConfigError(f"storage.root {root} cannot be used: {error.strerror}") from error


def open_stores(settings: Settings, index: Index, hot: ObjectStore) -> dict[Tier, ObjectStore]:
    """The object stores by tier. Raises ConfigError where the cold one is not there though it holds originals."""
    folder = settings.originals.path
    if folder is None:
        return {Tier.HOT: hot}
    held = index.originals.totals().cold
    if held and not (folder / "objects").is_dir():
        raise ConfigError(f"originals.path {folder} should hold {held} originals and has no objects; is it mounted?")
    try:
        cold = ObjectStore(folder, min_free=settings.storage.min_free)
        cold.sweep_lent()
    except OSError as error:
        raise ConfigError(f"originals.path {folder} cannot be used: {error.strerror}") from error
    return {Tier.HOT: hot, Tier.COLD: cold}


def examine_in(pool: WorkerPool) -> Examine:
    """Looks at what arrived in a worker: a decoder may take its process with it."""
    return lambda path, calling_aet: examine(path, calling_aet, pool)


def render_in(pool: WorkerPool, index: Index, store: ObjectStore) -> Callable[[StoredRendition], None]:
    """Proves that the object can be made and sent: its pixels those that were verified, its header as amended today."""
    models = ModelStore(index, store)

    def render(rendition: StoredRendition) -> None:
        image = next((index.by_key(key) for key in index.renditions([rendition.derived_uid])), None)
        parts = DerivedParts(
            store.held(rendition.base_digest),
            store.held(rendition.rendition_digest),
            rendition.payload_bytes,
            rendition.verified_at,
            models.folder(rendition.upscaler, rendition.weights_digest),
            image.amended if image else (),
        )
        prove_object(parts, store.spool, lambda request: pool.submit(request, Priority.ARCHIVIST).result())

    return render
