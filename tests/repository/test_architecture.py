"""Proves who may import whom (docs/ARCHITECTURE.md), and that ``latent-pacs --help`` does not load torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.support.layers import LAYERS, name_of
from tests.support.paths import ROOT, modules

ONLY_IN = {
    "pynetdicom": "node/dimse/",
    "sqlalchemy": ("storage/index/", "storage/migrations/"),
    "alembic": ("storage/index/", "storage/migrations/"),
    "diffusers": ("node/upscalers/", "node/training/"),
    "yaml": "node/config/",
    "prometheus_client": "node/metrics/exposition.py",
    "optuna": "node/validation/",
    "jinja2": "node/reports/",
    "typer": "node/cli/",
}


def imports_of(path: Path) -> set[str]:
    found = set()
    for statement in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(statement, ast.Import):
            found.update(alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            assert statement.level == 0, f"{path}: relative import"
            found.add(statement.module or "")
            if statement.module and statement.module.startswith("tests"):
                found.update(f"{statement.module}.{alias.name}" for alias in statement.names)
    return found


def layer_of(module: str) -> str | None:
    """The layer with the longest name that holds the module."""
    found = [layer for layer in LAYERS if module == layer or module.startswith(layer + ".")]
    return max(found, key=len, default=None)


def allowed(layer: str, module: str) -> bool:
    if module.startswith("storage.") and layer_of(module) == "storage":
        return True
    if module == "storage":
        return True
    for entry in LAYERS[layer]:
        package = entry.removesuffix("!")
        if entry.endswith("!") and layer_of(module) == package:
            return True
        if not entry.endswith("!") and (module == package or module.startswith(package + ".")):
            return True
    return False


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_downward(path: Path) -> None:
    relative = path.relative_to(ROOT)
    layer = layer_of(name_of(path))
    for module in imports_of(path):
        if layer is not None and layer_of(module) is not None:
            assert allowed(layer, module), f"{relative} imports {module}"
        package = module.split(".")[0]
        if package in ONLY_IN:
            assert str(relative).startswith(ONLY_IN[package]), f"{relative} imports {module}"


def test_every_module_has_a_layer() -> None:
    homeless = [path for path in modules() if layer_of(name_of(path)) is None]
    assert [path.name for path in homeless] == ["__init__.py"]  # node's own


def test_no_file_name_occurs_twice() -> None:
    """The module of a command is named after its command, even if another module has that name."""
    names = Counter(path.name for path in modules() if "commands" not in path.parts and "versions" not in path.parts)
    assert [name for name, count in names.items() if count > 1 and name != "__init__.py"] == []


@pytest.mark.slow
def test_no_test_module_imports_another() -> None:
    """Helpers for several tests are in tests/support."""
    for path in sorted((ROOT / "tests").rglob("*.py")):
        modules_of_tests = [one for one in imports_of(path) if one.rpartition(".")[2].startswith("test_")]
        assert modules_of_tests == [], f"{path.relative_to(ROOT)} imports from a test module"


@pytest.mark.slow
def test_every_test_file_says_what_it_proves() -> None:
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        assert "." in said, f"{path.relative_to(ROOT)} does not begin with a sentence"


@pytest.mark.slow
@pytest.mark.parametrize("module", ["node.cli.main", "node.app", "node.config", "node.dimse.server"])
def test_torch_is_not_imported(module: str) -> None:
    """Only workers load torch: neither ``--help`` nor the DIMSE process does."""
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'diffusers' in sys.modules)"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, check=False, timeout=300)
    assert done.returncode == 0
