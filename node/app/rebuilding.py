"""A rebuild of the index with what config.yaml names."""

from __future__ import annotations

from collections.abc import Callable

from node.app.node import lock_root
from node.archive.opening import has_objects
from node.config import Settings
from storage.errors import ConfigError
from storage.index.rebuild import Rebuilt, rebuild
from storage.index.standing import sqlite_file
from storage.objects import ObjectStore


def rebuild_index(settings: Settings, progress: Callable[[int, int, str], None]) -> Rebuilt:
    """Make the index anew. Raises ConfigError where a node runs, where nothing is here, or the index is not SQLite."""
    root, file = settings.storage.root, sqlite_file(settings.storage.database_url)
    if file is None:
        raise ConfigError("storage.database is no SQLite file: restore it with the means of that database")
    if not has_objects(settings) and not (root / "journal").is_dir():
        raise ConfigError(f"storage.root {root} has no objects and no journal: is it right, and is its disk mounted?")
    lock = lock_root(ObjectStore(root))
    try:
        return rebuild(file, root, progress=progress)
    finally:
        lock.close()
