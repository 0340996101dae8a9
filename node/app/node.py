"""A running node: builds the archive, the DIMSE server and the background threads, and starts and stops them."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Iterable
from typing import IO, TYPE_CHECKING

from node.app.building import Workers, build_archive, lock_root, open_store, open_stores
from node.app.encoder_workers import encoders_beside
from node.app.job_wiring import plan_jobs
from node.archive.audit_trail import TrailWriter
from node.archive.encode.archivist import Archivist
from node.archive.index_opening import open_for_node
from node.archive.intake.ingest import Ingest
from node.archive.intake.marked_regions import read_regions
from node.archive.originals.packing import Packer
from node.archive.originals.storage_commitment import CommitmentJudge, original_fault
from node.archive.originals.unpacking import Unpacker
from node.archive.query.find import find
from node.archive.rendered_cache import RenderedCache
from node.archive.serve.prefetch import Prefetch
from node.archive.serve.retrieve import Retrieve
from node.config import RenditionPolicy, Settings
from node.dimse.associations.refusals import Refusals
from node.dimse.handlers.c_move_c_get import RetrieveServices
from node.dimse.server import Server, ServerDependencies
from node.dimse.tls import expiries
from node.jobs.runner import Runner
from node.jobs.schedule import Schedule
from node.workers.machine import available_cores
from node.workers.pool import Priority, WorkerPool
from node.workers.rendering_again import NumericsRequest
from storage.dicom.decode_limits import set_decode_limits
from storage.dicom.dicomfile import accept_odd_values
from storage.errors import ConfigError
from storage.index import Index
from storage.index.commitment_requests import Commitments
from storage.index.job_runs import JobRows
from storage.objects.file_modes import keep_private
from storage.objects.reserve_file import RESERVE, keep_reserve, release_reserve
from storage.objects.store import ObjectStore

if TYPE_CHECKING:
    from node.metrics.exposition import Exposition

LOGGER = logging.getLogger(__name__)


_MOST_DECODERS = 4
"""Most processes that examine received files, and most threads that unpack originals, if the machine has more cores.
Such a process takes 100 MB of memory."""


class Node:
    """A running archive. ``with Node(settings) as node:`` listens inside the block."""

    def __init__(self, settings: Settings, *, accept_empty_index: bool = False) -> None:
        self.settings = settings
        accept_odd_values()
        keep_private()
        set_decode_limits(settings.limits.decoders)
        if settings.gate.patches.file:
            read_regions(settings.gate.patches.file)  # a mistake in it is reported before anything is open
        self.store, self._lock = _own_store(settings)
        self.index = self._open_index(accept_empty_index)
        keep_reserve(settings.storage.root)
        stores = open_stores(settings, self.index, self.store)
        workers = self._start_workers()
        self.archive = build_archive(settings, self.index, stores, workers)
        self.trail, self.originals, self.retention = self.archive.trail, self.archive.originals, self.archive.retention
        # complete the work that a killed process left unfinished
        self.trail.recover()
        self.archive.deletion.finish()
        self.archive.reports.recover()
        self._trail_writer = TrailWriter(self.trail)
        self._build_encoding()
        self.retrieve = self.archive.retrieve
        self.prefetch = Prefetch(self.index, self.retrieve, *_prefetch_plan(settings), self._has_work)
        lenient = settings.storage.leading_zeros == "accept"
        ingest = Ingest(self.index, self.store, self.originals, self.decoders, self._arrived, leading_zeros=lenient)
        self.commitments = Commitments(self.index.engine)
        self.server = Server(settings, self._handler_dependencies(ingest), self.store.spool)
        self.schedule = self._build_schedule()
        self._exposition = _exposition(settings, self.index, ingest, self.retrieve, {self.pool, self.encoders})
        self._archivist_thread = threading.Thread(target=self.archivist.run, name="archivist")
        self._prefetch_thread = threading.Thread(target=self.prefetch.run, name="prefetch")

    def _start_workers(self) -> Workers:
        """The pools for viewers, for the archivist and for received files. A worker starts with its first request."""
        settings, limits = self.settings, self.settings.limits
        self.pool = WorkerPool(settings.reconstruct, name="reconstruct", within=limits.encoders, idle=limits.idle)
        self.encoders = encoders_beside(self.pool, settings)
        size = min(available_cores(), _MOST_DECODERS)
        self.decoders = WorkerPool(
            settings.reconstruct, size=size, name="decode", within=limits.decoders, idle=limits.idle
        )
        self.unpacking = Unpacker(self.decoders, size)
        cache = RenderedCache(settings.storage.root / "rendered", settings.reconstruct.cache)
        return Workers(self.pool, self.decoders, cache, self.unpacking.restore)

    def _build_encoding(self) -> None:
        settings, archive = self.settings, self.archive
        self.packer = Packer(self.index, self.originals, self.encoders, settings)
        self.archivist = Archivist(
            self.index, self.store, self.originals, self.encoders, settings, archive.marked_regions, self.packer.step
        )

    def _handler_dependencies(self, ingest: Ingest) -> ServerDependencies:
        settings, refusals = self.settings, Refusals(self._trail_writer.record)
        fault = functools.partial(original_fault, self.originals)
        title, home = settings.node.ae_title, settings.node.zone
        return ServerDependencies(
            ingest=ingest,
            search=functools.partial(find, self.index, retrieve_ae_title=title, home=home),
            services=RetrieveServices(settings, self.index, self.retrieve, refusals),
            check_room=self.store.check_room,
            judge=CommitmentJudge(self.index, self.commitments, fault, settings.commitment),
        )

    def _build_schedule(self) -> Schedule:
        planned = plan_jobs(self.archive, lambda: self.archivist.busy, lambda: self.server.outgoing)
        runner = Runner(JobRows(self.index.engine), self.settings.jobs.lease)
        return Schedule(planned, runner, self.settings.jobs.poll)

    def _open_index(self, accept_empty: bool) -> Index:
        try:
            return open_for_node(self.settings, accept_empty=accept_empty)
        except BaseException:
            self._lock.close()
            raise

    def _arrived(self, study_instance_uid: str) -> None:
        self.archivist.wake()
        self.prefetch.study_received(study_instance_uid)

    def _has_work(self) -> bool:
        return self.archivist.busy or not self.pool.idle

    def start(self) -> None:
        """Listen, and start to encode the backlog. Raises ConfigError if a port cannot be used."""
        try:
            self._listen()
            if self.encoders is not self.pool:
                # the worker imports its libraries, for which the first viewer would wait
                self.pool.submit(NumericsRequest(), Priority.AHEAD)
            if self.settings.archivist.enabled:
                self._archivist_thread.start()
            if self.prefetch.enabled:
                self._prefetch_thread.start()
            self.schedule.start()
        except BaseException:
            self.stop()  # else running threads would keep the process alive, without a listener
            raise
        LOGGER.info(
            "%s listens on %s, port %s", self.settings.node.ae_title, self.settings.node.host, self.server.ports
        )

    def _listen(self) -> None:
        node, tls = self.settings.node, self.settings.tls
        try:
            if self._exposition is not None:
                self._exposition.start()
            self.server.start()
        except OSError as error:
            ports = [
                *([] if tls.only else [f"node.port {node.port}"]),
                *([f"tls.port {tls.port}"] if tls.listens else []),
            ]
            raise ConfigError(f"{' or '.join(ports)} on {node.host} cannot be used: {error.strerror}") from error

    def stop(self) -> None:
        """Finish open associations, then end. An image that is being encoded returns to the backlog."""
        self.archivist.stop()
        self.schedule.stop()
        self.packer.stop()
        self.prefetch.stop()
        self.server.stop()
        if self._exposition is not None:
            self._exposition.stop()
        self.retrieve.close()
        for pool in {self.pool, self.encoders, self.decoders}:
            pool.close()
        for thread in (self._archivist_thread, self._prefetch_thread):
            if thread.is_alive():
                thread.join()
        self.unpacking.close()
        self._trail_writer.close()
        self.index.close()
        keep_reserve(self.settings.storage.root)
        self._lock.close()

    def __enter__(self) -> Node:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _prefetch_plan(settings: Settings) -> tuple[frozenset[tuple[RenditionPolicy, bool]], int]:
    """The renditions and textures that retrieving peers get, and how many priors are prefetched per study."""
    images = settings.reconstruct.prefetch_priors if settings.reconstruct.cache else 0
    retrieving = (peer for peer in settings.peers if {"move", "get"} & set(peer.allow))
    return frozenset((peer.rendition, settings.draws(peer)) for peer in retrieving), images


def _exposition(
    settings: Settings, index: Index, ingest: Ingest, retrieve: Retrieve, pools: Iterable[WorkerPool]
) -> Exposition | None:
    """The metrics page, to which the services report the duration of their work; None without ``metrics.port``."""
    if not settings.metrics.port:
        return None
    from node.metrics import timing
    from node.metrics.exposition import Exposition

    page = Exposition(settings.metrics, index, {one.key: one.at.timestamp() for one in expiries(settings.tls)})
    timing.time_ingest(ingest, page.ingest)
    timing.time_retrieve(retrieve, page.retrieve)
    for pool in pools:
        timing.time_requests(pool, page.work)
    return page


def _own_store(settings: Settings) -> tuple[ObjectStore, IO[bytes]]:
    """The store, cleared of temporary files, and the lock on it. On a full disk, the reserve file is released, so that
    images can be read and sent."""
    store = open_store(settings)
    lock = lock_root(store)
    if released := release_reserve(store.root):
        LOGGER.error("%s; C-STORE is refused with A700 until there is room again", released)
        store.keep_free(RESERVE)
    store.sweep_spool()
    store.sweep_lent()
    return store, lock
