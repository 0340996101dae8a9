"""Environment variables in place of keys of config.yaml: ``LATENT_PACS__NODE__PORT=11113`` is ``node.port: 11113``."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from node.config.settings import Settings
from node.config.strict_yaml import read_yaml
from storage.errors import ConfigError

PREFIX = "LATENT_PACS__"
"""Prefix of these variables. Two underscores separate the parts of a key."""

Location = tuple[str, ...]


def overrides(environment: Mapping[str, str]) -> dict[Location, Any]:
    """Values by key. A value that begins with a bracket or brace is YAML. Raises ConfigError, which for an unknown key
    names the nearest variable."""
    found: dict[Location, Any] = {}
    for variable in sorted(name for name in environment if name.startswith(PREFIX)):
        location = tuple(variable.removeprefix(PREFIX).lower().split("__"))
        for depth, key in enumerate(location):
            valid = keys_at(location[:depth])
            if key not in valid:
                near = nearest(key, valid)
                hint = f"; did you mean {variable_of((*location[:depth], near))}?" if near else ""
                raise ConfigError(f"environment variable {variable}: config.yaml has no key {'.'.join(location)}{hint}")
        text = environment[variable].strip()
        is_yaml = text[:1] in ("[", "{")
        found[location] = read_yaml(text, f"environment variable {variable}") if is_yaml else text
    return found


def apply(raw: dict[str, Any], values: Mapping[Location, Any]) -> None:
    """Replace keys in the data of config.yaml by these values."""
    for location, value in values.items():
        section = raw
        for key in location[:-1]:
            if not isinstance(section.get(key), dict):
                section[key] = {}
            section = section[key]
        section[location[-1]] = value


def variable_of(location: Location) -> str:
    return PREFIX + "__".join(location).upper()


def keys_at(location: tuple[Any, ...]) -> list[str]:
    """The valid keys of the section at ``location``; none if it is not a section."""
    model: Any = Settings
    for part in location:
        if isinstance(part, int):  # an item of a list
            continue
        annotation = model.model_fields[part].annotation
        inner = [arg for arg in getattr(annotation, "__args__", ()) if isinstance(arg, type)]
        model = annotation if isinstance(annotation, type) and not inner else inner[0] if inner else None
        if not hasattr(model, "model_fields"):
            return []
    return [field.alias or name for name, field in model.model_fields.items()]


def nearest(key: str, valid: list[str]) -> str:
    """The valid key that is spelled most like ``key``; empty if there is none."""
    return next(iter(difflib.get_close_matches(key, valid, n=1, cutoff=0.0)), "")
