"""Runs commands of latent-pacs: in this process, or in one of their own, which takes two seconds more."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import IO
from unittest import mock

from typer.testing import CliRunner, Result

from node.cli import main
from tests.support.paths import ROOT


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command in this process. Returns exit code, standard output and standard error as the console script has
    them."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        with (
            mock.patch.object(sys, "argv", ["latent-pacs", *arguments]),
            mock.patch.dict(os.environ, {"COLUMNS": "200"}),
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            main.run()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    return subprocess.CompletedProcess(["latent-pacs", *arguments], code, out.getvalue(), err.getvalue())


def run_process(
    *arguments: str, cwd: Path | None = None, stdout: int | IO[str] = subprocess.PIPE
) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own, for tests of what only a process shows."""
    command = [sys.executable, "-W", "ignore", "-m", "node.cli", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    return subprocess.run(
        command, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=900, check=False, cwd=cwd, env=environment
    )


def invoke(*arguments: str, input: str = "") -> Result:
    """Run a command in this process with answers as its input. An error of ours is the ``exception`` of the result."""
    return CliRunner().invoke(main.app, arguments, input=input)
