"""``latent-pacs config``: checks config.yaml, and shows the settings that are in force."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import typer

from node.cli.console import Console
from node.cli.exit_codes import USAGE
from node.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption, print_json
from node.config import Settings, as_data, as_yaml, load
from storage.errors import LatentPacsError

configs = typer.Typer(help="Check config.yaml, and show the settings in force.", no_args_is_help=True)


@configs.command()
def check(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Check config.yaml, the environment variables that replace its keys, and the files that it names.

    Exit code 2: something is wrong, and the output says what. Nothing is written, and no node is needed.
    """
    settings = load(config)
    problems = list(_problems(settings))
    if as_json:
        print_json({"file": str(config), "problems": problems})
    else:
        console = Console(soft_wrap=True)
        for problem in problems:
            console.print(problem, style="bold red")
        console.print(f"{config}: {len(problems)} problems" if problems else f"{config} is valid")
    if problems:
        raise typer.Exit(USAGE)


@configs.command()
def show(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Print all settings in force as YAML: config.yaml, environment variables and defaults. Passwords are hidden."""
    settings = load(config)
    print_json(as_data(settings)) if as_json else typer.echo(as_yaml(settings), nl=False)


def _problems(settings: Settings) -> Iterator[str]:
    """Problems with the files and secrets that the settings name."""
    from node.archive.intake.marked_regions import read_regions
    from node.dimse.server import calling_only

    tls, mammo = settings.tls, settings.reconstruct.mammo
    certificates = [("tls.certificate", tls.certificate), ("tls.key", tls.key), ("tls.ca", tls.ca)]
    models = [("reconstruct.mammo.weights", mammo.weights), *(("reconstruct.mammo.older", one) for one in mammo.older)]
    missing = {name for _, name in (*certificates, *models) if name and not Path(name).exists()}
    for key, name in (*certificates, *models):
        if name in missing:
            yield f"{key}: {name} does not exist"
    try:
        settings.storage.database_url  # noqa: B018
        if settings.gate.patches.file:
            read_regions(settings.gate.patches.file)
        if not missing & {name for _, name in certificates}:
            calling_only(settings, settings.storage.root)
    except LatentPacsError as error:
        yield str(error)
