"""``latent-pacs delete``: deletes images permanently, after showing them and asking."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from node.cli.exit_codes import REFUSED
from node.cli.options import DEFAULT_CONFIG, ConfigOption, DryRunOption, JsonOption, archive, current_user, say, stated
from node.reports.formatting import size_text
from storage.printable import counted

if TYPE_CHECKING:
    from node.archive.deletion import DeletionReport


def delete(
    uid: Annotated[str, typer.Argument(help="The UID of what to delete.", metavar="UID")],
    level: Annotated[Literal["image", "series", "study"], typer.Option("--level", help="What the UID identifies.")],
    reason: Annotated[str, typer.Option("--reason", help="The reason, for the audit trail.", metavar="TEXT")] = "",
    dry_run: DryRunOption = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    allow_return: Annotated[
        bool, typer.Option("--allow-return", help="Delete nothing. Accept deleted images when they are sent again.")
    ] = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Delete an image, a series or a study permanently, with its originals, its reconstructions and all their UIDs.

    The whole request is refused if any image is on hold, pinned by a storage commitment, or kept by profile us-mqsa:
    exit code 3, also with --dry-run. If a deleted image is sent again, it goes to quarantine. The node may be running.
    """
    if not dry_run:
        stated(reason)
    with archive(config) as services:
        if allow_return:
            returning = services.deletion.allow_return(level, uid, reason=reason, who=current_user())
            text = f"{counted(len(returning), 'UID')} may be sent again"
            say({"may_come_back": returning}, text, as_json=as_json)
            return
        report = services.deletion.plan(level, uid)
        if not dry_run:
            if not yes and not report.refused:
                typer.confirm(f"Delete {_summary(report)} permanently?", abort=True, err=True)
            report = services.deletion.delete(level, uid, reason=reason, who=current_user())
    say({"dry_run": report.dry_run, "images": report.images}, *_lines(report, dry_run), as_json=as_json)
    if report.refused:
        raise typer.Exit(REFUSED)


def _lines(report: DeletionReport, dry_run: bool) -> Iterator[str]:
    for one in report.images:
        may_be = "could be deleted" if report.refused else "would be deleted" if dry_run else "deleted"
        yield f"{one.sop_instance_uid}: {one.kept_because or may_be}"
    if report.refused:
        yield "nothing would be deleted: an image that must be kept refuses the whole request"


def _summary(report: DeletionReport) -> str:
    studies = {one.study_instance_uid for one in report.images}
    size = size_text(sum(one.original_bytes for one in report.images))
    images = counted(len(report.images), "image")
    return f"{images} ({size}) of {counted(len(studies), 'study')}, with all reconstructions,"
