"""The composition root: the only place where the parts are built and joined."""

from __future__ import annotations

import fcntl
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from pydicom import Dataset

from node.archive.archivist import Archivist
from node.archive.identifier import Root
from node.archive.query import find
from node.archive.rendered import RenderedCache
from node.archive.reverification import Reverification
from node.config import RenditionPolicy, Settings, parse_when
from node.dimse.peers import Peers
from node.dimse.retrieve import Services
from node.dimse.server import Door, Server
from node.jobs.job import FunctionJob
from node.jobs.mending import Mending
from node.jobs.runner import Runner
from node.jobs.schedule import Planned, Schedule
from node.jobs.scrub import Scrub, ScrubPlan
from node.metrics.measured import MeasuredIngest, MeasuredPool, MeasuredRetrieve
from node.reconstruct.pool import WorkerPool
from storage.dicomfile import accept_odd_values
from storage.errors import ConfigError
from storage.index import Index
from storage.index.jobs import JobRows
from storage.index.upkeep import HOT, Upkeep
from storage.objects import ObjectStore

if TYPE_CHECKING:
    from node.metrics.exposition import Exposition

LOGGER = logging.getLogger(__name__)


class Node:
    """A running archive. ``with Node(settings) as node:`` listens inside the block."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        accept_odd_values()
        self.store = ObjectStore(settings.storage.root, min_free=settings.storage.min_free)
        self._lock = _lock_root(self.store)
        self.store.sweep_spool()
        self.index = Index.open(settings.storage.database_url)
        self.pool = MeasuredPool(settings.reconstruct, name="reconstruct")
        self.decoders = WorkerPool(settings.reconstruct, name="decode")
        self.archivist = Archivist(self.index, self.store, self.pool, settings)
        cache = RenderedCache(settings.storage.root / "rendered", settings.reconstruct.cache)
        self.retrieve = MeasuredRetrieve(self.index, self.store, self.pool, self.decoders, cache)
        peers = Peers(settings)
        ingest = MeasuredIngest(self.index, self.store, self.decoders, self.archivist.wake)
        door = Door(
            ingest=ingest,
            search=lambda identifier, root, caller: self._find(identifier, root, peers.rendition(caller)),
            services=Services(self.index, self.retrieve, peers, settings.node.keep_alive),
            peers=peers,
        )
        self.server = Server(settings.node, door, self.store.spool)
        runner = Runner(JobRows(self.index.engine), settings.jobs.lease)
        planned = plan_jobs(
            settings, self.index, self.store, lambda: nullcontext(self.pool), lambda: self.archivist.busy
        )
        self.schedule = Schedule(planned, runner, settings.jobs.poll)
        self._exposition = _exposition(settings, self.index, ingest, self.retrieve, self.pool)
        self._archivist_thread = threading.Thread(target=self.archivist.run, name="archivist")

    def _find(self, identifier: Dataset, root: Root, policy: RenditionPolicy) -> Iterator[Dataset]:
        title = self.settings.node.ae_title
        return find(self.index, identifier, root, policy=policy, retrieve_ae_title=title)

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
            raise ConfigError(f"node.port {node.port} on {node.host} cannot be used: {error.strerror}") from error
        if self.settings.archivist.enabled:
            self._archivist_thread.start()
        self.schedule.start()
        LOGGER.info("%s listens on %s:%s", node.ae_title, node.host, self.server.port)

    def stop(self) -> None:
        """Finish what is in flight, then end; an image in the archivist's hands goes back undone."""
        self.archivist.stop()
        self.schedule.stop()
        self.server.stop()
        if self._exposition is not None:
            self._exposition.stop()
        self.retrieve.close()
        self.pool.close()
        self.decoders.close()
        if self._archivist_thread.is_alive():
            self._archivist_thread.join()
        self.index.close()
        self._lock.close()

    def __enter__(self) -> Node:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


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
    index: Index,
    store: ObjectStore,
    pool: Callable[[], AbstractContextManager[WorkerPool]] | None = None,
    busy: Callable[[], bool] = lambda: False,
) -> list[Planned]:
    """Every job there is, with its times from config.yaml.

    ``pool`` lends a node's workers, ``busy`` says whether its archivist has work; a command has workers of its own.

    A new one is a section of JobsSettings in node/config.py, the same in config.yaml, and a line here; a function
    becomes a job by FunctionJob (node/jobs/job.py).
    """
    jobs = settings.jobs
    return [
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
                    lambda digest: nullcontext(store.held(digest)),
                    busy,
                ).run,
            ),
            jobs.reverify.when,
            jobs.reverify.schedule,
        ),
    ]


def make_scrub(settings: Settings, index: Index, store: ObjectStore, **plan: Any) -> Scrub:
    """The integrity scrub; ``plan`` overrides what config.yaml says of it (fields of ScrubPlan)."""
    scrub, upkeep, stores = settings.jobs.scrub, Upkeep(index.engine), {HOT: store}
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
