"""Builds backups for the folders that config.yaml names: for a command or for the job ``replicate``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from node.app.building import Services, open_stores
from node.config import Settings
from node.jobs.job import Job
from storage.backup.create import Backup, BackupReport, Progress
from storage.errors import BackupRefused, ConfigError
from storage.index import Index
from storage.index.index_trust import sqlite_file
from storage.index.integrity import Integrity
from storage.index.job_runs import JobRows
from storage.index.snapshot import NamedObject
from storage.objects.backup_manifest import has_manifest
from storage.objects.store import ObjectStore
from storage.printable import counted
from storage.records import Tier

LOGGER = logging.getLogger(__name__)

_LISTED = 200
"""Most objects that the report of a job lists as missing; all are counted. While a disk is not mounted, the report of
every night would list all of its objects."""


def make_backup(
    settings: Settings,
    index: Index,
    stores: Mapping[str, ObjectStore],
    to: Path,
    progress: Progress = lambda done, of: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> BackupReport:
    """Copy new objects and the index to the backup in ``to``; a node may run. Raises BackupRefused, and ConfigError if
    the index is not SQLite."""
    file, root, integrity = index_file(settings), settings.storage.root, Integrity(index.engine)
    for place in (root, settings.originals.path):
        if place is not None and (_within(to, place) or _within(place, to)):
            raise BackupRefused(
                f"one of {to} and {place} contains the other; name a folder outside the archive, on another disk"
            )

    if Tier.COLD not in stores and index.originals.totals().cold:
        raise BackupRefused("the index has originals in the cold store, and originals.path is not set; set it")

    def promised(one: NamedObject) -> bool:
        return any(other.store == one.store for other in integrity.expected_at(one.digest))

    return Backup(to).make(file, root, stores, promised, progress, cancelled)


def make_replication(archive: Services, to: Path | None = None) -> Job:
    """The job ``replicate``, which updates a backup. ``to`` replaces ``jobs.replicate.to``."""
    settings, rows = archive.settings, JobRows(archive.index.engine)
    folder = to or settings.jobs.replicate.to
    stores = {str(tier): store for tier, store in archive.stores.items()}

    def work(progress: Callable[[int, int], None], cancelled: Callable[[], bool]) -> dict[str, Any]:
        if folder is None:
            raise ConfigError("jobs.replicate.to names no folder; name one there or on the command line")
        if str(folder) in rows.memory("replicate") and not has_manifest(folder):
            raise BackupRefused(
                f"{folder} held a backup and is empty now: is its disk mounted? `latent-pacs backup create {folder}` "
                "starts a new backup there"
            )
        made = make_backup(settings, archive.index, stores, folder, progress, cancelled)
        if made.finished:
            rows.remember("replicate", {**rows.memory("replicate"), str(folder): made.archive})
        if lost := len(made.missing) + len(made.only_here):
            text = "missing or damaged in the archive: %s; run latent-pacs scrub --full"
            LOGGER.error(text, counted(lost, "object"))
        listed = {name: getattr(made, name)[:_LISTED] for name in ("missing", "only_here")}
        return {**asdict(made), **listed, "lost": lost, "clean": made.clean, "to": str(folder)}

    return Job("replicate", "copies new objects to the backup in jobs.replicate.to", work)


def stores_of(settings: Settings, index: Index, store: ObjectStore) -> dict[str, ObjectStore]:
    """The object stores by the names of their tiers, as backups and expected objects use them."""
    return {str(tier): each for tier, each in open_stores(settings, index, store).items()}


def index_file(settings: Settings, otherwise: str = "; back it up with the tools of that database") -> Path:
    """The SQLite file of the index. Raises ConfigError, which ends with ``otherwise``, if it is in another database."""
    file = sqlite_file(settings.storage.database_url)
    if file is None:
        raise ConfigError(f"storage.database is not a SQLite file{otherwise}")
    return file


def _within(inner: Path, outer: Path) -> bool:
    return inner.resolve().is_relative_to(outer.resolve())
