"""Objects that no row speaks of: moved aside, kept for a time, and put back where a row turns out to need them.

``orphans/<date>/ab/abcdef...`` beside ``objects/``: the date is that of the move, the rest is the path that it had.
Nothing is unlinked on the day that it is found: an index that is wrong, or an error in this program, must not cost an
image.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta

from storage.objects.durability import fsync_folders
from storage.objects.inspection import ORPHANS, put_back
from storage.objects.store import ObjectStore


def move_orphan(store: ObjectStore, digest: str, *, older_than: float) -> bool:
    """Move an object that no row promises aside, if it still was written before ``older_than`` (epoch seconds).

    Storing bytes that are there already renews their time (``ObjectStore.adopt``). So the object is renamed first
    and its time read then: whoever found it before renewed it, and whoever comes later writes it anew.
    """
    final = store.path(digest)
    folder = store.root / ORPHANS / f"{datetime.now(UTC):%Y-%m-%d}" / digest[:2]
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / digest
    try:
        final.rename(aside)
    except FileNotFoundError:
        return False
    if aside.stat().st_mtime >= older_than:
        put_back(aside, final)
        return False
    fsync_folders(final.parent, folder, folder.parent, folder.parent.parent, store.root)
    return True


def forget_orphans(store: ObjectStore, keep: float, needed: Callable[[str], bool]) -> tuple[int, int]:
    """Delete what was moved aside more than ``keep`` seconds ago; how many objects, and how many were put back.

    ``needed`` says whether a row has come to promise an object of that digest, which is put back then.
    """
    deleted = restored = 0
    last = (datetime.now(UTC) - timedelta(seconds=keep)).date()
    for folder in sorted((store.root / ORPHANS).glob("*-*-*")):
        if _date_of(folder.name) >= last:
            continue
        for aside in sorted(folder.glob("*/*")):
            if needed(aside.name):
                store.path(aside.name).parent.mkdir(exist_ok=True)
                put_back(aside, store.path(aside.name))
                restored += 1
            else:
                aside.unlink()
                deleted += 1
        shutil.rmtree(folder)
    return deleted, restored


def _date_of(name: str) -> date:
    """The date that a folder is named by; one with another name is never old."""
    try:
        return date.fromisoformat(name)
    except ValueError:
        return date.max
