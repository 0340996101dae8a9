"""``latent-pacs instance show UID``: the life of one image, as text, as JSON, and as a picture."""

from __future__ import annotations

import dataclasses
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from node.cli.commands.status import open_index
from node.cli.console import Console
from node.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption, print_json
from node.config import load
from node.reports.formatting import size_text
from storage.objects.store import ObjectStore

if TYPE_CHECKING:
    from node.archive.instance_report import InstanceReport, RenditionReport
    from storage.records import Trial

instances = typer.Typer(help="Look at single images.", no_args_is_help=True)


@instances.callback()
def _group() -> None:
    """Keeps ``show`` a verb of its own while it is the only one."""


@instances.command()
def show(
    uid: Annotated[str, typer.Argument(help="SOP Instance UID of an original, or of any reconstruction ever sent.")],
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
    picture: Annotated[
        Path | None,
        typer.Option(
            "--picture",
            help="Draw the image with patches and repairs outlined and points dotted.",
            metavar="FILE.png",
        ),
    ] = None,
    patient: Annotated[bool, typer.Option("--patient", help="Name the patient too.")] = False,
) -> None:
    """Tell the life of one image: state, bytes per object, every operating point tried, figures, repairs, UIDs.

    Works while the node runs. Without --patient nothing that is printed names the patient; the picture shows the image
    itself, with whatever is burned into it.
    """
    from node.app import open_stores
    from node.archive.instance_report import (
        report_on,
    )  # brings the coders along, which other commands need not wait for

    settings = load(config)
    with open_index(config) as index:
        store = ObjectStore(settings.storage.root)
        life = report_on(index, open_stores(settings, index, store), uid.strip(), patient=patient)
    if picture is not None:
        from node.cli.overlay import draw_life

        draw_life(life, store, settings.reconstruct, picture)
    print_json(life_report(life)) if as_json else _print(life)
    if picture is not None and not as_json:
        Console().print(f"picture: {picture}", soft_wrap=True)


def life_report(life: InstanceReport) -> dict[str, Any]:
    """A life as plain data for JSON: times in UTC, masks and places left to the picture."""
    report = _plain(dataclasses.asdict(life))
    for one, rendition in zip(report["renditions"], life.renditions, strict=True):
        one["payload_bytes"] = rendition.payload_bytes
        one["ratio"] = _ratio(life, rendition)
        if one["repair_counts"] is not None:
            del one["repair_counts"]["cells"], one["repair_counts"]["repairs"], one["repair_counts"]["points"]
    if life.patient is None:
        del report["patient"]
    assert isinstance(report, dict)
    return report


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, datetime):
        return value.isoformat(timespec="seconds") + "Z"
    return str(value) if isinstance(value, Path) else value


def _ratio(life: InstanceReport, rendition: RenditionReport) -> float | None:
    return round(life.pixel_bytes / rendition.payload_bytes, 2) if life.pixel_bytes else None


# --- for people -----------------------------------------------------------------------------------------------


def _print(life: InstanceReport) -> None:
    console = Console()
    console.print(_identity(life))
    for rendition in life.renditions:
        console.print(_rendition(life, rendition))
    shown = life.rendition
    if shown is not None:
        console.print(_trials(shown))
        console.print(_figures(shown))


def _facts(title: str, *facts: tuple[str, object]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts:
        if value not in ("", None):
            table.add_row(name, str(value))
    return table


def _identity(life: InstanceReport) -> Table:
    original = life.original
    size = f"{original.bytes} bytes ({size_text(original.bytes)})"
    if original.form == "packed":
        size += f", packed into {original.object_bytes} ({size_text(original.object_bytes)})"
    facts: list[tuple[str, object]] = [
        ("image", life.sop_instance_uid),
        ("class", f"{life.sop_class}, modality {life.modality or '-'}"),
        ("series", life.series_instance_uid),
        ("study", life.study_instance_uid),
        ("received", f"{_time(life.received_at)} from {life.sent_by}"),
        ("state", life.state),
        ("reason", life.reason.replace("; ", ";\n")),
        ("pixels", life.pixel_warning or f"{life.pixel_bytes} bytes uncompressed ({size_text(life.pixel_bytes)})"),
        ("original", f"{original.condition}, {original.form}, {original.store} store, {size}"),
        ("", original.file or ""),
        ("  note", original.note),
        ("  restored", _time(original.restored_at) if original.restored_at else ""),
        ("  purged", _time(original.purged_at) if original.purged_at else ""),
        ("  digest", original.digest),
        ("  syntax", f"{original.transfer_syntax} ({original.transfer_syntax_uid})"),
        *(("damage", f"{one.kind} {one.digest} {one.condition}, {one.action}") for one in life.damage),
        ("quarantined", f"{life.quarantined} other objects arrived under this UID" if life.quarantined else ""),
    ]
    if life.patient is not None:
        facts[:0] = [("patient", f"{life.patient.name} ({life.patient.patient_id})")]
    return _facts("image", *facts)


def _rendition(life: InstanceReport, made: RenditionReport) -> Table:
    standing = "current" if made.current else "former"
    ratio = _ratio(life, made)
    words = "verified" if made.verdict.passed else "measured"
    facts: list[tuple[str, object]] = [
        ("derived UID", f"{made.derived_uid} with drawn noise"),
        ("", f"{made.structure_uid} structure alone"),
        ("point", f"{made.point}, {made.payload_bytes} bytes" + (f", {ratio:.0f} : 1" if ratio else "")),
        ("base", _base_text(made)),
        ("", made.base_digest),
        ("rendition", _rendition_text(made)),
        ("", made.rendition_digest),
        ("mended", _mended_text(made)),
        ("upscaler", f"{made.upscaler}, steps {made.steps}, seed {made.seed}" if made.parts else made.upscaler),
        ("  weights", made.weights_digest),
        ("  numerics", ", ".join(f"{name} {value}" for name, value in made.numerics.items())),
        ("pixels", f"{made.output_digest} with drawn noise"),
        ("", f"{made.structure_digest} structure alone"),
        (words, f"{_time(made.verified_at)}, in {made.seconds:.1f} s"),
        ("withdrawn", made.withdrawn),
        ("unreadable", made.unreadable),
    ]
    return _facts(f"\n{standing} rendition", *facts)


def _base_text(made: RenditionReport) -> str:
    inside = f": pixels {made.parts.base_pixels}, the rest header and padding" if made.parts else ""
    return f"{made.base_bytes} bytes{inside}"


def _rendition_text(made: RenditionReport) -> str:
    parts = made.parts
    if parts is None:
        return f"{made.rendition_bytes} bytes"
    named = {"noise": parts.noise, "repairs": parts.repairs, "points": parts.points, "patches": parts.patches}
    inside = ", ".join(f"{name} {size}" for name, size in named.items())
    return f"{made.rendition_bytes} bytes: {inside}, the rest what was measured"


def _mended_text(made: RenditionReport) -> str:
    counts = made.repair_counts
    if counts is None:
        return ""
    patches = f"{counts.patched} patches of 16 x 16 pixels, {100 * counts.patched_share:.2f} % of the image"
    repairs = f"{counts.repaired} repairs of 16 x 16, {100 * counts.repaired_share:.2f} %"
    return f"{patches}; {repairs}; {counts.point_count} points"


def _trials(made: RenditionReport) -> Table:
    table = Table(
        *("point", "upscaler", "bytes", "s", "came to"),
        title="\noperating points: estimates from a sample first, then the whole image in order",
        title_justify="left",
        title_style="bold",
    )
    for number, trial in enumerate(made.tried, start=1):
        size = f"about {trial.payload_bytes}" if trial.sample else str(trial.payload_bytes)
        came_to = _came_to(trial, taken=number == len(made.tried))
        table.add_row(trial.point, trial.upscaler, size, f"{trial.seconds:.1f}", came_to)
    return table


def _came_to(trial: Trial, *, taken: bool) -> str:
    if trial.sample:
        return "the coarsest that passes on a sample"
    return "; ".join(trial.failures) or ("taken" if taken else "passed, but takes more bytes")


def _figures(made: RenditionReport) -> Table:
    verdict = made.verdict
    named: dict[str, float] = {
        "psnr_db": verdict.psnr_db,
        "fsim_mean": verdict.fsim_mean,
        "fsim_p5": verdict.fsim_p5,
        "tiles": verdict.tiles,
        **verdict.figures,
    }
    standing = "current" if made.current else "former"
    return _facts(f"\nfigures, {standing} rendition", *((name, f"{value:.5g}") for name, value in named.items()))


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"
