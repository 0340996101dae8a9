"""The files of the models that made renditions, as rows with the digests of their objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import insert, select
from sqlalchemy.exc import IntegrityError

from storage.index.connection import writing
from storage.index.reading import IndexPart, record_of, rows_of
from storage.index.tables import model_file


@dataclass(frozen=True)
class ModelFile:
    """One file of a model: its name in the model's folder, and the object that holds its bytes."""

    name: str
    digest: str
    bytes: int


class ModelRows(IndexPart):
    def files(self, upscaler: str, weights_digest: str) -> tuple[ModelFile, ...]:
        """The files of a model, by name; empty if the store does not hold the model."""
        wanted = (model_file.c.upscaler == upscaler, model_file.c.weights_digest == weights_digest)
        rows = rows_of(self._engine, select(model_file).where(*wanted).order_by(model_file.c.name))
        return tuple(record_of(ModelFile, row) for row in rows)

    def add(self, upscaler: str, weights_digest: str, files: Sequence[ModelFile]) -> None:
        """Commit a model whose files are in the store. It is not an error if it was committed before."""
        rows = [
            {"upscaler": upscaler, "weights_digest": weights_digest, "name": file.name}
            | {"digest": file.digest, "bytes": file.bytes}
            for file in files
        ]
        try:
            with writing(self._engine) as connection:
                connection.execute(insert(model_file), rows)
        except IntegrityError:  # another process was first; a model's digest fixes its files
            return
