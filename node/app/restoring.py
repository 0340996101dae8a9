"""Restores a backup into the empty folders that config.yaml names."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from node.app.backing_up import index_file
from node.app.building import open_store
from node.app.node import lock_root
from node.app.rebuilding import taking_in
from node.archive.index_opening import open_for_command
from node.config import Settings
from storage.backup.create import Backup, Progress
from storage.backup.restore import RestoreReport, refuse_occupied, restore
from storage.errors import BackupRefused
from storage.index.index_trust import IndexStanding
from storage.objects.store import ObjectStore
from storage.records import Tier


def restore_backup(settings: Settings, folder: Path, progress: Progress = lambda done, of: None) -> RestoreReport:
    """Restore a backup into an empty storage root, and check the index. Raises BackupRefused, NodeRunning."""
    file, root, cold = index_file(settings), settings.storage.root, settings.originals.path
    backup = Backup(folder)
    with backup.opened() as (manifest, _, _):
        refuse_occupied(manifest, file, root, cold)
    hot = open_store(settings)
    with lock_root(hot):
        stores = {str(Tier.HOT): hot} | ({} if cold is None else {str(Tier.COLD): ObjectStore(cold)})
        made = restore(backup, file, root, stores, taking_in(settings, hot), progress)
        with closing(open_for_command(settings)) as index:
            doubt = IndexStanding(index, root).doubt()
        if doubt:
            raise BackupRefused(f"the restored index is not sound: {doubt}; run `latent-pacs index rebuild`")
        return made
