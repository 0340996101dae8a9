"""``latent-pacs model``: train, evaluate, fine-tune and list upscaling models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from node.cli.console import Console
from node.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption, say
from node.cli.progress import Report, progress
from node.config import load
from node.reports.formatting import size_text
from storage.printable import counted

models = typer.Typer(help="Train, evaluate, fine-tune and list upscaling models.", no_args_is_help=True)

DataOption = Annotated[
    list[Path],
    typer.Option(
        "--data", help="A folder or file of mammograms (DICOM, PNG, JPEG); repeatable.", metavar="PATH", exists=True
    ),
]
MoreArgument = Annotated[
    list[Path] | None, typer.Argument(help="Further folders or files.", metavar="PATH", exists=True)
]
MinutesOption = Annotated[
    float, typer.Option("--minutes", min=0.01, help="Time limit of this run, in minutes.", metavar="N")
]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Continue from the checkpoint in the folder.")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
SeedOption = Annotated[int, typer.Option("--seed", help="Seed of all random choices.")]


@models.command()
def train(
    data: DataOption,
    minutes: MinutesOption,
    more: MoreArgument = None,
    out: Annotated[
        Path, typer.Option("--out", help="The folder for the model and its checkpoint.", metavar="FOLDER")
    ] = Path("mammo-model"),
    resume: ResumeOption = False,
    seed: SeedOption = 1,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Train `mammo` on mammograms. Keep the images of a patient together when you split data for an evaluation."""
    from node.training.image_files import read_pictures
    from node.training.trainer import Plan, train

    console = Console(stderr=True)
    with console.status("reading images"):
        pictures = read_pictures([*data, *(more or [])])
    console.print(counted(len(pictures), "image"))
    plan = Plan(steps=1, seed=seed).sized_for(device)
    with progress("training", "steps") as show:
        watch = _Watch(show)
        train(pictures, plan, out, minutes=minutes, resume=resume, device=device, watch=watch)
    _report(out, watch.last, as_json=as_json)


@models.command("fine-tune")
def fine_tune(
    minutes: MinutesOption,
    out: Annotated[Path, typer.Option("--out", help="The folder for the new model.", metavar="FOLDER")],
    upscaler: Annotated[
        str, typer.Option("--upscaler", help="mammo, or sd_x2: the decoder of its autoencoder.")
    ] = "mammo",
    data: Annotated[
        list[Path] | None,
        typer.Option("--data", help="Mammograms instead of the archive's held originals.", metavar="PATH", exists=True),
    ] = None,
    resume: ResumeOption = False,
    seed: SeedOption = 1,
    device: DeviceOption = "auto",
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Adapt the configured model to the archive's held originals, or to a random billion pixels of them.

    The result is used once config.yaml names it.
    """
    from node.cli.finetuning import fine_tune_mammo, fine_tune_sd_decoder, held_pictures

    if upscaler not in ("mammo", "sd_x2"):
        raise typer.BadParameter(f"{upscaler!r} is not mammo or sd_x2", param_hint="--upscaler")
    console = Console(stderr=True)
    settings = load(config)
    with console.status("reading originals"):
        pictures = held_pictures(config, data)
    console.print(counted(len(pictures), "image"))
    adapt = fine_tune_mammo if upscaler == "mammo" else fine_tune_sd_decoder
    with progress("training", "steps") as show:
        watch = _Watch(show)
        extra = adapt(pictures, settings, out, minutes=minutes, seed=seed, resume=resume, device=device, watch=watch)
    _report(out, watch.last, as_json=as_json, **extra)


@models.command()
def evaluate(
    data: DataOption,
    more: MoreArgument = None,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model", help="The folder of a model, instead of the one that comes with the package.", metavar="FOLDER"
        ),
    ] = None,
    scale: Annotated[
        list[int] | None,
        typer.Option("--scale", help="Downsampling factor of the base, 1, 2 or 4 (default 2); repeatable."),
    ] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Measure the bytes that a model saves at equal line error. Use images of patients it was not trained on."""
    from node.training.evaluate import DISTANCES, summary
    from node.training.evaluate import evaluate as results_of
    from node.training.image_files import read_pictures
    from node.upscalers.mammo import SHIPPED

    scales = scale or [2]
    if unknown := [each for each in scales if each not in DISTANCES]:
        raise typer.BadParameter(f"{unknown[0]} is not 1, 2 or 4", param_hint="--scale")
    console = Console(stderr=True)
    with console.status("reading images"):
        pictures = read_pictures([*data, *(more or [])])
    results = []
    with progress("evaluating", "images x scales") as report:
        for result in results_of(pictures, model or SHIPPED, scales=scales, device=device):
            results.append(result)
            report(len(results), len(pictures) * len(scales))
    say(results, *_evaluation_tables(results, summary(results)), as_json=as_json)


@models.command("list")
def list_models(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """List the installed models, and those that renditions of the archive were made with."""
    from node.cli.finetuning import known_models

    rows = known_models(config)
    table = Table("upscaler", "digest", "size", "renditions", "role", "folder")
    for row in rows:
        size = size_text(row["bytes"])
        table.add_row(row["upscaler"], row["digest"][:16], size, str(row["renditions"]), row["role"], row["folder"])
    say(rows, table, as_json=as_json)


class _Watch:
    """Shows the progress of a training, and keeps the last state for the report."""

    def __init__(self, show: Report) -> None:
        self.last: Any = None
        self._show = show

    def __call__(self, now: Any) -> None:
        self.last = now
        self._show(now.step, now.steps, f"loss {now.loss:.4f}")


def _report(out: Path, last: Any, *, as_json: bool, **extra: Any) -> None:
    report = {"folder": str(out), **extra}
    if last is not None:
        report |= {"step": last.step, "steps": last.steps, "loss": round(last.loss, 6), "seconds": last.seconds}
    say(report, *(f"{name}: {value}" for name, value in report.items()), as_json=as_json)


def _evaluation_tables(results: list[dict[str, Any]], rows: list[dict[str, Any]]) -> list[Table]:
    """Three tables: by image and distance; bytes at the limits by image; the same pooled over images."""
    return [_by_distance(results), _by_image(results), _pooled(rows)]


def _by_distance(results: list[dict[str, Any]]) -> Table:
    table = Table(
        *("image", "point", "bytes", "lines base", "model", "lost base", "model", "seconds"),
        title="line error in units of local noise, at widths 1.2 / 2.5 / 5 px; lost share of each octave band",
    )
    for result in results:
        for point in result["points"]:
            table.add_row(
                _name(result),
                f"x{result['scale']} d{point['distance']:g}",
                f"{point['bytes']:,}",
                *(" ".join(f"{v:.2f}" for v in point[f"{of}_lines"]) for of in ("base", "model")),
                *(" ".join(f"{v:.3f}" for v in point[f"{of}_lost"]) for of in ("base", "model")),
                f"{point['seconds']:.1f}",
            )
    return table


def _by_image(results: list[dict[str, Any]]) -> Table:
    table = Table(
        "image",
        "scale",
        "base",
        "model",
        "model / base",
        title="payload bytes at which the line error meets its limits",
    )
    for result in results:
        base, model = result["base_bytes"], result["model_bytes"]
        ratio = f"{model / base:.3f}" if base and model else "-"
        table.add_row(_name(result), f"x{result['scale']}", *(f"{n:,}" if n else "-" for n in (base, model)), ratio)
    return table


def _pooled(rows: list[dict[str, Any]]) -> Table:
    table = Table(
        "scale", "images", "model / base", "worst", title="payload bytes at the limits, geometric mean over images"
    )
    for row in rows:
        ratios = f"{row['bytes_ratio']:.3f}", f"{row['worst_bytes_ratio']:.3f}"
        table.add_row(f"x{row['scale']}", str(row["images"]), *ratios)
    return table


def _name(result: dict[str, Any]) -> str:
    return str(result["image"]) + (" (film)" if result["film"] else "")
