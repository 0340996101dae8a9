"""Shared by the commands: options, opening the archive or its index, and output."""

from __future__ import annotations

import getpass
import json
import os
import sys
from contextlib import AbstractContextManager, closing
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from node.archive.index_opening import open_for_command
from node.cli.console import Console
from node.cli.exit_codes import UsageError
from node.cli.times import time_json
from node.config import load
from storage.index import Index
from storage.records import ReasonCode

if TYPE_CHECKING:
    from node.app import Services

ConfigOption = Annotated[
    Path,
    typer.Option("--config", "-c", help="The configuration file.", metavar="FILE", envvar="LATENT_PACS_CONFIG"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs, with times in UTC.")]
UtcOption = Annotated[bool, typer.Option("--utc", help="Print times in UTC instead of the local time zone.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Print what would change, and change nothing.")]
LimitOption = Annotated[int, typer.Option("--limit", help="Print at most this many; 0 is all.", metavar="N", min=0)]
DEFAULT_CONFIG = Path("config.yaml")
REASON_CODES = [str(code) for code in ReasonCode if code]


def stated(reason: str) -> str:
    """A reason that is not empty. Raises UsageError."""
    if not reason.strip():
        raise UsageError("the reason is empty; give one with --reason TEXT")
    return reason


ReasonOption = Annotated[
    str, typer.Option("--reason", help="The reason, for the audit trail.", metavar="TEXT", parser=stated)
]


def archive(config: Path) -> AbstractContextManager[Services]:
    """The services of the archive."""
    from node.app import open_archive

    return open_archive(load(config))


def open_index(config: Path) -> closing[Index]:
    """The index alone, for commands that only read it. Raises ConfigError if there is no archive."""
    return closing(open_for_command(load(config)))


def current_user() -> str:
    """The user at the command line, as the audit trail names them."""
    try:
        return f"user:{getpass.getuser()}"
    except (KeyError, OSError):  # a user without an entry in /etc/passwd, as in a container; OSError since Python 3.13
        return f"user:{os.getuid()}"


def say(report: object, *shown: str | Table, as_json: bool) -> None:
    """Print what a command did or found: the report as JSON for programs, or lines and tables for people."""
    if as_json:
        print_json(report)
        return
    console = Console()
    for one in shown:
        console.print(one, soft_wrap=isinstance(one, str))


def print_json(value: object) -> None:
    """Print JSON on standard output, for programs: data classes by their fields, times in UTC."""
    sys.stdout.write(json.dumps(value, indent=2, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return time_json(value)
    return str(value) if isinstance(value, Path) else asdict(value)
