"""``latent-pacs validate``: tests whether a classifier does as well on reconstructions as on originals."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.table import Table

from node.cli.commands.jobs import exit_code, run_job, run_json
from node.cli.console import Console
from node.cli.exit_codes import FAILED
from node.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption, print_json
from node.config import load

if TYPE_CHECKING:
    from storage.index.job_runs import JobRun

validations = typer.Typer(
    help="Test whether a classifier (ResNet50) does as well on reconstructions as on originals.", no_args_is_help=True
)

_JOB = "validation"


@validations.command()
def run(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Run the job `validation` now, on the running node or in this process, and wait for it.

    Exit code 0: equivalent or inconclusive; 1: different, or the job failed; 4: cancelled or interrupted.
    """
    ended = run_job(_JOB, config, wait=True)
    assert ended is not None, "wait=True returns a run"
    print_json(run_json(ended)) if as_json else _print(ended, config)
    raise typer.Exit(FAILED if ended.report.get("verdict") == "different" else exit_code(ended))


def _print(ended: JobRun, config: Path) -> None:
    from node.app import open_reports

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
        table.add_row(name, f"{value:.3f}")
    console.print(table)
    with open_reports(load(config)) as reports:
        console.print(str(reports.html(reports.find(report["report"]))))
