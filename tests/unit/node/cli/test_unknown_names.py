"""Proves that a command that names something unknown ends with the exit code of a usage error."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from node.cli import exit_codes
from storage.index.opening import open_checked_index
from tests.support.commands import run

UID = "1.2.3.4"
WHY = ("--reason", "x")


@pytest.fixture
def config(tmp_path: Path) -> str:
    """The configuration of an empty archive."""
    root = tmp_path / "archive"
    root.mkdir()
    open_checked_index(f"sqlite:///{root / 'index.sqlite'}", root, holds_objects=False).index.close()
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"storage": {"root": str(root)}}))
    return str(file)


@pytest.mark.parametrize(
    "words",
    [
        ("instance", "show", UID),
        ("study", "show", UID),
        ("delete", UID, "--level", "image", "--dry-run"),
        ("delete", UID, "--level", "study", "--yes", *WHY),
        ("delete", UID, "--level", "study", "--allow-return", *WHY),
        ("restore", UID),
        ("amend", "patient", "P1", "--set", "PatientName=A", *WHY),
        ("amend", "study", UID, "--set", "AccessionNumber=A", *WHY),
        ("amend", "undo", "99", *WHY),
        ("amend", "show", "99"),
        ("quarantine", "show", "abcd"),
        ("quarantine", "accept", "abcd", *WHY),
        ("quarantine", "reject", "abcd", *WHY),
        ("hold", "release", "99", *WHY),
        ("hold-label", "add", "teaching", "--study", UID),
        ("class-label", "release", UID),
        ("class-label", "import", "/nowhere/classes.csv"),
        ("jobs", "run", "nothing"),
        ("jobs", "pause", "nothing"),
        ("jobs", "history", "nothing"),
        ("audit", "show", "99"),
        ("audit", "list", "--kind", "nothing"),
        ("audit", "show", "--kind", "nothing"),
        ("replicate", "NOBODY"),
        ("peer", "echo", "NOBODY"),
        ("gate", "calibrate", "/nowhere"),
        ("backup", "restore", "/nowhere"),
    ],
    ids=" ".join,
)
def test_a_name_that_is_unknown_is_a_usage_error(words: tuple[str, ...], config: str) -> None:
    done = run(*words, "-c", config)
    assert (done.returncode, done.stdout) == (exit_codes.USAGE, "")
    assert done.stderr


@pytest.mark.parametrize(
    "words", [("status",), ("scrub",), ("index", "rebuild"), ("index", "compact"), ("audit", "show")]
)
def test_an_archive_that_is_not_there_is_a_usage_error_and_is_not_made(words: tuple[str, ...], tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("storage: {root: archive}\n")
    assert run(*words, "-c", str(file)).returncode == exit_codes.USAGE
    assert list(tmp_path.iterdir()) == [file]
