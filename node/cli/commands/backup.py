"""``latent-pacs backup``: creates, verifies and restores a backup of the archive in a folder."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from node.cli.console import Console, print_some
from node.cli.exit_codes import FAILED, UsageError
from node.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption, open_index, print_json
from node.cli.progress import progress
from node.cli.times import time_text
from node.config import load
from node.reports.formatting import size_text
from storage.backup.create import Backup
from storage.objects.store import ObjectStore
from storage.printable import counted

backups = typer.Typer(help="Create, verify and restore a backup in a folder.", no_args_is_help=True)

FolderArgument = Annotated[Path, typer.Argument(help="The folder of the backup.", metavar="FOLDER")]


@backups.command()
def create(folder: FolderArgument, config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Copy new objects and the index to the backup. The node may be running.

    If the command is interrupted, the former backup stays valid; run it again. Exit code 1: objects are missing in the
    archive itself. The output names them.
    """
    from node.app import make_backup, stores_of

    settings = load(config)
    with open_index(config) as index, progress("backup", "objects") as report:
        stores = stores_of(settings, index, ObjectStore(settings.storage.root))
        made = make_backup(settings, index, stores, folder, report)
    print_json({**asdict(made), "clean": made.clean}) if as_json else print_backup(asdict(made))
    if not made.clean:
        raise typer.Exit(FAILED)


@backups.command()
def verify(folder: FolderArgument, as_json: JsonOption = False) -> None:
    """Read every object and file of a backup, and compare it with its digest. No archive is needed.

    Exit code 1: some are missing or damaged. They are named, and the next `backup create` copies them again.
    """
    _require(folder)
    with progress("verify", "objects") as report:
        found = Backup(folder).verify(report)
    if as_json:
        print_json({**asdict(found), "clean": found.clean})
    else:
        console = Console(soft_wrap=True)
        made = time_text(found.made_at)
        read = counted(found.checked, "object or file", "objects and files")
        console.print(f"backup of {made}: {read} read, {size_text(found.bytes)}")
        print_some(console, found.findings)
        if found.clean:
            console.print("clean", style="green")
        else:
            console.print("run `latent-pacs backup create` again: it copies what is missing or damaged here")
    if not found.clean:
        raise typer.Exit(FAILED)


@backups.command()
def restore(folder: FolderArgument, config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Restore a backup into storage.root and originals.path, which must be empty, and check the index.

    If the command is interrupted, run it again; it continues. Exit code 1: objects are missing in the backup. They are
    named, and all others are restored. Images that were deleted after the backup are back. The command prints the time
    at which the audit trail in the backup ends: repeat the decisions that were made later.
    """
    from node.app import restore_backup

    _require(folder)
    with progress("restore", "objects") as report:
        made = restore_backup(load(config), folder, report)
    if as_json:
        print_json({**asdict(made), "clean": made.clean})
    else:
        console = Console(soft_wrap=True)
        restored = f"{counted(made.objects, 'object')} restored, {size_text(made.bytes)}"
        console.print(f"backup of {time_text(made.made_at)}: {restored}")
        if made.rebuilt:
            console.print("the index was rebuilt from the journal, because the backup does not hold a sound copy of it")
        console.print("the index is sound, and ends where the journal ends")
        ends = (
            f"its audit trail ends at {time_text(made.trail_ends)}" if made.trail_ends else "its audit trail is empty"
        )
        console.print(
            f"{ends}: what was stored, deleted, held, labelled, amended or purged later is not in the backup, and "
            "images that were deleted later are back. Repeat these deletions, holds and amendments before you start "
            "the node"
        )
        print_some(console, [f"{name} is missing or damaged in the backup" for name in made.missing])
    if not made.clean:
        raise typer.Exit(FAILED)


def _require(folder: Path) -> None:
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder; is its disk mounted?")


def print_backup(report: dict[str, Any]) -> None:
    """Print what a backup holds, and what was copied to it."""
    console = Console(soft_wrap=True)
    console.print(
        f"{counted(report['objects'], 'object')}, {size_text(report['bytes'])}, and "
        f"{counted(report['files'], 'file')} of the index"
    )
    copied = f"{counted(report['copied'], 'object')} copied, {size_text(report['bytes_copied'])}"
    console.print(f"{copied}; all others were there already")
    print_some(console, [f"object {digest} is missing or damaged in the archive" for digest in report["missing"]])
    print_some(
        console,
        [
            f"object {digest} is missing or damaged in the archive, and this backup has it: `latent-pacs scrub --full` "
            "copies it back if jobs.replicate.to names this folder"
            for digest in report["only_here"]
        ],
    )
    listed = len(report["missing"]) + len(report["only_here"])
    if report.get("lost", listed) > listed:
        console.print(f"{counted(report['lost'], 'object')} in all; `latent-pacs backup create` lists them with --json")
