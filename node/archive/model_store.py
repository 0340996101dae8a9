"""The models that renditions were made with, kept in the object store: a derived UID must outlive an installed model.

The first rendition made with a model brings its files in, before the rendition's own row. A model that is installed
no more is read from a folder of links to these objects.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
import threading
from pathlib import Path

from node.upscalers.installed import Installed
from storage.index import Index
from storage.index.model_files import ModelFile, ModelRows
from storage.objects.store import ObjectStore

LOGGER = logging.getLogger(__name__)


class ModelStore:
    """Models as objects of ``store``. The links are in ``models/`` beside them, and can be made again at any time."""

    def __init__(self, index: Index, store: ObjectStore) -> None:
        self._rows, self._store = ModelRows(index.engine), store
        self._folder = store.root / "models"
        self._lock = threading.Lock()

    def keeps(self, upscaler: str, weights_digest: str) -> bool:
        """Whether the archive has the files of that model."""
        return bool(self._rows.files(upscaler, weights_digest))

    def keep(self, model: Installed) -> None:
        """Take a model's files in, where they are not here yet. Raises StoreFull, OSError."""
        if not model.files or self.keeps(model.upscaler, model.weights_digest):
            return
        files = []
        for name, path in model.files:
            data = path.read_bytes()
            files.append(ModelFile(name, self._store.put(data), len(data)))
        if _weights_digest(files) != model.weights_digest:
            LOGGER.error("%s model %s was changed while in use; not kept", model.upscaler, model.weights_digest)
            return
        self._rows.add(model.upscaler, model.weights_digest, files)
        LOGGER.info("%s model %s is kept in the object store", model.upscaler, model.weights_digest)

    def folder(self, upscaler: str, weights_digest: str) -> Path | None:
        """A folder with the kept model's files under their names; None where it is not kept or an object is lost.

        For the node alone, of which there is one per store.
        """
        files = self._rows.files(upscaler, weights_digest)
        if not files or not all(self._store.path(file.digest).is_file() for file in files):
            return None
        folder = self._folder / f"{upscaler}-{weights_digest}"
        with self._lock:
            if not all((folder / file.name).is_file() for file in files):
                self._link(folder, files)
        return folder

    def _link(self, folder: Path, files: tuple[ModelFile, ...]) -> None:
        self._folder.mkdir(exist_ok=True)
        making = Path(tempfile.mkdtemp(dir=self._folder))
        for file in files:
            (making / file.name).symlink_to(os.path.relpath(self._store.path(file.digest), making))
        shutil.rmtree(folder, ignore_errors=True)  # links that lead nowhere, or not all of them
        making.rename(folder)


def _weights_digest(files: list[ModelFile]) -> str:
    """As upscalers compute it: SHA-256 over the sorted (name, SHA-256) of the files."""
    lines = (f"{file.name} {file.digest}\n" for file in sorted(files, key=lambda one: one.name))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
