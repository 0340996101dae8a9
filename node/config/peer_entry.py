"""Adds a peer to the text of config.yaml, and changes nothing else in it, comments included."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import Any

import yaml

from node.config.loading import load
from node.config.sections import Peer
from node.config.settings import Settings
from storage.errors import ConfigError


def add_peer(path: Path, entry: dict[str, Any]) -> Peer:
    """Add a peer, check the result, and replace the file. If it raises ConfigError, the file is unchanged."""
    path = path.resolve()  # a symbolic link stays one
    before = load(path, {})
    text = _with_entry(path, path.read_text(encoding="utf-8"), entry)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".new")
    new = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        new.chmod(path.stat().st_mode & 0o7777)
        added = _only_added(before, _checked(new, path), path)
        new.replace(path)
        return added
    finally:
        new.unlink(missing_ok=True)


def _checked(new: Path, path: Path) -> Settings:
    try:
        return load(new, {})
    except ConfigError as error:
        raise ConfigError(str(error).replace(str(new), str(path))) from error


def _only_added(before: Settings, after: Settings, path: Path) -> Peer:
    *others, added = after.peers
    if tuple(others) != before.peers or after.model_copy(update={"peers": before.peers}) != before:
        raise ConfigError(f"{path}: the peers are written in a way that cannot be extended here; add the peer by hand")
    return added


def _with_entry(path: Path, text: str, entry: dict[str, Any]) -> str:
    lines = text.splitlines()
    start = next((number for number, line in enumerate(lines) if re.match(r"peers\s*:", line)), None)
    if start is None:
        return "\n".join([*lines, "", "peers:", *_entry_lines(entry, "  "), ""])
    value = re.sub(r"\s*#.*", "", lines[start].partition(":")[2]).strip()
    if value == "[]":
        lines[start] = "peers:"
    elif value:
        raise ConfigError(f"{path}: line {start + 1} has all peers in one line; add the peer by hand")
    last, indent = start, "  "
    for number in range(start + 1, len(lines)):
        line = lines[number]
        if re.match(r"[^\s#-]", line):
            break
        if line.strip() and not line.lstrip().startswith("#"):
            if last == start:
                indent = line[: len(line) - len(line.lstrip())]
            last = number
    return "\n".join([*lines[: last + 1], *_entry_lines(entry, indent), *lines[last + 1 :], ""])


def _entry_lines(entry: dict[str, Any], indent: str) -> list[str]:
    dumped = yaml.safe_dump([entry], sort_keys=False, default_flow_style=None, allow_unicode=True, width=10_000)
    return [indent + line for line in str(dumped).splitlines()]
