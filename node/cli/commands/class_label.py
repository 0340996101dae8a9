"""``latent-pacs class-label``: the classes of images, for validations, which hold their originals until one has run."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from node.cli.exit_codes import FAILED, UsageError
from node.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption, archive, current_user, say
from storage.printable import counted
from storage.records import StoredInstance

class_labels = typer.Typer(help="Assign classes, such as cancer, to images for validations.", no_args_is_help=True)

_LINES_SHOWN = 10
"""Line numbers of unmatched lines that are printed."""


@class_labels.command("import")
def import_labels(
    file: Annotated[
        Path,
        typer.Argument(help="A CSV: sop_instance_uid,class or patient_id,laterality,view,class.", metavar="FILE"),
    ],
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Set the classes of images, and hold their originals until a validation has used them.

    Exit code 1: some lines match no image that is held here; the other lines were imported.
    """
    from node.validation.label_file import read_labels

    if not file.is_file():
        raise UsageError(f"{file} is not a file")
    with archive(config) as services:
        found = read_labels(file, services.index)
        changed = services.index.classes.put(found.classes, who=current_user()) if found.classes else 0
    by_class = dict(sorted(Counter(found.classes.values()).items()))
    report = {"images": len(found.classes), "changed": changed, "classes": by_class, "unmatched": found.unmatched}
    counts = ", ".join(f"{count} {name}" for name, count in by_class.items())
    shown = [f"{counted(len(found.classes), 'image')} labelled ({counts or 'none'}), {changed} new or changed"]
    if found.unmatched:
        lines = ", ".join(map(str, found.unmatched[:_LINES_SHOWN]))
        more = ", ..." if len(found.unmatched) > _LINES_SHOWN else ""
        shown.append(f"{counted(len(found.unmatched), 'line')} without an image that is held here: {lines}{more}")
    say(report, *shown, as_json=as_json)
    if found.unmatched:
        raise typer.Exit(FAILED)


@class_labels.command("list")
def list_labels(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """List all labelled images with their classes, and whether their originals are here and kept for a validation."""
    with archive(config) as services:
        labels = services.index.classes
        images = {one.sop_instance_uid: one for one in services.index.by_keys(labels.instance_keys())}
        found = [(one, _original(images.get(one.sop_instance_uid))) for one in labels.all()]
    table = Table("image", "class", "original", "kept for a validation")
    for one, original in found:
        table.add_row(one.sop_instance_uid, one.class_name, original, "yes" if one.held else "no")
    say([{**asdict(one), "original": original} for one, original in found], table, as_json=as_json)


@class_labels.command("release")
def release_labels(
    uids: Annotated[
        list[str] | None, typer.Argument(help="SOP Instance UIDs; without any, all that are held.", metavar="UID")
    ] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Stop holding originals for a validation. The images keep their classes. A validation does this when it ends."""
    with archive(config) as services:
        known = {one.sop_instance_uid: one.held for one in services.index.classes.all()}
        if unknown := [uid for uid in uids or () if uid not in known]:
            raise UsageError(
                f"image {unknown[0]} has no class; `latent-pacs class-label list` lists those that have one"
            )
        chosen = uids or [uid for uid, held in known.items() if held]
        count = services.index.classes.release(chosen, who=current_user(), why="by hand")
    say({"released": count}, f"{counted(count, 'original')} released", as_json=as_json)


def _original(image: StoredInstance | None) -> str:
    if image is None:
        return "not here"
    return "purged" if image.purged else "lost" if image.original_lost else "held"
