"""``latent-pacs instance``: lists images by state and reason, and reports on one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from node.cli.console import Console
from node.cli.options import (
    DEFAULT_CONFIG,
    REASON_CODES,
    ConfigOption,
    JsonOption,
    LimitOption,
    UtcOption,
    open_index,
    say,
)
from node.cli.times import time_text
from node.config import load
from node.reports.formatting import size_text
from storage.objects.store import ObjectStore
from storage.printable import counted
from storage.records import InstanceState, StoredInstance

if TYPE_CHECKING:
    from node.archive.instance_report import InstanceReport

instances = typer.Typer(help="List images by state and reason, and report on one.", no_args_is_help=True)


@instances.command("list")
def list_instances(
    state: Annotated[list[InstanceState] | None, typer.Option("--state", help="Only this state; repeatable.")] = None,
    reason: Annotated[
        str,
        typer.Option(
            "--reason",
            help=f"A reason code ({', '.join(REASON_CODES)}), or a part of the reason's text.",
            metavar="TEXT",
        ),
    ] = "",
    study: Annotated[str, typer.Option("--study", help="Only images of this Study Instance UID.", metavar="UID")] = "",
    limit: LimitOption = 100,
    utc: UtcOption = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """List images, newest first, without patient data. Works beside a running node."""
    from storage.index.instance_queries import list_instances as listed

    with open_index(config) as index:
        found = listed(index, states=state or (), reason=reason, study_uid=study, limit=limit + 1 if limit else 0)
    more = bool(limit) and len(found) > limit
    found = found[:limit] if more else found
    say([listed_json(one) for one in found], listed_table(found, utc=utc), as_json=as_json)
    if more and not as_json:
        Console(stderr=True).print(f"the list ends after {counted(limit, 'image')}; --limit 0 lists all")


@instances.command()
def show(
    uid: Annotated[
        str, typer.Argument(help="SOP Instance UID of an original, or of any reconstruction ever sent.", metavar="UID")
    ],
    picture: Annotated[
        Path | None,
        typer.Option(
            "--picture",
            help="Write the image as PNG, with exact patches, repairs and points marked.",
            metavar="FILE.png",
        ),
    ] = None,
    patient: Annotated[bool, typer.Option("--patient", help="Print the patient's name and ID too.")] = False,
    utc: UtcOption = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Report on one image: its state, the bytes of each object, the operating points tried, figures, repairs and UIDs.

    Works beside a running node. Without --patient no patient data is printed. The picture shows the image itself, with
    any text that is burned into it.
    """
    from node.app import open_stores
    from node.archive.instance_report import report_on  # loads the image coders, which other commands do not need
    from node.cli.instance_text import report_tables

    settings = load(config)
    with open_index(config) as index:
        store = ObjectStore(settings.storage.root)
        report = report_on(index, open_stores(settings, index, store), uid.strip(), patient=patient)
    if picture is not None:
        from node.cli.overlay import draw_report

        draw_report(report, store, settings.reconstruct, picture)
    drawn = [f"picture: {picture}"] if picture is not None else []
    say(_report_json(report), *report_tables(report, utc=utc), *drawn, as_json=as_json)


def listed_table(found: Sequence[StoredInstance], *, utc: bool) -> Table:
    """Images for people, one per line."""
    table = Table("SOP Instance UID", "state", "received", "original", "payload", "reason")
    for one in found:
        payload = size_text(one.rendition.payload_bytes) if one.rendition else ""
        received = time_text(one.received_at, utc=utc)
        original = "purged" if one.purged else size_text(one.original_bytes)
        table.add_row(one.sop_instance_uid, one.state, received, original, payload, one.reason)
    return table


def listed_json(one: StoredInstance) -> dict[str, Any]:
    """One image of a list for programs."""
    return {
        "sop_instance_uid": one.sop_instance_uid,
        "derived_uid": one.served_rendition.derived_uid if one.served_rendition else None,
        "sop_class_uid": one.sop_class_uid,
        "series_instance_uid": one.series_instance_uid,
        "study_instance_uid": one.study_instance_uid,
        "state": one.state.value,
        "reason_code": one.reason_code.value,
        "reason": one.reason,
        "received_at": one.received_at,
        "sent_by": one.calling_aet,
        "original_bytes": one.original_bytes,
        "payload_bytes": one.rendition.payload_bytes if one.rendition else None,
        "purged": one.purged,
    }


def _report_json(report: InstanceReport) -> dict[str, Any]:
    """A report as plain data, without the masks and places, which only the picture shows."""
    from node.cli.instance_text import compression_ratio

    data = dataclasses.asdict(report)
    for one, rendition in zip(data["renditions"], report.renditions, strict=True):
        one["payload_bytes"] = rendition.payload_bytes
        one["ratio"] = compression_ratio(report, rendition)
        if one["repair_counts"] is not None:
            del one["repair_counts"]["cells"], one["repair_counts"]["repairs"], one["repair_counts"]["points"]
    if report.patient is None:
        del data["patient"]
    return data
