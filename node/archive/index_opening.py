"""Opens the index that config.yaml names, if it belongs to the objects and the journal beside it."""

from __future__ import annotations

import fcntl
import logging
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

from node.config import Settings
from storage.backup.restore import MARK
from storage.errors import ConfigError, StoreFull
from storage.index import Index
from storage.index.connection import now
from storage.index.index_trust import quick_check, sqlite_file
from storage.index.opening import open_checked_index
from storage.objects.inspection import holds_any

LOGGER = logging.getLogger(__name__)

_CLOCKS_DIFFER = timedelta(hours=1)
"""Largest difference between the clocks of machines, and of one machine before and after a correction. Chosen."""


def open_for_node(settings: Settings, *, accept_empty: bool) -> Index:
    """Open it for a node, the only one on its storage root: check for damaged pages, update an older index from the
    journal, and end the claims of a node that was killed. Raises IndexRefused, NewerFormat."""
    file = sqlite_file(settings.storage.database_url)
    if file is not None and not accept_empty:
        quick_check(file)
    index = _opened(settings, accept_empty=accept_empty, replay=True)
    with suppress(StoreFull):  # they end with their leases then
        index.end_claims()
    received = index.last_received_at()
    if received is not None and received > now() + _CLOCKS_DIFFER:
        text = "the clock is wrong, or was: it is %s, and the last image was received at %s (UTC); correct the clock"
        LOGGER.error(text, *(f"{at:%Y-%m-%d %H:%M}" for at in (now(), received)))
    return index


def open_for_command(settings: Settings) -> Index:
    """Open it for a command, beside a node or without one. Raises ConfigError if there is no archive, IndexRefused."""
    root, file = settings.storage.root, sqlite_file(settings.storage.database_url)
    if file is not None and not file.is_file() and not has_objects(settings) and not (root / "journal").is_dir():
        raise ConfigError(
            f"no index at {file}: no node has run with this configuration, or its disk is not mounted; check "
            "storage.root, then start a node with `latent-pacs serve`"
        )
    return _opened(settings, accept_empty=False, replay=not runs_here(root))


def has_objects(settings: Settings) -> bool:
    """Whether a store of the archive contains any object."""
    roots = (settings.storage.root, settings.originals.path)
    return any(holds_any(root) for root in roots if root is not None)


def runs_here(root: Path) -> bool:
    """Whether a node is running on this storage root."""
    try:
        with (root / "lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass
    return False


def _opened(settings: Settings, *, accept_empty: bool, replay: bool) -> Index:
    if (settings.storage.root / MARK).exists():
        raise ConfigError(
            f"the restore into {settings.storage.root} was interrupted; run `latent-pacs backup restore` again"
        )
    opened = open_checked_index(
        settings.storage.database_url,
        settings.storage.root,
        holds_objects=has_objects(settings),
        accept_empty=accept_empty,
        replay=replay,
    )
    for note in opened.notes:
        LOGGER.warning("%s", note)
    return opened.index
