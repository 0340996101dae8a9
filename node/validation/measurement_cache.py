"""Caches measurements of images in ``features/`` under the storage root. They can all be computed again."""

from __future__ import annotations

import hashlib
import io
import logging
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from node.validation.terms import Fidelity, Measured
from storage.objects.durability import replace_file

LOGGER = logging.getLogger(__name__)

_VERSION = "1"
"""Version of the code that computes features and figures. Another version does not use entries of this one."""


class FeatureCache:
    """Entries as files in ``folder``, each named by a digest of everything that its content depends on."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._used: set[str] = set()
        folder.mkdir(parents=True, exist_ok=True)

    def key(self, *parts: str) -> str:
        """The name of an entry. ``parts``: digests of image and backbone, and the arm."""
        return hashlib.sha256("|".join([_VERSION, *parts]).encode()).hexdigest()

    def get(self, key: str) -> Measured | None:
        """An entry, or None if it is absent or cannot be read. The latter is logged."""
        self._used.add(key)
        try:
            with np.load(self._folder / f"{key}.npz", allow_pickle=False) as held:
                figures = Fidelity(held["full"], held["tiles"], held["corners"]) if "full" in held else None
                return Measured(held["features"], figures)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            LOGGER.warning("cached features %s cannot be read and are computed again: %s", key, error)
            return None

    def put(self, key: str, measured: Measured) -> None:
        arrays: dict[str, Any] = {"features": measured.features}
        figures = measured.fidelity
        if figures is not None:
            arrays |= {"full": figures.full, "tiles": figures.tiles, "corners": figures.corners}
        content = io.BytesIO()
        np.savez(content, **arrays)
        replace_file(self._folder / f"{key}.npz", [content.getvalue()])

    def drop_unused(self) -> None:
        """Remove the entries that no ``get`` has asked for since this cache was opened."""
        for entry in self._folder.iterdir():
            if entry.stem not in self._used:
                entry.unlink(missing_ok=True)
