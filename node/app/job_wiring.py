"""Which jobs there are, and what each works with."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from node.archive.encode.fidelity_check import FidelityCheck
from node.archive.encode.reverification import Reverification
from node.archive.orphan_recovery import OrphanRecovery
from node.archive.rendered_cache import RenderedCache
from node.archive.serve.retrieve import Retrieve
from node.config import Settings, parse_when
from node.dimse.associations.outgoing import Outgoing
from node.dimse.server import calling_only
from node.jobs.audit_job import Audit, AuditPlan
from node.jobs.job import FunctionJob
from node.jobs.schedule import Planned
from node.jobs.scrub_job import Scrub, ScrubPlan
from node.jobs.scrub_repair import ScrubRepair
from node.validation.study import Validation
from node.workers.pool import WorkerPool
from storage.index import Index
from storage.index.index_trust import IndexStanding
from storage.index.integrity import Integrity
from storage.index.job_runs import JobRows
from storage.objects.store import ObjectStore

if TYPE_CHECKING:
    pass
from node.app.backing_up import make_replication
from node.app.replicating import make_peer_replication
from node.app.services import Services, examine_in, open_stores


def plan_jobs(
    settings: Settings,
    archive: Services,
    pool: Callable[[], AbstractContextManager[WorkerPool]] | None = None,
    busy: Callable[[], bool] = lambda: False,
    retrieve: Callable[[], AbstractContextManager[Retrieve]] | None = None,
    outgoing: Callable[[], Outgoing] | None = None,
) -> list[Planned]:
    """Every job there is, with its times from config.yaml.

    ``pool`` lends a node's workers, ``busy`` says whether its archivist has work, ``retrieve`` lends its retrievals,
    and ``outgoing`` its associations; a command has its own.

    A new one is a section of JobsSettings in node/config/sections.py, the same in config.yaml, and a line here; a
    function becomes a job by FunctionJob (node/jobs/job.py).
    """
    jobs, index, store, retention = settings.jobs, archive.index, archive.store, archive.retention

    def purge(progress: Callable[[int, int], None], cancelled: Callable[[], bool]) -> dict[str, Any]:
        report = retention.purge(dry_run=False, progress=progress, cancelled=cancelled, who="job:purge")
        freed = {"purged": len(report.purged), "bytes_freed": report.bytes_freed}
        return {**freed, "kept": len(report.kept), "reserved": report.reserved}

    return [
        Planned(
            FunctionJob("purge", "remove originals older than originals.keep whose reconstruction is proved", purge),
            jobs.purge.when,
            jobs.purge.schedule,
        ),
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
                    archive.originals.borrowed,
                    busy,
                    archive.named.on_rendition,
                ).run,
            ),
            jobs.reverify.when,
            jobs.reverify.schedule,
        ),
        Planned(make_replication(settings, index, store), jobs.replicate.when, jobs.replicate.schedule),
        Planned(
            send_to_peer(settings, archive, retrieve, outgoing), jobs.replicate_peer.when, jobs.replicate_peer.schedule
        ),
        Planned(make_audit(settings, archive, pool), jobs.audit.when, jobs.audit.schedule),
        Planned(make_validation(settings, archive, retrieve), jobs.validation.when, jobs.validation.schedule),
    ]


def send_to_peer(
    settings: Settings,
    archive: Services,
    retrieve: Callable[[], AbstractContextManager[Retrieve]] | None = None,
    outgoing: Callable[[], Outgoing] | None = None,
    to: str = "",
) -> FunctionJob:
    """Replication to a peer; ``retrieve``, ``outgoing``: as for ``plan_jobs``; ``to``: in place of the job's peer."""
    return make_peer_replication(
        settings,
        archive.index,
        archive.trail,
        retrieve or _own_retrieve(settings, archive),
        outgoing or (lambda: calling_only(settings, archive.store.spool)),
        to,
    )


def make_audit(
    settings: Settings,
    archive: Services,
    pool: Callable[[], AbstractContextManager[WorkerPool]] | None = None,
    plan: AuditPlan | None = None,
) -> Audit:
    """The fidelity audit; ``plan``: other than config.yaml has it."""
    lent, index, store = pool or _own_pool(settings), archive.index, archive.store

    @contextmanager
    def checks(cancelled: Callable[[], bool]) -> Iterator[FidelityCheck]:
        with lent() as workers:
            tolerance = settings.audit.tolerance
            yield FidelityCheck(
                index, store, archive.originals, archive.trail, tolerance, settings.thresholds, workers, cancelled
            )

    return Audit(index, settings, archive.reports, checks, plan or AuditPlan(settings.audit.sample))


def make_validation(
    settings: Settings, archive: Services, retrieve: Callable[[], AbstractContextManager[Retrieve]] | None = None
) -> FunctionJob:
    """The validation with ResNet50; ``retrieve`` lends a node's retrievals, otherwise it has its own."""
    validation = Validation(
        archive.index,
        archive.store,
        archive.trail,
        archive.reports,
        settings.jobs.validation,
        settings.reconstruct.threads,
        retrieve or _own_retrieve(settings, archive),
    )
    summary = "trains a classifier on labelled originals and on what the archive gives back, and compares them"
    return FunctionJob("validation", summary, validation.run)


def make_scrub(settings: Settings, index: Index, store: ObjectStore, **plan: Any) -> Scrub:
    """The integrity scrub; ``plan`` overrides what config.yaml says of it (fields of ScrubPlan)."""
    scrub, upkeep = settings.jobs.scrub, Integrity(index.engine)
    stores = {str(tier): each for tier, each in open_stores(settings, index, store).items()}
    timed = ScrubPlan(period=scrub.period, gap=parse_when(scrub.when).gap, orphan_grace=scrub.orphan_grace)
    timed = replace(timed, keep_orphans=scrub.keep_orphans)
    mending = ScrubRepair(index, upkeep, stores, settings.jobs.replicate.to)
    standing = IndexStanding(index, settings.storage.root)

    def can_recover(tier: str, digest: str) -> bool:
        with _own_pool(settings)() as pool:
            return OrphanRecovery(index, open_stores(settings, index, store), examine_in(pool)).can_recover(
                tier, digest
            )

    return Scrub(JobRows(index.engine), upkeep, stores, mending, replace(timed, **plan), standing, can_recover)


def _own_pool(settings: Settings) -> Callable[[], AbstractContextManager[WorkerPool]]:
    @contextmanager
    def opened() -> Iterator[WorkerPool]:
        pool = WorkerPool(settings.reconstruct, name="reverify", within=settings.limits.encoders)
        try:
            yield pool
        finally:
            pool.close()

    return opened


def _own_retrieve(settings: Settings, archive: Services) -> Callable[[], AbstractContextManager[Retrieve]]:
    @contextmanager
    def opened() -> Iterator[Retrieve]:
        with tempfile.TemporaryDirectory(dir=archive.store.spool) as folder, ExitStack() as stack:
            within, made = settings.limits, settings.reconstruct
            pool = WorkerPool(made, name="reconstruct", within=within.encoders)
            decoders = WorkerPool(made, name="decode", within=within.decoders)
            stack.callback(pool.close)
            stack.callback(decoders.close)
            cache = RenderedCache(Path(folder), 0)
            retrieve = Retrieve(archive.index, archive.store, pool, decoders, cache, archive.originals)
            stack.callback(retrieve.close)
            yield retrieve

    return opened
