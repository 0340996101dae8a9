"""Proves that every error has a docstring, and is defined in storage/errors.py or in node."""

from __future__ import annotations

from importlib import import_module

from storage import errors
from storage.errors import LatentPacsError
from tests.support.layers import name_of
from tests.support.paths import modules


def descendants(error: type[LatentPacsError]) -> list[type[LatentPacsError]]:
    found = error.__subclasses__()
    return [*found, *(below for one in found for below in descendants(one))]


def test_every_error_is_documented() -> None:
    for path in modules():
        if "migrations" not in path.parts:
            import_module(name_of(path))
    everywhere = [one for one in descendants(LatentPacsError) if not one.__module__.startswith("tests.")]
    for one in everywhere:
        assert one.__doc__, f"{one.__qualname__} has no docstring"
        assert one.__module__ == errors.__name__ or one.__module__.startswith("node."), one
