"""``latent-pacs model``: train, evaluate, fine-tune and list upscaling models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress
from rich.table import Table

from node.cli.console import Console
from node.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption, print_json
from node.cli.progress import bar

models = typer.Typer(help="Train, evaluate, fine-tune and list upscaling models.", no_args_is_help=True)

DataOption = Annotated[
    list[Path],
    typer.Option("--data", help="A folder or file of mammograms (DICOM, PNG, JPEG); repeatable.", metavar="PATH"),
]
MoreArgument = Annotated[list[Path] | None, typer.Argument(help="Further folders or files.", metavar="[PATH]...")]
MinutesOption = Annotated[float, typer.Option("--minutes", min=0.01, help="Time budget of this sitting.", metavar="N")]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on with the checkpoint found in the folder.")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
SeedOption = Annotated[int, typer.Option("--seed", help="Decides every random choice.")]


@models.command()
def train(
    data: DataOption,
    minutes: MinutesOption,
    more: MoreArgument = None,
    out: Annotated[Path, typer.Option("--out", help="Where model and checkpoint go.", metavar="FOLDER")] = Path(
        "mammo-model"
    ),
    resume: ResumeOption = False,
    seed: SeedOption = 1,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Train `mammo` on mammograms; bfloat16 where that is faster. Split your data by patient."""
    from node.training.image_files import read_pictures
    from node.training.trainer import Plan, train

    console = Console(stderr=True)
    with console.status("reading pictures"):
        pictures = read_pictures([*data, *(more or [])])
    console.print(f"{len(pictures)} pictures")
    plan = Plan(steps=1, seed=seed).sized_for(device)
    with _training(console) as watch:
        train(pictures, plan, out, minutes=minutes, resume=resume, device=device, watch=watch)
    _report(out, watch.last, as_json=as_json)


@models.command("fine-tune")
def fine_tune(
    minutes: MinutesOption,
    out: Annotated[Path, typer.Option("--out", help="Where the new model goes.", metavar="FOLDER")],
    config: ConfigOption = DEFAULT_CONFIG,
    upscaler: Annotated[
        str, typer.Option("--upscaler", help="mammo, or sd_x2: the decoder of its autoencoder (the paper's question).")
    ] = "mammo",
    data: Annotated[
        list[Path] | None,
        typer.Option("--data", help="Mammograms instead of the archive's held originals.", metavar="PATH"),
    ] = None,
    resume: ResumeOption = False,
    seed: SeedOption = 1,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Adapt the configured model to the archive's own held originals. It takes effect once config.yaml names it."""
    from node.cli.finetuning import fine_tune_mammo, fine_tune_sd_decoder, held_pictures
    from node.config import load

    if upscaler not in ("mammo", "sd_x2"):
        raise typer.BadParameter(f"{upscaler!r} is neither mammo nor sd_x2", param_hint="--upscaler")
    console = Console(stderr=True)
    settings = load(config)
    with console.status("reading originals"):
        pictures = held_pictures(settings, config, data)
    console.print(f"{len(pictures)} pictures")
    adapt = fine_tune_mammo if upscaler == "mammo" else fine_tune_sd_decoder
    with _training(console) as watch:
        extra = adapt(pictures, settings, out, minutes=minutes, seed=seed, resume=resume, device=device, watch=watch)
    _report(out, watch.last, as_json=as_json, **extra)


@models.command()
def evaluate(
    data: DataOption,
    more: MoreArgument = None,
    model: Annotated[
        Path | None, typer.Option("--model", help="Another model than the shipped one.", metavar="FOLDER")
    ] = None,
    scale: Annotated[
        list[int] | None, typer.Option("--scale", help="Scales of the base, 1, 2 or 4 (default 2); repeatable.")
    ] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Measure the bytes that a model saves on whole images, of women it was not trained on, where lines are as good."""
    from node.training.evaluate import DISTANCES, summary
    from node.training.evaluate import evaluate as results_of
    from node.training.image_files import read_pictures
    from node.upscalers.mammo import SHIPPED

    scales = scale or [2]
    if unknown := [each for each in scales if each not in DISTANCES]:
        raise typer.BadParameter(f"{unknown[0]} is none of 1, 2, 4", param_hint="--scale")
    console = Console(stderr=True)
    with console.status("reading pictures"):
        pictures = read_pictures([*data, *(more or [])])
    results = []
    with bar(console, "images x scales") as progress:
        task = progress.add_task("evaluating", total=len(pictures) * len(scales), note="")
        for result in results_of(pictures, model or SHIPPED, scales=scales, device=device):
            results.append(result)
            progress.advance(task)
    print_json(results) if as_json else _print_evaluation(results, summary(results))


@models.command("list")
def list_models(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """The models that are installed, and those that the archive's renditions were made with."""
    from node.cli.finetuning import known_models

    rows = known_models(config)
    if as_json:
        print_json(rows)
        return
    table = Table("upscaler", "digest", "bytes", "renditions", "role", "folder")
    for row in rows:
        table.add_row(
            row["upscaler"], row["digest"][:16], str(row["bytes"]), str(row["renditions"]), row["role"], row["folder"]
        )
    Console().print(table)


class _Watch:
    """Shows a training's progress, and keeps the last of it for the report."""

    def __init__(self, progress: Progress) -> None:
        self.last: Any = None
        self._progress = progress
        self._task = progress.add_task("training", total=None, note="")

    def __call__(self, now: Any) -> None:
        self.last = now
        self._progress.update(self._task, completed=now.step, total=now.steps, note=f"loss {now.loss:.4f}")


@contextmanager
def _training(console: Console) -> Iterator[_Watch]:
    with bar(console, "steps") as progress:
        yield _Watch(progress)


def _report(out: Path, last: Any, *, as_json: bool, **extra: Any) -> None:
    report = {"folder": str(out), **extra}
    if last is not None:
        report |= {"step": last.step, "steps": last.steps, "loss": round(last.loss, 6), "seconds": last.seconds}
    if as_json:
        print_json(report)
        return
    for name, value in report.items():
        Console().print(f"{name}: {value}")


def _print_evaluation(results: list[dict[str, Any]], rows: list[dict[str, Any]]) -> None:
    from node.cli.evaluation import evaluation_tables

    console = Console()
    for table in evaluation_tables(results, rows):
        console.print(table)
