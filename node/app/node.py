"""A running archive: the place where its parts are built and joined."""

from __future__ import annotations

import fcntl
import functools
import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from types import TracebackType
from typing import IO, TYPE_CHECKING

from pydicom import Dataset

from node.app.damage import settle_in
from node.app.encoder_workers import encoders_beside
from node.app.job_wiring import plan_jobs
from node.app.services import Services, examine_in, open_store, open_stores, render_in
from node.archive.audit_trail import AuditTrail, TrailWriter
from node.archive.deletion import Deletion
from node.archive.encode.archivist import Archivist
from node.archive.index_opening import open_for_node
from node.archive.intake.marked_regions import MarkedRegions, read_regions
from node.archive.intake.quarantine import QuarantineReview
from node.archive.originals.original_access import OriginalAccess
from node.archive.originals.packing import Packer
from node.archive.originals.retention import Retention
from node.archive.originals.storage_commitment import CommitmentJudge, original_fault
from node.archive.originals.unpacking import Unpacker
from node.archive.query.find import find
from node.archive.query.identifier import Root
from node.archive.rendered_cache import RenderedCache
from node.archive.serve.prefetch import Prefetch
from node.config import RenditionPolicy, Settings
from node.dimse.associations.extended_negotiation import Agreed
from node.dimse.associations.peers import Peers
from node.dimse.associations.refusals import Refusals
from node.dimse.handlers.c_move_c_get import RetrieveServices
from node.dimse.server import Server, ServerDependencies
from node.jobs.runner import Runner
from node.jobs.schedule import Schedule
from node.metrics.measured import MeasuredIngest, MeasuredPool, MeasuredRetrieve
from node.reports.runs import Reports
from node.workers.pool import Priority, WorkerPool
from node.workers.worker import ReadyRequest
from storage.dicom.decode_limits import set_decode_limits
from storage.dicom.dicomfile import accept_odd_values
from storage.errors import ConfigError
from storage.index import Index
from storage.index.commitment_requests import Commitments
from storage.index.job_runs import JobRows
from storage.index.report_rows import ReportRows
from storage.objects.file_modes import keep_private
from storage.objects.reserve_file import RESERVE, keep_reserve, release_reserve
from storage.objects.store import ObjectStore
from storage.objects.trail_journal import TrailJournal

if TYPE_CHECKING:
    from node.metrics.exposition import Exposition

LOGGER = logging.getLogger(__name__)

_MOST_DECODERS = 4
"""Processes that examine originals, and threads that unpack them: at most one of each per core. Such a process takes
some 100 MB once it has work."""


class Node:
    """A running archive. ``with Node(settings) as node:`` listens inside the block."""

    def __init__(self, settings: Settings, *, accept_empty_index: bool = False) -> None:
        self.settings = settings
        accept_odd_values()
        keep_private()
        limits = settings.limits
        set_decode_limits(limits.decoders)
        file = settings.gate.patches.file
        in_file = read_regions(file) if file else {}  # before anything is opened: a mistake in it ends the start
        self.store, self._lock = _own_store(settings)
        self.index = self._open_index(accept_empty_index)
        keep_reserve(settings.storage.root)
        stores = open_stores(settings, self.index, self.store)
        self.trail = AuditTrail(self.index, TrailJournal(settings.storage.root / "journal"))
        self.trail.recover()
        self._told = TrailWriter(self.trail)
        self.pool = MeasuredPool(settings.reconstruct, name="reconstruct", within=limits.encoders, idle=limits.idle)
        self.encoders = encoders_beside(self.pool, settings)
        at_once = min(os.cpu_count() or 1, _MOST_DECODERS)
        self.decoders = WorkerPool(
            settings.reconstruct,
            size=at_once,
            name="decode",
            within=limits.decoders,
            idle=limits.idle,
        )
        rendered = settings.storage.root / "rendered"
        cache = RenderedCache(rendered, settings.reconstruct.cache)
        deletion = Deletion(self.index, stores, self.trail, settings, rendered)
        deletion.finish()  # what a process that was killed left half deleted
        self.unpacking = Unpacker(self.decoders, at_once)
        self.originals = OriginalAccess(self.index, stores, cache, self.unpacking.restore)
        self.originals.damaged = settle_in(self.index, stores, self.trail, settings.jobs.replicate.to)
        self.custodian = Packer(self.index, stores, self.originals, self.encoders, self.trail, settings)
        self.retention = Retention(
            self.index, stores, self.trail, settings, render_in(self.pool, self.index, self.store)
        )
        named = MarkedRegions(self.index, self.store, self.originals, file, in_file)
        self.archivist = Archivist(
            self.index,
            self.store,
            self.originals,
            self.encoders,
            settings,
            named,
            when_idle=self.custodian.step,
            concurrency=self.encoders.size,
        )
        self.retrieve = MeasuredRetrieve(self.index, self.store, self.pool, self.decoders, cache, self.originals)
        self.commitments = Commitments(self.index.engine)
        fault = functools.partial(original_fault, self.originals)
        peers = Peers(settings)
        self.priors = Prefetch(self.index, self.retrieve, *_who_wants_priors(settings), self._has_work)
        ingest = MeasuredIngest(
            self.index,
            self.store,
            self.originals,
            self.decoders,
            self._arrived,
            leading_zeros=settings.storage.leading_zeros == "accept",
        )
        door = ServerDependencies(
            ingest=ingest,
            search=lambda identifier, root, caller, agreed: self._find(identifier, root, peers, caller, agreed),
            services=RetrieveServices(
                self.index,
                self.retrieve,
                peers,
                settings.node.keep_alive,
                self._told.record,
                Refusals(self._told.record),
            ),
            peers=peers,
            check_room=self.store.check_room,
            commitments=self.commitments,
            committer=CommitmentJudge(self.index, self.commitments, fault, settings.commitment),
        )
        self.server = Server(settings, door, self.store.spool)
        runner = Runner(JobRows(self.index.engine), settings.jobs.lease)
        desk = QuarantineReview(
            self.index, self.store, self.originals, deletion, self.trail, settings, examine_in(self.decoders)
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
            lambda: self.server.outgoing,
        )
        self.schedule = Schedule(planned, runner, settings.jobs.poll)
        self._exposition = _exposition(settings, self.index, ingest, self.retrieve, {self.pool, self.encoders})
        self._archivist_thread = threading.Thread(target=self.archivist.run, name="archivist")
        self._priors_thread = threading.Thread(target=self.priors.run, name="priors")

    def _open_index(self, accept_empty: bool) -> Index:
        try:
            return open_for_node(self.settings, accept_empty=accept_empty)
        except BaseException:
            self._lock.close()
            raise

    def _arrived(self, study_instance_uid: str) -> None:
        self.archivist.wake()
        self.priors.study_received(study_instance_uid)

    def _has_work(self) -> bool:
        return self.archivist.busy or not self.pool.idle

    def _find(self, identifier: Dataset, root: Root, peers: Peers, caller: str, agreed: Agreed) -> Iterator[Dataset]:
        return find(
            self.index,
            identifier,
            root,
            policy=peers.rendition(caller),
            copies=peers.rewrites(caller),
            draw=peers.draws(caller),
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
            tls = self.settings.tls
            ports = [
                *([] if tls.only else [f"node.port {node.port}"]),
                *([f"tls.port {tls.port}"] if tls.listens else []),
            ]
            raise ConfigError(f"{' or '.join(ports)} on {node.host} cannot be used: {error.strerror}") from error
        if self.encoders is not self.pool:
            self.pool.submit(ReadyRequest(), Priority.AHEAD)
        if self.settings.archivist.enabled:
            self._archivist_thread.start()
        if self.priors.enabled:
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
        for pool in {self.pool, self.encoders, self.decoders}:
            pool.close()
        for thread in (self._archivist_thread, self._priors_thread):
            if thread.is_alive():
                thread.join()
        self.unpacking.close()
        self._told.close()
        self.index.close()
        keep_reserve(self.settings.storage.root)
        self._lock.close()

    def __enter__(self) -> Node:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _who_wants_priors(settings: Settings) -> tuple[frozenset[tuple[RenditionPolicy, bool]], int]:
    """Rendition and texture of the peers that retrieve, and how many images are made ready for them."""
    images = settings.reconstruct.priors if settings.reconstruct.cache else 0
    peers = Peers(settings)
    those = (peer for peer in settings.peers if {"move", "get"} & set(peer.allow))
    return frozenset((peer.rendition, peers.draws(peer.ae_title)) for peer in those), images


def _exposition(
    settings: Settings,
    index: Index,
    ingest: MeasuredIngest,
    retrieve: MeasuredRetrieve,
    pools: Iterable[MeasuredPool],
) -> Exposition | None:
    """The metrics page, told by the services how long their work takes; None where it is off."""
    if not settings.metrics.port:
        return None
    from node.metrics.exposition import Exposition

    page = Exposition(settings.metrics, index)
    ingest.observe, retrieve.observe = page.ingest, page.retrieve
    for pool in pools:
        pool.observe = page.work
    return page


def _own_store(settings: Settings) -> tuple[ObjectStore, IO[bytes]]:
    """The store, swept, and the lock that keeps other nodes out; on a full disk with room to read what is held."""
    store = open_store(settings)
    lock = lock_root(store)
    if given_up := release_reserve(store.root):
        LOGGER.error("%s; what peers send is refused with A700 until there is room again", given_up)
        store.keep_free(RESERVE)
    store.sweep_spool()
    store.sweep_lent()
    return store, lock


def lock_root(store: ObjectStore) -> IO[bytes]:
    """One node per storage root: the spool and the rendered cache belong to one process."""
    try:
        lock = (store.root / "lock").open("wb")
    except OSError as error:
        raise ConfigError(f"storage.root {store.root} cannot be written: {error.strerror}") from error
    for wait in (0.1, 0.0):  # a command that looks whether a node runs holds it for a moment
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError:
            time.sleep(wait)
    lock.close()
    raise ConfigError(f"storage.root {store.root} is in use by another node")
