"""Backups with what config.yaml names: made by a command or by the job ``replicate``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from node.app.services import open_stores
from node.config import Settings
from node.jobs.job import FunctionJob
from storage.backup.create import Backup, BackupReport, Progress
from storage.errors import BackupRefused, ConfigError
from storage.index import Index
from storage.index.index_trust import sqlite_file
from storage.index.integrity import Integrity
from storage.index.job_runs import JobRows
from storage.index.snapshot import NamedObject
from storage.objects.backup_manifest import NAME
from storage.objects.store import ObjectStore

LOGGER = logging.getLogger(__name__)


def make_backup(
    settings: Settings,
    index: Index,
    stores: Mapping[str, ObjectStore],
    to: Path,
    progress: Progress = lambda done, of: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> BackupReport:
    """Bring the backup in ``to`` up to the archive, beside its node or without one. Raises BackupRefused."""
    file, root, upkeep = index_file(settings), settings.storage.root, Integrity(index.engine)
    for place in (root, settings.originals.path):
        inside = place is not None and (_within(to, place) or _within(place, to))
        if inside:
            raise BackupRefused(
                f"{to} and {place} lie in one another; name a folder outside the archive, on another disk"
            )

    def promised(one: NamedObject) -> bool:
        return any(other.store == one.store for other in upkeep.expected(one.digest, one.digest + "0"))

    return Backup(to).make(file, root, stores, promised, progress, cancelled)


def make_replication(settings: Settings, index: Index, store: ObjectStore, to: Path | None = None) -> FunctionJob:
    """The job that keeps a backup up; ``to``: another folder than ``jobs.replicate.to``."""
    folder, stores = to or settings.jobs.replicate.to, stores_of(settings, index, store)
    rows = JobRows(index.engine)

    def work(progress: Callable[[int, int], None], cancelled: Callable[[], bool]) -> dict[str, Any]:
        if folder is None:
            raise ConfigError("jobs.replicate.to names no folder; name one there or on the command line")
        if str(folder) in rows.memory("replicate") and not (folder / NAME).exists():
            raise BackupRefused(
                f"{folder} held a backup and is empty now: is its disk mounted? `latent-pacs backup` begins anew there"
            )
        made = make_backup(settings, index, stores, folder, progress, cancelled)
        if made.finished:
            rows.remember("replicate", {**rows.memory("replicate"), str(folder): made.archive})
        if made.missing:
            LOGGER.error(
                "%d objects are missing or damaged in the archive; run latent-pacs scrub --full", len(made.missing)
            )
        return {**asdict(made), "clean": made.clean, "to": str(folder)}

    return FunctionJob("replicate", "keeps the backup in jobs.replicate.to up to the archive", work)


def stores_of(settings: Settings, index: Index, store: ObjectStore) -> dict[str, ObjectStore]:
    """The object stores by the names that promises use."""
    return {str(tier): each for tier, each in open_stores(settings, index, store).items()}


def index_file(settings: Settings) -> Path:
    """The file of the index. Raises ConfigError where another database has it."""
    file = sqlite_file(settings.storage.database_url)
    if file is None:
        raise ConfigError("storage.database is no SQLite file: back it up with the means of that database")
    return file


def _within(inner: Path, outer: Path) -> bool:
    return inner.resolve().is_relative_to(outer.resolve())
