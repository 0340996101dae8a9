"""Who may import whom (the layout in docs/OPERATIONS.md), and what keeps ``latent-pacs --help`` fast."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

MAY_IMPORT = {
    "storage": {"storage"},
    "node.config": {"storage", "node.config"},
    "node.fidelity": {"storage", "node.fidelity"},
    "node.upscalers": {"storage", "node.config", "node.fidelity", "node.codec", "node.upscalers"},
    "node.codec": {"storage", "node.config", "node.fidelity", "node.upscalers", "node.codec"},
    "node.training": {"storage", "node.config", "node.fidelity", "node.upscalers", "node.codec", "node.training"},
    "node.workers": {"storage", "node.config", "node.fidelity", "node.upscalers", "node.codec", "node.workers"},
    "node.archive": {"storage", "node.config", "node.upscalers", "node.codec", "node.workers", "node.archive"},
    "node.dimse": {"storage", "node.config", "node.archive", "node.dimse"},
    "node.reports": {"storage", "node.reports"},
    "node.jobs": {"storage", "node.config", "node.archive", "node.reports", "node.jobs"},
    "node.validation": {
        "storage",
        "node.config",
        "node.fidelity",
        "node.archive",
        "node.reports",
        "node.jobs",
        "node.validation",
    },
    "node.metrics": {"storage", "node.config", "node.codec", "node.workers", "node.archive", "node.metrics"},
    "node.app": {
        "storage",
        "node.app",
        "node.config",
        "node.upscalers",
        "node.codec",
        "node.training",
        "node.workers",
        "node.archive",
        "node.dimse",
        "node.reports",
        "node.jobs",
        "node.validation",
        "node.metrics",
    },
    "node.cli": {
        "storage",
        "node.config",
        "node.fidelity",
        "node.upscalers",
        "node.codec",
        "node.training",
        "node.workers",
        "node.archive",
        "node.dimse",
        "node.reports",
        "node.jobs",
        "node.validation",
        "node.app",
        "node.cli",
    },
}
ROOMS = list(MAY_IMPORT)
ONLY_IN = {
    "pynetdicom": "node/dimse/",
    "sqlalchemy": ("storage/index/", "storage/migrations/"),
    "alembic": ("storage/index/", "storage/migrations/"),
    "diffusers": ("node/upscalers/", "node/training/"),
    "yaml": "node/config/__init__.py",
    "apscheduler": "node/jobs/schedule.py",
    "prometheus_client": "node/metrics/exposition.py",
    "optuna": "node/validation/",
    "typer": "node/cli/",
}


def modules() -> list[Path]:
    return sorted([*(ROOT / "node").rglob("*.py"), *(ROOT / "storage").rglob("*.py")])


def imports_of(path: Path) -> set[str]:
    found = set()
    for statement in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(statement, ast.Import):
            found.update(alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            assert statement.level == 0, f"{path}: relative import"
            found.add(statement.module or "")
    return found


def room_of(module: str) -> str | None:
    return next((room for room in ROOMS if module == room or module.startswith(room + ".")), None)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_downward(path: Path) -> None:
    relative = path.relative_to(ROOT)
    room = room_of(".".join(relative.with_suffix("").parts))
    for module in imports_of(path):
        target = room_of(module)
        if target is not None and room is not None:
            assert target in MAY_IMPORT[room], f"{relative} imports {module}"
        package = module.split(".")[0]
        if package in ONLY_IN:
            assert str(relative).startswith(ONLY_IN[package]), f"{relative} imports {module}"


def test_every_module_has_a_room() -> None:
    homeless = [path for path in modules() if room_of(".".join(path.relative_to(ROOT).with_suffix("").parts)) is None]
    assert [path.name for path in homeless] == ["__init__.py"]  # node's own


@pytest.mark.parametrize("module", ["node.cli.main", "node.app", "node.config", "node.dimse.server"])
def test_torch_is_not_imported(module: str) -> None:
    """Torch lives in the workers: neither ``--help`` nor the DIMSE process loads it."""
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'diffusers' in sys.modules)"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, check=False, timeout=60)
    assert done.returncode == 0
