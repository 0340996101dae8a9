"""The report on one image as tables for people."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from node.archive.instance_report import InstanceReport, RenditionReport
from node.cli.times import time_text
from node.reports.formatting import size_text
from storage.printable import counted
from storage.records import Trial


def report_tables(report: InstanceReport, *, utc: bool) -> Iterator[Table]:
    """The image, its renditions, and the trials and figures of the current one."""
    yield _identity(report, utc)
    for rendition in report.renditions:
        yield _rendition(report, rendition, utc)
    if report.rendition is not None:
        yield _trials(report.rendition)
        yield _figures(report.rendition)


def compression_ratio(report: InstanceReport, rendition: RenditionReport) -> float | None:
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
    facts: list[tuple[str, object]] = [
        ("image", report.sop_instance_uid),
        ("class", f"{report.sop_class}, modality {report.modality or '-'}"),
        ("series", report.series_instance_uid),
        ("study", report.study_instance_uid),
        ("received", f"{time_text(report.received_at, utc=utc)} from {report.sent_by}"),
        ("state", report.state),
        ("reason", report.reason.replace("; ", ";\n")),
        ("pixels", report.pixel_warning or f"{size_text(report.pixel_bytes)} uncompressed"),
        ("original", f"{original.condition}, {original.form}, {original.store} store, {size}"),
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
    ratio = compression_ratio(report, made)
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
