"""``latent-pacs delete``: what goes for good, shown and confirmed first."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from node.cli.commands.purge import current_user, stated
from node.cli.console import Console
from node.cli.options import print_json

if TYPE_CHECKING:
    from node.archive.deletion import DeletionReport


def run_delete(
    uid: str, config: Path, *, level: str, reason: str, dry_run: bool, yes: bool, allow_return: bool, as_json: bool
) -> None:
    """Delete, say what a deletion would do, or lift tombstones."""
    from node.app import services
    from node.config import load

    if not dry_run:
        stated(reason)
    who, console = current_user(), Console(soft_wrap=True)
    with services(load(config)) as at_hand:
        if allow_return:
            lifted = at_hand.deletion.allow_return(level, uid, reason=reason, who=who)
            if as_json:
                print_json({"may_come_back": lifted})
            else:
                console.print(f"{len(lifted)} UIDs may come back when they are sent again")
            return
        report = at_hand.deletion.plan(level, uid)
        if not dry_run:
            if not yes and not report.refused:
                typer.confirm(f"Delete {_told(report)} for good?", abort=True, err=True)
            report = at_hand.deletion.delete(level, uid, reason=reason, who=who)
    if as_json:
        print_json({"dry_run": report.dry_run, "images": [asdict(one) for one in report.images]})
        return
    for one in report.images:
        what = f"kept, {one.kept_because}" if one.kept_because else "would be deleted" if dry_run else "deleted"
        console.print(f"{one.sop_instance_uid}: {what}")
    if dry_run and report.refused:
        console.print("nothing would be deleted: it is all of it, or none")


def _told(report: DeletionReport) -> str:
    from node.reports.formatting import size_text

    studies = {one.study_instance_uid for one in report.images}
    size = size_text(sum(one.original_bytes for one in report.images))
    return f"{len(report.images)} images ({size}) of {len(studies)} studies, reconstructions included,"
