"""``latent-pacs trail``: what happened, who did it, and whether the record of it is whole."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from node.cli.console import Console
from node.cli.options import print_json


def print_trail(config: Path, *, since: str, uid: str, newest: int, as_json: bool) -> None:
    """Print records of the audit trail, oldest first."""
    from node.app import services
    from node.config import load

    with services(load(config)) as at_hand:
        records = list(at_hand.index.trail.records(since=since, uid=uid, newest=newest))
    if as_json:
        print_json([asdict(record) for record in records])
        return
    table = Table("no.", "when (UTC)", "who", "action", "outcome", "on", "detail")
    for record in records:
        entry = record.entry
        on = f"{entry.level} {' '.join(entry.uids)}".strip()
        when = record.at.partition("+")[0]
        table.add_row(str(record.number), when, entry.who, entry.action, entry.outcome, on, entry.detail)
    Console().print(table)


def verify_trail(config: Path, *, as_json: bool) -> bool:
    """Check the chain of records in the index and in the journal; False where it is broken."""
    from node.app import services
    from node.config import load

    with services(load(config)) as at_hand:
        broken, count = at_hand.trail.broken(), at_hand.index.trail.last()[0]
    if as_json:
        print_json({"records": count, "broken": broken})
    else:
        Console(soft_wrap=True).print(broken or f"{count} records, unbroken in index and journal")
    return not broken
