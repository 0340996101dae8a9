"""``latent-pacs``: the verbs. ``latent-pacs --help`` lists them; every one has ``--help`` of its own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.text import Text

from node.cli.commands.amend import amends
from node.cli.commands.audit import audits
from node.cli.commands.backup import backups, replicate, restore_backup
from node.cli.commands.gate import gates
from node.cli.commands.index import indexes
from node.cli.commands.instance import instances
from node.cli.commands.jobs import jobs
from node.cli.commands.labels import class_labels
from node.cli.commands.model import models
from node.cli.commands.purge import holds, labels
from node.cli.commands.quarantine import quarantines
from node.cli.commands.validate import validations
from node.cli.console import Console
from node.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption, print_json
from storage.errors import LatentPacsError
from storage.objects.file_modes import keep_private
from storage.printable import plain

app = typer.Typer(
    name="latent-pacs",
    help="A DICOM archive that keeps a tiny, measured payload per mammogram and gives the full-matrix image back.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def _every_command() -> None:
    """Before any command: what it writes is for its own user alone."""
    keep_private()


@app.command()
def serve(
    config: ConfigOption = DEFAULT_CONFIG,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log every association.")] = False,
    accept_empty_index: Annotated[
        bool,
        typer.Option(
            "--accept-empty-index",
            help="Begin anew where the index is empty or another archive's, though objects are here.",
        ),
    ] = False,
) -> None:
    """Run the node until SIGTERM or Ctrl-C; what is in flight is finished first."""
    from node.cli.commands.serve import serve_until_stopped

    serve_until_stopped(config, verbose=verbose, accept_empty_index=accept_empty_index)


@app.command()
def status(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Counts by state, bytes by kind, the backlog, and the compression ratio. Works while the node runs."""
    from node.cli.commands.status import print_status

    print_status(config, as_json=as_json)


@app.command()
def retry(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Put images that the archivist gave up on (state failed) back to work."""
    from node.cli.commands.status import open_index

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
    from node.cli.commands.demo import run_demo

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
        bool,
        typer.Option("--remove-orphans", help="Move objects that no row needs aside, for jobs.scrub.keep_orphans."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Compare objects with their digests and the index with the store; without options, the share that is due.

    Works while the node runs. Exit code 0: all clean; 1: damage was found; 3: ended before it was through.
    """
    from node.cli.commands.scrub import run_scrub

    raise typer.Exit(run_scrub(config, sample=sample, full=full, remove_orphans=remove_orphans, as_json=as_json))


@app.command()
def purge(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, remove nothing, say what would go.")
    ] = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Remove originals held longer than originals.retain_for, where the reconstruction is proved able to stand alone.

    Never what is not verified, on hold or pinned. Works while the node runs. Exit code 1: some were kept for want
    of proof.
    """
    from node.cli.commands.purge import run_purge

    if not run_purge(config, dry_run=dry_run, as_json=as_json):
        raise typer.Exit(1)


@app.command()
def restore(
    uid: Annotated[str, typer.Argument(help="The UID (or Patient ID) of what to bring back.")],
    level: Annotated[
        Literal["image", "series", "study", "patient"], typer.Option("--level", help="What the UID is of.")
    ] = "study",
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Bring originals back from the cold store (originals.path) to storage.root, for at least 7 days."""
    from node.cli.commands.purge import run_restore

    if not run_restore(uid, config, level=level, as_json=as_json):
        raise typer.Exit(1)


@app.command()
def delete(
    uid: Annotated[str, typer.Argument(help="The UID of what to delete.")],
    level: Annotated[Literal["image", "series", "study"], typer.Option("--level", help="What the UID is of.")],
    reason: Annotated[str, typer.Option("--reason", help="Why, for the audit trail.", metavar="TEXT")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be deleted, and delete nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    allow_return: Annotated[
        bool, typer.Option("--allow-return", help="Delete nothing: let what was deleted come back when it is sent.")
    ] = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Delete an image, a series or a study for good: originals, reconstructions, and every UID of them.

    Refused, all of it, where an image is on hold, pinned by a storage commitment, or kept by profile us-mqsa. Sent
    again it goes to quarantine. Works while the node runs.
    """
    from node.cli.commands.delete import run_delete

    run_delete(
        uid,
        config,
        level=level,
        reason=reason,
        dry_run=dry_run,
        yes=yes,
        allow_return=allow_return,
        as_json=as_json,
    )


@app.command()
def trail(
    since: Annotated[str, typer.Option("--since", help="From this date on, such as 2026-01-31.", metavar="DATE")] = "",
    study: Annotated[str, typer.Option("--study", help="Only what is about this UID.", metavar="UID")] = "",
    newest: Annotated[int, typer.Option("--newest", help="Only the last so many; 0 is all.", metavar="N", min=0)] = 0,
    verify: Annotated[bool, typer.Option("--verify", help="Check that no record was changed or removed.")] = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """The audit trail: who did what, when, and what came of it. Every record seals the one before.

    It holds stores, retrievals and every request or association that was refused, with the peer and the reason; damage
    that was found; holds, labels, amendments, deletions, quarantine, purges, restores, re-verifications and failures.
    """
    from node.cli.commands.trail import print_trail, verify_trail

    if not verify:
        print_trail(config, since=since, uid=study, newest=newest, as_json=as_json)
    elif not verify_trail(config, as_json=as_json):
        raise typer.Exit(1)


app.command("restore-backup")(restore_backup)
app.command()(replicate)
app.add_typer(backups, name="backup")
app.add_typer(indexes, name="index")
app.add_typer(jobs, name="jobs")
app.add_typer(audits, name="audit")
app.add_typer(holds, name="hold")
app.add_typer(labels, name="label")
app.add_typer(amends, name="amend")
app.add_typer(quarantines, name="quarantine")
app.add_typer(class_labels, name="labels")
app.add_typer(validations, name="validate")
app.add_typer(models, name="model")
app.add_typer(gates, name="gate")
app.add_typer(instances, name="instance")


@app.command()
def sbom() -> None:
    """Print a CycloneDX bill of materials (JSON): every package that is installed, with version and licence."""
    from node.cli.commands.sbom import bill_of_materials

    print_json(bill_of_materials())


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
        Console(stderr=True, soft_wrap=True).print(
            Text.assemble(("latent-pacs: ", "bold red"), "\n".join(map(plain, str(error).splitlines())))
        )
        sys.exit(2)
