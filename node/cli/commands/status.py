"""``latent-pacs status``: counts of images and bytes, the backlog, and the compression ratio."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import timedelta

from rich.table import Table

from node.archive.originals.retention import would_free
from node.cli.console import Console
from node.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption, open_index, print_json
from node.config import load, retention_text
from node.reports.formatting import size_text
from storage.printable import counted
from storage.records import OriginalTotals

_OTHER = "other: see latent-pacs instance show UID"


def status(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Print counts by state, bytes by kind, the backlog, and the compression ratio. The node may be running."""
    settings = load(config)
    with open_index(config) as index:
        counts, totals = index.counts(), index.originals.totals()
        free = {
            retention_text(span): would_free(index, settings, span)
            for span in (settings.originals.retain_for, timedelta(days=30))
        }
    report = {
        **dataclasses.asdict(counts),
        "ratio_reconstructable": _ratio(counts.reconstructable_pixel_bytes, counts.reconstructable_payload_bytes),
        "ratio_everything": _ratio(counts.all_pixel_bytes, sum(counts.bytes_by_kind.values())),
        "originals": dataclasses.asdict(totals),
        "purge_would_free": {name: {"originals": count, "bytes": size} for name, (count, size) in free.items()},
    }
    if as_json:
        print_json(report)
        return
    console = Console()
    console.print(_counted(Table("state", "count", title="instances"), counts.by_state))
    if counts.left_out:  # each image counted as other has its own reason
        reasons = {_OTHER if code == "other" else code: count for code, count in counts.left_out.items()}
        console.print(_counted(Table("reason", "count", title="not reconstructable, by reason"), reasons))
    sizes = {kind: size_text(size) for kind, size in counts.bytes_by_kind.items()}
    console.print(_counted(Table("kind", "size", title="objects"), sizes))
    console.print(_originals(totals))
    for name, (count, size) in free.items():
        frees = (
            f"would remove {counted(count, 'original')} and free {size_text(size)}"
            if name != "forever"
            else "removes nothing"
        )
        console.print(f"a purge with originals.retain_for {name} {frees}")
    console.print(
        f"backlog: {counts.backlog}   quarantined: {counts.quarantined}   damaged or missing objects: {counts.damaged}"
    )
    if counts.damaged:
        console.print("`latent-pacs scrub --full` names the damaged objects, and repairs what it can", style="bold red")
    console.print(f"pixels over payloads, of reconstructable images: {_ratio_text(report['ratio_reconstructable'])}")
    console.print(f"pixels over all objects, originals included:     {_ratio_text(report['ratio_everything'])}")


def _counted(table: Table, figures: Mapping[str, object]) -> Table:
    for name, figure in figures.items():
        table.add_row(name, str(figure))
    return table


def _originals(totals: OriginalTotals) -> Table:
    table = Table("kept as", "count", "size", title="originals")
    for name in ("verbatim", "packed", "cold"):
        table.add_row(name, str(getattr(totals, name)), size_text(getattr(totals, f"{name}_bytes")))
    table.add_row("purged", str(totals.purged), "0 B")
    return table


def _ratio(whole: int, part: int) -> float | None:
    """None if there is nothing to divide by."""
    return whole / part if part else None


def _ratio_text(ratio: float | None) -> str:
    return "none yet" if ratio is None else f"{ratio:.1f} : 1"
