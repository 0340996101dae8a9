"""Reads YAML, and refuses a mapping that has a key twice: PyYAML would take the last value, and drop the others."""

from __future__ import annotations

from typing import Any

import yaml

from storage.errors import ConfigError

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml, if PyYAML was built with it, takes a tenth of the time."""


def read_yaml(text: str, source: str) -> Any:
    """The data of a YAML document. Raises ConfigError, which names the ``source`` and the line, and does not show the
    line: it may hold a password.
    """
    loader = _LOADER(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        _refuse_repeated_keys(root, set())
        return loader.construct_document(root)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        said = ", ".join(each for each in (error.context, error.problem) if each)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ConfigError(f"{source} is not valid YAML: {where}{said}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not valid YAML: {error}") from error
    finally:
        loader.dispose()


def _refuse_repeated_keys(node: yaml.Node, seen: set[int]) -> None:
    """Raises MarkedYAMLError if a mapping has a key twice. ``seen``: nodes that were checked, for aliases to them."""
    if id(node) in seen or isinstance(node, yaml.ScalarNode):
        return
    seen.add(id(node))
    lines: dict[tuple[str, str], int] = {}
    for part in node.value:
        key, value = part if isinstance(node, yaml.MappingNode) else (None, part)
        if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
            name = (key.tag, key.value)
            if name in lines:
                problem = f"the key {key.value} is here a second time; the first is in line {lines[name]}"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            lines[name] = key.start_mark.line + 1
        _refuse_repeated_keys(value, seen)
