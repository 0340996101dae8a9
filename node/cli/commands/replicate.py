"""``latent-pacs replicate``: sends new originals to a peer, or updates a backup, as the jobs of that name do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from node.cli.commands.backup import print_backup
from node.cli.commands.jobs import exit_code, run_in_this_process
from node.cli.console import Console, print_some
from node.cli.exit_codes import FAILED, UsageError
from node.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption, archive, print_json
from storage.printable import counted

if TYPE_CHECKING:
    from node.app import Services
    from node.jobs.job import Job


def replicate(
    to: Annotated[
        str,
        typer.Argument(
            help="AE title of a peer, or a folder. Without it: jobs.replicate.to, or jobs.replicate_peer.to.",
            metavar="PEER-OR-FOLDER",
        ),
    ] = "",
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Send new originals to a peer, or update the backup in a folder, as the jobs `replicate-peer` and `replicate` do.

    A peer gets the held originals that it has not acknowledged yet, by C-STORE. Write ./NAME for a folder that does not
    exist yet, or that has the name of a peer. Exit code 1: the run failed, the peer did not acknowledge all originals
    with status 0000, or objects are missing in the archive itself; 4: the run was cancelled.
    """
    with archive(config) as services:
        job, to_peer = _job(services, to)
        done = run_in_this_process(job, services)
    report = {**done.report, "state": done.state.value, "error": done.error}
    if as_json:
        print_json(report)
    elif done.error:
        Console(stderr=True, soft_wrap=True).print(f"not finished: {done.error}", style="bold red")
    elif to_peer:
        _print_sent(report)
    elif report.get("finished"):
        print_backup(report)
    if code := exit_code(done):
        raise typer.Exit(code)
    if not report.get("clean"):
        raise typer.Exit(FAILED)


def _job(services: Services, to: str) -> tuple[Job, bool]:
    """The job, and whether it sends to a peer. Raises UsageError."""
    from node.app import make_replication, send_to_peer

    settings = services.settings
    peer = to if settings.peer(to) else ""
    if not to and settings.jobs.replicate.to is None:
        peer = settings.jobs.replicate_peer.to
        if not peer:
            raise UsageError("name a peer or a folder, or set jobs.replicate.to or jobs.replicate_peer.to")
    if peer:
        return send_to_peer(services, to=peer), True
    if to and "/" not in to and not Path(to).is_dir():
        raise UsageError(f"{to} is neither a peer of config.yaml nor a folder; write ./{to} for a new folder")
    return make_replication(services, Path(to) if to else None), False


def _print_sent(report: dict[str, Any]) -> None:
    console = Console(soft_wrap=True)
    now, in_all = report["acknowledged"], report["held_there"]
    console.print(f"{report['to']} acknowledged {counted(now, 'original')} in this run, and {in_all} in all")
    print_some(console, [f"{one['uid']} is not replicated: {one['why']}" for one in report["not_taken"]])
    if not report["clean"]:
        failed, warned = report["failed"], report["warned"]
        console.print(f"failed: {failed}; answered with a warning: {warned}; the next run sends these again")
