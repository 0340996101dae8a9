"""``latent-pacs``: the list of commands, and the exit codes of errors. Each command is in the file of its name."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import typer
from rich.text import Text
from typer.core import TyperGroup

from node.cli import standard_output
from node.cli.commands.amend import amends
from node.cli.commands.audit import audits
from node.cli.commands.backup import backups
from node.cli.commands.class_label import class_labels
from node.cli.commands.config import configs
from node.cli.commands.delete import delete
from node.cli.commands.demo import demo
from node.cli.commands.gate import gates
from node.cli.commands.hold import holds
from node.cli.commands.hold_label import hold_labels
from node.cli.commands.index import indexes
from node.cli.commands.init import init
from node.cli.commands.instance import instances
from node.cli.commands.jobs import jobs
from node.cli.commands.model import models
from node.cli.commands.peer import peers
from node.cli.commands.purge import purge
from node.cli.commands.quarantine import quarantines
from node.cli.commands.replicate import replicate
from node.cli.commands.restore import restore
from node.cli.commands.retry import retry
from node.cli.commands.sbom import sbom
from node.cli.commands.scrub import scrub
from node.cli.commands.serve import serve
from node.cli.commands.status import status
from node.cli.commands.study import studies
from node.cli.commands.trail import trail
from node.cli.commands.validate import validations
from node.cli.console import Console
from node.cli.exit_codes import FAILED, MEANINGS, code_of
from node.cli.options import JsonOption, say
from storage.errors import LatentPacsError
from storage.objects.file_modes import keep_private
from storage.printable import plain

_FORMER = {"restore-backup": ["backup", "restore"], "label": ["hold-label"], "labels": ["class-label"]}
"""Former names of commands, which still work, and the present names."""


class _FormerNames(TyperGroup):
    """Accepts former names of commands. ``backup FOLDER`` is ``backup create FOLDER``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args:
            args = [*_FORMER.get(args[0], args[:1]), *args[1:]]
        if args[:1] == ["backup"] and args[1:] and args[1] not in ("create", "verify", "restore", "--help"):
            args = ["backup", "create", *args[1:]]
        parsed: list[str] = super().parse_args(ctx, args)
        return parsed


app = typer.Typer(
    cls=_FormerNames,
    name="latent-pacs",
    help="A DICOM archive for mammograms. For each eligible image it also stores a payload that gives the full image.",
    epilog="Exit codes: " + "; ".join(f"{code} {meaning}" for code, meaning in MEANINGS.items()) + ".",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def _before_every_command() -> None:
    """Make the files that a command writes readable for its user only."""
    keep_private()


def version(as_json: JsonOption = False) -> None:
    """Print the version."""
    from importlib.metadata import version as installed

    number = installed("latent-pacs")
    say({"version": number}, f"latent-pacs {number}", as_json=as_json)


_PANELS: dict[str, dict[str, typer.Typer | Callable[..., None]]] = {
    "Set up": {"init": init, "config": configs, "peer": peers, "demo": demo, "version": version, "sbom": sbom},
    "Run": {"serve": serve, "jobs": jobs, "retry": retry},
    "Look at the archive": {"status": status, "study": studies, "instance": instances, "trail": trail},
    "Correct, hold and remove": {
        "amend": amends,
        "quarantine": quarantines,
        "hold": holds,
        "hold-label": hold_labels,
        "delete": delete,
        "purge": purge,
        "restore": restore,
    },
    "Maintain": {"scrub": scrub, "backup": backups, "replicate": replicate, "index": indexes},
    "Measure and train": {
        "gate": gates,
        "audit": audits,
        "validate": validations,
        "class-label": class_labels,
        "model": models,
    },
}
"""The commands in the order of ``--help``."""


def _register() -> None:
    for panel, commands in _PANELS.items():
        for name, command in commands.items():
            if isinstance(command, typer.Typer):
                app.add_typer(command, name=name, rich_help_panel=panel)
            else:
                app.command(name, rich_help_panel=panel)(command)


_register()


def run() -> None:
    """The console script. A LatentPacsError, or an error of a file, is printed as one line on standard error, and sets
    the exit code."""
    try:
        try:
            app()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except LatentPacsError as error:
        _end(str(error), code_of(error))
    except OSError as error:
        if error.filename is None or error.errno is None:
            raise
        if error.filename == standard_output.NAME:
            sys.stdout = None
        advice = _ADVICE.get(error.errno, "")
        _end(f"{error.filename} cannot be used: {error.strerror}{advice and '; '}{advice}", FAILED)


_ADVICE = {
    errno.EACCES: "look at its owner and rights, and run the command as the user of the node",
    errno.EPERM: "look at its owner and attributes, and run the command as the user of the node",
    errno.EROFS: "its disk is mounted read-only; look at the system's log",
    errno.EIO: "its disk does not read or write; look at the system's log",
    errno.ENOSPC: "make room on its disk",
    errno.EDQUOT: "the quota of the user is used up",
}
"""What to do next, by the error code of a file."""


def _end(message: str, code: int) -> NoReturn:
    text = "\n".join(map(plain, message.splitlines()))
    Console(stderr=True, soft_wrap=True).print(Text.assemble(("latent-pacs: ", "bold red"), text))
    sys.exit(code)
