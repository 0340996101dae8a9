"""``latent-pacs restore``: brings originals back from the cold store."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from node.cli.exit_codes import FAILED, UsageError
from node.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption, archive, current_user, say
from node.cli.progress import progress


def restore(
    uid: Annotated[str, typer.Argument(help="The UID, or the Patient ID, of what to restore.", metavar="UID")],
    level: Annotated[
        Literal["image", "series", "study", "patient"], typer.Option("--level", help="What the UID identifies.")
    ] = "study",
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Bring originals back from the cold store (originals.path) to storage.root, for at least 7 days."""
    with archive(config) as services, progress("restoring", "originals") as report:
        steps = services.retention.restore(level, uid, who=current_user(), progress=report)
    if not steps:
        raise UsageError(f"no {level} {uid} is held here; name another level with --level")
    lines = (f"{step.sop_instance_uid}: {step.outcome}{step.detail and ': '}{step.detail}" for step in steps)
    say(steps, *lines, as_json=as_json)
    if not all(step.outcome in ("restored", "hot") for step in steps):
        raise typer.Exit(FAILED)
