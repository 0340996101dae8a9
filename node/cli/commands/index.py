"""``latent-pacs index``: the index made anew from the objects and the journal, and the journal made small."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from node.cli.console import Console
from node.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption, print_json

if TYPE_CHECKING:
    from storage.index.rebuild import Rebuilt

indexes = typer.Typer(help="Rebuild an index that was lost or damaged, and compact its journal.", no_args_is_help=True)


@indexes.command()
def rebuild(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Make the index anew from the objects and the journal, in place of the one that is there, which is kept.

    No node may run meanwhile. Killed, it has changed nothing, and is begun again. Exit code 1: the journal has damaged
    lines, so that something may be missing.
    """
    from node.app import rebuild_index
    from node.cli.progress import bar
    from node.config import load

    with bar(Console(stderr=True), "") as progress:
        task = progress.add_task("index", total=None, note="")

        def watch(done: int, of: int, what: str) -> None:
            progress.update(task, completed=done, total=of or None, note=what)

        made = rebuild_index(load(config), watch)
    print_json({**asdict(made), "clean": made.clean}) if as_json else _print(made)
    if not made.clean:
        raise typer.Exit(1)


@indexes.command()
def compact(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Write the change journal anew with the rows that there are, without those that they replaced.

    No node may run meanwhile. Killed, it has lost nothing, and is begun again. An older copy of the index can then no
    longer be brought up to the journal: `index rebuild` is for that.
    """
    from node.app import compact_journal
    from node.config import load
    from node.reports.formatting import size_text

    before, after = compact_journal(load(config))
    if as_json:
        print_json({"bytes_before": before, "bytes_after": after})
    else:
        Console(soft_wrap=True).print(f"the change journal has {size_text(after)}, and had {size_text(before)}")


def _print(made: Rebuilt) -> None:
    console = Console(soft_wrap=True)
    rows = ", ".join(f"{count} of {name}" for name, count in made.rows.items() if count)
    console.print(f"{made.changes} changes read in {made.seconds:.1f} s; rows: {rows or 'none'}")
    console.print(f"{made.trail} records of the audit trail")
    if made.from_objects:
        console.print(f"{made.from_objects} objects taken in that the journal does not tell of")
    if made.former:
        console.print(f"the former index is kept: {made.former}")
    for line in made.damaged_lines:
        console.print(f"damaged: {line}", style="bold red")
    if made.unlinked_rows:
        console.print(f"{made.unlinked_rows} rows left out, since what they belong to is in a damaged line")
