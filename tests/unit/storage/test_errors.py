"""storage/errors.py: its drawn tree is complete, and every other error stands in node with a docstring."""

from __future__ import annotations

import re
from importlib import import_module

from storage import errors
from storage.errors import LatentPacsError
from tests.support.layers import name_of
from tests.support.paths import modules


def descendants(error: type[LatentPacsError]) -> list[type[LatentPacsError]]:
    found = error.__subclasses__()
    return [*found, *(below for one in found for below in descendants(one))]


def drawn() -> dict[str, str]:
    """The names in the tree of the docstring, each with its parent's."""
    parents: dict[str, str] = {}
    path = ["LatentPacsError"]
    for line in (errors.__doc__ or "").splitlines():
        if found := re.match(r"([│ ]*)[├└]── (\w+)  +\S", line):
            depth = len(found[1]) // 4 + 1
            path[depth:] = [found[2]]
            parents[found[2]] = path[depth - 1]
    return parents


def test_every_error_is_documented() -> None:
    for path in modules():
        if "migrations" not in path.parts:
            import_module(name_of(path))
    everywhere = [one for one in descendants(LatentPacsError) if not one.__module__.startswith("tests.")]
    here = {one.__name__: one.__bases__[0].__name__ for one in everywhere if one.__module__ == errors.__name__}
    assert drawn() == here
    for one in everywhere:
        assert one.__doc__, f"{one.__qualname__} has no docstring"
        assert one.__module__ == errors.__name__ or one.__module__.startswith("node."), one
