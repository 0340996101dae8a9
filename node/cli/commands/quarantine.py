"""``latent-pacs quarantine``: objects that were not stored, and the decision about each."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table

from node.cli.console import Console
from node.cli.options import (
    DEFAULT_CONFIG,
    ConfigOption,
    JsonOption,
    ReasonOption,
    UtcOption,
    archive,
    current_user,
    open_index,
    print_json,
    say,
)
from node.cli.times import time_text
from storage.records import Quarantined

quarantines = typer.Typer(
    help="Decide about objects that arrived under a SOP Instance UID that is held with other content, or was deleted.",
    no_args_is_help=True,
)

DigestArgument = Annotated[
    str, typer.Argument(help="The digest of the object, or its first characters.", metavar="DIGEST")
]


@quarantines.command("list")
def list_quarantined(
    utc: UtcOption = False, config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False
) -> None:
    """List the objects in quarantine, oldest first."""
    with open_index(config) as index:
        found = index.quarantine.all()
    table = Table("digest", "SOP Instance UID", "from", "arrived", "reason")
    for one in found:
        arrived = time_text(one.arrived_at, utc=utc)
        table.add_row(one.digest[:12], one.sop_instance_uid, one.calling_aet, arrived, one.reason)
    say(found, table, as_json=as_json)


@quarantines.command("show")
def show_quarantined(
    digest: DigestArgument,
    utc: UtcOption = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Show one object, and how its attributes differ from those of the held object. This prints patient data."""
    with archive(config) as services:
        compared = services.quarantine.compare(digest)
    held = compared.held.original_digest if compared.held else None
    if as_json:
        report = {**asdict(compared.quarantined), "held": held, "lost": compared.lost, "deleted": compared.deleted}
        print_json({**report, "differences": compared.differences})
        return
    console = Console(soft_wrap=True)
    one = compared.quarantined
    for name, value in {**asdict(one), "arrived_at": time_text(one.arrived_at, utc=utc)}.items():
        console.print(f"{name}: {value}")
    if compared.deleted:
        console.print("an object with this UID was deleted here")
    elif compared.held is None:
        console.print("no object with this UID is held")
    elif compared.held.purged or compared.lost:
        why = "purged" if compared.held.purged else "missing or damaged"
        console.print(f"held object: {held}, which is {why}, so that nothing can be compared")
    else:
        console.print(f"held object: {held}{'' if compared.differences else ', with the same attributes'}")
    if compared.differences:
        table = Table("tag", "attribute", "held", "in quarantine")
        for each in compared.differences:
            table.add_row(each.tag, each.name, each.one, each.other)
        console.print(table)


@quarantines.command("accept")
def accept_quarantined(
    digest: DigestArgument,
    reason: ReasonOption,
    allow_return: Annotated[
        bool, typer.Option("--allow-return", help="Accept it although its UID was deleted here.")
    ] = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Put an object in place of the held original, and encode it. The former original goes to quarantine."""
    with archive(config) as services:
        one = services.quarantine.accept(digest, reason=reason, who=current_user(), allow_return=allow_return)
    _print(one, "accepted", as_json)


@quarantines.command("reject")
def reject_quarantined(
    digest: DigestArgument, reason: ReasonOption, config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False
) -> None:
    """Remove an object from quarantine permanently."""
    with archive(config) as services:
        one = services.quarantine.reject(digest, reason=reason, who=current_user())
    _print(one, "rejected", as_json)


def _print(one: Quarantined, outcome: str, as_json: bool) -> None:
    text = f"{one.sop_instance_uid}: {outcome} {one.digest}"
    say({**asdict(one), "outcome": outcome}, text, as_json=as_json)
