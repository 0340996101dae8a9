"""Names the folders and files of the repository that tests read."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
SHIPPED = ROOT / "config.yaml"


def modules() -> list[Path]:
    """The modules of node and storage."""
    return sorted([*(ROOT / "node").rglob("*.py"), *(ROOT / "storage").rglob("*.py")])
