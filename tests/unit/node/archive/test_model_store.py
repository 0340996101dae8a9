"""Proves that file names in rows of models lead to no other folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from node.archive.model_store import ModelStore
from storage.index.model_files import ModelFile, ModelRows
from tests.support.archive_parts import ArchiveParts


@pytest.mark.parametrize(
    ("upscaler", "name"),
    [("mammo", "../../../victim/key"), ("mammo", ".."), ("mammo", "/victim"), ("../../victim/x", "weights")],
)
def test_a_name_that_is_a_path_is_not_used(
    upscaler: str, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody may have changed a backup so that it holds such a name. No link is made elsewhere, and no folder is
    removed."""
    kept = tmp_path / "victim" / "x-1" / "kept"
    kept.parent.mkdir(parents=True)
    kept.touch()
    archive = ArchiveParts(tmp_path / "archive")
    models = ModelStore(archive.index, archive.hot)
    ModelRows(archive.index.engine).add(upscaler, "1", [ModelFile(name, archive.hot.put(b"weights"), 7)])
    before = sorted(tmp_path.glob("victim/**/*"))
    assert models.folder(upscaler, "1") is None
    assert sorted(tmp_path.glob("victim/**/*")) == before
    assert "a name that is a path" in caplog.text
    archive.index.close()


def test_the_files_of_a_model_are_linked_under_their_names(tmp_path: Path) -> None:
    archive = ArchiveParts(tmp_path / "archive")
    ModelRows(archive.index.engine).add("mammo", "1", [ModelFile("weights", archive.hot.put(b"weights"), 7)])
    folder = ModelStore(archive.index, archive.hot).folder("mammo", "1")
    assert folder is not None
    assert (folder / "weights").read_bytes() == b"weights"
    archive.index.close()
