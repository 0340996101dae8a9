"""``latent-pacs validate``: does a classifier do as well on what the archive gives back as on the originals?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.table import Table

from node.cli.commands.jobs import exit_code, run_job, run_json
from node.cli.console import Console
from node.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption, print_json

if TYPE_CHECKING:
    from storage.index.job_runs import JobRun

validations = typer.Typer(help="Validation with ResNet50 on labelled images.", no_args_is_help=True)

_JOB = "validation"


@validations.callback()
def validate() -> None:
    """Validation with ResNet50 on labelled images."""


@validations.command("run")
def run(
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Validate now, on the node that runs here or in this process, by jobs.validation of config.yaml; waits for it.

    Exit code 0: equivalent or inconclusive; 1: different, or it failed; 3: cancelled or interrupted.
    """
    ended = run_job(_JOB, config, wait=True)
    assert ended is not None, "it was waited for"
    if as_json:
        print_json(run_json(ended))
    else:
        _print(ended, config)
    raise typer.Exit(1 if ended.report.get("verdict") == "different" else exit_code(ended))


def _print(ended: JobRun, config: Path) -> None:
    from node.app import open_reports
    from node.config import load

    console = Console(soft_wrap=True)
    report = ended.report
    if "report" not in report:
        console.print(f"validation: {ended.state}{': ' + ended.error if ended.error else ''}")
        return
    if report["weights"] == "none":
        console.print("Weights: none. The backbone has random weights.", style="bold")
    console.print(str(report["sentence"]))
    table = Table("trained", "AUC")
    for name, value in dict(report["auc"]).items():
        table.add_row(name, f"{value:.4f}")
    console.print(table)
    with open_reports(load(config)) as reports:
        console.print(str(reports.html(reports.find(report["report"]))))
