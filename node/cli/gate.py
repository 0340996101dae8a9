"""``latent-pacs gate``: what the gate would say of a user's own images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress, TimeElapsedColumn
from rich.table import Table

from node.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption, print_json

gates = typer.Typer(help="See what the gate measures on your own images.", no_args_is_help=True)


@gates.callback()
def _group() -> None:
    """Keeps ``calibrate`` a verb of its own while it is the only one."""


@gates.command()
def calibrate(
    folder: Annotated[Path, typer.Argument(help="A folder or file of mammograms (DICOM, PNG, JPEG).")],
    limit: Annotated[int, typer.Option("--limit", min=0, help="Measure so many images at most; 0: all.")] = 0,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Print how each figure of the gate is distributed per rung on your images, and propose thresholds."""
    from node.cli.calibration import measured, pictures_in, report_of
    from node.config import load

    settings = load(config)
    console = Console(stderr=True)
    with console.status("looking for pictures"):
        files = pictures_in(folder)
    found: list[Any] = []
    with Progress(*Progress.get_default_columns(), TimeElapsedColumn(), console=console) as progress:
        task = progress.add_task("measuring", total=len(settings.codec.rungs) * min(len(files), limit or len(files)))
        for each in measured(files, limit, settings):
            found.append(each)
            progress.update(task, advance=1, description=each.name)
    report = report_of(found, settings)
    print_json(report) if as_json else _print(report)


def _print(report: dict[str, Any]) -> None:
    console = Console()
    title = f"{report['images']} image(s), profile {report['profile']}: median / worst 5% / worst"
    table = Table("rung", "passed", "figure", "median", "5%", "worst", "threshold", title=title)
    for rung in report["rungs"]:
        for number, (name, spread) in enumerate(rung["figures"].items()):
            first = (rung["rung"], f"{rung['passed']} of {rung['images']}") if number == 0 else ("", "")
            limit = report["thresholds"].get(name)
            cells = (f"{spread[part]:.4g}" for part in ("median", "worst_5_percent", "worst"))
            table.add_row(*first, name, *cells, "-" if limit is None else f"{limit:g}")
        table.add_section()
    console.print(table)
    if not report["proposed"]:
        console.print("Nothing to propose: on no rung did an image reach mean FSIM, its 5th percentile and PSNR.")
        return
    console.print(
        f"Proposed for gate.{report['section']}: what 99 of 100 tiles keep to where an image as a whole passes"
    )
    for name, value in report["proposed"].items():
        console.print(f"    {name}: {value:g}", highlight=False)
