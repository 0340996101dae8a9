"""``latent-pacs trail``: prints the audit trail, and checks that no record was changed or removed."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from node.cli.console import Console
from node.cli.exit_codes import FAILED
from node.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption, UtcOption, archive, print_json, say
from node.cli.times import time_text
from storage.printable import counted


def trail(
    since: Annotated[str, typer.Option("--since", help="From this date (UTC) on: 2026-01-31.", metavar="DATE")] = "",
    study: Annotated[
        str,
        typer.Option("--study", help="Only records about this study, its series and its images.", metavar="UID"),
    ] = "",
    limit: Annotated[int, typer.Option("--limit", help="Only the last N records; 0 is all.", metavar="N", min=0)] = 0,
    verify: Annotated[bool, typer.Option("--verify", help="Check that no record was changed or removed.")] = False,
    utc: UtcOption = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Print the audit trail: who did what, when, and with which outcome. Records are hash-chained.

    It records stores, retrievals, refused requests and associations with the peer and the reason, damage, holds,
    labels, amendments, deletions, quarantine, purges, restores, re-verifications and failures.
    """
    if verify:
        _verify(config, as_json)
        return
    if since and not _is_date(since):
        raise typer.BadParameter(f"{since!r} is no date; write it as 2026-01-31", param_hint="--since")
    with archive(config) as services:
        records = list(services.index.trail.records(since=since, uid=study, newest=limit))
    if as_json:
        print_json(records)
        return
    table = Table("no.", "time", "who", "action", "outcome", "on", "detail")
    for record in records:
        entry, when = record.entry, time_text(record.at, utc=utc)
        on = f"{entry.level} {' '.join(entry.uids)}".strip()
        table.add_row(str(record.number), when, entry.who, entry.action, entry.outcome, on, entry.detail)
    Console().print(table)


def _verify(config: Path, as_json: bool) -> None:
    """Check the chain of records in the index and in the journal."""
    with archive(config) as services:
        broken, count = services.trail.broken(), services.index.trail.last()[0]
    text = broken or f"{counted(count, 'record')}, unbroken in index and journal"
    say({"records": count, "broken": broken}, text, as_json=as_json)
    if broken:
        raise typer.Exit(FAILED)


def _is_date(text: str) -> bool:
    """Whether a text is a date in the extended format of ISO 8601, with or without a time. Such a text sorts as the
    times of the trail do."""
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return text[4:5] == text[7:8] == "-"
