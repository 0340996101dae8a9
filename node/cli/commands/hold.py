"""``latent-pacs hold``: legal holds, under which no original is removed."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table

from node.cli.console import Console
from node.cli.exit_codes import UsageError
from node.cli.options import (
    DEFAULT_CONFIG,
    ConfigOption,
    JsonOption,
    ReasonOption,
    UtcOption,
    archive,
    current_user,
    say,
)
from node.cli.times import time_text
from storage.errors import InvalidUid
from storage.printable import counted
from storage.records import HoldKind

holds = typer.Typer(
    help="Place, list and release legal holds. No original under a hold is removed.", no_args_is_help=True
)


@holds.command("add")
def add_hold(
    reason: ReasonOption,
    study: Annotated[str, typer.Option("--study", help="A Study Instance UID.", metavar="UID")] = "",
    patient: Annotated[str, typer.Option("--patient", help="A Patient ID.", metavar="ID")] = "",
    label: Annotated[str, typer.Option("--label", help="All studies with this hold label.", metavar="NAME")] = "",
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Place a hold on a study, a patient, or all studies with a hold label. It also covers images that arrive later."""
    from node.archive.intake.ingest import check_uid

    study = study.strip()
    values = (study, patient.strip(), label)
    named = [(kind, value) for kind, value in zip(HoldKind, values, strict=True) if value]
    if len(named) != 1:
        raise UsageError("name exactly one of --study, --patient and --label")
    if study:
        try:
            check_uid("value of --study", study)
        except InvalidUid as error:
            raise UsageError(f"{error}; nothing was held") from error
    with archive(config) as services:
        placed = services.index.holds.add(*named[0], reason=reason, who=current_user())
        covered = services.index.holds.covered(placed)
    text = f"hold {placed.key} on {placed.kind} {placed.value} covers {counted(covered, 'original')} today"
    say({**asdict(placed), "originals": covered}, text, as_json=as_json)
    if not covered:
        Console(stderr=True).print(
            f"no original that is held now is under this hold: unless its images are still to come, check the "
            f"{placed.kind}, and release the hold with `latent-pacs hold release {placed.key}`",
            style="bold red",
            soft_wrap=True,
        )


@holds.command("list")
def list_holds(
    released: Annotated[bool, typer.Option("--all", help="Include released holds.")] = False,
    utc: UtcOption = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """List the holds in force, with the number of originals that each covers today."""
    with archive(config) as services:
        found = [(one, services.index.holds.covered(one)) for one in services.index.holds.all(released=released)]
    table = Table("hold", "on", "value", "originals", "reason", "placed", "by", "released")
    for one, covered in found:
        placed = time_text(one.placed_at, utc=utc)
        gone = (
            f"{time_text(one.released_at, utc=utc)} {one.released_by}: {one.release_reason}" if one.released_at else ""
        )
        table.add_row(str(one.key), one.kind, one.value, str(covered), one.reason, placed, one.placed_by, gone)
    say([{**asdict(one), "originals": covered} for one, covered in found], table, as_json=as_json)


@holds.command("release")
def release_hold(
    number: Annotated[int, typer.Argument(help="The number of the hold, from `hold list`.", metavar="NUMBER")],
    reason: ReasonOption,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Release a hold. The next purge may remove originals that no other hold covers."""
    with archive(config) as services:
        hold = services.index.holds.release(number, reason=reason, who=current_user())
    if hold is None:
        raise UsageError(f"no hold {number} is in force; `latent-pacs hold list` lists those that are")
    say(hold, f"hold {hold.key} on {hold.kind} {hold.value} is released", as_json=as_json)
