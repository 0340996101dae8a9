"""``latent-pacs gate calibrate``: figures per rung of a folder of images, and thresholds that let them through."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from node.cli.calibration import measured, pictures_in, report_of
from node.config import parse
from node.training.pictures import NoPictures
from tests.samples import breast, mammogram, write
from tests.test_cli import run

RAW = {
    "codec": {
        "ladder": [
            {"scale": 2, "coder": "jpegxl", "distance": 0.6, "sample_bits": 12},
            {"scale": 1, "coder": "jpegxl", "distance": 0.3, "sample_bits": 12},
        ]
    },
    "reconstruct": {"upscaler": "bicubic"},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images = tmp_path / "images"
    images.mkdir()
    write(mammogram(breast(400, 300)), images / "one.dcm")
    Image.fromarray((breast(420, 310, bits=12, seed=3) * 16).astype(np.uint16)).save(images / "two.png")
    (images / "notes.txt").write_text("no picture")
    return images


def test_figures_per_rung_and_thresholds_that_fit(folder: Path) -> None:
    settings = parse(RAW, "test")
    found = list(measured(pictures_in(folder), 0, settings))
    report = report_of(found, settings)
    assert report["images"] == 2
    assert [rung["rung"] for rung in report["rungs"]] == ["x2 jpegxl d0.6", "x1 jpegxl d0.3"]
    cheap, good = (rung["figures"] for rung in report["rungs"])
    assert good["psnr_db"]["median"] > cheap["psnr_db"]["median"]
    assert good["error_p999"]["median"] < cheap["error_p999"]["median"]
    assert cheap["fsim_worst"]["worst"] <= cheap["fsim_worst"]["worst_5_percent"] <= cheap["fsim_worst"]["median"]
    fair = [each for each in found if each.verdict.fsim_mean >= 0.93 and each.verdict.fsim_p5 >= 0.9]
    tiles = np.concatenate([each.survey.error_max[each.survey.breast] for each in fair])
    assert (tiles <= report["proposed"]["error_max"]).mean() >= 0.99
    assert report["proposed"]["error_max"] <= 1.2 * tiles.max()


def test_a_limit_is_kept_to(folder: Path) -> None:
    settings = parse(RAW, "test")
    assert {each.name for each in measured(pictures_in(folder), 1, settings)} == {"images/one.dcm"}


def test_a_folder_without_pictures(tmp_path: Path) -> None:
    with pytest.raises(NoPictures, match="is empty"):
        pictures_in(tmp_path)
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(NoPictures, match="256 pixels"):
        list(measured(pictures_in(tmp_path), 0, parse(RAW, "test")))


def test_the_command(folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(RAW), encoding="utf-8")
    done = run("gate", "calibrate", str(folder), "--limit", "1", "--json", "--config", str(config))
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["images"] == 1
    assert report["section"] == "balanced"
    shown = run("gate", "calibrate", str(folder), "--limit", "1", "--config", str(config))
    assert shown.returncode == 0, shown.stderr
    assert "error_p999" in shown.stdout
    assert "Proposed for gate.balanced" in shown.stdout
    assert run("gate", "calibrate", "--help").returncode == 0


def test_help_does_not_import_torch() -> None:
    code = "import sys, node.cli.gate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=False, timeout=60).returncode == 0
