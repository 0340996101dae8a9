"""Rebuilds the index that config.yaml names, and compacts its change journal."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

from node.app.building import examine_in
from node.app.node import lock_root
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
    """Rebuild the index. Raises NodeRunning, or ConfigError if nothing is here or the index is not SQLite."""
    root, file = settings.storage.root, sqlite_file(settings.storage.database_url)
    if file is None:
        raise ConfigError("storage.database is not a SQLite file; restore it with the tools of that database")
    if not has_objects(settings) and not (root / "journal").is_dir():
        raise ConfigError(f"storage.root {root} has no objects and no journal: is it right, and is its disk mounted?")
    accept_odd_values()
    store = ObjectStore(root)
    with lock_root(store):
        return rebuild(file, root, take_in_objects=taking_in(settings, store), progress=progress)


def compact_journal(settings: Settings) -> tuple[int, int]:
    """Rewrite the change journal without outdated changes; return its bytes before and after.

    Raises NodeRunning, ConfigError if the index is not SQLite, IndexRefused if the index cannot be trusted.
    """
    file = sqlite_file(settings.storage.database_url)
    if file is None:
        raise ConfigError("storage.database is not a SQLite file, so there is no change journal")
    with lock_root(ObjectStore(settings.storage.root)):
        quick_check(file)
        open_for_command(settings).close()
        return compacted(settings.storage.database_url, settings.storage.root)


def taking_in(settings: Settings, store: ObjectStore) -> Callable[[Index], int]:
    """Adds objects to the index that the journal does not mention; the function returns their number."""

    def take_in(index: Index) -> int:
        stores = {Tier.HOT: store}
        if settings.originals.path is not None and (settings.originals.path / "objects").is_dir():
            stores[Tier.COLD] = ObjectStore(settings.originals.path)
        with closing(WorkerPool(settings.reconstruct, name="decode")) as pool:
            return OrphanRecovery(index, stores, examine_in(pool)).recover()

    return take_in
