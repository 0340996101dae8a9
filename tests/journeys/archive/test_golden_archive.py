"""Proves that an archive written by an earlier version opens, answers, returns its images and can be rebuilt."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from node.app import Node, rebuild_index
from node.codec.decode import SideInformation
from node.codec.fingerprint import difference
from node.codec.rendering import Rendering
from node.config import Settings
from node.upscalers.bicubic import Bicubic
from storage.dicom.pixels import integer_pixels
from storage.formats.payload import decode_base, decode_rendition
from storage.records import InstanceState
from tests.conftest import settings_for
from tests.support.everything import tables_of
from tests.support.paths import GOLDEN

ARCHIVE = GOLDEN / "archive-v1.zip"

ROWS = {
    "amendment": 4,
    "archive": 1,
    "class_label": 1,
    "commitment": 2,
    "damage": 1,
    "garbage": 1,
    "former_patient": 1,
    "hold": 3,
    "instance": 4,
    "job": 8,
    "job_run": 1,
    "label": 2,
    "model_file": 1,
    "original": 4,
    "patient": 2,
    "pin": 1,
    "quarantine": 2,
    "reference": 1,
    "reference_copy": 1,
    "rendition": 1,
    "replica": 1,
    "report": 1,
    "reverification": 1,
    "series": 4,
    "study": 2,
    "tombstone": 1,
    "trail": 22,
}
ORIGINAL = "f6216d77b58525318f6e7d21937c81ba8bb8fb807fad87221ac423c3386394bd"
DERIVED = "2.25.218181144390316247970355172713880662989"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    with zipfile.ZipFile(ARCHIVE) as packed:
        packed.extractall(tmp_path / "archive")
    return settings_for(tmp_path / "archive", archivist={"enabled": False}, originals={"coder": "jpegls"})


def test_it_opens_and_gives_its_images_back(settings: Settings) -> None:
    root = settings.storage.root
    uids = json.loads((root / "uids.json").read_text())
    assert {name: len(rows) for name, rows in tables_of(root / "index.sqlite").items()} == ROWS
    with Node(settings) as node:
        verified = node.index.by_uid(DERIVED)
        assert verified is not None
        assert (verified.sop_instance_uid, verified.state) == (uids["verified"], InstanceState.VERIFIED)
        assert verified.original_digest == ORIGINAL
        assert verified.rendition is not None
        made = decode_rendition(node.store.read(verified.rendition.rendition_digest))
        side, base = SideInformation.of(made), decode_base(node.store.read(made.base_digest))
        assert side.noise is not None and side.points is not None
        rendering = Rendering(base, Bicubic(), side, seed=made.seed, steps=made.steps)
        served = rendering.pixels(draw=True)
        assert difference(made.fingerprint, served, rendering.pixels(draw=False)) == "", "whatever this machine rounds"
        pixels = served.astype(int)
        with node.originals.borrowed(ORIGINAL) as path:
            assert hashlib.sha256(path.read_bytes()).hexdigest() == ORIGINAL
            original = integer_pixels(path)
        assert np.abs(pixels - original).mean() < 0.03 * np.ptp(original), (
            "the same image, whatever this machine rounds"
        )
        assert node.index.tombstones.in_force(uids["deleted"]) is not None
        assert node.archive.trail.broken() == ""


def test_it_can_be_rebuilt(settings: Settings) -> None:
    file = settings.storage.root / "index.sqlite"
    before = tables_of(file)
    file.unlink()
    assert rebuild_index(settings, lambda *_: None).clean
    assert tables_of(file) == before
