"""``latent-pacs init``: writes a commented config.yaml to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from node.cli.options import DEFAULT_CONFIG, JsonOption, say
from node.config import DEFAULT_FILE
from storage.errors import ConfigError, Refused


def init(
    folder: Annotated[
        Path,
        typer.Argument(
            help="The folder for config.yaml. It is created if it does not exist.", metavar="FOLDER", file_okay=False
        ),
    ] = Path(),
    as_json: JsonOption = False,
) -> None:
    """Write a config.yaml with every key, its default and its explanation. An existing file is never overwritten."""
    file = folder / DEFAULT_CONFIG
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with file.open("x", encoding="utf-8") as new:
            new.write(DEFAULT_FILE.read_text(encoding="utf-8"))
    except FileExistsError as error:
        raise Refused(f"{file} exists already and is not overwritten; name another folder") from error
    except OSError as error:
        raise ConfigError(f"{file} cannot be written: {error.strerror}") from error
    written = f"{file} is written; set node.ae_title and peers in it, then run"
    say({"file": str(file)}, written, f"latent-pacs serve --config {file}", as_json=as_json)
