"""Does everything that peers and operators do to one study at once, in rounds; part of benchmarks.load."""

from __future__ import annotations

import functools
import random
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.ledger import Ledger
from benchmarks.traffic import LARGE, SMALL, STUDIES, Traffic
from node.app import make_scrub, open_archive
from node.app.building import Services
from node.config import load
from node.jobs.runner import Runner
from node.jobs.scrub_job import Extent
from storage.dicom.header_amendments import AmendmentKind, changes_of
from storage.errors import LatentPacsError
from storage.index import Index
from storage.index.job_runs import Cause, JobRows
from storage.records import InstanceState

WHO = "user:load"
KEPT_FILES = 40
"""Deleted images whose files are kept, so that they can be sent again."""


class Contests:
    """Rounds of work on the oldest study with a verified image, or else on the oldest one.

    Commands call the functions of ``latent-pacs``, each on an archive that it opens.
    """

    def __init__(self, config: Path, traffic: Traffic, index: Index, ledger: Ledger) -> None:
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        """Errors of commands other than LatentPacsError, and damage that a scrub reported."""
        self._settings = load(config)
        self._traffic, self._index, self._ledger = traffic, index, ledger
        self._deleted_files: list[str] = []
        self._amended: str = ""

    def round(self, chance: random.Random) -> None:
        """Store, retrieve, find, purge, amend, scrub and usually delete one study at once, then check the results."""
        studies = self._ledger.studies()
        if len(studies) < 2:
            time.sleep(1)
            return
        study = next((one for one in studies if self._is_encoded(one)), studies[0])
        again = self._ledger.held(study)[:2]
        added = self._traffic.new(chance, chance.choice((SMALL, LARGE)), study)
        deletes = len(studies) > 2 * STUDIES or (
            (study != studies[0] or self._is_encoded(study)) and chance.random() < 0.75
        )
        tasks: list[Callable[[], object]] = [
            lambda: self._traffic.send([added, *again]),
            lambda: self._traffic.get(study),
            lambda: self._traffic.move(study),
            lambda: self._traffic.find(study),
            lambda: self._command("amend", lambda services: self._amend(services, study)),
            lambda: self._command("purge", self._purge),
            lambda: self._command("scrub", self._scrub),
            *([lambda: self._command("delete", lambda services: self._delete(services, study))] if deletes else []),
        ]
        chance.shuffle(tasks)
        pauses = [chance.uniform(0, 1.0) for _ in tasks]
        self._amended = ""
        with ThreadPoolExecutor(len(tasks)) as together:
            for done in [together.submit(_later, *each) for each in zip(pauses, tasks, strict=True)]:
                done.result()
        self._check(study, chance)
        time.sleep(chance.uniform(2, 8))

    def undo_all(self) -> None:
        """Undo every amendment that is in force."""
        self._command("undo", self._undo)

    def _is_encoded(self, study: str) -> bool:
        """Whether an image of a study is VERIFIED, so that its original can be purged."""
        states = self._index.states([one.uid for one in self._ledger.held(study)])
        return InstanceState.VERIFIED in states.values()

    # --- commands ---

    def _command(self, name: str, work: Callable[[Services], None]) -> None:
        """Run the work of a command. Refusals are counted; any other error is a fault."""
        try:
            with open_archive(self._settings) as services:
                work(services)
            self.counts[name] += 1
        except LatentPacsError as error:
            self._ledger.refuse(f"{name} {type(error).__name__}")
        except Exception as error:  # noqa: BLE001 - the load is there to find such errors of commands
            self.faults.append(f"{name}: {type(error).__name__}: {error}")

    def _amend(self, services: Services, study: str) -> None:
        self._ledger.amends(study)
        number = f"L{time.monotonic_ns() % 10**12}"
        changes = changes_of({"AccessionNumber": number})
        services.index.amendments.make(AmendmentKind.STUDY, study, changes, reason="load", who=WHO)
        self._amended = number

    def _undo(self, services: Services) -> None:
        for one in services.index.amendments.all():
            if not one.undone and one.undoes is None:
                services.index.amendments.undo(one.number, reason="load", who=WHO)
        self._ledger.undone()

    def _purge(self, services: Services) -> None:
        done = services.retention.purge(who=WHO)
        self.counts["purged originals"] += len(done.purged)
        for one in done.kept:
            self._ledger.refuse(f"purge kept: {one.kept_because.partition(':')[0]}")

    def _scrub(self, services: Services) -> None:
        job = make_scrub(services, extent=Extent.FULL, remove_orphans=True)
        rows = JobRows(services.index.engine)
        rows.ensure([job.name])
        done = Runner(rows, self._settings.jobs.lease).run(job, Cause.COMMAND)
        if done is None or done.error or not done.report.get("finished"):
            self.faults.append(f"scrub: {done.error if done else 'not begun'}, not finished")
        elif done.report["damaged"] or done.report["index_damage"]:
            found = done.report["findings"] or done.report["index_damage"]
            self.faults.append(f"scrub: reports damage although nothing is damaged: {found}")

    def _delete(self, services: Services, study: str) -> None:
        self._ledger.deletes(study)
        uids: set[str] = set()
        try:
            uids = {
                one.sop_instance_uid for one in services.deletion.delete("study", study, reason="load", who=WHO).images
            }
        finally:
            self._ledger.deleted(study, uids)
        self._deleted_files += sorted(uids)
        self.counts["deleted images"] += len(uids)
        for uid in uids:
            if self._index.by_uid(uid) is not None:
                self._ledger.note(f"{uid}: still in the index after its deletion was reported")

    # --- checks ---

    def _check(self, study: str, chance: random.Random) -> None:
        """Check that the study is found and retrieved as the reports say, and that a deleted image is refused."""
        self._traffic.find(study)
        self._traffic.get(study)
        found = self._traffic.accession(study)
        if self._amended and found - {self._amended}:
            self._ledger.note(f"{study}: amended to {self._amended}, and found with {found}")
        files, kept = self._deleted_files[:-KEPT_FILES], self._deleted_files[-KEPT_FILES:]
        for uid in files:
            self._ledger.images[uid].path.unlink(missing_ok=True)
        self._deleted_files = kept
        if kept:
            self._traffic.send([self._ledger.images[chance.choice(kept)]])
        self._command("reject", self._reject)
        single = [one for one in self._ledger.studies() if len(self._ledger.held(one)) == 1]
        for surplus in single[:-STUDIES]:  # the ten senders add one such study after the other
            self._command("delete", functools.partial(self._delete, study=surplus))

    def _reject(self, services: Services) -> None:
        """Empty the quarantine."""
        for one in services.index.quarantine.all():
            services.quarantine.reject(one.digest, reason="load", who=WHO)


def _later(seconds: float, task: Callable[[], object]) -> None:
    time.sleep(seconds)
    task()
