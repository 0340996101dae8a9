"""The composition root: the only place where the parts are built and joined."""

from __future__ import annotations

import fcntl
import functools
import logging
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import IO

from pydicom import Dataset

from node.archive.archivist import Archivist
from node.archive.commitment import Committer, original_fault
from node.archive.identifier import Root
from node.archive.ingest import Ingest
from node.archive.query import find
from node.archive.rendered import RenderedCache
from node.archive.retrieve import Retrieve
from node.config import RenditionPolicy, Settings
from node.dimse.peers import Peers
from node.dimse.retrieve import Services
from node.dimse.server import Door, Server
from node.reconstruct.pool import WorkerPool
from storage.dicomfile import accept_odd_values
from storage.errors import ConfigError
from storage.index import Index
from storage.index.commitments import Commitments
from storage.objects import ObjectStore

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
        self.pool = WorkerPool(settings.reconstruct, name="reconstruct")
        self.decoders = WorkerPool(settings.reconstruct, name="decode")
        self.archivist = Archivist(self.index, self.store, self.pool, settings)
        cache = RenderedCache(settings.storage.root / "rendered", settings.reconstruct.cache)
        self.retrieve = Retrieve(self.index, self.store, self.pool, self.decoders, cache)
        self.commitments = Commitments(self.index.engine)
        fault = functools.partial(original_fault, self.store)
        peers = Peers(settings)
        door = Door(
            ingest=Ingest(self.index, self.store, self.decoders, self.archivist.wake),
            search=lambda identifier, root, caller: self._find(identifier, root, peers.rendition(caller)),
            services=Services(self.index, self.retrieve, peers, settings.node.keep_alive),
            peers=peers,
            check_room=self.store.check_room,
            commitments=self.commitments,
            committer=Committer(self.index, self.commitments, fault, settings.commitment),
        )
        self.server = Server(settings, door, self.store.spool)
        self._archivist_thread = threading.Thread(target=self.archivist.run, name="archivist")

    def _find(self, identifier: Dataset, root: Root, policy: RenditionPolicy) -> Iterator[Dataset]:
        title = self.settings.node.ae_title
        return find(self.index, identifier, root, policy=policy, retrieve_ae_title=title)

    def start(self) -> None:
        """Listen, and begin with the backlog. Raises ConfigError where the port cannot be had."""
        node = self.settings.node
        try:
            self.server.start()
        except OSError as error:
            self.stop()
            ports = f"node.port {node.port} or tls.port {self.settings.tls.port} on {node.host}"
            raise ConfigError(f"{ports} cannot be used: {error.strerror}") from error
        if self.settings.archivist.enabled:
            self._archivist_thread.start()
        LOGGER.info("%s listens on %s, port %s", node.ae_title, node.host, self.server.ports)

    def stop(self) -> None:
        """Finish what is in flight, then end; an image in the archivist's hands goes back undone."""
        self.archivist.stop()
        self.server.stop()
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


def _lock_root(store: ObjectStore) -> IO[bytes]:
    """One node per storage root: the spool and the rendered cache belong to one process."""
    lock = (store.root / "lock").open("wb")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise ConfigError(f"storage.root {store.root} is in use by another node") from None
    return lock
