"""Runs commands of latent-pacs: in a process of their own, or in this one, which is much faster."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner, Result

from node.cli.main import app
from tests.support.paths import ROOT


def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-m", "node.cli", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    return subprocess.run(command, capture_output=True, text=True, timeout=900, check=False, cwd=cwd, env=environment)


def invoke(*arguments: str, input: str = "") -> Result:
    """A command within this process, which is much faster; an error of ours is the result's ``exception``."""
    return CliRunner().invoke(app, arguments, input=input)
