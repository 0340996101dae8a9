"""``latent-pacs backup``, ``restore-backup`` and ``replicate``: the archive in another folder, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from node.cli.commands.jobs import exit_code, run_in_this_process
from node.cli.commands.status import open_index
from node.cli.console import Console
from node.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption, print_json
from node.cli.progress import bar
from node.config import load
from node.reports.formatting import size_text
from storage.backup.create import Backup
from storage.errors import ConfigError
from storage.objects.store import ObjectStore

if TYPE_CHECKING:
    from storage.index.job_runs import JobRun

_SHOWN = 20

FolderArgument = Annotated[Path, typer.Argument(help="The folder of the backup.", metavar="DEST")]


class _MakeUnlessNamed(TyperGroup):
    """``backup DEST`` is ``backup make DEST``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] != "--help" and args[0] not in self.commands:
            args = ["make", *args]
        parsed: list[str] = super().parse_args(ctx, args)
        return parsed


backups = typer.Typer(
    help="Back the archive up into a folder (`backup DEST`), and verify a backup (`backup verify DEST`).",
    cls=_MakeUnlessNamed,
    no_args_is_help=True,
)


@backups.command()
def make(dest: FolderArgument, config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Copy what the backup lacks: `backup DEST` does the same. Works while the node runs.

    Killed, it leaves the former backup valid, and the next run goes on. Exit code 1: the archive itself lacks objects,
    which are named.
    """
    from node.app import make_backup, stores_of

    settings = load(config)
    with open_index(config) as index, _progress("backup") as watch:
        stores = stores_of(settings, index, ObjectStore(settings.storage.root))
        report = asdict(made := make_backup(settings, index, stores, dest, watch))
    print_json({**report, "clean": made.clean}) if as_json else _print_made(report)
    if not made.clean:
        raise typer.Exit(1)


@backups.command()
def verify(dest: FolderArgument, as_json: JsonOption = False) -> None:
    """Read every object and file of a backup again, and compare it with its digest. Needs no archive.

    Exit code 1: some are missing or damaged. They are named, and the next backup copies them again.
    """
    with _progress("verify") as watch:
        found = Backup(dest).verify(watch)
    if as_json:
        print_json({**asdict(found), "clean": found.clean})
    else:
        console = Console(soft_wrap=True)
        console.print(f"backup of {found.made_at}: {found.checked} objects and files read, {size_text(found.bytes)}")
        _print_some(console, found.findings)
        if found.clean:
            console.print("clean", style="green")
        else:
            console.print("make the backup again: it copies what is missing or damaged here")
    if not found.clean:
        raise typer.Exit(1)


def restore_backup(dest: FolderArgument, config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Give a backup back into storage.root and originals.path, which must be empty, and check the index.

    Killed, it goes on when it is run again. Exit code 1: the backup lacks objects, which are named; all others are
    restored.
    """
    from node.app import restore_backup as restored_from

    with _progress("restore") as watch:
        made = restored_from(load(config), dest, watch)
    if as_json:
        print_json({**asdict(made), "clean": made.clean})
    else:
        console = Console(soft_wrap=True)
        console.print(f"backup of {made.made_at}: {made.objects} objects restored, {size_text(made.bytes)}")
        if made.rebuilt:
            console.print("the index was made anew from the journal, since the backup does not hold it whole")
        console.print("the index is sound, and ends where the journal ends")
        _print_some(console, [f"{name} is missing or damaged in the backup" for name in made.missing])
    if not made.clean:
        raise typer.Exit(1)


def replicate(
    to: Annotated[
        str,
        typer.Argument(
            help="AE title of a peer, or a folder; jobs.replicate.to or jobs.replicate_peer.to where none is named.",
            metavar="[PEER-OR-FOLDER]",
        ),
    ] = "",
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Bring a peer or the backup in a folder up to the archive now, as the jobs `replicate-peer` and `replicate` do.

    A peer of config.yaml gets the held originals that it has not acknowledged yet, by C-STORE. A folder gets a backup;
    write ./NAME for one that is named like a peer, or that is not there yet. Exit code 1: it failed, the peer did not
    take all with status 0000, or the archive itself lacks objects; 3: it was cancelled.
    """
    settings = load(config)
    peer = to if settings.peer(to) else ""
    if not to and settings.jobs.replicate.to is None:
        peer = settings.jobs.replicate_peer.to
    if to and not peer and "/" not in to and not Path(to).is_dir():
        raise ConfigError(f"{to} is neither a peer of config.yaml nor a folder here; write ./{to} for a new folder")
    done = _sent_to(peer, config) if peer else _copied_to(Path(to) if to else None, config)
    report = {**done.report, "state": done.state.value, "error": done.error}
    if as_json:
        print_json(report)
    elif done.error:
        Console(stderr=True, soft_wrap=True).print(f"not finished: {done.error}", style="bold red")
    elif peer:
        _print_sent(report)
    elif report.get("finished"):
        _print_made(report)
    if code := exit_code(done) or int(not report.get("clean")):
        raise typer.Exit(code)


def _sent_to(peer: str, config: Path) -> JobRun:
    from node.app import send_to_peer, services

    settings = load(config)
    with services(settings) as archive:
        return run_in_this_process(send_to_peer(settings, archive, to=peer), archive.index, settings)


def _copied_to(folder: Path | None, config: Path) -> JobRun:
    from node.app import make_replication

    settings = load(config)
    with open_index(config) as index:
        job = make_replication(settings, index, ObjectStore(settings.storage.root), folder)
        return run_in_this_process(job, index, settings)


@contextmanager
def _progress(name: str) -> Iterator[Callable[[int, int], None]]:
    with bar(Console(stderr=True), "objects") as progress:
        task = progress.add_task(name, total=None, note="")
        yield lambda done, of: progress.update(task, completed=done, total=of or None)


def _print_made(report: dict[str, Any]) -> None:
    console = Console(soft_wrap=True)
    console.print(
        f"{report['objects']} objects, {size_text(report['bytes'])}, and {report['files']} files of the index"
    )
    console.print(f"{report['copied']} objects copied, {size_text(report['bytes_copied'])}; the others were there")
    _print_some(console, [f"object {digest} is missing or damaged in the archive" for digest in report["missing"]])


def _print_sent(report: dict[str, Any]) -> None:
    console = Console(soft_wrap=True)
    sent, of_all = report["acknowledged"], report["held_there"]
    console.print(f"{report['to']} acknowledged {sent} originals, and {of_all} with those of earlier runs")
    lines = [f"{one['uid']} is not replicated: {one['why']}" for one in report["not_taken"]]
    _print_some(console, lines)
    if not report["clean"]:
        console.print(
            f"{report['failed']} failed, {report['warned']} were answered with a warning; a run sends them again"
        )


def _print_some(console: Console, lines: list[str]) -> None:
    for line in lines[:_SHOWN]:
        console.print(line, style="bold red")
    if len(lines) > _SHOWN:
        console.print(f"and {len(lines) - _SHOWN} more; --json lists them")
