"""Proves that ``latent-pacs gate calibrate`` encodes a folder of images as the archive would, and compares them with
the limits.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from node.cli.calibration import calibrated, report_of
from node.config import parse
from node.training.image_files import NoPictures, picture_files
from storage.thresholds import limits_of
from tests.support.commands import invoke, run
from tests.support.samples import breast, mammogram, write

RAW = {"codec": {"scales": [1]}, "gate": {"patches": {"share": 0.5}}, "reconstruct": {"upscaler": "bicubic"}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images = tmp_path / "images"
    images.mkdir()
    write(mammogram(breast(640, 512)), images / "one.dcm")
    Image.fromarray((breast(640, 512, bits=12, seed=3) * 16).astype(np.uint16)).save(images / "two.png")
    (images / "notes.txt").write_text("no picture")
    return images


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps(RAW), encoding="utf-8")
    return file


@pytest.mark.slow
def test_each_image_at_its_operating_point_and_the_figures_of_all(folder: Path) -> None:
    settings = parse(RAW, "test")
    found = list(calibrated(picture_files([folder]), settings))
    report = report_of(found, settings)
    assert [one["name"] for one in report["images"]] == ["images/one.dcm", "images/two.png"]
    first, second = report["images"]
    assert report["passed"] == bool(first["point"]) + bool(second["point"]) >= 1
    assert all(one["why"] for one in (first, second) if not one["point"])
    for one in filter(lambda each: each["point"], (first, second)):
        assert one["point"].startswith("x1 jpegxl d")
        assert 0 < one["burden"] <= 1
        assert one["figures"][one["nearest"]] > 0
    assert report["figures"].keys() == limits_of(settings.thresholds).keys()
    for name, spread in report["figures"].items():
        assert 0 <= spread["median"] <= spread["percentile_95"] <= spread["max"] <= spread["limit"], name


@pytest.mark.slow
def test_what_does_not_pass_says_why(folder: Path) -> None:
    settings = parse({**RAW, "gate": {"balanced": {"spectrum_db": 1e-9}, "patches": {"share": 0.5}}}, "test")
    one = next(calibrated(picture_files([folder]), settings))
    assert (one.point, one.figures) == ("", {})
    assert "energy of octave band" in one.why


@pytest.mark.slow
def test_a_limit_is_kept_to(folder: Path, config: Path) -> None:
    done = invoke("gate", "calibrate", str(folder), "--limit", "1", "--json", "-c", str(config))
    assert [each["name"] for each in json.loads(done.stdout)["images"]] == ["images/one.dcm"]


def test_a_folder_without_pictures(tmp_path: Path, config: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = invoke("gate", "calibrate", str(tmp_path / "empty"), "-c", str(config))
    assert isinstance(done.exception, NoPictures)
    assert "256 pixels per side in" in str(done.exception)


@pytest.mark.slow
def test_the_command(folder: Path, config: Path) -> None:
    done = run("gate", "calibrate", str(folder), "--limit", "1", "--json", "--config", str(config))
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert len(report["images"]) == 1
    assert report["profile"] == "balanced"
    shown = run("gate", "calibrate", str(folder), "--limit", "1", "--config", str(config))
    assert shown.returncode == 0, shown.stderr
    assert "spectrum_tile_db" in shown.stdout
    assert "gate.balanced" in shown.stdout
    assert run("gate", "calibrate", "--help").returncode == 0


def test_help_does_not_import_torch() -> None:
    code = "import sys, node.cli.commands.gate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=False, timeout=300).returncode == 0
