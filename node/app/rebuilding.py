"""A rebuild of the index, and a compaction of its journal, with what config.yaml names."""

from __future__ import annotations

from collections.abc import Callable

from node.app.node import lock_root
from node.app.services import examine_in
from node.archive.index_opening import has_objects, open_for_command
from node.archive.orphan_recovery import OrphanRecovery
from node.config import Settings
from node.workers.pool import WorkerPool
from storage.dicom.dicomfile import accept_odd_values
from storage.errors import ConfigError
from storage.index import Index
from storage.index.index_trust import quick_check, sqlite_file
from storage.index.opening import compact_journal as compacted
from storage.index.rebuild import Rebuilt, rebuild
from storage.objects.store import ObjectStore
from storage.records import Tier


def rebuild_index(settings: Settings, progress: Callable[[int, int, str], None]) -> Rebuilt:
    """Make the index anew. Raises ConfigError where a node runs, where nothing is here, or the index is not SQLite."""
    root, file = settings.storage.root, sqlite_file(settings.storage.database_url)
    if file is None:
        raise ConfigError("storage.database is no SQLite file: restore it with the means of that database")
    if not has_objects(settings) and not (root / "journal").is_dir():
        raise ConfigError(f"storage.root {root} has no objects and no journal: is it right, and is its disk mounted?")
    accept_odd_values()
    store = ObjectStore(root)
    lock = lock_root(store)
    try:
        return rebuild(file, root, take_in_objects=taking_in(settings, store), progress=progress)
    finally:
        lock.close()


def compact_journal(settings: Settings) -> tuple[int, int]:
    """Write the change journal anew without what is outdated; its bytes before and after.

    Raises ConfigError where a node runs or the index is not SQLite, IndexRefused where the index is not to be trusted.
    """
    file = sqlite_file(settings.storage.database_url)
    if file is None:
        raise ConfigError("storage.database is no SQLite file, so there is no change journal")
    lock = lock_root(ObjectStore(settings.storage.root))
    try:
        quick_check(file)
        open_for_command(settings).close()
        return compacted(settings.storage.database_url, settings.storage.root)
    finally:
        lock.close()


def taking_in(settings: Settings, store: ObjectStore) -> Callable[[Index], int]:
    """Takes in what the objects hold and no journal tells of; how many objects that were."""

    def take_in(index: Index) -> int:
        stores = {Tier.HOT: store}
        if settings.originals.path is not None and (settings.originals.path / "objects").is_dir():
            stores[Tier.COLD] = ObjectStore(settings.originals.path)
        pool = WorkerPool(settings.reconstruct, name="decode")
        try:
            return OrphanRecovery(index, stores, examine_in(pool)).recover()
        finally:
            pool.close()

    return take_in
