"""``latent-pacs index``: rebuilds the index from the objects and the journal, and compacts the journal."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from node.cli.console import Console
from node.cli.exit_codes import FAILED
from node.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption, print_json, say
from node.cli.progress import progress
from node.config import load
from node.reports.formatting import size_text
from storage.printable import counted

if TYPE_CHECKING:
    from storage.index.rebuild import Rebuilt

indexes = typer.Typer(help="Rebuild a lost or damaged index, or compact its change journal.", no_args_is_help=True)


@indexes.command()
def rebuild(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Rebuild the index from the objects and the journal. The former index is kept beside the new one.

    Stop the node first. If the command is interrupted, nothing has changed; run it again. Exit code 1: the journal has
    damaged lines, and rows may be missing.
    """
    from node.app import rebuild_index

    with progress("index") as report:
        made = rebuild_index(load(config), report)
    print_json({**asdict(made), "clean": made.clean}) if as_json else _print(made)
    if not made.clean:
        raise typer.Exit(FAILED)


@indexes.command()
def compact(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Rewrite the change journal without outdated changes.

    Stop the node first. If the command is interrupted, nothing is lost; run it again. Afterwards an older copy of the
    index cannot be updated from the journal; use `index rebuild` instead.
    """
    from node.app import compact_journal

    before, after = compact_journal(load(config))
    text = f"the change journal now takes {size_text(after)}; before, {size_text(before)}"
    say({"bytes_before": before, "bytes_after": after}, text, as_json=as_json)


def _print(made: Rebuilt) -> None:
    console = Console(soft_wrap=True)
    rows = ", ".join(f"{count} of {name}" for name, count in made.rows.items() if count)
    console.print(f"{counted(made.changes, 'change')} read in {made.seconds:.1f} s; rows: {rows or 'none'}")
    console.print(f"{counted(made.trail, 'record')} of the audit trail")
    if made.from_objects:
        console.print(f"{counted(made.from_objects, 'object')} added that the journal does not mention")
    if made.decisions:
        console.print(f"{made.decisions} holds, labels, amendments and deletions taken from the audit trail alone")
    if made.former:
        console.print(f"the former index is kept: {made.former}")
    for line in made.damaged_lines:
        console.print(f"damaged or missing: {line}", style="bold red")
    if made.unlinked_rows:
        console.print(f"{made.unlinked_rows} rows left out, because they belong to a row in a damaged line")
