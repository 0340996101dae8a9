"""Prior prefetch: when a study arrives, the patient's earlier images are made ready in the cache.

Those are reconstructions, which are rendered, and packed originals, which are unpacked, as peers would get them.

A convenience, so everything else goes first: an image is begun only while no worker has anything to do, and what
cannot be prepared in time is made on request as ever.
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
from storage.index.prior_images import prior_keys

LOGGER = logging.getLogger(__name__)

_STUDIES = 100
"""Studies whose priors may wait; those of further ones are left out."""
_LOOK = 0.2
"""Seconds between two looks at whether the workers are idle."""


class Prefetch:
    """``images``: how many are made ready per study that arrives. ``wanted``: rendition, and whether noise is drawn,
    for each of the peers that retrieve.

    ``busy`` says whether there is other work. ``run`` is meant for a thread of its own.
    """

    def __init__(
        self,
        index: Index,
        retrieve: Retrieve,
        wanted: frozenset[tuple[RenditionPolicy, bool]],
        images: int,
        busy: Callable[[], bool],
    ) -> None:
        self._index, self._retrieve, self._busy = index, retrieve, busy
        self._images = images
        self._wanted = set(wanted)
        self._studies: queue.Queue[str] = queue.Queue(_STUDIES)
        self._known: deque[str] = deque(maxlen=_STUDIES)
        self._lock = threading.Lock()
        self._stopping = threading.Event()

    @property
    def enabled(self) -> bool:
        """False where config.yaml asks for none, or no peer would get them."""
        return bool(self._images and self._wanted)

    def study_received(self, study_instance_uid: str) -> None:
        """An image of a study has come in; its priors are seen to once, at its first image."""
        with self._lock:
            if not self.enabled or study_instance_uid in self._known or self._studies.full():
                return
            self._known.append(study_instance_uid)
            self._studies.put(study_instance_uid)

    def stop(self) -> None:
        """Begin no further image."""
        self._stopping.set()

    def run(self) -> None:
        """Until stopped."""
        while not self._stopping.is_set():
            try:
                self.prepare(self._studies.get(timeout=_LOOK))
            except queue.Empty:
                continue
            except Exception:
                LOGGER.exception("priors could not be prepared")

    def prepare(self, study_instance_uid: str) -> int:
        """Make the priors of a study ready, one by one while nothing else is to be done; how many had to be and are."""
        ready = 0
        for choice in self._choices(study_instance_uid):
            while self._busy() and not self._stopping.is_set():
                self._stopping.wait(_LOOK)
            if self._stopping.is_set():
                break
            try:
                ready += self._retrieve.make_ahead(choice)
            except Exception as error:  # noqa: BLE001 - the next one may work
                LOGGER.warning("prior %s not made ready ahead: %s", choice.sop_instance_uid, safe_text(error))
        return ready

    def _choices(self, study_instance_uid: str) -> list[Choice]:
        """What some peer would get of them."""
        keys = prior_keys(self._index.engine, study_instance_uid, self._images)
        found = (
            choice
            for policy, draw in sorted(self._wanted)
            for choice in self._retrieve.choices(keys, policy, draw=draw)
        )
        return list({choice.sop_instance_uid: choice for choice in found}.values())
