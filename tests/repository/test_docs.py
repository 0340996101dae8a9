"""docs/ENCODER.md lists every module-level number of the encoder and the gate, with its value."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest

from tests.support.paths import ROOT

ENCODER = (ROOT / "docs/ENCODER.md").read_text(encoding="utf-8")
MODULES = (
    "node/codec/encode/search_sample.py",
    "node/codec/encode/forecasts.py",
    "node/codec/encode/search.py",
    "node/codec/encode/quantiser_walk.py",
    "node/codec/encode/noise_fitting.py",
    "node/codec/noise.py",
    "node/codec/residuals.py",
    "node/codec/encode/point_fitting.py",
    "node/fidelity/lines.py",
    "node/fidelity/bands.py",
    "node/fidelity/gate.py",
)


def constants_in(module: str) -> Iterator[tuple[str, Any]]:
    """Name and value of each module-level constant in whose definition there is a number."""
    loaded = import_module(module.removesuffix(".py").replace("/", "."))
    for statement in ast.parse((ROOT / module).read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign):
            targets = statement.targets
        elif isinstance(statement, ast.AnnAssign):
            targets = [statement.target]
        else:
            continue
        if statement.value is None or not any(_is_number(node) for node in ast.walk(statement.value)):
            continue
        for target in targets:
            for name in ast.walk(target):
                if isinstance(name, ast.Name):
                    yield name.id, getattr(loaded, name.id)


def _is_number(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) in (int, float)


def documented_for(module: str) -> dict[str, tuple[Any, list[str]]]:
    """Value and further cells of each row of the table under a module's heading, by name."""
    part = ENCODER.split(f"\n### {module}\n")[1].split("\n### ")[0]
    rows = [line.strip("|").split(" | ") for line in part.splitlines() if line.startswith("| `")]
    return {cells[0].strip(" `*"): (ast.literal_eval(cells[1].strip(" `")), cells[2:]) for cells in rows}


@pytest.mark.parametrize("module", MODULES)
def test_every_constant_is_documented_with_its_value(module: str) -> None:
    constants, documented = dict(constants_in(module)), documented_for(module)
    assert constants, "the test finds nothing"
    assert set(documented) == set(constants)
    for name, value in constants.items():
        told, cells = documented[name]
        assert told == (round(value, 4) if isinstance(value, float) else value), name
        assert len(cells) == 3, f"{name}: unit, what it does, how it was found"
        assert all(cell.strip(" |") for cell in cells), f"{name} has an empty cell"


def test_every_documented_module_is_tested() -> None:
    assert tuple(re.findall(r"^### (node/\S+\.py)$", ENCODER, re.M)) == MODULES
