"""The model store: keeps models as objects, so that their renditions can be decoded after they were uninstalled.

The files of a model are stored before the row of its first rendition is committed. A model that is no longer installed
is read from a folder of links to these objects.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
import threading
from pathlib import Path

from node.upscalers.protocol import Installed
from storage.index import Index
from storage.index.model_files import ModelFile, ModelRows
from storage.objects.store import ObjectStore
from storage.records import ModelUse

LOGGER = logging.getLogger(__name__)


class ModelStore:
    """Keeps models as objects of ``store``. The links are in ``models/`` of its root, and can be made again."""

    def __init__(self, index: Index, store: ObjectStore) -> None:
        self._index, self._rows, self._store = index, ModelRows(index.engine), store
        self._folder = store.root / "models"
        self._lock = threading.Lock()

    def keeps(self, upscaler: str, weights_digest: str) -> bool:
        """Whether the archive has the files of that model."""
        return bool(self._rows.files(upscaler, weights_digest))

    def missing(self) -> list[ModelUse]:
        """The models of renditions whose files it lacks, as after a rebuild of the index without its journal."""
        return [
            use
            for use in self._index.models()
            if use.upscaler == "mammo" and not self.keeps(use.upscaler, use.weights_digest)
        ]

    def keep(self, model: Installed) -> None:
        """Store a model's files unless they are stored already. Raises StoreFull, OSError.

        A model whose files have changed since it was loaded is not kept; this is only logged.
        """
        if not model.files or self.keeps(model.upscaler, model.weights_digest):
            return
        files = []
        for name, path in model.files:
            data = path.read_bytes()
            files.append(ModelFile(name, self._store.put(data), len(data)))
        if _weights_digest(files) != model.weights_digest:
            LOGGER.error("%s model %s was changed while in use; not stored", model.upscaler, model.weights_digest)
            return
        self._rows.add(model.upscaler, model.weights_digest, files)
        LOGGER.info("%s model %s was stored as objects", model.upscaler, model.weights_digest)

    def folder(self, upscaler: str, weights_digest: str) -> Path | None:
        """A folder with a stored model's files under their names; None if the model cannot be used.

        That is so if the model is not stored, an object of it is missing, or one of its names is a path.
        """
        files, name = self._rows.files(upscaler, weights_digest), f"{upscaler}-{weights_digest}"
        if not files or not all(self._store.path(file.digest).is_file() for file in files):
            return None
        if not all(map(_is_name, (name, *(file.name for file in files)))):  # from a backup that was changed
            LOGGER.error("a model of the index has a name that is a path; it is not used")
            return None
        folder = self._folder / name
        with self._lock:
            if not all((folder / file.name).is_file() for file in files):
                self._link(folder, files)
        return folder

    def _link(self, folder: Path, files: tuple[ModelFile, ...]) -> None:
        self._folder.mkdir(exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=self._folder))
        for file in files:
            (temporary / file.name).symlink_to(os.path.relpath(self._store.path(file.digest), temporary))
        shutil.rmtree(folder, ignore_errors=True)  # an earlier folder whose links are broken or missing
        try:
            temporary.rename(folder)
        except OSError:  # another process, such as a purge, made the same folder meanwhile
            shutil.rmtree(temporary, ignore_errors=True)
            if not folder.is_dir():
                raise


def _is_name(text: str) -> bool:
    return Path(text).name == text and text != ".."


def _weights_digest(files: list[ModelFile]) -> str:
    """SHA-256 over the sorted (name, SHA-256) of the files, as node/upscalers computes it."""
    lines = (f"{file.name} {file.digest}\n" for file in sorted(files, key=lambda one: one.name))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
