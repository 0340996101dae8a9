"""Runs the validation: the paper's ResNet50 experiment on the archive's own images and retrieval path.

There are three arms. Every labelled image with a reconstruction is retrieved as for an ``original`` peer and as for a
``reconstructed`` one, and the base of its payload is decoded. In each fold of a cross-validation by patient, a head is
tuned and trained on each arm, and scores that arm's images of the held-out patients. The head trained on sources also
scores decompressed images. The scores of all folds are compared together.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from node.archive.serve.retrieve import Choice, Retrieve, Sendable, discard
from node.config import ReconstructSettings, ValidationSettings
from node.reports.runs import Reports, RunOutcome
from node.validation.findings import SETTINGS, Excluded, find
from node.validation.measurement_cache import FeatureCache
from node.validation.splits import grouped_folds
from node.validation.statistics import Equivalence
from node.validation.terms import Arm, Files, Subject
from node.validation.validation_page import Worst, page
from node.validation.validation_worker import (
    Bool,
    Result,
    ValidationCall,
    backbone_digest,
    measure_image,
    show_tile,
    train_and_score,
)
from node.workers.pool import Priority, WorkerPool
from storage.errors import Cancelled, LatentPacsError, RenditionMismatch
from storage.index import Index
from storage.objects.store import ObjectStore
from storage.optional_packages import require_extra
from storage.records import ClassLabel, StoredInstance

Progress = Callable[[int, int], None]
Scores = NDArray[np.float64]
SEED = 0
_WORST = 3
"""Number of images whose worst tile the report shows."""


class NothingToValidate(LatentPacsError):
    """No labelled image is usable, or the positive class is ambiguous."""


@dataclass(frozen=True)
class Validation:
    """The work of the job ``validation``. ``threads``: number of threads of torch; 0 means one per core."""

    index: Index
    store: ObjectStore
    reports: Reports
    settings: ValidationSettings
    threads: int
    retrieve: Retrieve

    def run(self, progress: Progress, cancelled: Callable[[], bool]) -> dict[str, Any]:
        """Validate, publish the report and release the originals held for it; return the report's summary.

        ``finished`` is false in the result if the job was cancelled; nothing is published then. Raises
        NothingToValidate, TooFewCases, ModelMissing, ExtraMissing or WorkerDied.
        """
        require_extra("validation", "the job validation")
        try:
            with closing(WorkerPool(ReconstructSettings(threads=self.threads), name="validation")) as pool:
                return _ValidationRun(self, pool, progress, cancelled).run()
        except Cancelled:
            return {"finished": False}


@dataclass
class _ValidationRun:
    """One run. ``excluded``: images that are left out, by class and reason. ``done``, ``total``: progress in steps."""

    work: Validation
    pool: WorkerPool
    progress: Progress
    cancelled: Callable[[], bool]
    excluded: Excluded = field(default_factory=Counter)
    done: int = 0
    total: int = 0

    def run(self) -> dict[str, Any]:
        started, clock = datetime.now(UTC), time.monotonic()
        work, settings = self.work, self.work.settings
        subjects = self._subjects()
        positive = positive_class([one.class_name for one in subjects], settings.positive)
        grouped_folds(*_truth(subjects, positive), settings.folds, SEED)  # raises TooFewCases before the long work
        self.total = len(subjects) + settings.folds * len(Arm)
        backbone = self._call(backbone_digest, settings.weights)
        cache = FeatureCache(work.store.root / "features")
        subjects = self._measured(subjects, cache, backbone)
        if not subjects:
            reasons = "; ".join(dict.fromkeys(why for (_, why), _ in self.excluded.most_common(3)))
            raise NothingToValidate(f"no labelled image can be measured: {reasons}")
        truth, patients = _truth(subjects, positive)
        scores, recipes = self._scores(subjects, truth, patients)
        found = find(subjects, scores, truth, settings, positive=positive, excluded=self.excluded)
        worst = self._worst(subjects)
        finished = datetime.now(UTC)
        summary = {**found.summary(), "backbone": backbone, "seconds": round(time.monotonic() - clock, 1)}
        html = page(found, worst, settings, backbone, finished)
        alarm = found.verdict is Equivalence.DIFFERENT
        details = {**found.details(), "recipes": recipes}
        outcome = RunOutcome("validation", started, finished, found.sentence, alarm, summary, details)
        report = work.reports.publish(outcome, html)
        why = f"used by validation report {report.key}"
        work.index.classes.release([one.uid for one in subjects], who="job:validation", why=why)
        cache.drop_unused()
        return {"finished": True, "report": report.key, "sentence": found.sentence, **summary}

    def _subjects(self) -> list[Subject]:
        """The labelled images with a reconstruction and an original; the others are counted as left out."""
        found = []
        for label in self.work.index.classes.all():
            subject = _subject(label, self.work.index.by_uid(label.sop_instance_uid))
            if isinstance(subject, Subject):
                found.append(subject)
            else:
                self.excluded[label.class_name, subject] += 1
        return found

    def _measured(self, subjects: list[Subject], cache: FeatureCache, backbone: str) -> list[Subject]:
        """Measure every arm that the cache lacks. Returns the subjects with all arms; the others count as left out."""
        keys = {one.uid: {arm: cache.key(backbone, arm, *_identity(one, arm)) for arm in Arm} for one in subjects}
        for one in subjects:
            held = {arm: cache.get(key) for arm, key in keys[one.uid].items()}
            one.arms.update({arm: measured for arm, measured in held.items() if measured is not None})
        lacking = [one for one in subjects if len(one.arms) < len(Arm)]
        self._step(len(subjects) - len(lacking))
        choices = [choice for one in lacking for choice in _choices(one)]
        with closing(self.work.retrieve.prepare(choices)) as prepared:
            for one in lacking:
                (_, original), (_, reconstructed) = next(prepared), next(prepared)
                arms = [arm for arm in Arm if arm not in one.arms]
                try:
                    made = self._with_files(
                        one, original, reconstructed, measure_image, arms, self.work.settings.weights
                    )
                except LatentPacsError as error:
                    self.excluded[one.class_name, f"{type(error).__name__}: {error}"] += 1
                else:
                    one.arms.update(made)
                    for arm in arms:
                        cache.put(keys[one.uid][arm], made[arm])
                self._step()
        return [one for one in subjects if len(one.arms) == len(Arm)]

    def _with_files(
        self,
        subject: Subject,
        original: Future[Sendable],
        reconstructed: Future[Sendable],
        work: Callable[..., Any],
        *arguments: Any,
    ) -> Any:
        """Run ``work`` in the worker on the retrieved files of an image. Raises LatentPacsError."""
        try:
            one, other = original.result(), reconstructed.result()
            if other.sop_instance_uid != subject.rendition.derived_uid:
                raise RenditionMismatch("the reconstruction differs from the verified one")
            base = self.work.store.held(subject.rendition.base_digest)
            return self._call(work, Files(one.path, other.path, base), *arguments)
        finally:
            discard(original)
            discard(reconstructed)

    def _scores(self, subjects: list[Subject], truth: Bool, patients: list[str]) -> tuple[Scores, list[dict[str, Any]]]:
        """Scores of every image by each of SETTINGS, float64 (settings, n), and the chosen recipe per fold and arm."""
        settings = self.work.settings
        features = {arm: np.stack([one.arms[arm].features for one in subjects]) for arm in Arm}
        folds = grouped_folds(truth, patients, settings.folds, SEED)
        scores, recipes = np.zeros((len(SETTINGS), len(subjects))), []
        for fold in range(settings.folds):
            test, train = folds == fold, folds != fold
            others = [patient for patient, used in zip(patients, train, strict=True) if used]
            for arm in Arm:
                rows = [number for number, (trained_on, _) in enumerate(SETTINGS) if trained_on is arm]
                tests = [features[SETTINGS[row][1]][test] for row in rows]
                task = (features[arm][train], truth[train], others, tests, settings.trials, SEED + fold)
                found, recipe = self._call(train_and_score, *task)
                for row, of_row in zip(rows, found, strict=True):
                    scores[row, test] = of_row
                recipes.append({"fold": fold, "arm": arm.value, **recipe})
                self._step()
        return scores, recipes

    def _worst(self, subjects: list[Subject]) -> list[Worst]:
        """The images with the lowest FSIM in a tile, with pictures of that tile; those that can be retrieved again."""
        with_tiles = [one for one in subjects if len(one.fidelity.tiles)]
        found = []
        for one in sorted(with_tiles, key=lambda each: float(each.fidelity.tiles[:, 2].min()))[:_WORST]:
            tile = int(one.fidelity.tiles[:, 2].argmin())
            corner = (int(one.fidelity.corners[tile, 0]), int(one.fidelity.corners[tile, 1]))
            with closing(self.work.retrieve.prepare(_choices(one))) as prepared, suppress(LatentPacsError):
                (_, original), (_, reconstructed) = prepared
                shown = self._with_files(one, original, reconstructed, show_tile, corner)
                found.append(Worst(one, corner, tuple(one.fidelity.tiles[tile]), shown))
        return found

    def _call(self, work: Callable[..., Result], *arguments: Any) -> Result:
        """Call a function in the worker process. Raises what it raises, WorkerDied or NoWorker."""
        return self.pool.submit(ValidationCall(work, arguments), Priority.ARCHIVIST).result()

    def _step(self, count: int = 1) -> None:
        self.done += count
        self.progress(self.done, self.total)
        if self.cancelled():
            raise Cancelled


def positive_class(names: list[str], wanted: str) -> str:
    """The positive class: ``wanted``, or the rarer of two. Raises NothingToValidate if that does not determine one."""
    counts = Counter(names)
    if not counts:
        raise NothingToValidate(
            "no labelled image has both a reconstruction and an original; give classes to such images with "
            "`latent-pacs class-label import`, before their originals are purged"
        )
    if wanted:
        if wanted not in counts:
            raise NothingToValidate(f"jobs.validation.positive {wanted!r} is none of the classes {sorted(counts)}")
        return wanted
    if len(counts) != 2:
        raise NothingToValidate(
            f"the labelled images have the classes {sorted(counts)}; jobs.validation.positive must name one"
        )
    return min(sorted(counts, reverse=True), key=lambda name: counts[name])


def _subject(label: ClassLabel, instance: StoredInstance | None) -> Subject | str:
    """The image as a subject, or the reason why it is left out."""
    if instance is None:
        return "not in the archive"
    if instance.original_gone:
        return "its original is no longer stored"
    if instance.served_rendition is None:
        return f"{instance.state}, no reconstruction"
    patient = f"patient {instance.patient_id}" if instance.patient_id else instance.study_instance_uid
    return Subject(instance, instance.served_rendition, label.class_name, patient)


def _truth(subjects: list[Subject], positive: str) -> tuple[Bool, list[str]]:
    return np.array([one.class_name == positive for one in subjects]), [one.patient for one in subjects]


def _choices(subject: Subject) -> list[Choice]:
    """The instance as it is sent to peers with rendition ``original`` and ``reconstructed``."""
    return [Choice(subject.instance, None), Choice(subject.instance, subject.rendition)]


def _identity(subject: Subject, arm: Arm) -> tuple[str, ...]:
    """Digests that determine an arm's pixels and display window."""
    made = subject.rendition
    others = {
        Arm.SOURCE: (),
        Arm.DECOMPRESSED: (made.derived_uid, made.output_digest),
        Arm.COMPRESSED: (made.base_digest,),
    }
    return (subject.instance.original_digest, *others[arm])
