"""``latent-pacs config``: checks config.yaml, and shows the settings that are in force."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import typer

from node.cli.console import Console
from node.cli.exit_codes import USAGE
from node.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption, print_json
from node.config import Settings, as_data, as_yaml, load
from node.config.environment import overrides
from storage.errors import ConfigError, LatentPacsError
from storage.index.connection import connect
from storage.index.index_trust import sqlite_file
from storage.objects.file_modes import MASK
from storage.optional_packages import require_extra
from storage.printable import counted

_FROM_ELSEWHERE = {("storage",), ("storage", "database")}
"""Keys whose environment variables replace the database of config.yaml."""

configs = typer.Typer(help="Check config.yaml, and show the settings in force.", no_args_is_help=True)


@configs.command()
def check(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Check config.yaml, the environment variables that replace its keys, and the folders, files and device it names.

    Run it as the user of the node. Exit code 2: something is wrong, and the output says what. A TLS certificate that
    expires within 30 days, a TLS key or a password that other users can read, and a peer whose calls are all rejected
    are also named, but are no errors. Nothing is written, and no node is needed.
    """
    from node.dimse.tls import expiries

    settings = load(config)
    problems = list(_problems(settings))
    ends = [] if problems else [one for one in expiries(settings.tls) if one.soon]
    problems += [str(one) for one in ends if one.days < 0]
    warnings = [str(one) for one in ends if one.days >= 0]
    warnings += [] if problems else [*_open_secrets(settings, config), *_rejected_peers(settings)]
    if as_json:
        print_json({"file": str(config), "problems": problems, "warnings": warnings})
    else:
        console = Console(soft_wrap=True)
        for warning in warnings:
            console.print(warning, style="yellow")
        for problem in problems:
            console.print(problem, style="bold red")
        console.print(f"{config}: {counted(len(problems), 'problem')}" if problems else f"{config} is valid")
    if problems:
        raise typer.Exit(USAGE)


@configs.command()
def show(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Print all settings in force as YAML: config.yaml, environment variables and defaults. Passwords are hidden."""
    settings = load(config)
    print_json(as_data(settings)) if as_json else typer.echo(as_yaml(settings), nl=False)


def _problems(settings: Settings) -> Iterator[str]:
    """Problems with the folders, files, secrets and the device that the settings name."""
    for check in _checks(settings):
        try:
            check()
        except LatentPacsError as error:
            yield str(error)
        except OSError as error:  # below a folder that this user may not read
            yield f"{error.filename} cannot be used: {error.strerror}; run this as the user of the node"


def _open_secrets(settings: Settings, config: Path) -> Iterator[str]:
    """Warnings about files with a secret that users other than the owner can read or change."""
    key, database = settings.tls.key, settings.storage.database
    secrets = {f"tls.key {key}": key}
    if database.startswith("file:"):
        secrets[f"storage.database {database}"] = database.removeprefix("file:")
    elif as_data(settings)["storage"]["database"] != database and not _FROM_ELSEWHERE & overrides(os.environ).keys():
        secrets[f"storage.database has a password, and {config}"] = str(config)
    for what, file in secrets.items():
        mode = stat.S_IMODE(Path(file).stat().st_mode) if file else 0
        if mode & MASK:
            yield f"{what} has mode {mode:04o}: other users can read or change it; run chmod 600 on it"


def _rejected_peers(settings: Settings) -> Iterator[str]:
    """Warnings about peers that must show a certificate, for which the node asks only if it can check it."""
    for peer in settings.peers:
        if peer.tls_name and not settings.tls.ca:
            yield (
                f"peers: all calls of {peer.ae_title} are rejected, because it has tls_name and tls.ca is empty; "
                "name the authorities that sign its certificate in tls.ca"
            )


def _checks(settings: Settings) -> Iterator[Callable[[], object]]:
    """Checks that use the settings as the node does. Torch is imported if config.yaml names weights or a GPU."""
    from node.archive.intake.marked_regions import read_regions
    from node.dimse.tls import server_context
    from node.upscalers.mammo import load_network
    from node.upscalers.numerics import device_of
    from node.upscalers.sd_x2 import weight_files

    yield lambda: _database(settings.storage.database_url, settings.storage.root)
    yield partial(_folder, "storage.root", settings.storage.root)
    if settings.originals.path:
        yield partial(_folder, "originals.path", settings.originals.path)
    if settings.gate.patches.file:
        yield partial(read_regions, settings.gate.patches.file)
    tls, model = settings.tls, settings.reconstruct
    files = {"tls.certificate": tls.certificate, "tls.key": tls.key, "tls.ca": tls.ca}
    if any(name and not Path(name).exists() for name in files.values()):
        yield from (partial(_file, key, name) for key, name in files.items() if name)
    else:
        yield partial(server_context, tls)
    named = (model.mammo.weights if model.upscaler == "mammo" else "", *model.mammo.older)
    yield from (partial(load_network, Path(name)) for name in named if name)
    if model.upscaler == "sd_x2":
        yield partial(require_extra, "sd-x2", "reconstruct.upscaler sd_x2")
        if Path(model.sd_x2.weights).is_dir():
            yield partial(weight_files, Path(model.sd_x2.weights))
    if model.device not in ("auto", "cpu"):
        yield partial(device_of, model.device)
    if settings.jobs.validation.enabled:
        yield partial(require_extra, "validation", "jobs.validation")


def _database(url: str, root: Path) -> None:
    engine, file = connect(url), sqlite_file(url)
    if file is None:
        engine.connect().close()
    engine.dispose()
    if file is not None and file.parent != root and not file.parent.is_dir():
        raise ConfigError(f"storage.database: the folder {file.parent} does not exist")


def _folder(key: str, folder: Path) -> None:
    """Raises ConfigError if the user can neither write in the folder nor create it."""
    there = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"{key} {folder}: you cannot write in {there}; run this as the user of the node")


def _file(key: str, name: str) -> None:
    if not Path(name).exists():
        raise ConfigError(f"{key}: {name} does not exist")
