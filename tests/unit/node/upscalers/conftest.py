"""A tiny random copy of the pipeline of sd_x2."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from node.upscalers.sd_x2 import (
    SdX2,
)
from tests.support import tiny_sd


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd.build(tmp_path_factory.mktemp("sd_x2"))


@pytest.fixture(scope="session")
def upscaler(model: Path) -> SdX2:
    """The upscaler is shared on purpose: what one test did must not change the pixels of the next."""
    return SdX2(str(model), device="cpu", tile=64, overlap=16, steps=2)


@pytest.fixture
def copy(model: Path, tmp_path: Path) -> Path:
    """A copy of the model, which a test may damage."""
    return Path(shutil.copytree(model, tmp_path / "copy"))
