"""Collects the pages of the web site in a folder: the documents, and an API reference from the docstrings.

``make docs`` runs it. The folder has the layout of the repository, so that relative links stay as they are.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
LINKED = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "LICENSE",
    "config.yaml",
    "node/upscalers/weights/mammo/README.md",
)
"""Files outside docs/ that the documents link to."""


def packages() -> dict[str, list[str]]:
    """The modules of each package, by name; migrations are left out."""
    found: dict[str, list[str]] = {}
    for path in sorted([*(ROOT / "storage").rglob("*.py"), *(ROOT / "node").rglob("*.py")]):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if path.stem not in ("__init__", "__main__") and "migrations" not in parts:
            found.setdefault(".".join(parts[:-1]), []).append(".".join(parts))
    return found


def collect(into: Path) -> None:
    """Write all pages below ``into``, which is emptied first."""
    shutil.rmtree(into, ignore_errors=True)
    shutil.copytree(ROOT / "docs", into / "docs", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    for name in LINKED:
        (into / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, into / name)
    (into / "api").mkdir()
    for package, modules in packages().items():
        page = f"# {package}\n\n" + "".join(f"::: {module}\n\n" for module in modules)
        (into / "api" / f"{package}.md").write_text(page, encoding="utf-8")
    links = "".join(f"- [{package}]({package}.md)\n" for package in packages())
    (into / "api" / "index.md").write_text(
        f"# API reference\n\nOne page for each package.\n\n{links}", encoding="utf-8"
    )


if __name__ == "__main__":
    collect(Path(sys.argv[1]))
