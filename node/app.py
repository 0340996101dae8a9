"""The composition root: the only place where the parts are built and joined."""

from __future__ import annotations

import fcntl
import functools
import logging
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from pydicom import Dataset

from node.archive.archivist import Archivist
from node.archive.commitment import Committer, original_fault
from node.archive.custodian import Custodian
from node.archive.deletion import Deletion
from node.archive.fidelity import FidelityCheck
from node.archive.identifier import Root
from node.archive.ingest import examine
from node.archive.models import ModelShelf
from node.archive.named import NamedRegions, read_regions
from node.archive.originals import Originals
from node.archive.priors import Priors
from node.archive.quarantine import Examine, QuarantineDesk
from node.archive.query import find
from node.archive.rendered import RenderedCache
from node.archive.retention import Retention
from node.archive.retrieve import Retrieve
from node.archive.reverification import Reverification
from node.archive.trail import AuditTrail, TrailWriter
from node.config import RenditionPolicy, Settings, parse_when
from node.dimse.extended import Agreed
from node.dimse.peers import Peers
from node.dimse.retrieve import Services as RetrieveServices
from node.dimse.server import Door, Server
from node.jobs.audit import Audit, AuditPlan
from node.jobs.job import FunctionJob
from node.jobs.mending import Mending
from node.jobs.runner import Runner
from node.jobs.schedule import Planned, Schedule
from node.jobs.scrub import Scrub, ScrubPlan
from node.metrics.measured import MeasuredIngest, MeasuredPool, MeasuredRetrieve
from node.reconstruct.pool import Priority, WorkerPool
from node.reconstruct.worker import ReconstructRequest, RestoreRequest
from node.reports.runs import Reports
from node.validation.study import Validation
from storage.dicomfile import accept_odd_values
from storage.errors import ConfigError
from storage.index import Index
from storage.index.commitments import Commitments
from storage.index.jobs import JobRows
from storage.index.reports import ReportRows
from storage.index.upkeep import Upkeep
from storage.journal import Journal
from storage.objects import ObjectStore
from storage.originals import restore_original
from storage.records import StoredRendition, Tier

if TYPE_CHECKING:
    from node.metrics.exposition import Exposition

LOGGER = logging.getLogger(__name__)


class Node:
    """A running archive. ``with Node(settings) as node:`` listens inside the block."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        accept_odd_values()
        file = settings.gate.patches.file
        in_file = read_regions(file) if file else {}  # before anything is opened: a mistake in it ends the start
        self.store = ObjectStore(settings.storage.root, min_free=settings.storage.min_free)
        self._lock = _lock_root(self.store)
        self.store.sweep_spool()
        self.store.sweep_lent()
        self.index = Index.open(settings.storage.database_url)
        stores = open_stores(settings, self.index, self.store)
        self.trail = AuditTrail(self.index, Journal(settings.storage.root / "journal"))
        self.trail.recover()
        self._told = TrailWriter(self.trail)
        self.pool = MeasuredPool(settings.reconstruct, name="reconstruct")
        self.decoders = WorkerPool(settings.reconstruct, name="decode")
        rendered = settings.storage.root / "rendered"
        cache = RenderedCache(rendered, settings.reconstruct.cache)
        deletion = Deletion(self.index, stores, self.trail, settings, rendered)
        deletion.finish()  # what a process that was killed left half deleted
        self.originals = Originals(self.index, stores, cache, _restore_in(self.decoders))
        self.custodian = Custodian(self.index, stores, self.originals, self.pool, self.trail, settings)
        self.retention = Retention(
            self.index, stores, self.trail, settings, _render_in(self.pool, self.index, self.store)
        )
        named = NamedRegions(self.index, self.store, self.originals, file, in_file)
        self.archivist = Archivist(
            self.index, self.store, self.originals, self.pool, settings, named, otherwise=self.custodian.step
        )
        self.retrieve = MeasuredRetrieve(self.index, self.store, self.pool, self.decoders, cache, self.originals)
        self.commitments = Commitments(self.index.engine)
        fault = functools.partial(original_fault, self.originals)
        peers = Peers(settings)
        self.priors = Priors(self.index, self.retrieve, *_who_wants_priors(settings), self._has_work)
        ingest = MeasuredIngest(self.index, self.store, self.originals, self.decoders, self._arrived)
        door = Door(
            ingest=ingest,
            search=lambda identifier, root, caller, agreed: self._find(identifier, root, peers, caller, agreed),
            services=RetrieveServices(self.index, self.retrieve, peers, settings.node.keep_alive, self._told.record),
            peers=peers,
            check_room=self.store.check_room,
            commitments=self.commitments,
            committer=Committer(self.index, self.commitments, fault, settings.commitment),
        )
        self.server = Server(settings, door, self.store.spool)
        runner = Runner(JobRows(self.index.engine), settings.jobs.lease)
        desk = QuarantineDesk(
            self.index, self.store, self.originals, deletion, self.trail, settings, _examine_in(self.decoders)
        )
        reports = Reports(ReportRows(self.index.engine), settings.storage.root / "reports")
        reports.recover()
        self.archive = Services(
            self.index, self.store, self.originals, self.retention, deletion, desk, self.trail, named, reports
        )
        planned = plan_jobs(
            settings,
            self.archive,
            lambda: nullcontext(self.pool),
            lambda: self.archivist.busy,
            lambda: nullcontext(self.retrieve),
        )
        self.schedule = Schedule(planned, runner, settings.jobs.poll)
        self._exposition = _exposition(settings, self.index, ingest, self.retrieve, self.pool)
        self._archivist_thread = threading.Thread(target=self.archivist.run, name="archivist")
        self._priors_thread = threading.Thread(target=self.priors.run, name="priors")

    def _arrived(self, study_instance_uid: str) -> None:
        self.archivist.wake()
        self.priors.arrived(study_instance_uid)

    def _has_work(self) -> bool:
        return self.archivist.busy or not self.pool.idle

    def _find(self, identifier: Dataset, root: Root, peers: Peers, caller: str, agreed: Agreed) -> Iterator[Dataset]:
        return find(
            self.index,
            identifier,
            root,
            policy=peers.rendition(caller),
            copies=peers.rewrites(caller),
            retrieve_ae_title=self.settings.node.ae_title,
            relational=agreed.relational,
            combined_datetime=agreed.combined_datetime,
            adjust_zones=agreed.time_zones,
            home=self.settings.node.zone,
            implicit=agreed.implicit,
        )

    def start(self) -> None:
        """Listen, and begin with the backlog. Raises ConfigError where the port cannot be had."""
        node = self.settings.node
        try:
            if self._exposition is not None:
                self._exposition.start()
            self.server.start()
        except ConfigError:
            self.stop()
            raise
        except OSError as error:
            self.stop()
            ports = f"node.port {node.port} or tls.port {self.settings.tls.port} on {node.host}"
            raise ConfigError(f"{ports} cannot be used: {error.strerror}") from error
        if self.settings.archivist.enabled:
            self._archivist_thread.start()
        if self.priors.wanted:
            self._priors_thread.start()
        self.schedule.start()
        LOGGER.info("%s listens on %s, port %s", node.ae_title, node.host, self.server.ports)

    def stop(self) -> None:
        """Finish what is in flight, then end; an image in the archivist's hands goes back undone."""
        self.archivist.stop()
        self.schedule.stop()
        self.custodian.stop()
        self.priors.stop()
        self.server.stop()
        if self._exposition is not None:
            self._exposition.stop()
        self.retrieve.close()
        self.pool.close()
        self.decoders.close()
        for thread in (self._archivist_thread, self._priors_thread):
            if thread.is_alive():
                thread.join()
        self._told.close()
        self.index.close()
        self._lock.close()

    def __enter__(self) -> Node:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _who_wants_priors(settings: Settings) -> tuple[frozenset[RenditionPolicy], int]:
    """The policies of the peers that retrieve, and how many images are rendered ahead for them."""
    images = settings.reconstruct.priors if settings.reconstruct.cache else 0
    return frozenset(peer.rendition for peer in settings.peers if {"move", "get"} & set(peer.allow)), images


def _exposition(
    settings: Settings, index: Index, ingest: MeasuredIngest, retrieve: MeasuredRetrieve, pool: MeasuredPool
) -> Exposition | None:
    """The metrics page, told by the services how long their work takes; None where it is off."""
    if not settings.metrics.port:
        return None
    from node.metrics.exposition import Exposition

    page = Exposition(settings.metrics, index)
    ingest.observe, retrieve.observe, pool.observe = page.ingest, page.retrieve, page.work
    return page


def plan_jobs(
    settings: Settings,
    archive: Services,
    pool: Callable[[], AbstractContextManager[WorkerPool]] | None = None,
    busy: Callable[[], bool] = lambda: False,
    retrieve: Callable[[], AbstractContextManager[Retrieve]] | None = None,
) -> list[Planned]:
    """Every job there is, with its times from config.yaml.

    ``pool`` lends a node's workers, ``busy`` says whether its archivist has work, ``retrieve`` lends its retrievals; a
    command has workers of its own.

    A new one is a section of JobsSettings in node/config/sections.py, the same in config.yaml, and a line here; a
    function becomes a job by FunctionJob (node/jobs/job.py).
    """
    jobs, index, store, retention = settings.jobs, archive.index, archive.store, archive.retention

    def purge(progress: Callable[[int, int], None], cancelled: Callable[[], bool]) -> dict[str, Any]:
        report = retention.purge(dry_run=False, progress=progress, cancelled=cancelled, who="job:purge")
        freed = {"purged": len(report.purged), "bytes_freed": report.bytes_freed}
        return {**freed, "kept": len(report.kept), "reserved": report.reserved}

    return [
        Planned(
            FunctionJob("purge", "remove originals older than originals.keep whose reconstruction is proved", purge),
            jobs.purge.when,
            jobs.purge.schedule,
        ),
        Planned(make_scrub(settings, index, store), jobs.scrub.when, jobs.scrub.schedule),
        Planned(
            FunctionJob(
                "reverify",
                "after a change of the model: verifies held images with the new one, and adds the renditions that pass",
                Reverification(
                    index,
                    store,
                    settings,
                    pool or _own_pool(settings),
                    archive.originals.borrowed,
                    busy,
                    archive.named.on,
                ).run,
            ),
            jobs.reverify.when,
            jobs.reverify.schedule,
        ),
        Planned(make_audit(settings, archive, pool), jobs.audit.when, jobs.audit.schedule),
        Planned(make_validation(settings, archive, retrieve), jobs.validation.when, jobs.validation.schedule),
    ]


def make_audit(
    settings: Settings,
    archive: Services,
    pool: Callable[[], AbstractContextManager[WorkerPool]] | None = None,
    plan: AuditPlan | None = None,
) -> Audit:
    """The fidelity audit; ``plan``: other than config.yaml has it."""
    lent, index, store = pool or _own_pool(settings), archive.index, archive.store

    @contextmanager
    def checks(cancelled: Callable[[], bool]) -> Iterator[FidelityCheck]:
        with lent() as workers:
            tolerance = settings.audit.tolerance
            yield FidelityCheck(index, store, archive.originals, archive.trail, tolerance, workers, cancelled)

    return Audit(index, settings, archive.reports, checks, plan or AuditPlan(settings.audit.sample))


def make_validation(
    settings: Settings, archive: Services, retrieve: Callable[[], AbstractContextManager[Retrieve]] | None = None
) -> FunctionJob:
    """The validation with ResNet50; ``retrieve`` lends a node's retrievals, otherwise it has its own."""
    validation = Validation(
        archive.index,
        archive.store,
        archive.trail,
        archive.reports,
        settings.jobs.validation,
        settings.reconstruct.threads,
        retrieve or _own_retrieve(settings, archive),
    )
    summary = "trains a classifier on labelled originals and on what the archive gives back, and compares them"
    return FunctionJob("validation", summary, validation.run)


def make_scrub(settings: Settings, index: Index, store: ObjectStore, **plan: Any) -> Scrub:
    """The integrity scrub; ``plan`` overrides what config.yaml says of it (fields of ScrubPlan)."""
    scrub, upkeep = settings.jobs.scrub, Upkeep(index.engine)
    stores = {str(tier): each for tier, each in open_stores(settings, index, store).items()}
    timed = ScrubPlan(period=scrub.period, gap=parse_when(scrub.when).gap, orphan_grace=scrub.orphan_grace)
    mending = Mending(index, upkeep, stores)
    return Scrub(JobRows(index.engine), upkeep, stores, mending, replace(timed, **plan))


def _own_pool(settings: Settings) -> Callable[[], AbstractContextManager[WorkerPool]]:
    @contextmanager
    def opened() -> Iterator[WorkerPool]:
        pool = WorkerPool(settings.reconstruct, name="reverify")
        try:
            yield pool
        finally:
            pool.close()

    return opened


def _own_retrieve(settings: Settings, archive: Services) -> Callable[[], AbstractContextManager[Retrieve]]:
    @contextmanager
    def opened() -> Iterator[Retrieve]:
        with tempfile.TemporaryDirectory(dir=archive.store.spool) as folder, ExitStack() as stack:
            pool, decoders = (WorkerPool(settings.reconstruct, name=name) for name in ("reconstruct", "decode"))
            stack.callback(pool.close)
            stack.callback(decoders.close)
            cache = RenderedCache(Path(folder), 0)
            retrieve = Retrieve(archive.index, archive.store, pool, decoders, cache, archive.originals)
            stack.callback(retrieve.close)
            yield retrieve

    return opened


def runs_here(root: Path) -> bool:
    """Whether a node runs on this storage root."""
    try:
        with (root / "lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass
    return False


@dataclass(frozen=True)
class Services:
    """What the command line works with on an archive, whether its node runs or not."""

    index: Index
    store: ObjectStore
    originals: Originals
    retention: Retention
    deletion: Deletion
    quarantine: QuarantineDesk
    trail: AuditTrail
    named: NamedRegions
    reports: Reports


@contextmanager
def open_reports(settings: Settings) -> Iterator[Reports]:
    """The reports of an archive, node or no node. Raises ConfigError where there is no archive yet."""
    index = _open_index(settings)
    try:
        yield Reports(ReportRows(index.engine), settings.storage.root / "reports")
    finally:
        index.close()


@contextmanager
def services(settings: Settings) -> Iterator[Services]:
    """The services of an archive without a node. Raises ConfigError where there is no archive yet."""
    accept_odd_values()
    index = _open_index(settings)
    try:
        store = ObjectStore(settings.storage.root, min_free=settings.storage.min_free)
        stores = open_stores(settings, index, store)
        trail = AuditTrail(index, Journal(settings.storage.root / "journal"))
        with tempfile.TemporaryDirectory(dir=store.spool) as folder:
            pool = WorkerPool(settings.reconstruct, name="reconstruct")
            try:
                originals = Originals(index, stores, RenderedCache(Path(folder), 0), restore_original)
                retention = Retention(index, stores, trail, settings, _render_in(pool, index, store))
                file = settings.gate.patches.file
                named = NamedRegions(index, store, originals, file, read_regions(file) if file else {})
                deletion = Deletion(index, stores, trail, settings, settings.storage.root / "rendered")
                desk = QuarantineDesk(index, store, originals, deletion, trail, settings, _examine_in(pool))
                reports = Reports(ReportRows(index.engine), settings.storage.root / "reports")
                yield Services(index, store, originals, retention, deletion, desk, trail, named, reports)
            finally:
                pool.close()
    finally:
        index.close()


def _open_index(settings: Settings) -> Index:
    url = settings.storage.database_url
    if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).is_file():
        raise ConfigError(f"no index at {url}; has a node run with this configuration yet?")
    return Index.open(url)


def open_stores(settings: Settings, index: Index, hot: ObjectStore) -> dict[Tier, ObjectStore]:
    """The object stores by tier. Raises ConfigError where the cold one is not there though it holds originals."""
    folder = settings.originals.path
    if folder is None:
        return {Tier.HOT: hot}
    held = index.custody.totals().cold
    if held and not (folder / "objects").is_dir():
        raise ConfigError(f"originals.path {folder} should hold {held} originals and has no objects; is it mounted?")
    try:
        cold = ObjectStore(folder, min_free=settings.storage.min_free)
        cold.sweep_lent()
    except OSError as error:
        raise ConfigError(f"originals.path {folder} cannot be used: {error.strerror}") from error
    return {Tier.HOT: hot, Tier.COLD: cold}


def _restore_in(pool: WorkerPool) -> Callable[[Path, str, Path], None]:
    def restore(packed: Path, original_digest: str, target: Path) -> None:
        pool.submit(RestoreRequest(packed, original_digest, target), Priority.VIEWER).result()

    return restore


def _examine_in(pool: WorkerPool) -> Examine:
    return lambda path, calling_aet: examine(path, calling_aet, pool)


def _render_in(pool: WorkerPool, index: Index, store: ObjectStore) -> Callable[[StoredRendition], None]:
    """Renders into a file that nobody keeps: the worker compares the pixels with those that were verified."""
    models = ModelShelf(index, store)

    def render(rendition: StoredRendition) -> None:
        with tempfile.NamedTemporaryFile(dir=store.spool) as target:
            base, made = store.held(rendition.base_digest), store.held(rendition.rendition_digest)
            model = models.folder(rendition.upscaler, rendition.weights_digest)
            pool.submit(ReconstructRequest(base, made, Path(target.name), model), Priority.ARCHIVIST).result()

    return render


def _lock_root(store: ObjectStore) -> IO[bytes]:
    """One node per storage root: the spool and the rendered cache belong to one process."""
    lock = (store.root / "lock").open("wb")
    for wait in (0.1, 0.0):  # a command that looks whether a node runs holds it for a moment
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError:
            time.sleep(wait)
    lock.close()
    raise ConfigError(f"storage.root {store.root} is in use by another node")
