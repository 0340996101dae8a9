"""``latent-pacs instance``: lists images by state and reason, and reports on one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
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
from storage.records import InstanceState, StoredInstance, Trial

if TYPE_CHECKING:
    from node.archive.instance_report import InstanceReport, RenditionReport

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
    """List images, newest first, without patient data. The node may be running."""
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

    The node may be running. Without --patient no patient data is printed. The picture shows the image itself, with any
    text that is burned into it.
    """
    from node.app import open_stores
    from node.archive.instance_report import report_on  # loads the image coders, which other commands do not need

    settings = load(config)
    with open_index(config) as index:
        store = ObjectStore(settings.storage.root)
        report = report_on(index, open_stores(settings, index, store), uid.strip(), patient=patient)
    if picture is not None:
        from node.cli.overlay import draw_report

        draw_report(report, store, settings.reconstruct, picture)
    drawn = [f"picture: {picture}"] if picture is not None else []
    say(_report_json(report), *_report_tables(report, utc=utc), *drawn, as_json=as_json)


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
    """A report as plain data, without the masks and the places of points, which only the picture shows."""
    data = dataclasses.asdict(report)
    for one, rendition in zip(data["renditions"], report.renditions, strict=True):
        one["operating_point"], one["point"] = one["point"], str(rendition.point)
        one["payload_bytes"] = rendition.payload_bytes
        one["ratio"] = _compression_ratio(report, rendition)
        if one["repair_counts"] is not None:
            del one["repair_counts"]["cells"], one["repair_counts"]["repairs"], one["repair_counts"]["points"]
    if report.patient is None:
        del data["patient"]
    return data


def _report_tables(report: InstanceReport, *, utc: bool) -> Iterator[Table]:
    """The image, its renditions, and the trials and figures of the current one."""
    yield _identity(report, utc)
    for rendition in report.renditions:
        yield _rendition(report, rendition, utc)
    if report.rendition is not None:
        yield _trials(report.rendition)
        yield _figures(report.rendition)


def _compression_ratio(report: InstanceReport, rendition: RenditionReport) -> float | None:
    """Bytes of the uncompressed pixels over those of the payload."""
    return round(report.pixel_bytes / rendition.payload_bytes, 2) if report.pixel_bytes else None


def _facts(title: str, *facts: tuple[str, object]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts:
        if value not in ("", None):
            table.add_row(name, str(value))
    return table


def _identity(report: InstanceReport, utc: bool) -> Table:
    original = report.original
    size = size_text(original.bytes)
    if original.form == "packed":
        size += f", packed into {size_text(original.object_bytes)}"
    held = f"{original.condition}, {original.form}, {original.store} store, {size}"
    facts: list[tuple[str, object]] = [
        ("image", report.sop_instance_uid),
        ("class", f"{report.sop_class}, modality {report.modality or '-'}"),
        ("series", report.series_instance_uid),
        ("study", report.study_instance_uid),
        ("received", f"{time_text(report.received_at, utc=utc)} from {report.sent_by}"),
        ("state", report.state),
        ("reason", report.reason.replace("; ", ";\n")),
        ("pixels", report.pixel_warning or f"{size_text(report.pixel_bytes)} uncompressed"),
        ("original", f"purged, {size} as received" if original.form == "purged" else held),
        ("", original.file or ""),
        ("  note", original.note),
        ("  restored", time_text(original.restored_at, utc=utc) if original.restored_at else ""),
        ("  purged", time_text(original.purged_at, utc=utc) if original.purged_at else ""),
        ("  digest", original.digest),
        ("  syntax", f"{original.transfer_syntax} ({original.transfer_syntax_uid})"),
        *(("damage", f"{one.kind} {one.digest} {one.condition}, {one.action}") for one in report.damage),
        (
            "quarantined",
            f"{counted(report.quarantined, 'other object')} arrived under this UID" if report.quarantined else "",
        ),
    ]
    if report.patient is not None:
        facts[:0] = [("patient", f"{report.patient.name} ({report.patient.patient_id})")]
    return _facts("image", *facts)


def _rendition(report: InstanceReport, made: RenditionReport, utc: bool) -> Table:
    ratio = _compression_ratio(report, made)
    outcome = "verified" if made.verdict.passed else "measured"
    facts: list[tuple[str, object]] = [
        ("derived UID", f"{made.derived_uid} with drawn noise"),
        ("", f"{made.structure_uid} structure alone"),
        ("point", f"{made.point}, {size_text(made.payload_bytes)}" + (f", {ratio:.0f} : 1" if ratio else "")),
        ("base", _base_text(made)),
        ("", made.base_digest),
        ("rendition", _rendition_text(made)),
        ("", made.rendition_digest),
        ("repaired", _repairs_text(made)),
        ("upscaler", f"{made.upscaler}, steps {made.steps}, seed {made.seed}" if made.parts else made.upscaler),
        ("  weights", made.weights_digest),
        ("  numerics", ", ".join(f"{name} {value}" for name, value in made.numerics.items())),
        ("pixels", f"{made.output_digest} with drawn noise"),
        ("", f"{made.structure_digest} structure alone"),
        ("  measured", f"{made.measured_uid}, from which these differ by rounding" if made.measured_uid else ""),
        (outcome, f"{time_text(made.verified_at, utc=utc)}, in {made.seconds:.1f} s"),
        ("withdrawn", made.withdrawn),
        ("unreadable", made.unreadable),
    ]
    return _facts(f"\n{'current' if made.current else 'former'} rendition", *facts)


def _base_text(made: RenditionReport) -> str:
    inside = f": pixels {made.parts.base_pixels}, header and padding" if made.parts else ""
    return f"{made.base_bytes} bytes{inside}"


def _rendition_text(made: RenditionReport) -> str:
    parts = made.parts
    if parts is None:
        return f"{made.rendition_bytes} bytes"
    named = {"noise": parts.noise, "repairs": parts.repairs, "points": parts.points, "patches": parts.patches}
    inside = ", ".join(f"{name} {size}" for name, size in named.items())
    return f"{made.rendition_bytes} bytes: {inside}, measurements"


def _repairs_text(made: RenditionReport) -> str:
    counts = made.repair_counts
    if counts is None:
        return ""
    patches = counted(counts.patched, "patch", "patches")
    patches += f" of 16 x 16 pixels, {100 * counts.patched_share:.2f}% of the image"
    repairs = f"{counted(counts.repaired, 'repair')} of 16 x 16, {100 * counts.repaired_share:.2f}%"
    return f"{patches}; {repairs}; {counted(counts.point_count, 'point')}"


def _trials(made: RenditionReport) -> Table:
    table = Table(
        *("point", "upscaler", "bytes", "seconds", "result"),
        title="\noperating points tried: first on a sample, with estimated bytes, then on the whole image",
        title_justify="left",
        title_style="bold",
    )
    passed = [trial for trial in made.tried if not trial.sample and not trial.failures]
    taken = min(passed, key=lambda trial: trial.payload_bytes, default=None)
    for trial in made.tried:
        size = f"about {trial.payload_bytes}" if trial.sample else str(trial.payload_bytes)
        result = _result(trial, taken=trial is taken)
        table.add_row(trial.point, trial.upscaler, size, f"{trial.seconds:.1f}", result)
    return table


def _result(trial: Trial, *, taken: bool) -> str:
    passed = "chosen" if taken else "passed, but takes more bytes"
    return "; ".join(trial.failures) or ("coarsest that passes on the sample" if trial.sample else passed)


def _figures(made: RenditionReport) -> Table:
    verdict = made.verdict
    named: dict[str, float] = {
        "psnr_db": verdict.psnr_db,
        "fsim_mean": verdict.fsim_mean,
        "fsim_p5": verdict.fsim_p5,
        "tiles": verdict.tiles,
        **verdict.figures,
    }
    return _facts("\nfigures of the current rendition", *((name, f"{value:.4g}") for name, value in named.items()))
