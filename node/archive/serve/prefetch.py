"""Prefetch of priors: when a study arrives, the patient's earlier images are prepared in the cache.

Reconstructions are rendered and packed originals are unpacked, as the peers that retrieve would get them. Prefetch has
the lowest priority: it starts an image only while the archivist and the pool for viewers have no work.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable

from node.archive.serve.derived_object import safe_text
from node.archive.serve.retrieve import Choice, Retrieve
from node.config import RenditionPolicy
from storage.index import Index
from storage.index.instance_queries import prior_keys

LOGGER = logging.getLogger(__name__)

_STUDIES = 100
"""Most studies in the queue. The priors of studies that arrive while it is full are not prefetched."""
_POLL = 0.2
"""Seconds between two checks of whether there is other work. Chosen, not measured."""


class Prefetch:
    """Prepares up to ``images`` priors per study. ``variants``: rendition policy, and whether noise is drawn, of each
    peer that retrieves. ``busy``: whether there is other work. ``run`` is meant for a thread of its own.
    """

    def __init__(
        self,
        index: Index,
        retrieve: Retrieve,
        variants: frozenset[tuple[RenditionPolicy, bool]],
        images: int,
        busy: Callable[[], bool],
    ) -> None:
        self._index, self._retrieve, self._busy = index, retrieve, busy
        self._images = images
        self._variants = sorted(variants)
        self._studies: queue.Queue[str] = queue.Queue(_STUDIES)
        self._known: deque[str] = deque(maxlen=_STUDIES)
        self._lock = threading.Lock()
        self._stopping = threading.Event()

    @property
    def enabled(self) -> bool:
        """False if config.yaml disables prefetch, or no peer retrieves."""
        return bool(self._images and self._variants)

    def study_received(self, study_instance_uid: str) -> None:
        """Queue a study unless it is one of the latest ``_STUDIES``. Call it for each received image."""
        with self._lock:
            if not self.enabled or study_instance_uid in self._known or self._studies.full():
                return
            self._known.append(study_instance_uid)
            self._studies.put(study_instance_uid)

    def stop(self) -> None:
        """Start no further image."""
        self._stopping.set()

    def run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.prepare(self._studies.get(timeout=_POLL))
            except queue.Empty:
                continue
            except Exception:
                LOGGER.exception("priors could not be prefetched")

    def prepare(self, study_instance_uid: str) -> int:
        """Prepare the priors of a study, one by one while there is no other work.

        Returns how many of their objects were prepared or already in the cache; verbatim originals do not count.
        """
        ready = 0
        for choice in self._choices(study_instance_uid):
            while self._busy() and not self._stopping.is_set():
                self._stopping.wait(_POLL)
            if self._stopping.is_set():
                break
            try:
                ready += self._retrieve.make_ahead(choice)
            except Exception as error:  # noqa: BLE001 - the next one may work
                LOGGER.warning("prior %s was not prefetched: %s", choice.sop_instance_uid, safe_text(error))
        return ready

    def _choices(self, study_instance_uid: str) -> list[Choice]:
        """The objects that peers would get of the priors of a study, without repetition."""
        keys = prior_keys(self._index.engine, study_instance_uid, self._images)
        found = (
            choice for policy, draw in self._variants for choice in self._retrieve.choices(keys, policy, draw=draw)
        )
        return list({choice.sop_instance_uid: choice for choice in found}.values())
