"""Options that several verbs share, and how JSON is printed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="The configuration file.", metavar="FILE")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of text for people.")]
DEFAULT_CONFIG = Path("config.yaml")


def print_json(value: object) -> None:
    """JSON on standard output, for programs."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")
