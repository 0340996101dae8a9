"""Every command in the documents is one that the program understands, and the harmless ones run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from node.app import Node
from node.cli.main import app
from node.config import load
from tests.support.paths import ROOT

GENERATED = ROOT / "docs/COMMANDS.md"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted(page for page in (ROOT / "docs").glob("*.md") if page != GENERATED),
]
PROGRAM = get_command(app)
FOLDER = "/mnt/backup"
"""The folder that documents name for backups."""
HARMLESS = {
    *("status", "retry", "trail", "scrub", "purge", "version", "sbom", "backup create", "backup verify"),
    *("jobs list", "jobs history", "quarantine list", "hold list", "amend list", "config check", "config show"),
    *("study list", "instance list", "peer list"),
}
"""Commands that are run on an empty archive if documents name them with all their arguments."""


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """The language and the text of each fenced block."""
    yield from re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)


def lines(page: Path) -> list[list[str]]:
    """The words of each line of the ``sh`` blocks, without comments."""
    text = "".join(block.replace("\\\n", " ") for language, block in blocks(page) if language == "sh")
    return [words for line in text.splitlines() if (words := shlex.split(line, comments=True))]


def whole() -> list[list[str]]:
    """The arguments of each ``latent-pacs`` line of the ``sh`` blocks."""
    return [words[1:] for page in PAGES for words in lines(page) if Path(words[0]).name == "latent-pacs"]


def mentioned() -> list[list[str]]:
    """The arguments of each ``latent-pacs`` in running text, which may leave arguments out."""
    texts = [re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S) for page in PAGES]
    found = {command for text in texts for command in re.findall(r"`latent-pacs ([^`]+)`", text)}
    return [shlex.split(command) for command in sorted(found)]


def resolved(arguments: list[str]) -> tuple[Any, list[str], list[str]]:
    """The command that arguments name, its words, and the remaining arguments."""
    command, name, rest = PROGRAM, [], arguments
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        assert rest[0] in command.commands, f"{' '.join(arguments)}: no command {rest[0]}"
        command = command.commands[rest[0]]
        name, rest = [*name, rest[0]], rest[1:]
    return command, name, rest


def test_no_command_escapes() -> None:
    """A block with a command of ours must be marked as ``sh``."""
    for page in PAGES:
        for language, block in blocks(page):
            assert language == "sh" or not re.search(r"^latent-pacs ", block, re.M), f"{page.name}: {block}"


@pytest.mark.parametrize("arguments", whole(), ids=" ".join)
def test_whole_commands_parse(arguments: list[str]) -> None:
    command, name, rest = resolved(arguments)
    command.make_context(" ".join(name), list(rest))


@pytest.mark.parametrize("arguments", mentioned(), ids=" ".join)
def test_mentioned_commands_parse(arguments: list[str]) -> None:
    """Required arguments may be missing, but options and the number of arguments must be right."""
    command, name, rest = resolved(arguments)
    options = {"--help"} | {
        option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
    }
    assert {word for word in rest if word.startswith("-")} <= options, arguments
    command.make_context(" ".join(name), list(rest), resilient_parsing=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({" ".join(resolved(arguments)[1]) for arguments in (*whole(), *mentioned())}))
def test_named_commands_have_help(name: str) -> None:
    assert CliRunner().invoke(app, [*name.split(), "--help"]).exit_code == 0


def test_named_targets_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        named = {words[1] for words in lines(page) if words[0] == "make"}
        named |= set(re.findall(r"`make ([\w-]+)", text))
        assert named <= targets, page.name


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of config.yaml for an archive without images."""
    folder = tmp_path_factory.mktemp("archive")
    settings = {"storage": {"root": str(folder / "data"), "min_free": 0}, "reconstruct": {"upscaler": "bicubic"}}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    Node(load(folder / "config.yaml")).stop()
    return folder


def runnable() -> list[list[str]]:
    """The documented commands that need no image, also those in running text that have all their arguments."""
    found = [one for one in (*whole(), *mentioned()) if " ".join(resolved(one)[1]) in HARMLESS]
    return [list(one) for one in dict.fromkeys(map(tuple, found))]


@pytest.mark.slow
def test_harmless_commands_run(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backup is made before it is verified. A command that is named without its arguments is left out."""
    monkeypatch.chdir(archive)
    commands = [[word.replace(FOLDER, str(archive / "backup")) for word in one] for one in runnable()]
    assert len(commands) >= 8
    for arguments in sorted(commands, key=lambda one: "verify" in one):
        command, name, rest = resolved(arguments)
        try:
            command.make_context(" ".join(name), list(rest))
        except Exception:
            assert arguments in mentioned()
            continue
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, (arguments, done.output, done.exception)
