"""``latent-pacs quarantine``: what may not come in by itself, and the decision about it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.table import Table

from node.cli.commands.purge import ReasonOption, current_user, stated
from node.cli.console import Console
from node.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption, print_json
from storage.records import Quarantined

quarantines = typer.Typer(help="Data sets that arrived under a UID that is taken or deleted.", no_args_is_help=True)

DigestArgument = Annotated[str, typer.Argument(help="Its digest, or how that begins.", metavar="DIGEST")]


@quarantines.command("list")
def list_quarantined(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Everything in quarantine, oldest first."""
    from node.cli.commands.status import open_index

    with open_index(config) as index:
        found = index.quarantine.all()
    if as_json:
        print_json([_plain(one) for one in found])
        return
    table = Table("digest", "SOP Instance UID", "from", "arrived", "why")
    for one in found:
        row = (one.digest[:12], one.sop_instance_uid, one.calling_aet, f"{one.arrived_at:%Y-%m-%d %H:%M}", one.reason)
        table.add_row(*row)
    Console().print(table)


@quarantines.command("show")
def show_quarantined(
    digest: DigestArgument, config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False
) -> None:
    """One data set, and what it differs in from the one that is held. Shows patient data."""
    from node.app import services
    from node.config import load

    with services(load(config)) as at_hand:
        compared = at_hand.quarantine.compare(digest)
    held = compared.held.original_digest if compared.held else None
    if as_json:
        report = {**_plain(compared.quarantined), "held": held, "deleted": compared.deleted}
        print_json({**report, "differences": [asdict(one) for one in compared.differences]})
        return
    console = Console(soft_wrap=True)
    for name, value in _plain(compared.quarantined).items():
        console.print(f"{name}: {value}")
    what = "its UID was deleted here" if compared.deleted else f"held is {held}" if held else "its UID is not held"
    console.print(what)
    table = Table("tag", "attribute", "held", "in quarantine")
    for one in compared.differences:
        table.add_row(one.tag, one.name, one.one, one.other)
    console.print(table)


@quarantines.command("accept")
def accept_quarantined(
    digest: DigestArgument,
    reason: ReasonOption,
    allow_return: Annotated[
        bool, typer.Option("--allow-return", help="Also where its UID was deleted here: it comes back.")
    ] = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Make it the original of its UID, to be encoded anew; the one before takes its place in quarantine."""
    from node.app import services
    from node.config import load

    with services(load(config)) as at_hand:
        who = current_user()
        one = at_hand.quarantine.accept(digest, reason=stated(reason), who=who, allow_return=allow_return)
    _print(one, "accepted", as_json)


@quarantines.command("reject")
def reject_quarantined(
    digest: DigestArgument, reason: ReasonOption, config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False
) -> None:
    """Remove it from quarantine, for good."""
    from node.app import services
    from node.config import load

    with services(load(config)) as at_hand:
        one = at_hand.quarantine.reject(digest, reason=stated(reason), who=current_user())
    _print(one, "rejected", as_json)


def _print(one: Quarantined, outcome: str, as_json: bool) -> None:
    if as_json:
        print_json({**_plain(one), "outcome": outcome})
    else:
        Console(soft_wrap=True).print(f"{one.sop_instance_uid}: {outcome} {one.digest}")


def _plain(one: Quarantined) -> dict[str, Any]:
    return {**asdict(one), "arrived_at": one.arrived_at.isoformat(timespec="seconds")}
