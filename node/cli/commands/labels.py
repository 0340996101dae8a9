"""``latent-pacs labels``: what images show, for validations; their originals are held until one has used them."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from node.cli.commands.purge import current_user
from node.cli.console import Console
from node.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption, print_json

class_labels = typer.Typer(help="Classes of images, for validations: import, list, release.", no_args_is_help=True)

_LINES_SHOWN = 10


@class_labels.command("import")
def import_labels(
    file: Annotated[Path, typer.Argument(help="A CSV: sop_instance_uid,class or patient_id,laterality,view,class.")],
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Label images, and hold their originals until a validation has used them.

    Exit code 1: some lines name no image that is held here; the others were taken.
    """
    from node.app import services
    from node.config import load
    from node.validation.label_file import read_labels

    with services(load(config)) as at_hand:
        found = read_labels(file, at_hand.index)
        changed = at_hand.index.classes.put(found.classes, who=current_user()) if found.classes else 0
        at_hand.trail.write_down()
    by_class = dict(sorted(Counter(found.classes.values()).items()))
    if as_json:
        print_json(
            {"images": len(found.classes), "changed": changed, "classes": by_class, "unmatched": found.unmatched}
        )
    else:
        console = Console(soft_wrap=True)
        counts = ", ".join(f"{count} {name}" for name, count in by_class.items())
        console.print(f"{len(found.classes)} images labelled ({counts or 'none'}), {changed} new or changed")
        if found.unmatched:
            lines = ", ".join(map(str, found.unmatched[:_LINES_SHOWN]))
            more = ", ..." if len(found.unmatched) > _LINES_SHOWN else ""
            console.print(f"{len(found.unmatched)} lines name no image that is held here: {lines}{more}")
    if found.unmatched:
        raise typer.Exit(1)


@class_labels.command("list")
def list_labels(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Every labelled image, its class, and whether its original is held for a validation."""
    from node.app import services
    from node.config import load

    with services(load(config)) as at_hand:
        found = at_hand.index.classes.all()
    if as_json:
        print_json([asdict(one) for one in found])
        return
    table = Table("image", "class", "original held")
    for one in found:
        table.add_row(one.sop_instance_uid, one.class_name, "yes" if one.held else "no")
    Console().print(table)


@class_labels.command("release")
def release_labels(
    uids: Annotated[
        list[str] | None, typer.Argument(help="SOP Instance UIDs; none: all that are held.", metavar="[UID]...")
    ] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Hold originals for a validation no longer; the images keep their classes. A validation does this by itself."""
    from node.app import services
    from node.config import load

    with services(load(config)) as at_hand:
        chosen = uids or [one.sop_instance_uid for one in at_hand.index.classes.all() if one.held]
        count = at_hand.index.classes.release(chosen, who=current_user(), why="by hand")
        at_hand.trail.write_down()
    print_json({"released": count}) if as_json else Console().print(f"{count} originals are held no longer")
