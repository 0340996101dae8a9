"""``latent-pacs gate``: what the gate would say of a user's own images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.progress import Progress, TimeElapsedColumn
from rich.table import Table

from node.cli.console import Console
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
    """Encode your images as the archive would, and print the gate's figures beside their limits."""
    from node.cli.calibration import calibrated, pictures_in, report_of
    from node.config import load

    settings = load(config)
    console = Console(stderr=True)
    with console.status("looking for pictures"):
        files = pictures_in(folder)
    found: list[Any] = []
    with Progress(*Progress.get_default_columns(), TimeElapsedColumn(), console=console) as progress:
        task = progress.add_task("measuring", total=min(len(files), limit or len(files)))
        for each in calibrated(files, limit, settings):
            found.append(each)
            progress.update(task, advance=1, description=escape(each.name))
    report = report_of(found, settings)
    print_json(report) if as_json else _print(report)


def _print(report: dict[str, Any]) -> None:
    console = Console()
    title = f"{report['passed']} of {len(report['images'])} image(s) passed, profile {report['profile']}"
    images = Table("image", "point", "upscaler", "bytes", "ratio", "nearest limit", "used", title=title)
    for one in report["images"]:
        if one["point"]:
            told = (one["point"], one["upscaler"], str(one["payload_bytes"]), f"{one['ratio']:.0f}", one["nearest"])
            images.add_row(one["name"], *told, f"{100 * one['burden']:.0f} %")
        else:
            images.add_row(one["name"], "exact", "", "", "", one["why"], "")
    console.print(images)
    figures = Table("figure", "median", "95%", "max", "limit", title=f"gate.{_section(report['profile'])}")
    for name, spread in report["figures"].items():
        values = (spread.get(part) for part in ("median", "percentile_95", "max", "limit"))
        figures.add_row(name, *("-" if value is None else f"{value:.4g}" for value in values))
    console.print(figures)


def _section(profile: str) -> str:
    """Of config.yaml: where the limits of a profile stand."""
    return "strict" if profile in ("strict", "us-mqsa") else "balanced"
