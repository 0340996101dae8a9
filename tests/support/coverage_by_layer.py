"""Prints the share of lines and branches that tests ran, by folder, from the JSON report of coverage.py."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path, PurePath

from rich.console import Console
from rich.table import Table

COUNTS = ("covered_lines", "num_statements", "covered_branches", "num_branches")


def by_layer(report: Path) -> dict[str, dict[str, int]]:
    """``COUNTS``, summed over the files of each package of node and storage, for example node/archive."""
    layers: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(COUNTS, 0))
    for name, file in json.loads(report.read_text(encoding="utf-8"))["files"].items():
        layer = "/".join(PurePath(name).parent.parts[:2])
        for count in COUNTS:
            layers[layer][count] += file["summary"][count]
    return layers


def percent(covered: int, of: int) -> str:
    return f"{100 * covered / of:.1f}%" if of else "-"


def main() -> None:
    """Print one row for each layer, and their sum."""
    layers = by_layer(Path(sys.argv[1]))
    layers["all"] = {count: sum(one[count] for one in layers.values()) for count in COUNTS}
    table = Table("layer", "lines", "covered", "branches", "covered", title="Coverage by layer")
    for layer in [*sorted(set(layers) - {"all"}), "all"]:
        one = layers[layer]
        lines = percent(one["covered_lines"], one["num_statements"])
        branches = percent(one["covered_branches"], one["num_branches"])
        table.add_row(layer, str(one["num_statements"]), lines, str(one["num_branches"]), branches)
    Console().print(table)


if __name__ == "__main__":
    main()
