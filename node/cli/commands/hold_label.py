"""``latent-pacs hold-label``: labels of studies, so that one hold covers all studies with a label."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from node.cli.exit_codes import UsageError
from node.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption, archive, current_user, say

hold_labels = typer.Typer(
    help="Label studies, so that one hold (`hold add --label`) covers all studies with a label.", no_args_is_help=True
)

NameArgument = Annotated[str, typer.Argument(help="The label.", metavar="NAME")]
StudyOption = Annotated[str, typer.Option("--study", help="A Study Instance UID.", metavar="UID")]


@hold_labels.command("add")
def add_label(
    name: NameArgument, study: StudyOption, config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False
) -> None:
    """Put a label on a study."""
    _change(config, name, study, as_json, put=True)


@hold_labels.command("remove")
def remove_label(
    name: NameArgument, study: StudyOption, config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False
) -> None:
    """Take a label off a study. Holds on the label no longer cover that study."""
    _change(config, name, study, as_json, put=False)


@hold_labels.command("list")
def list_labels(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """List all labels with their studies."""
    with archive(config) as services:
        found = services.index.holds.labels()
    table = Table("label", "study")
    for name, study in found:
        table.add_row(name, study)
    say([{"label": name, "study": study} for name, study in found], table, as_json=as_json)


def _change(config: Path, name: str, study: str, as_json: bool, *, put: bool) -> None:
    with archive(config) as services:
        if put and not services.index.originals.below("study", study):
            raise UsageError(f"study {study} is not held here; nothing was labelled")
        change = services.index.holds.put_label if put else services.index.holds.take_label
        changed = change(name, study, who=current_user())
    text = f"{'done' if changed else 'nothing to change'}: {study} {name}"
    say({"label": name, "study": study, "changed": changed}, text, as_json=as_json)
