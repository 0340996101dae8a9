"""``latent-pacs status``: what is held, what it weighs, what is left to do."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.table import Table

from node.archive.index_opening import open_for_command
from node.cli.console import Console
from node.cli.options import print_json
from node.config import Profile, keep_text, load
from node.reports.formatting import size_text
from storage.index import Index
from storage.index.connection import now
from storage.records import HoldingCounts, OriginalTotals


@contextmanager
def open_index(config: Path) -> Iterator[Index]:
    """The index of a configuration, which must exist already. Raises ConfigError."""
    index = open_for_command(load(config))
    try:
        yield index
    finally:
        index.close()


def print_status(config: Path, *, as_json: bool) -> None:
    """Print counts, as text or JSON."""
    settings = load(config)
    keep, reserve = settings.originals.keep, settings.audit.reserve_bound
    never = settings.codec.profile is Profile.US_MQSA
    with open_index(config) as index:
        counts, totals = index.counts(), index.originals.totals()
        free = {
            keep_text(span): (0, 0)
            if span is None or never
            else index.originals.purgeable_totals(now() - span, reserve)
            for span in (keep, timedelta(days=30))
        }
    report = status_report(counts) | {
        "originals": dataclasses.asdict(totals),
        "purge_would_free": {name: {"originals": count, "bytes": size} for name, (count, size) in free.items()},
    }
    if as_json:
        print_json(report)
        return
    console = Console()
    console.print(_states(counts))
    if counts.left_out:
        console.print(_left_out(counts))
    console.print(_bytes(counts))
    console.print(_originals(totals))
    for name, (count, size) in free.items():
        console.print(f"a purge with originals.keep {name} would free {size_text(size)} of {count} originals")
    console.print(f"backlog: {counts.backlog}   quarantined: {counts.quarantined}")
    console.print(f"ratio over reconstructable images: {_ratio_text(report['ratio_reconstructable'])}")
    console.print(f"ratio over everything held:        {_ratio_text(report['ratio_everything'])}")


def status_report(counts: HoldingCounts) -> dict[str, Any]:
    """The counts with both ratios; a ratio is None where there is nothing to divide."""
    return {
        **dataclasses.asdict(counts),
        "ratio_reconstructable": _ratio(counts.reconstructable_pixel_bytes, counts.reconstructable_payload_bytes),
        "ratio_everything": _ratio(counts.all_pixel_bytes, counts.all_hot_bytes),
    }


def _states(counts: HoldingCounts) -> Table:
    table = Table("state", "instances", title="instances")
    for state, count in counts.by_state.items():
        table.add_row(state, str(count))
    return table


def _left_out(counts: HoldingCounts) -> Table:
    """``other``: each has a reason of its own, which ``latent-pacs instance show`` prints."""
    table = Table("reason", "instances", title="exact only: left out of reconstruction")
    for reason, count in counts.left_out.items():
        own = "other: see latent-pacs instance show UID" if reason == "other" else reason
        table.add_row(own, str(count))
    return table


def _bytes(counts: HoldingCounts) -> Table:
    table = Table("kind", "bytes", "", title="objects")
    for kind, size in counts.bytes_by_kind.items():
        table.add_row(kind, str(size), size_text(size))
    return table


def _originals(totals: OriginalTotals) -> Table:
    table = Table("originals", "count", "bytes", "", title="originals as they are held")
    for name in ("verbatim", "packed", "cold"):
        size = getattr(totals, f"{name}_bytes")
        table.add_row(name, str(getattr(totals, name)), str(size), size_text(size))
    table.add_row("purged", str(totals.purged), "0", "0 B")
    return table


def _ratio(whole: int, part: int) -> float | None:
    return whole / part if part else None


def _ratio_text(ratio: float | None) -> str:
    return "none yet" if ratio is None else f"{ratio:.1f} : 1"
