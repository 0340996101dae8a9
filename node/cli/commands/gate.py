"""``latent-pacs gate``: measures a user's own images against the limits of the gate."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from node.cli.console import Console
from node.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption, say
from node.cli.progress import progress
from node.config import load
from node.reports.formatting import size_text
from storage.printable import counted

gates = typer.Typer(help="Measure your own images against the limits of the gate.", no_args_is_help=True)


@gates.command()
def calibrate(
    folder: Annotated[
        Path, typer.Argument(help="A folder or file of mammograms (DICOM, PNG, JPEG).", metavar="FOLDER", exists=True)
    ],
    limit: Annotated[int, typer.Option("--limit", min=0, help="Measure at most this many images; 0 is all.")] = 0,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Encode your images as the archive would, and print the figures of the gate beside their limits."""
    from node.cli.calibration import calibrated, report_of
    from node.training.image_files import NoPictures, picture_files

    settings = load(config)
    console = Console(stderr=True)
    with console.status("looking for images"):
        files = picture_files([folder])
    found: list[Any] = []
    with progress("measuring", "images") as show:
        for each in islice(calibrated(files, settings), limit or None):
            found.append(each)
            show(len(found), min(len(files), limit or len(files)), each.name)
    if not found:
        raise NoPictures(f"found no DICOM, PNG or JPEG mammogram of at least 256 pixels per side in {folder}")
    report = report_of(found, settings)
    say(report, *_tables(report), as_json=as_json)


def _tables(report: dict[str, Any]) -> Iterator[Table]:
    title = f"{report['passed']} of {counted(len(report['images']), 'image')} passed, profile {report['profile']}"
    images = Table("image", "point", "upscaler", "payload", "ratio", "nearest limit", "of limit", title=title)
    for one in report["images"]:
        if one["point"]:
            size = size_text(one["payload_bytes"])
            result = (one["point"], one["upscaler"], size, f"{one['ratio']:.0f}", one["nearest"])
            images.add_row(one["name"], *result, f"{100 * one['burden']:.0f}%")
        else:
            images.add_row(one["name"], "exact", "", "", "", one["why"], "")
    yield images
    figures = Table("figure", "median", "95%", "max", "limit", title=f"gate.{_section(report['profile'])}")
    for name, spread in report["figures"].items():
        values = (spread.get(part) for part in ("median", "percentile_95", "max", "limit"))
        figures.add_row(name, *("-" if value is None else f"{value:.4g}" for value in values))
    yield figures


def _section(profile: str) -> str:
    """The section of config.yaml, below gate, with the limits of a profile."""
    return "strict" if profile in ("strict", "us-mqsa") else "balanced"
