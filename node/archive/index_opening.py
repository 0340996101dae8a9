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
"""How far the last receipt may lie in the future before the clock is reported as wrong. Chosen, not measured."""


def open_for_node(settings: Settings, *, accept_empty: bool) -> Index:
    """Open the index for the only node on its storage root.

    The database file is checked for damaged pages, an index older than its journal is updated from it, and the claims
    of a node that was killed end. Raises IndexRefused, NewerFormat, JournalDamaged, ConfigError.
    """
    file = sqlite_file(settings.storage.database_url)
    if file is not None and not accept_empty:
        quick_check(file)
    index = _opened(settings, accept_empty=accept_empty, replay=True)
    with suppress(StoreFull):  # then the claims end when their leases expire
        index.end_claims()
    received = index.last_received_at()
    if received is not None and received > now() + _CLOCKS_DIFFER:
        text = "the clock is wrong, or was: it is %s, and the last image was received at %s (UTC); correct the clock"
        LOGGER.error(text, *(f"{at:%Y-%m-%d %H:%M}" for at in (now(), received)))
    return index


def open_for_command(settings: Settings) -> Index:
    """Open the index for a command, whether a node runs or not. Raises ConfigError if there is no archive,
    IndexRefused, NewerFormat, JournalDamaged."""
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
