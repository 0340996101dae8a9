"""Proves that no outside text acts as markup, control code or line break on the console, in the log or in reports."""

from __future__ import annotations

import ast
import json
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table as RichTable
from typer.testing import CliRunner

from node.cli import logs
from node.cli.console import Console
from node.cli.logs import AtMost, JsonLines, TextLines
from node.cli.main import app
from node.reports.page import Banner, PageSection, Paragraph, Table, page
from storage.printable import counted, plain
from tests.conftest import Archive
from tests.support.paths import modules
from tests.support.transfers import stored

HOSTILE = [
    "[/b]",
    "[bold]x",
    "[/]",
    "\x1b[2J\x1b[1;31mowned",
    "one\nERROR forged: line",
    "a\r\nb",
    "\x9b31m",
    "\u2028",
    "\u202e",
    ":smile:",
]


@given(st.text())
def test_plain_text_is_one_line_and_steers_nothing(text: str) -> None:
    shown = plain(text)
    assert len(shown.splitlines()) <= 1
    assert not any(ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0 for char in shown)
    assert plain("AE TITLE é [x]") == "AE TITLE é [x]"


@pytest.mark.parametrize("text", HOSTILE)
def test_the_console_prints_it_as_it_is(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    table = RichTable("a", "b", title=text)
    table.add_row(text, "x" * 300)
    console = Console()
    console.print(table)
    console.print(f"said: {text.replace(chr(10), ' ')}")
    printed = capsys.readouterr().out
    assert plain(text.split("\n", maxsplit=1)[0]) in printed
    assert "\x1b" not in printed
    assert "\x9b" not in printed
    assert "x" * 300 in printed  # without a terminal nothing is cut


@pytest.mark.slow
def test_every_command_prints_by_that_console() -> None:
    """Our texts are never written in markup, since they are printed literally."""
    for path in modules():
        for statement in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = {alias.name for alias in statement.names} if isinstance(statement, ast.ImportFrom) else set()
            if isinstance(statement, ast.ImportFrom) and statement.module == "rich.console":
                assert "Console" not in names, path
            if isinstance(statement, ast.Call):
                assert not any(
                    word.arg == "markup" and getattr(word.value, "value", None) is True for word in statement.keywords
                ), path


def test_a_hostile_ae_title_breaks_no_command(quiet_archive: Archive, tmp_path: Path) -> None:
    """The audit trail and the quarantine hold such titles, and every command that lists them works."""
    held = stored(quiet_archive, tmp_path)
    index = quiet_archive.node.index
    for title in ("[/b]", "[bold red]x", "a\x1b[2J\nb"):
        from storage.records import TrailEntry

        quiet_archive.node.trail.append(
            TrailEntry("store", title, "image", ("1.2.3",), outcome="refused", detail=title)
        )
        digest = quiet_archive.node.store.put(title.encode())
        assert index.quarantine.put(digest, held.sop_instance_uid, title, title, present=quiet_archive.node.store.has)
    config = tmp_path / "config.yaml"
    root = quiet_archive.node.store.root
    config.write_text(json.dumps({"storage": {"root": str(root)}}))
    for words in (["trail"], ["quarantine", "list"]):
        ran = CliRunner().invoke(app, [*words, "--config", str(config)])
        assert ran.exit_code == 0, ran.output
        for shown in ("[/b]", "[bold red]x", r"a\x1b[2J"):
            assert shown in ran.output
        assert "\x1b" not in ran.output


# --- the log ----------------------------------------------------------------------------------------------------


def record(message: str, *arguments: object, error: BaseException | None = None, line: int = 1) -> logging.LogRecord:
    exc_info = (type(error), error, error.__traceback__) if error else None
    return logging.LogRecord("node.dimse", logging.WARNING, "file.py", line, message, arguments, exc_info)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_record_is_one_line(text: str) -> None:
    for formatter in (TextLines(), JsonLines()):
        line = formatter.format(record("rejected an association of %s: %s", text, ValueError(text)))
        assert len(line.splitlines()) == 1
        assert "\x1b" not in line
        assert "\x9b" not in line


def test_an_unforeseen_error_is_one_line_without_its_text() -> None:
    try:
        raise ValueError("Doe^Jane\nforged")
    except ValueError as error:
        line = TextLines().format(record("message cannot be decoded: %s", error, error=error))
    assert "message cannot be decoded: ValueError [ValueError at" in line
    assert "test_printable.py" in line
    assert "Doe" not in line
    assert "\n" not in line


def test_one_place_writes_so_many_lines_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(logs, "time", SimpleNamespace(monotonic=lambda: clock.now))
    limit = AtMost(most=3, window=60)
    passed = [one for one in (record("bad PDU %d", number) for number in range(500)) if limit.filter(one)]
    assert len(passed) == 3
    assert limit.filter(record("another place", line=2))
    clock.now += 60
    later = record("bad PDU %d", 999)
    assert limit.filter(later)
    assert later.getMessage().startswith("bad PDU 999 (and ")


# --- reports ----------------------------------------------------------------------------------------------------


def test_reports_escape_what_peers_sent() -> None:
    hostile = "<script>alert(1)</script>\"'&"
    html = page(
        hostile,
        hostile,
        Banner("good", hostile, hostile),
        [PageSection(hostile, [Paragraph(hostile), Table([hostile], [[hostile]])])],
        hostile,
    )
    assert "<script>alert" not in html
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;&#34;&#39;&amp;") >= 8


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ((0, "image"), "0 images"),
        ((1, "study"), "1 study"),
        ((2, "study"), "2 studies"),
        ((2, "other object"), "2 other objects"),
        ((2, "patch", "patches"), "2 patches"),
    ],
)
def test_a_number_with_its_noun(words: tuple[int, str], text: str) -> None:
    assert counted(*words) == text
