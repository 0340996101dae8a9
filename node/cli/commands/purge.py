"""``latent-pacs purge``: removes originals that originals.retain_for allows to remove."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from node.cli.exit_codes import FAILED
from node.cli.options import DEFAULT_CONFIG, ConfigOption, DryRunOption, JsonOption, archive, current_user, say
from node.cli.progress import progress
from node.reports.formatting import size_text
from storage.printable import counted

if TYPE_CHECKING:
    from node.archive.originals.retention import PurgeReport


def purge(dry_run: DryRunOption = False, config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Remove originals held longer than originals.retain_for, if their reconstruction is proved to be retrievable.

    An original is never removed if it is on hold or pinned, or if its image is not verified. The node may be running.
    Exit code 1: some originals were kept because the proof failed.
    """
    with archive(config) as services, progress("checking", "originals") as report:
        done = services.retention.purge(dry_run=dry_run, progress=report, who=current_user())
    lines = _lines(done, "would be removed" if dry_run else "removed")
    say({**asdict(done), "bytes_freed": done.bytes_freed}, *lines, as_json=as_json)
    if done.kept:
        raise typer.Exit(FAILED)


def _lines(done: PurgeReport, outcome: str) -> Iterator[str]:
    for step in done.purged:
        yield f"{step.sop_instance_uid}: {outcome} ({step.form}, {step.tier}, {size_text(step.bytes)})"
    for step in done.kept:
        yield f"{step.sop_instance_uid}: kept, {step.kept_because}"
    if done.keep == "forever":
        yield "originals.retain_for is forever: nothing is removed"
    if done.reserved:
        yield f"{done.reserved} more are kept as the audit reserve (audit.reserve), {size_text(done.reserved_bytes)}"
    yield f"{counted(len(done.purged), 'original')} {outcome}, {size_text(done.bytes_freed)}; {len(done.kept)} kept"
