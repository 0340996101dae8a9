"""Finds the tests that documents name."""

from __future__ import annotations

import ast

from tests.support.paths import ROOT


def is_there(name: str) -> bool:
    """Whether ``tests/FILE.py::FUNCTION`` is a test, or ``tests/FILE.py`` has any test."""
    file, _, function = name.partition("::")
    defined = ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8")))
    names = {one.name for one in defined if isinstance(one, ast.FunctionDef)}
    return function in names if function else any(one.startswith("test_") for one in names)
