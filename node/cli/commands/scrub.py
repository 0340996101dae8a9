"""``latent-pacs scrub``: an integrity scrub in this process, under the lease of the job ``scrub``."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from node.cli.commands.jobs import exit_code, run_in_this_process
from node.cli.console import Console
from node.cli.exit_codes import DONE, FAILED, UNFINISHED
from node.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption, archive, print_json
from node.config import parse_share
from node.reports.formatting import size_text
from storage.printable import counted

_SHOWN = 20
"""Findings that the table shows."""
_OUTCOMES = {
    "recovered": "restored from another copy",
    "queued": "a node will encode them again from their originals",
    "withdrawn": "renditions that were kept beside a whole original, which is served",
    "flagged": "originals that are lost; their images are served as reconstructions only",
    "lost": "no intact copy of the image is left; send it again from its source",
    "reported": "cannot be read, or are of no current image, such as models and quarantined objects; nothing was done: "
    "look at the disk and its rights, or run the scrub again with jobs.replicate.to set to a backup",
}


def scrub(
    sample: Annotated[
        str, typer.Option("--sample", help="A random share of all objects, such as 5%.", metavar="N%")
    ] = "",
    full: Annotated[bool, typer.Option("--full", help="Read every object now.")] = False,
    remove_orphans: Annotated[
        bool,
        typer.Option(
            "--remove-orphans", help="Move objects without an index row to orphans/, for jobs.scrub.keep_orphans."
        ),
    ] = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Compare objects with their digests, and the index with the store. Without options, read the share that is due.

    The node may be running. Exit code 1: damage was found, or the scrub failed; 4: it was cancelled or interrupted.
    """
    from node.app import make_scrub

    plan = _plan(sample, full, remove_orphans)
    with archive(config) as services:
        job = make_scrub(services, **plan)
        done = run_in_this_process(job, services)
    report = {**done.report, "state": done.state.value, "error": done.error}
    print_json(report) if as_json else _print(report)
    if not report.get("finished"):
        raise typer.Exit(exit_code(done) or UNFINISHED)
    raise typer.Exit(DONE if report["clean"] else FAILED)


def _plan(sample: str, full: bool, remove_orphans: bool) -> dict[str, Any]:
    from node.jobs.scrub_job import Extent

    if full and sample:
        raise typer.BadParameter("choose --full or --sample", param_hint="--sample")
    plan: dict[str, Any] = {"remove_orphans": remove_orphans}
    if full:
        plan["extent"] = Extent.FULL
    if sample:
        plan |= {"extent": Extent.SAMPLE, "sample": _share(sample)}
    return plan


def _share(text: str) -> float:
    try:
        share = parse_share(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--sample") from error
    if not share:
        raise typer.BadParameter(f"{text!r} is not a share above 0%", param_hint="--sample")
    return share


def _print(report: dict[str, Any]) -> None:
    console = Console()
    if report["error"]:
        console.print(f"not finished: {report['error']}", style="bold red")
    if "checked" not in report:
        return
    console.print(f"{counted(report['checked'], 'object')} checked, {size_text(report['bytes'])}")
    _print_findings(console, report)
    for name, meaning in _OUTCOMES.items():
        if report[name]:
            console.print(f"{name}: {report[name]}; {meaning}")
    if report["orphans"]:
        moved = f", {report['orphans_moved']} moved to orphans/" if report["orphans_moved"] else ""
        console.print(
            f"{counted(report['orphans'], 'object')} without an index row, {size_text(report['orphan_bytes'])}{moved}"
        )
    for name, (noun, where) in {
        "orphans_deleted": ("object", "deleted after jobs.scrub.keep_orphans in orphans/"),
        "unclaimed": ("object", "without an index row, for `latent-pacs index rebuild` to bring back"),
        "foreign": ("file", "in the store without the name of an object"),
    }.items():
        if report[name]:
            console.print(f"{counted(report[name], noun)} {where}")
    if report["index_damage"]:
        console.print(
            f"the index is damaged: {report['index_damage'][0]}; stop the node and run `latent-pacs index rebuild`, "
            "which rebuilds it from the objects and the journal",
            style="bold red",
        )
    if report["clean"] and report["finished"]:
        console.print("clean", style="green")


def _print_findings(console: Console, report: dict[str, Any]) -> None:
    if not report["findings"]:
        return
    table = Table("object", "kind", "condition", "action", "SOP Instance UID", title="damage")
    for found in report["findings"][:_SHOWN]:
        row = (found["kind"], found["condition"], found["action"], found["sop_instance_uid"])
        table.add_row(found["digest"][:16], *row)
    console.print(table)
    if report["damaged"] > _SHOWN:
        console.print(f"and {report['damaged'] - _SHOWN} more; --json lists them all")
