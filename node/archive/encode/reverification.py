"""Re-verification: after a change of the model, images whose originals are held get a rendition by the new model.

The base stays. The configured upscaler is applied to it, and the result is measured against the original by today's
gate. If it passes, it becomes the image's current rendition under a derived UID of its own; otherwise the image keeps
its rendition, and that is recorded. Renditions are only ever added: every derived UID keeps leading to its pixels.

After a change of the numerics, such as another processor or library version, each rendition is first made again by its
own model. If the pixels differ, the rendition by the configured model is measured against the original. If the original
was purged or cannot be read, the fingerprint of the verified pixels decides (node/codec/fingerprint.py), and the new
pixels get a derived UID of their own.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from node.archive.encode.rendition_writer import RenditionWriter
from node.codec.encode.encode_request import EncodedRendition, EncodeResult, ReverifyRequest
from node.config import Settings
from node.upscalers.protocol import Installed
from node.workers.pool import Priority, WorkerPool
from node.workers.rendering_again import NumericsRequest, RenderAgainRequest
from node.workers.requests import Answer, ModelRequest, Request
from node.workers.waiting import wait_for_result
from storage.errors import (
    Cancelled,
    LatentPacsError,
    ModelMissing,
    NotReconstructable,
    NoWorker,
    ObjectDamaged,
    ObjectMissing,
    OriginalPurged,
    WorkerDied,
    is_of_the_machine,
)
from storage.index import Index
from storage.index.lease import new_owner
from storage.index.reverifications import (
    ReverificationAttempt,
    ReverificationOutcome,
    Reverifications,
    ReverificationTerms,
)
from storage.objects.store import ObjectStore

LOGGER = logging.getLogger(__name__)

_LISTED = 200
"""Most images that a report lists one by one; all are counted."""
_POLL = 0.2
"""Seconds between two checks of whether the archivist is busy."""

Progress = Callable[[int, int], None]
Work = Callable[[ReverificationAttempt], tuple[ReverificationOutcome, str]]
Originals = Callable[[str], AbstractContextManager[Path]]
"""Lends the file of an original by its digest, as ``OriginalAccess.borrowed`` does."""


@dataclass(frozen=True)
class Reverification:
    """The job ``reverify``. ``busy``: whether the archivist has work; ``regions``: the marked regions of an instance
    key, each (row, column, height, width) in pixels."""

    index: Index
    store: ObjectStore
    settings: Settings
    pool: WorkerPool
    originals: Originals
    busy: Callable[[], bool] = lambda: False
    regions: Callable[[int], tuple[tuple[int, int, int, int], ...]] = lambda _: ()

    def run(self, progress: Progress, cancelled: Callable[[], bool]) -> dict[str, Any]:
        """Try every image that is due, and return the report. Raises ModelMissing if the configured model is not
        installed. If the run is cancelled, the report says so in ``finished``."""
        return _Run(self, progress, cancelled).run()


class _Run:
    """One run: its terms and its counts."""

    def __init__(self, work: Reverification, progress: Progress, cancelled: Callable[[], bool]) -> None:
        self._work, self._pool, self._progress, self._cancelled = work, work.pool, progress, cancelled
        self._rows, self._writer = Reverifications(work.index.engine), RenditionWriter(work.index, work.store)
        self._owner = new_owner()
        self._max_attempts, self._lease = work.settings.archivist.attempts, work.settings.archivist.lease
        self._model, self._finished = "", False
        self._counts: Counter[str] = Counter()
        self._listed: dict[str, list[dict[str, str]]] = {
            ReverificationOutcome.KEPT: [],
            ReverificationOutcome.UNTRIED: [],
        }

    def run(self) -> dict[str, Any]:
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
        model = self._ask(None, ModelRequest())
        numerics = _terms_of_numerics(self._ask(None, NumericsRequest()))
        terms = _terms(model, self._work.settings)
        self._model = terms.model
        due = [self._rows.count(one, self._max_attempts) for one in (numerics, terms)]
        for one, work in ((numerics, self._remade), (terms, self._outcome)):
            last = 0
            self._progress(self._counts.total(), sum(due))
            while attempt := self._next(one, last):
                last = attempt.instance_key
                self._try(attempt, work)
                done = self._counts.total()
                self._progress(done, max(sum(due), done))

    def _next(self, terms: ReverificationTerms, last: int) -> ReverificationAttempt | None:
        """Claim the next image once the archivist has no work; None if no image is due."""
        while self._work.busy():
            self._check_cancelled()
            time.sleep(_POLL)
        self._check_cancelled()
        return self._rows.claim(terms, self._owner, self._lease, after=last, most=self._max_attempts)

    def _try(self, attempt: ReverificationAttempt, work: Work) -> None:
        try:
            outcome, reason = work(attempt)
        except Cancelled:
            self._rows.release(attempt, forgive=True)
            raise
        except OriginalPurged as error:
            outcome, reason = self._kept(attempt, str(error))
        except (ObjectMissing, ModelMissing) as error:  # either may be back later: nothing is recorded
            self._rows.release(attempt, forgive=True)
            outcome, reason = ReverificationOutcome.UNTRIED, str(error)
        except Exception as error:  # one bad image must not stop the others
            known, forgive = isinstance(error, LatentPacsError), is_of_the_machine(error)
            LOGGER.error("re-verifying %s: %s", attempt.sop_instance_uid, error, exc_info=not (known or forgive))
            outcome, reason = ReverificationOutcome.UNTRIED, f"{type(error).__name__}: {error}"
            if attempt.attempts >= self._max_attempts and not forgive:
                self._rows.settle(attempt, outcome, reason)
            else:
                self._rows.release(attempt, forgive=forgive)
        self._counts[outcome] += 1
        entries = self._listed.get(outcome)
        if entries is not None and len(entries) < _LISTED:
            entries.append({"sop_instance_uid": attempt.sop_instance_uid, "reason": reason})

    def _remade(self, attempt: ReverificationAttempt) -> tuple[ReverificationOutcome, str]:
        """The outcome for an image that was verified with other numerics."""
        store, current = self._work.store, attempt.current
        model = self._writer.models.folder(current.upscaler, current.weights_digest)
        files = store.held(current.base_digest), store.held(current.rendition_digest)
        again = self._ask(attempt, RenderAgainRequest(*files, model))
        if again.same:
            self._rows.settle(attempt, ReverificationOutcome.SAME, current.derived_uid)
            return ReverificationOutcome.SAME, ""
        try:
            return self._outcome(attempt)
        except (OriginalPurged, ObjectMissing, ObjectDamaged) as error:  # it cannot be measured
            if again.made is None:
                raise type(error)(f"{again.difference}; {error}") from error
            return self._adopted(attempt, again.made, EncodeResult(current.tried, again.made, current.seconds))

    def _outcome(self, attempt: ReverificationAttempt) -> tuple[ReverificationOutcome, str]:
        """The outcome of the configured model. Raises OriginalPurged, and ObjectMissing if the original's store is not
        mounted."""
        work, settings = self._work, self._work.settings
        gated = settings.codec.gated or attempt.current.verdict.gated  # VERIFIED means that its rendition passed
        with work.originals(attempt.original_digest) as original:
            request = ReverifyRequest(
                original=original,
                original_digest=attempt.original_digest,
                original_uid=attempt.sop_instance_uid,
                base=work.store.held(attempt.current.base_digest),
                thresholds=settings.thresholds if gated else None,
                patch_share=settings.gate.patches.share,
                regions=work.regions(attempt.instance_key),
            )
            result = self._ask(attempt, request)
        if result.made is None:
            return self._kept(attempt, "; ".join(result.tried[-1].failures))
        return self._adopted(attempt, result.made, result)

    def _kept(self, attempt: ReverificationAttempt, reason: str) -> tuple[ReverificationOutcome, str]:
        """The image keeps its rendition, and is not tried again under these terms."""
        self._rows.settle(attempt, ReverificationOutcome.KEPT, reason)
        return ReverificationOutcome.KEPT, reason

    def _adopted(
        self, attempt: ReverificationAttempt, made: EncodedRendition, result: EncodeResult
    ) -> tuple[ReverificationOutcome, str]:
        """The outcome of a rendition that passed: it is stored, proved, and becomes the image's current one."""
        new = self._writer.store(replace(made, point=attempt.current.point), result, new_base=False)
        try:
            self._writer.prove(attempt.instance_key, new, lambda request: self._ask(attempt, request))
        except NotReconstructable as error:
            self._writer.discard(new.rendition_digest)
            return self._kept(attempt, str(error))
        outcome, reason = self._rows.adopt(attempt, new, present=self._work.store.has)
        self._writer.discard(new.rendition_digest)  # unlinked if the image had a rendition with these pixels already
        return outcome, reason

    def _ask(self, attempt: ReverificationAttempt | None, request: Request[Answer]) -> Answer:
        """A worker's answer; the lease of an attempt is renewed meanwhile. Raises Cancelled."""
        renew = partial(self._rows.renew, attempt, self._lease) if attempt is not None else None
        try:
            future = self._pool.submit(request, Priority.REVERIFY)
            return wait_for_result(future, self._cancelled, renew=renew, every=self._lease / 3)
        except (WorkerDied, NoWorker):
            self._check_cancelled()  # the node stops, and its workers with it
            raise

    def _keep_older_models(self) -> None:
        """Store installed models that renditions need and the index lacks, as after a rebuild without its journal."""
        for use in self._writer.models.missing():
            try:
                model = self._ask(None, ModelRequest(use.upscaler, use.weights_digest))
            except ModelMissing as error:
                LOGGER.warning("%s", error)
                continue
            self._writer.models.keep(model)

    def _check_cancelled(self) -> None:
        if self._cancelled():
            raise Cancelled


def _terms_of_numerics(numerics: tuple[str, ...]) -> ReverificationTerms:
    digest = hashlib.sha256("".join(sorted(numerics)).encode()).hexdigest()
    return ReverificationTerms("", "", "", True, digest, numerics)


def _terms(model: Installed, settings: Settings) -> ReverificationTerms:
    gate: Any = None
    if settings.codec.gated:
        gate = [asdict(settings.thresholds), settings.gate.patches.share]
    text = json.dumps([model.upscaler, model.weights_digest, model.recipe, gate], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return ReverificationTerms(model.upscaler, model.weights_digest, model.recipe, settings.codec.gated, digest)
