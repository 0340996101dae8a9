"""Orphans: objects that no row of the index refers to. They are moved away, kept for some days, then deleted.

``orphans/<date>/ab/abcdef...`` beside ``objects/`` holds an orphan: the date of the move, then the path it had. An
orphan is not deleted at once, because a wrong index or an error in this program must not lose an image.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta

from storage.clock import EARLIEST
from storage.objects.durability import fsync_folders
from storage.objects.file_modes import give_to_owner
from storage.objects.inspection import Condition, examine, put_back
from storage.objects.store import ORPHANS, ObjectStore


def move_orphan(store: ObjectStore, digest: str, *, older_than: float) -> bool:
    """Move an object that no row refers to into ``orphans/`` if it was written before ``older_than`` (epoch seconds).

    Returns whether it was moved. Storing an existing object updates its time (``ObjectStore.adopt``), so the object is
    renamed first and its time is read afterwards: an earlier writer has updated the time, and a later one writes the
    object again.
    """
    final = store.path(digest)
    if final.is_dir() and not final.is_symlink():  # this program did not make it
        return False
    folder = store.root / ORPHANS / f"{datetime.now(UTC):%Y-%m-%d}" / digest[:2]
    folder.mkdir(parents=True, exist_ok=True)
    give_to_owner(folder.parent.parent, folder.parent, folder)
    aside = folder / digest
    try:
        final.rename(aside)
        written_at = aside.stat().st_mtime
    except FileNotFoundError:  # it is gone, or a reader that needs it has put it back
        return False
    if written_at >= older_than:
        put_back(aside, final)
        return False
    fsync_folders(final.parent, folder, folder.parent, folder.parent.parent, store.root)
    return True


def forget_orphans(store: ObjectStore, keep: float, needed: Callable[[str], bool]) -> tuple[int, int]:
    """Delete orphans that were moved more than ``keep`` seconds ago, by date. Returns the numbers deleted and put back.

    ``needed(digest)``: whether a row refers to the object by now. Such an object is put back. If a copy is stored that
    is damaged or cannot be read, the orphan stays where it is, since a scrub may need it.
    """
    deleted = restored = 0
    last = (datetime.now(UTC) - timedelta(seconds=keep)).date()
    for folder in sorted((store.root / ORPHANS).glob("*-*-*")):
        if _date_of(folder.name) >= last:
            continue
        kept = False
        for aside in sorted(folder.glob("*/*")):
            if not needed(aside.name):
                aside.unlink()
                deleted += 1
            elif examine(store, aside.name).condition in (Condition.WHOLE, Condition.MISSING):
                put_back(aside, store.path(aside.name))
                restored += 1
            else:
                kept = True
        if not kept:
            shutil.rmtree(folder)
    return deleted, restored


def _date_of(name: str) -> date:
    """The date in a folder's name; ``date.max`` if the name is not a date, or a date before EARLIEST."""
    try:
        found = date.fromisoformat(name)
    except ValueError:
        return date.max
    return found if found >= EARLIEST.date() else date.max
