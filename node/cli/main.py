"""``latent-pacs``: the verbs. ``latent-pacs --help`` lists them; every one has ``--help`` of its own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from node.cli.gate import gates
from node.cli.instance import instances
from node.cli.jobs import jobs
from node.cli.models import models
from node.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption, print_json
from storage.errors import LatentPacsError

app = typer.Typer(
    name="latent-pacs",
    help="A DICOM archive that keeps a tiny, measured payload per mammogram and gives the full-matrix image back.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def serve(
    config: ConfigOption = DEFAULT_CONFIG,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log every association.")] = False,
) -> None:
    """Run the node until SIGTERM or Ctrl-C; what is in flight is finished first."""
    from node.cli.serving import serve_until_stopped

    serve_until_stopped(config, verbose=verbose)


@app.command()
def status(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Counts by state, bytes by kind, the backlog, and the compression ratio. Works while the node runs."""
    from node.cli.status import print_status

    print_status(config, as_json=as_json)


@app.command()
def retry(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Put images that the archivist gave up on (state failed) back to work."""
    from node.cli.status import open_index

    with open_index(config) as index:
        count = index.retry_failed()
    print_json({"retried": count}) if as_json else Console().print(f"{count} instances are back in the backlog")


@app.command()
def demo(
    dicom: Annotated[
        Path | None,
        typer.Option("--dicom", help="A folder of your own DICOM files instead of the demo study.", metavar="FOLDER"),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the table to FILE as JSON too.", metavar="FILE")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Where the side-by-side PNGs go.", metavar="FOLDER")] = Path(
        "demo-out"
    ),
) -> None:
    """Start a node in a temporary folder, store a study, retrieve it by C-MOVE and C-GET, and show the figures."""
    from node.cli.demo import run_demo

    if not run_demo(dicom, json_file, out):
        raise typer.Exit(1)


@app.command()
def scrub(
    config: ConfigOption = DEFAULT_CONFIG,
    sample: Annotated[
        str, typer.Option("--sample", help="A random share of all objects, 5% for instance.", metavar="N%")
    ] = "",
    full: Annotated[bool, typer.Option("--full", help="Every object, now.")] = False,
    remove_orphans: Annotated[
        bool, typer.Option("--remove-orphans", help="Delete objects that no row needs and that are old enough.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Compare objects with their digests and the index with the store; without options, the share that is due.

    Works while the node runs. Exit code 0: all clean; 1: damage was found; 3: ended before it was through.
    """
    from node.cli.scrub import run_scrub

    raise typer.Exit(run_scrub(config, sample=sample, full=full, remove_orphans=remove_orphans, as_json=as_json))


app.add_typer(jobs, name="jobs")
app.add_typer(models, name="model")
app.add_typer(gates, name="gate")
app.add_typer(instances, name="instance")


@app.command()
def version(as_json: JsonOption = False) -> None:
    """Print the version."""
    from importlib.metadata import version as installed

    number = installed("latent-pacs")
    print_json({"version": number}) if as_json else Console().print(f"latent-pacs {number}")


def run() -> None:
    """The console script: errors of ours are one line on standard error and exit code 2."""
    try:
        app()
    except LatentPacsError as error:
        Console(stderr=True, soft_wrap=True).print(f"[bold red]latent-pacs:[/] {error}", highlight=False)
        sys.exit(2)
