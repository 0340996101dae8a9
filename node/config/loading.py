"""Reads config.yaml and the environment into Settings. An unknown key is an error that names the nearest valid one."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from node.config.environment import Location, apply, keys_at, nearest, overrides, variable_of
from node.config.sections import DEFAULT_ROOT
from node.config.settings import Settings
from node.config.strict_yaml import read_yaml
from node.config.values import FOLDER
from storage.errors import ConfigError

DEFAULT_FILE = Path(__file__).parent / "default.yaml"
"""The commented config.yaml that ``latent-pacs init`` writes. The repository has a copy of it at its top level."""


RENAMED = {
    ("node", "drain"): ("node", "shutdown_timeout"),
    ("archivist", "at_once"): ("archivist", "concurrency"),
    ("originals", "keep"): ("originals", "retain_for"),
    ("reconstruct", "priors"): ("reconstruct", "prefetch_priors"),
    ("jobs", "audit"): ("audit",),
}
"""Former names of keys, which are still read, and their present names. If a file has both, the present name wins."""

LOGGER = logging.getLogger(__name__)


def load(path: Path, environment: Mapping[str, str] = os.environ) -> Settings:
    """Read and check config.yaml. Relative paths in it start from its folder; environment variables replace its keys.

    Raises ConfigError, which names the file or the variable, the key, and what would be valid.
    """
    try:
        raw = read_yaml(path.read_text(encoding="utf-8"), str(path)) or {}
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}; name another file with --config FILE or in LATENT_PACS_CONFIG, "
            "or write one with `latent-pacs init`"
        ) from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path} is not UTF-8: line {line} holds other bytes; save it as UTF-8") from error
    values = overrides(environment)
    if isinstance(raw, dict):
        apply(raw, values)
        storage = raw.setdefault("storage", {})
        if isinstance(storage, dict):
            storage.setdefault("root", str(DEFAULT_ROOT))
    return _validated(raw, str(path), values, path.parent)


def parse(raw: Any, source: str) -> Settings:
    """Settings from plain data; ``source`` names it in errors. Raises ConfigError."""
    return _validated(raw, source, {}, Path())


def as_data(settings: Settings) -> dict[str, Any]:
    """Settings as plain data that ``parse`` takes, except that a password in storage.database is hidden."""
    data = settings.model_dump(mode="json", by_alias=True)
    shown = re.sub(r"(://[^:/@]*):.*@", r"\1:***@", data["storage"]["database"])
    data["storage"]["database"] = re.sub(r"([?&]\w*password=)[^&]*", r"\1***", shown)
    return data


def as_yaml(settings: Settings) -> str:
    """The data of ``as_data`` as YAML, without comments."""
    return str(yaml.safe_dump(as_data(settings), sort_keys=False, default_flow_style=None, width=120))


def _validated(raw: Any, source: str, values: Mapping[Location, Any], folder: Path) -> Settings:
    if not isinstance(raw, dict):
        raise ConfigError(f"{source}: the top level must be a mapping of sections")
    raw = _with_present_names(raw, source)
    try:
        return Settings.model_validate(raw, context={FOLDER: folder})
    except ValidationError as error:
        problems = "; ".join(_problem(detail, values) for detail in error.errors())
        raise ConfigError(f"{source}: {problems}") from error


def _with_present_names(raw: dict[str, Any], source: str) -> dict[str, Any]:
    """The data with former keys under their present names. Each former key is logged once per load."""
    for former, present in RENAMED.items():
        section = raw.get(former[0])
        if not isinstance(section, dict) or former[1] not in section:
            continue
        LOGGER.warning("%s: %s is now called %s; rename it", source, ".".join(former), ".".join(present))
        value = section[former[1]]
        raw = {**raw, former[0]: {key: other for key, other in section.items() if key != former[1]}}
        if len(present) == 1:
            own = raw.get(present[0]) or {}
            raw[present[0]] = {**value, **own} if isinstance(value, dict) and isinstance(own, dict) else value
        else:
            raw[present[0]] = {present[1]: value, **raw[present[0]]}
    return raw


def _problem(detail: Any, values: Mapping[Location, Any]) -> str:
    location = detail["loc"]
    where = ".".join(str(part) for part in location) or "settings"
    if any(location[: len(key)] == key for key in values):
        where += f" (from {next(variable_of(key) for key in values if location[: len(key)] == key)})"
    if detail["type"] != "extra_forbidden":
        return f"{where}: {detail['msg'].removeprefix('Value error, ')}"
    near = nearest(str(location[-1]), keys_at(location[:-1]))
    return f"{where}: unknown key" + (f"; did you mean {near}?" if near else "")
