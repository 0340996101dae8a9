"""Re-verification: after a change of the model, images whose originals are held get a rendition of the new one.

The base stays; the configured upscaler makes it anew, and what it makes is measured against the original by today's
gate. What passes becomes the image's current rendition, under a derived UID of its own; what does not keeps its pinned
model, and that is remembered. Renditions are only ever added: every derived UID keeps leading to its own pixels.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from node.archive.model_store import ModelStore
from node.archive.serve.derived_object import DerivedParts, prove_object
from node.codec.encode.encode_request import EncodeResult, ReverifyRequest
from node.config import Settings
from node.upscalers.installed import Installed
from node.workers.pool import Priority, WorkerPool
from node.workers.worker import Answer, ModelRequest, Request
from storage.errors import LatentPacsError, ModelMissing, NotReconstructable, ObjectMissing, WorkerDied
from storage.index import Index
from storage.index.lease import new_owner
from storage.index.reverifications import (
    ReverificationAttempt,
    ReverificationOutcome,
    Reverifications,
    ReverificationTerms,
)
from storage.objects.store import ObjectStore
from storage.records import NewRendition, Tier

LOGGER = logging.getLogger(__name__)

_LISTED = 200
"""Images listed in a report one by one; all are counted."""
_LOOK = 0.2

Progress = Callable[[int, int], None]
Originals = Callable[[str], AbstractContextManager[Path]]
"""Lends the file of an original by its digest; raises ObjectMissing where it is not held."""


class Cancelled(CancelledError):
    """The run is to end; the image at hand goes back untried."""


@dataclass(frozen=True)
class Reverification:
    """The work of the job ``reverify``. ``pool`` lends the workers; ``busy``: whether the archivist has work here."""

    index: Index
    store: ObjectStore
    settings: Settings
    pool: Callable[[], AbstractContextManager[WorkerPool]]
    originals: Originals
    busy: Callable[[], bool] = lambda: False
    regions: Callable[[int], tuple[tuple[int, int, int, int], ...]] = lambda _: ()

    def run(self, progress: Progress, cancelled: Callable[[], bool]) -> dict[str, Any]:
        """Try every image that is due; the report. Raises ModelMissing where the configured model is not installed."""
        with self.pool() as pool:
            return _Run(self, pool, progress, cancelled).through()


class _Run:
    """One run: its terms, and what came of each image."""

    def __init__(
        self, work: Reverification, pool: WorkerPool, progress: Progress, cancelled: Callable[[], bool]
    ) -> None:
        self._work, self._pool, self._progress, self._cancelled = work, pool, progress, cancelled
        self._rows, self._shelf = Reverifications(work.index.engine), ModelStore(work.index, work.store)
        self._owner = new_owner()
        self._most, self._lease = work.settings.archivist.attempts, work.settings.archivist.lease
        self._model, self._finished = "", False
        self._counts: Counter[str] = Counter()
        self._listed: dict[str, list[dict[str, str]]] = {
            ReverificationOutcome.KEPT: [],
            ReverificationOutcome.UNTRIED: [],
        }

    def through(self) -> dict[str, Any]:
        try:
            self._keep_older_models()
            self._try_all()
            self._finished = True
        except Cancelled:
            LOGGER.info("re-verification ends early")
        return {
            "model": self._model,
            "finished": self._finished,
            "tried": self._counts.total(),
            **{outcome.value: self._counts[outcome] for outcome in ReverificationOutcome},
            **{f"{name}_list": [*entries] for name, entries in self._listed.items()},
        }

    def _try_all(self) -> None:
        model = self._ask(ModelRequest())
        assert isinstance(model, Installed)
        terms = _terms(model, self._work.settings)
        self._model = terms.model
        total, last = self._rows.count(terms, self._most), 0
        self._progress(0, total)
        while attempt := self._next(terms, last):
            last = attempt.instance_key
            self._try(attempt)
            done = self._counts.total()
            self._progress(done, max(total, done))

    def _next(self, terms: ReverificationTerms, last: int) -> ReverificationAttempt | None:
        """The next image, once the archivist has nothing to do."""
        while self._work.busy():
            self._end_where_cancelled()
            time.sleep(_LOOK)
        self._end_where_cancelled()
        return self._rows.claim(terms, self._owner, self._lease, after=last, most=self._most)

    def _try(self, attempt: ReverificationAttempt) -> None:
        try:
            outcome, reason = self._outcome(attempt)
        except Cancelled:
            self._rows.release(attempt, forgive=True)
            raise
        except ObjectMissing as error:  # an original may come back from its store: nothing is remembered
            self._rows.release(attempt, forgive=True)
            outcome, reason = ReverificationOutcome.UNTRIED, str(error)
        except Exception as error:  # one bad image must not stop the others
            known = isinstance(error, LatentPacsError)
            LOGGER.error("re-verifying %s: %s", attempt.sop_instance_uid, error, exc_info=not known)
            outcome, reason = ReverificationOutcome.UNTRIED, f"{type(error).__name__}: {error}"
            if attempt.attempts >= self._most:
                self._rows.settle(attempt, outcome, reason)
            else:
                self._rows.release(attempt)
        self._counts[outcome] += 1
        entries = self._listed.get(outcome)
        if entries is not None and len(entries) < _LISTED:
            entries.append({"sop_instance_uid": attempt.sop_instance_uid, "reason": reason})

    def _outcome(self, attempt: ReverificationAttempt) -> tuple[ReverificationOutcome, str]:
        work, settings = self._work, self._work.settings
        with work.originals(attempt.original_digest) as original:
            request = ReverifyRequest(
                original=original,
                original_digest=attempt.original_digest,
                original_uid=attempt.sop_instance_uid,
                base=work.store.held(attempt.current.base_digest),
                thresholds=settings.thresholds if settings.codec.gated else None,
                patch_share=settings.gate.patches.share,
                regions=work.regions(attempt.instance_key),
            )
            result = self._ask(request, attempt)
        assert isinstance(result, EncodeResult)
        if result.made is None or result.model is None:
            reason = "; ".join(result.tried[-1].failures)
            self._rows.settle(attempt, ReverificationOutcome.KEPT, reason)
            return ReverificationOutcome.KEPT, reason
        self._shelf.keep(result.model)
        new = self._new(attempt, result)
        try:
            self._prove(attempt, new)
        except NotReconstructable as error:
            work.index.originals.mark_garbage(new.rendition_digest, Tier.HOT)
            self._rows.settle(attempt, ReverificationOutcome.KEPT, str(error))
            return ReverificationOutcome.KEPT, str(error)
        outcome, reason = self._rows.adopt(attempt, new)
        if outcome is not ReverificationOutcome.PASSED:  # nothing came to need it
            work.index.originals.mark_garbage(new.rendition_digest, Tier.HOT)
        return outcome, reason

    def _new(self, attempt: ReverificationAttempt, result: EncodeResult) -> NewRendition:
        made, model = result.made, result.model
        assert made is not None
        assert model is not None
        return NewRendition(
            derived_uid=made.derived_uid,
            structure_uid=made.structure_uid,
            base_digest=attempt.current.base_digest,
            base_bytes=attempt.current.base_bytes,
            rendition_digest=self._work.store.put(result.rendition),
            rendition_bytes=len(result.rendition),
            point=attempt.current.point,
            upscaler=made.upscaler,
            weights_digest=made.weights_digest,
            output_digest=made.output_digest,
            structure_digest=made.structure_digest,
            verdict=made.verdict,
            tried=result.tried,
            seconds=sum(one.seconds for one in result.tried),
            recipe=model.recipe,
        )

    def _prove(self, attempt: ReverificationAttempt, new: NewRendition) -> None:
        """The whole object of the new rendition can be made and sent. Raises NotReconstructable."""
        work = self._work
        image = work.index.by_key(attempt.instance_key)
        parts = DerivedParts(
            work.store.held(new.base_digest),
            work.store.held(new.rendition_digest),
            new.base_bytes + new.rendition_bytes,
            datetime.now(UTC),
            self._shelf.folder(new.upscaler, new.weights_digest),
            image.amended if image else (),
        )
        prove_object(parts, work.store.spool, lambda request: self._ask(request, attempt))

    def _ask(self, request: Request, attempt: ReverificationAttempt | None = None) -> Answer:
        """The worker's answer, the lease renewed meanwhile."""
        future: Future[Answer] = self._pool.submit(request, Priority.REVERIFY)
        renewal = time.monotonic() + self._lease / 3
        while True:
            try:
                return future.result(timeout=_LOOK)
            except TimeoutError:
                if future.done():
                    raise
            except WorkerDied:
                self._end_where_cancelled()  # the node stops, and its workers with it
                raise
            if self._cancelled():
                future.cancel()
                raise Cancelled
            if attempt is not None and time.monotonic() > renewal:
                self._rows.renew(attempt, self._lease)
                renewal = time.monotonic() + self._lease / 3

    def _keep_older_models(self) -> None:
        """Models that renditions were made with before the archive kept models, as far as they are installed."""
        for use in self._work.index.models():
            if use.upscaler != "mammo" or self._shelf.keeps(use.upscaler, use.weights_digest):
                continue
            try:
                model = self._ask(ModelRequest(use.upscaler, use.weights_digest))
            except ModelMissing as error:
                LOGGER.warning("%s", error)
                continue
            assert isinstance(model, Installed)
            self._shelf.keep(model)

    def _end_where_cancelled(self) -> None:
        if self._cancelled():
            raise Cancelled


def _terms(model: Installed, settings: Settings) -> ReverificationTerms:
    gate: Any = None
    if settings.codec.gated:
        gate = [asdict(settings.thresholds), settings.gate.patches.share]
    said = json.dumps([model.upscaler, model.weights_digest, model.recipe, gate], sort_keys=True)
    digest = hashlib.sha256(said.encode()).hexdigest()
    return ReverificationTerms(model.upscaler, model.weights_digest, model.recipe, settings.codec.gated, digest)
