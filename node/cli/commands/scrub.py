"""``latent-pacs scrub``: an integrity scrub in this process, under the lease of the job ``scrub``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import typer
from rich.table import Table

from node.cli.commands.jobs import run_in_this_process
from node.cli.commands.status import open_index
from node.cli.console import Console
from node.cli.options import print_json
from node.config import load
from node.reports.formatting import size_text
from storage.objects.store import ObjectStore

CLEAN, DAMAGE, UNFINISHED = 0, 1, 3
"""Exit codes."""

_SHOWN = 20


def run_scrub(config: Path, *, sample: str, full: bool, remove_orphans: bool, as_json: bool) -> int:
    """Scrub as asked, print what came of it, and return the exit code."""
    from node.app import make_scrub
    from node.jobs.scrub_job import Extent

    plan: dict[str, Any] = {"remove_orphans": remove_orphans}
    if full and sample:
        raise typer.BadParameter("choose --full or --sample", param_hint="--sample")
    if full or sample:
        plan["extent"] = Extent.FULL if full else Extent.SAMPLE
    if sample:
        plan["sample"] = _share(sample)
    settings = load(config)
    with open_index(config) as index:
        job = make_scrub(settings, index, ObjectStore(settings.storage.root), **plan)
        done = run_in_this_process(job, index, settings)
    report = {**done.report, "state": done.state.value, "error": done.error}
    print_json(report) if as_json else _print(report)
    if not report.get("finished"):
        return UNFINISHED
    return CLEAN if report["clean"] else DAMAGE


def _share(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", text.strip())
    if match is None or not 0 < float(match[1]) <= 100:
        raise typer.BadParameter(f"{text!r} is no share; write 5% for instance", param_hint="--sample")
    return float(match[1]) / 100


def _print(report: dict[str, Any]) -> None:
    console = Console()
    if report["error"]:
        console.print(f"not finished: {report['error']}", style="bold red")
    if "checked" not in report:
        return
    console.print(f"{report['checked']} objects checked, {size_text(report['bytes'])}")
    if report["findings"]:
        table = Table("object", "kind", "condition", "done", "SOP Instance UID", title="damage")
        for found in report["findings"][:_SHOWN]:
            table.add_row(
                found["digest"][:16], found["kind"], found["condition"], found["action"], found["sop_instance_uid"]
            )
        console.print(table)
    if report["damaged"] > _SHOWN:
        console.print(f"and {report['damaged'] - _SHOWN} more; --json lists them")
    counts = {name: report[name] for name in ("recovered", "queued", "flagged", "lost", "reported") if report[name]}
    for name, count in counts.items():
        console.print(f"{count} {name}: {_MEANING[name]}")
    if report["orphans"]:
        moved = f", {report['orphans_moved']} moved to orphans/" if report["orphans_moved"] else ""
        console.print(f"{report['orphans']} objects without a row, {size_text(report['orphan_bytes'])}{moved}")
    if report["orphans_deleted"]:
        console.print(f"{report['orphans_deleted']} objects deleted that had been in orphans/ for long enough")
    if report["unclaimed"]:
        console.print(f"{report['unclaimed']} objects without a row that `latent-pacs index rebuild` would bring back")
    if report["index_damage"]:
        console.print(
            f"the index is damaged: {report['index_damage'][0]}; stop the node and run `latent-pacs index rebuild`, "
            "which makes it anew from the objects and the journal",
            style="bold red",
        )
    if report["foreign"]:
        console.print(f"{report['foreign']} files in the store are no objects of it")
    if report["clean"] and report["finished"]:
        console.print("clean", style="green")


_MEANING = {
    "recovered": "put back whole",
    "queued": "a node makes them again from their originals",
    "flagged": "originals that are lost; their images are served as reconstructions only",
    "lost": "nothing whole is left of the image; send it again from its source",
    "reported": "left for you to look at",
}
