"""Work that needs a stopped node: rebuilds the index, compacts its change journal, and restores a backup."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

from node.app.backing_up import index_file
from node.app.building import examine_in, lock_root, open_store
from node.archive.index_opening import has_objects, open_for_command
from node.archive.orphan_recovery import OrphanRecovery
from node.config import Settings
from node.workers.pool import WorkerPool
from storage.backup.create import Backup, Progress
from storage.backup.restore import RestoreReport, refuse_occupied, restore
from storage.dicom.dicomfile import accept_odd_values
from storage.errors import BackupRefused, ConfigError
from storage.index import Index
from storage.index.index_trust import IndexStanding, quick_check
from storage.index.opening import compact_journal as compacted
from storage.index.rebuild import Rebuilt, rebuild
from storage.objects.store import ObjectStore
from storage.records import Tier


def rebuild_index(settings: Settings, progress: Callable[[int, int, str], None]) -> Rebuilt:
    """Rebuild the index. Raises NodeRunning, or ConfigError if there is no archive or its index is not SQLite."""
    root = settings.storage.root
    file = index_file(settings, "; restore it with the tools of that database, or empty the key to make a SQLite file")
    store = _store_of_an_archive(settings)
    accept_odd_values()
    with lock_root(store):
        return rebuild(file, root, take_in_objects=partial(take_in, settings, store), progress=progress)


def compact_journal(settings: Settings) -> tuple[int, int]:
    """Rewrite the change journal without outdated changes; return its bytes before and after.

    Raises NodeRunning, ConfigError if there is no archive or its index is not SQLite, and IndexRefused if the index
    cannot be trusted.
    """
    file = index_file(settings, ", so there is no change journal")
    with lock_root(_store_of_an_archive(settings)):
        quick_check(file)
        open_for_command(settings).close()
        return compacted(settings.storage.database_url, settings.storage.root)


def _store_of_an_archive(settings: Settings) -> ObjectStore:
    """The store in ``storage.root``, which is not created. Raises ConfigError if it holds no archive."""
    root = settings.storage.root
    if not root.is_dir():
        raise ConfigError(f"storage.root {root} is not there: is it right, and is its disk mounted? If so, create it")
    if not has_objects(settings) and not (root / "journal").is_dir():
        raise ConfigError(f"storage.root {root} has no objects and no journal: is it right, and is its disk mounted?")
    return ObjectStore(root)


def restore_backup(settings: Settings, folder: Path, progress: Progress = lambda done, of: None) -> RestoreReport:
    """Restore a backup into an empty storage root, and check the index. Raises BackupRefused, NodeRunning."""
    file, root, cold = index_file(settings), settings.storage.root, settings.originals.path
    backup = Backup(folder)
    with backup.opened() as (manifest, _, _):
        refuse_occupied(manifest, file, root, cold)
    hot = open_store(settings)
    with lock_root(hot):
        stores = {str(Tier.HOT): hot} | ({} if cold is None else {str(Tier.COLD): ObjectStore(cold)})
        made = restore(backup, file, root, stores, partial(take_in, settings, hot), progress)
        with closing(open_for_command(settings)) as index:
            doubt = IndexStanding(index, root).doubt()
        if doubt:
            raise BackupRefused(f"the restored index is not sound: {doubt}; run `latent-pacs index rebuild`")
        return made


def take_in(settings: Settings, store: ObjectStore, index: Index) -> int:
    """Add rows for objects that the journal does not mention. Returns the number of these objects."""
    stores = {Tier.HOT: store}
    if settings.originals.path is not None and (settings.originals.path / "objects").is_dir():
        stores[Tier.COLD] = ObjectStore(settings.originals.path)
    with closing(WorkerPool(settings.reconstruct, name="decode", within=settings.limits.decoders)) as pool:
        return OrphanRecovery(index, stores, examine_in(pool)).recover()
