"""Proves that ``latent-pacs model`` trains, evaluates, lists and fine-tunes."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydicom import Dataset
from rich.console import Console
from typer.testing import CliRunner

from node.cli import finetuning, main
from node.cli.commands.model import _evaluation_tables, models
from node.cli.main import app
from node.config import load
from node.fidelity.bands import BANDS
from node.training import evaluate, sd_decoder, trainer
from node.upscalers.mammo import SHIPPED, WEIGHTS, Mammo, load_network, save_network
from node.upscalers.network import MammoNetwork, NetworkConfig
from node.upscalers.sd_x2 import SdX2
from storage.dicom.levels import levels_of
from storage.index import Index
from storage.objects.store import ObjectStore
from storage.records import Claim, InstanceState, NewInstance, NewRendition, OperatingPoint, ReasonCode, Verdict
from tests.support import commands, tiny_sd
from tests.support.samples import MAMMOGRAPHY, breast, mammogram, write

VERDICT = Verdict(38.5, 0.96, 0.94, 9)


def model(*arguments: object) -> Any:
    """``latent-pacs model``, which must succeed."""
    done = CliRunner(env={"COLUMNS": "240"}).invoke(app, ["model", *map(str, arguments)])
    assert done.exit_code == 0, (done.output, done.exception)
    return done


def failure(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The error with which ``latent-pacs model`` ends."""
    monkeypatch.setattr(sys, "argv", ["latent-pacs", "model", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main.run()
    assert ended.value.code in (1, 2)
    return capsys.readouterr().err


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """These networks are too small for several threads, which wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make trainings as small as possible. Values that a command passes on are not changed."""
    small = {"width": 8, "wide": 16, "blocks": (1, 1, 1), "batch": 2, "crop": 64, "patches": 2}
    monkeypatch.setattr(trainer, "Plan", functools.partial(trainer.Plan, **small))
    monkeypatch.setattr(sd_decoder, "DecoderPlan", functools.partial(sd_decoder.DecoderPlan, batch=2, crop=32))
    monkeypatch.setattr(evaluate, "DISTANCES", {2: (0.5, 4.0)})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one small mammogram and a note."""
    folder = tmp_path_factory.mktemp("data")
    write(mammogram(breast(256, 256)), folder / "a.dcm")
    (folder / "note.txt").write_text("no picture")
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model of width 12, which no other model here has."""
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(1)
    save_network(MammoNetwork(NetworkConfig(width=12, wide=16, blocks=(1, 1, 1))), folder)
    return folder


class Archive:
    """A stopped archive: its configuration, and what a node would have left in index and store."""

    def __init__(self, folder: Path, weights: Path) -> None:
        self.config = folder / "config.yaml"
        self.root = folder / "archive"
        self.root.mkdir()
        raw = {
            "storage": {"root": str(self.root), "min_free": 0},
            "reconstruct": {"device": "cpu", "mammo": {"weights": str(weights)}},
        }
        self.config.write_text(yaml.safe_dump(raw))
        self.store = ObjectStore(self.root)
        self.index = Index.open(load(self.config).storage.database_url)

    def hold(self, ds: Dataset, folder: Path) -> tuple[str, Claim]:
        """Receive an instance. Returns the digest of its original, and the claim to encode it."""
        content = write(ds, folder / f"{ds.SOPInstanceUID}.dcm").read_bytes()
        digest = self.store.put(content)
        self.index.add(
            NewInstance(
                sop_instance_uid=ds.SOPInstanceUID,
                sop_class_uid=MAMMOGRAPHY,
                study_instance_uid=ds.StudyInstanceUID,
                transfer_syntax_uid="1.2.840.10008.1.2.1",
                levels=levels_of(ds),
                original_digest=digest,
                original_bytes=len(content),
                pixel_bytes=len(ds.PixelData),
                calling_aet="MODALITY",
            )
        )
        claim = self.index.claim("worker", 60)
        assert claim is not None
        return digest, claim

    def rest(
        self, ds: Dataset, folder: Path, state: InstanceState, code: ReasonCode = ReasonCode.NONE, **made_with: str
    ) -> str:
        """Receive an instance and set its final state, with a rendition if ``made_with`` names its model. Returns the
        digest."""
        digest, claim = self.hold(ds, folder)
        if made_with:
            assert self.index.finish_with(claim, state, rendition(ds.SOPInstanceUID, **made_with))
        else:
            assert self.index.finish(claim, state, code)
        return digest


def rendition(uid: str, upscaler: str = "mammo", weights_digest: str = "") -> NewRendition:
    return NewRendition(
        derived_uid=f"{uid}.1",
        structure_uid=f"{uid}.2",
        base_digest=hashlib.sha256(uid.encode()).hexdigest(),
        base_bytes=70,
        rendition_digest=hashlib.sha256(uid.encode() + b"r").hexdigest(),
        rendition_bytes=30,
        point=OperatingPoint(2, "jpegxl", 0.3),
        upscaler=upscaler,
        weights_digest=weights_digest,
        output_digest="0" * 64,
        structure_digest="0" * 64,
        verdict=VERDICT,
        tried=(),
        seconds=1.0,
    )


@pytest.fixture
def archive(tmp_path: Path, tiny: Path) -> Iterator[Archive]:
    made = Archive(tmp_path, tiny)
    yield made
    made.index.close()


def test_every_model_command_has_help() -> None:
    names = [command.name or command.callback.__name__ for command in models.registered_commands if command.callback]
    assert {"train", "evaluate", "fine-tune", "list"} <= set(names)
    for command, name in zip(models.registered_commands, names, strict=True):
        assert command.callback is not None
        assert command.callback.__doc__
        assert "--json" in model(name, "--help").output


# --- train and evaluate -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick")
def test_train_and_evaluate(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    report = json.loads(model("train", "--data", data, "--minutes", 0.03, "--out", out, "--json").stdout)
    assert report["folder"] == str(out)
    assert 1 <= report["step"] <= report["steps"]
    assert report["loss"] > 0
    assert report["seconds"] < 0.03 * 60 + 5
    assert load_network(out).config.width == 8

    (result,) = json.loads(model("evaluate", "--data", data, "--model", out, "--device", "cpu", "--json").stdout)
    assert result["image"] == f"{data.name}/a.dcm"
    assert result["scale"] == 2
    assert result["points"][0]["distance"] == 0.5

    console = Console(width=240, file=io.StringIO(), record=True)
    for table in _evaluation_tables([result], evaluate.summary([result])):
        console.print(table)
    text = console.export_text()
    assert f"{result['points'][0]['bytes']:,}" in text
    assert f"{result['points'][0]['model_lines'][0]:.2f}" in text


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_training_goes_on_with_resume_and_starts_again_without(data: Path, tmp_path: Path) -> None:
    """Also covers several folders, after one ``--data`` or several, and the output for people."""
    out = tmp_path / "model"
    second = write(mammogram(breast(256, 256)), tmp_path / "second.dcm")
    done = model("train", "--data", data, second, "--minutes", 0.02, "--out", out, "--seed", 3)
    assert "2 images" in done.stderr
    assert f"folder: {out}" in done.stdout
    first = torch.load(out / trainer.CHECKPOINT, weights_only=True)
    assert json.loads(first["plan"])["seed"] == 3
    with_both = ("train", "--data", data, "--data", second, "--minutes", 0.02, "--out", out, "--json")
    report = json.loads(model(*with_both, "--resume").stdout)
    assert report.get("step", first["step"]) >= first["step"]
    content = torch.load(out / trainer.CHECKPOINT, weights_only=True)
    assert json.loads(content["plan"])["seed"] == 3  # as it was begun
    model(*with_both)
    assert json.loads(torch.load(out / trainer.CHECKPOINT, weights_only=True)["plan"])["seed"] == 1


def test_what_cannot_be_done_is_said_in_one_line(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "note.txt").write_text("no picture")
    train = ("train", "--minutes", 1, "--out", tmp_path / "out")
    said = failure(monkeypatch, capsys, *train, "--data", tmp_path / "none")
    assert "DICOM, PNG or JPEG" in said
    assert "none" in said
    assert "does not exist" in failure(monkeypatch, capsys, *train, "--data", tmp_path / "nowhere")
    assert not (tmp_path / "out").exists()
    assert "--minutes" in failure(monkeypatch, capsys, "train", "--data", data)
    said = failure(monkeypatch, capsys, "evaluate", "--data", data, "--model", tmp_path / "none")
    assert "no usable mammo model" in said
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / trainer.CHECKPOINT).write_bytes(b"damaged")
    assert "cannot be resumed" in failure(monkeypatch, capsys, *train, "--data", data, "--resume")


@pytest.mark.parametrize("device", ["teapot", "cuda:99"])
def test_a_device_that_is_not_there_is_said_in_one_line(
    device: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train = ("train", "--data", data, "--minutes", 1, "--out", tmp_path / "out", "--device", device)
    assert "device" in failure(monkeypatch, capsys, *train)


@pytest.mark.very_slow
def test_training_as_it_is_shipped(data: Path, tmp_path: Path) -> None:
    """The training has its full size, and runs in a process of its own."""
    done = commands.run_process("model", "train", "--data", str(data), "--minutes", "0.1", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["folder"] == "mammo-model"
    assert Mammo(tmp_path / "mammo-model").weights_digest
    assert load_network(tmp_path / "mammo-model").config.width == trainer.Plan(steps=1).width
    (result, *_) = json.loads(
        commands.run_process("model", "evaluate", "--data", str(data), "--json", cwd=tmp_path).stdout
    )
    first = result["points"][0]
    # the network was trained on tissue: it need not improve a phantom, and the encoder would not choose it then
    assert len(first["model_lost"]) == len(first["base_lost"]) == BANDS
    assert all(0 < share < 1.1 for share in (*first["model_lost"], *first["base_lost"]))


# --- list ---------------------------------------------------------------------------------------------------------


def rows(*arguments: object) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(model("list", "--json", *arguments).stdout)
    return found


def test_list_without_an_archive_shows_the_shipped_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (row,) = rows()
    assert row["upscaler"] == "mammo"
    assert row["digest"] == Mammo().weights_digest
    assert row["bytes"] == (SHIPPED / WEIGHTS).stat().st_size
    assert row["folder"] == str(SHIPPED)
    assert row["renditions"] == 0
    assert row["digest"][:16] in model("list").stdout
    assert list(tmp_path.iterdir()) == []


def test_list_before_a_node_has_run(tmp_path: Path, tiny: Path) -> None:
    config = tmp_path / "config.yaml"
    gone = str(tmp_path / "gone")
    raw = {
        "storage": {"root": str(tmp_path / "archive")},
        "reconstruct": {"mammo": {"weights": str(tiny), "older": [gone]}},
    }
    config.write_text(yaml.safe_dump(raw))
    by_folder = {row["folder"]: row for row in rows("--config", config)}
    assert set(by_folder) == {str(tiny), gone, str(SHIPPED)}
    assert by_folder[str(tiny)]["digest"] == Mammo(tiny).weights_digest
    assert "new renditions" in by_folder[str(tiny)]["role"]
    assert "UNUSABLE" in by_folder[gone]["role"]
    assert by_folder[gone]["digest"] == ""
    assert not (tmp_path / "archive").exists()


def test_list_shows_what_renditions_were_made_with(archive: Archive, tiny: Path, tmp_path: Path) -> None:
    lost = "ab" * 32
    for upscaler, digest in (
        ("mammo", lost),
        ("mammo", lost),
        ("mammo", Mammo(tiny).weights_digest),
        ("bicubic", ""),
    ):
        ds = mammogram(breast(256, 256))
        archive.rest(ds, tmp_path, InstanceState.VERIFIED, upscaler=upscaler, weights_digest=digest)
    found = {(row["upscaler"], row["digest"]): row for row in rows("-c", archive.config)}
    assert {key: row["renditions"] for key, row in found.items()} == {
        ("mammo", lost): 2,
        ("mammo", Mammo(tiny).weights_digest): 1,
        ("mammo", Mammo().weights_digest): 0,
        ("bicubic", ""): 1,
    }
    assert [key for key, row in found.items() if "NOT INSTALLED" in row["role"]] == [("mammo", lost)]
    text = model("list", "-c", archive.config).stdout
    assert lost[:12] in text
    assert "NOT INSTALLED" in text


# --- fine-tune ----------------------------------------------------------------------------------------------------


def test_originals_to_learn_from_are_those_a_reconstruction_was_tried_of(archive: Archive, tmp_path: Path) -> None:
    wanted = []
    for state, reason, learned_from in (
        (InstanceState.VERIFIED, ReasonCode.NONE, True),
        (InstanceState.EXACT, ReasonCode.SOP_CLASS, False),
        (InstanceState.EXACT, ReasonCode.GATE, True),
        (InstanceState.FAILED, ReasonCode.GATE, False),
        (InstanceState.MEASURED, ReasonCode.NONE, True),
    ):
        digest = archive.rest(mammogram(breast(256, 256)), tmp_path, state, reason)
        wanted += [digest] * learned_from
    archive.hold(mammogram(breast(256, 256)), tmp_path)  # received, nothing decided yet
    assert archive.index.reconstructable_originals() == sorted(wanted)


def test_a_large_archive_is_not_read_into_memory(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [archive.rest(mammogram(breast(256, 256, seed=n)), tmp_path, InstanceState.VERIFIED) for n in range(4)]
    monkeypatch.setattr(finetuning, "_ENOUGH", 2 * 256 * 256)
    assert [picture.name for picture in finetuning.held_pictures(archive.config, None)] == sorted(made)[:2]


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_fine_tune_on_held_originals(archive: Archive, tiny: Path, tmp_path: Path) -> None:
    """Originals that are gone, and originals that were never reconstructed, are left out. The archive's model is not
    changed."""
    before = (tiny / WEIGHTS).read_bytes()
    archive.rest(mammogram(breast(256, 256)), tmp_path, InstanceState.VERIFIED)
    gone = archive.rest(mammogram(breast(256, 256)), tmp_path, InstanceState.VERIFIED)
    archive.rest(mammogram(breast(256, 256)), tmp_path, InstanceState.EXACT, ReasonCode.SMALL)
    archive.store.delete(gone)
    out = tmp_path / "tuned"
    done = model("fine-tune", "-c", archive.config, "--minutes", 0.03, "--out", out, "--device", "cpu", "--json")
    report = json.loads(done.stdout)
    assert "1 image" in done.stderr
    assert report["digest"] == Mammo(out).weights_digest != Mammo(tiny).weights_digest
    assert str(out) in report["use"]
    assert "reconstruct.mammo.weights" in report["use"]
    assert report["step"] >= 1
    assert load_network(out).config.width == 12
    assert (tiny / WEIGHTS).read_bytes() == before
    assert [row["folder"] for row in rows("-c", archive.config)] == [str(tiny), str(SHIPPED)]  # until it is configured


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_fine_tune_on_other_mammograms(archive: Archive, data: Path, tmp_path: Path) -> None:
    tuned = ("fine-tune", "-c", archive.config, "--minutes", 0.02, "--out", tmp_path / "tuned", "--device", "cpu")
    done = model(*tuned, "--data", data)
    assert "1 image" in done.stderr
    assert Mammo(tmp_path / "tuned").weights_digest in done.stdout


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_fine_tune_of_the_decoder_of_sd_x2(archive: Archive, data: Path, tmp_path: Path) -> None:
    source, out = tiny_sd.build(tmp_path / "sd"), tmp_path / "tuned"
    raw = yaml.safe_load(archive.config.read_text())
    raw["reconstruct"]["sd_x2"] = {"weights": str(source)}
    archive.config.write_text(yaml.safe_dump(raw))
    tuned = ("fine-tune", "-c", archive.config, "--upscaler", "sd_x2", "--data", data, "--device", "cpu", "--json")
    report = json.loads(model(*tuned, "--minutes", 0.01, "--out", out).stdout)
    assert report["use"] == f"reconstruct.sd_x2.weights: {out}"
    assert report["step"] >= 1
    assert SdX2(str(out)).weights_digest != SdX2(str(source)).weights_digest


def test_fine_tune_says_what_is_missing(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned = ("fine-tune", "--minutes", 1, "--out", tmp_path / "tuned")
    assert "no originals" in failure(monkeypatch, capsys, *tuned, "-c", archive.config)
    assert "--data" in failure(monkeypatch, capsys, *tuned, "-c", archive.config)
    said = failure(monkeypatch, capsys, *tuned, "-c", archive.config, "--upscaler", "esrgan")
    assert "esrgan" in said
    assert "sd_x2" in said
    assert "none.yaml" in failure(monkeypatch, capsys, *tuned, "-c", tmp_path / "none.yaml")
    assert not (tmp_path / "tuned").exists()


@pytest.mark.usefixtures("quick")
def test_fine_tune_never_overwrites_the_model_in_use(
    archive: Archive, data: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the renditions that the model made could never be reconstructed again."""
    own = tmp_path / "own"
    save_network(load_network(tiny), own)
    archive.config.write_text(archive.config.read_text().replace(str(tiny), str(own)))
    before = Mammo(own).weights_digest
    tuned = ["fine-tune", "-c", archive.config, "--minutes", 0.01, "--out", own, "--data", data, "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["latent-pacs", "model", *map(str, tuned)])
    with pytest.raises(SystemExit):
        main.run()
    assert Mammo(own).weights_digest == before
