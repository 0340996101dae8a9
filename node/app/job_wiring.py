"""Lists the jobs, and builds each with the services that it needs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from node.app.backing_up import make_replication
from node.app.building import Services, examine_in
from node.archive.encode.fidelity_check import FidelityCheck
from node.archive.encode.reverification import Reverification
from node.archive.orphan_recovery import OrphanRecovery
from node.config import Peer, Profile, Settings
from node.dimse.associations.outgoing import Outgoing
from node.dimse.replication import JOB, Replication
from node.dimse.server import calling_only
from node.jobs.audit_job import AUDIT, Audit, AuditPlan
from node.jobs.job import Job
from node.jobs.schedule import Planned
from node.jobs.scrub_job import SCRUB, Scrub, ScrubPlan
from node.jobs.scrub_repair import ScrubRepair
from node.validation.study import Validation
from storage.errors import ConfigError
from storage.index.index_trust import IndexStanding
from storage.index.job_runs import JobRows


def plan_jobs(
    archive: Services, busy: Callable[[], bool] = lambda: False, outgoing: Callable[[], Outgoing] | None = None
) -> list[Planned]:
    """All jobs, with their schedules from config.yaml.

    A node passes ``busy``, which says whether its archivist has work, and its ``outgoing`` associations. Without
    ``outgoing``, the replication to a peer opens associations of its own.
    """
    jobs = archive.settings.jobs
    # us-mqsa refuses every purge, and each night's failure would raise an alert
    purges = jobs.purge.enabled and archive.settings.codec.profile is not Profile.US_MQSA
    return [
        Planned(_purge(archive), jobs.purge.model_copy(update={"enabled": purges})),
        Planned(make_scrub(archive), jobs.scrub),
        Planned(_reverify(archive, busy), jobs.reverify),
        Planned(make_replication(archive), jobs.replicate),
        Planned(send_to_peer(archive, outgoing), jobs.replicate_peer),
        Planned(make_audit(archive), archive.settings.audit),
        Planned(make_validation(archive), jobs.validation),
    ]


def _purge(archive: Services) -> Job:
    def purge(progress: Callable[[int, int], None], cancelled: Callable[[], bool]) -> dict[str, Any]:
        report = archive.retention.purge(dry_run=False, progress=progress, cancelled=cancelled, who="job:purge")
        freed = {"purged": len(report.purged), "bytes_freed": report.bytes_freed}
        return {**freed, "kept": len(report.kept), "reserved": report.reserved}

    summary = "removes originals older than originals.retain_for whose reconstruction is proved"
    return Job("purge", summary, purge)


def _reverify(archive: Services, busy: Callable[[], bool]) -> Job:
    parts = archive.index, archive.store, archive.settings, archive.workers.reconstruct, archive.originals.borrowed
    reverification = Reverification(*parts, busy, archive.marked_regions.on_rendition)
    summary = "verifies held images with a changed model, and adds the renditions that pass the gate"
    return Job("reverify", summary, reverification.run)


def send_to_peer(archive: Services, outgoing: Callable[[], Outgoing] | None = None, to: str = "") -> Job:
    """Replication to a peer. ``to`` replaces ``jobs.replicate_peer.to``; ``outgoing``: as in ``plan_jobs``."""
    settings = archive.settings
    calling = outgoing or (lambda: calling_only(settings, archive.store.spool))

    def work(progress: Callable[[int, int], None], cancelled: Callable[[], bool]) -> dict[str, Any]:
        peer = _replication_peer(settings, to or settings.jobs.replicate_peer.to)
        replication = Replication(archive.index, archive.retrieve, calling(), peer, archive.trail.append)
        return replication.run(progress, cancelled)

    return Job(JOB, "sends the held originals that it lacks to the peer in jobs.replicate_peer.to", work)


def _replication_peer(settings: Settings, title: str) -> Peer:
    if not title:
        raise ConfigError("jobs.replicate_peer.to names no peer; name one there or on the command line")
    peer = settings.peer(title)
    if peer is None or not peer.reachable:
        raise ConfigError(f"{title} is not a peer with host and port; `latent-pacs peer add` adds one")
    return peer


def make_audit(archive: Services, plan: AuditPlan | None = None) -> Job:
    """The fidelity audit. ``plan`` replaces what config.yaml says about the sample."""
    settings = archive.settings
    parts = archive.index, archive.store, archive.originals, settings, archive.workers.reconstruct
    check = partial(FidelityCheck, *parts)
    audit = Audit(archive.index, settings, archive.reports, check, plan or AuditPlan(settings.audit.sample))
    summary = (
        "decodes a random sample of reconstructions again, compares them with what was verified, withdraws failures"
    )
    return Job(AUDIT, summary, audit.run)


def make_validation(archive: Services) -> Job:
    settings, parts = archive.settings, (archive.index, archive.store, archive.reports)
    validation = Validation(*parts, settings.jobs.validation, settings.reconstruct.threads, archive.retrieve)
    summary = "trains a classifier on labelled originals and on their reconstructions, and compares the two"
    return Job("validation", summary, validation.run)


def make_scrub(archive: Services, **plan: Any) -> Job:
    """The integrity scrub. ``plan``: fields of ScrubPlan."""
    settings, index = archive.settings, archive.index
    stores = {str(tier): store for tier, store in archive.stores.items()}
    repair = ScrubRepair(index, stores, settings.jobs.replicate.to)
    standing = IndexStanding(index, settings.storage.root)
    can_recover = OrphanRecovery(index, archive.stores, examine_in(archive.workers.decode)).can_recover
    options = ScrubPlan(settings.jobs.scrub, **plan)
    scrub = Scrub(JobRows(index.engine), repair, options, standing, can_recover)
    summary = "reads objects and compares them with their digests; repairs what it can, reports the rest"
    return Job(SCRUB, summary, scrub.run)
