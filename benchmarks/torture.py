"""Kills and attacks nodes in rounds until time is up: nothing may be lost or crash, and resources may not grow.

A node is killed while it stores, encodes and packs images, is purged, scrubbed and backed up, and has its index
rebuilt. After a few kills every image acknowledged since the last check must be retrieved byte for byte, or as the
verified reconstruction.
Meanwhile a process feeds mutated inputs to decoders and parsers, and another node receives mutated PDUs, messages and
files. The exit code is 1 if anything was lost, wrong or crashed.

    python -m benchmarks.torture --minutes 20 [--seed S] [--json]
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.attack import Attack
from benchmarks.kills import Kills
from benchmarks.mutations import fuzz_in_process_of_its_own
from storage.dicom.dicomfile import accept_odd_values

WARM_UP = 5
"""Rounds of attacks after which the node has all its threads and index connections, found by printing their number."""
LIVE = 30
"""Inputs to the attacked node per round."""
BATCH = 30.0
"""Seconds for which one process tries mutated inputs."""
LAST = 0.08
"""Share of the time that is reserved for the last check, which covers all acknowledged images."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the nodes too
    with tempfile.TemporaryDirectory(prefix="latent-pacs-torture-") as folder:
        report = torture(Path(folder), options.minutes * 60, options.seed)
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        show(report)
    sys.exit(bool(report["lost"] or report["wrong_success"] or report["crashes"]))


def torture(folder: Path, seconds: float, seed: int = 0) -> dict[str, Any]:
    """Rounds of kills and attacks for about ``seconds``, and their results."""
    accept_odd_values()
    began = time.monotonic()
    deadline = began + seconds * (1 - LAST)
    kills = Kills(folder, random.Random(f"{seed} kills"))
    attack = Attack(folder, random.Random(f"{seed} attack"))
    mutations = Mutations(folder, seed, deadline)
    mutations.start()
    try:
        for _ in range(WARM_UP):
            attack.round(LIVE)
        attack.begin_to_measure()
        while time.monotonic() < deadline:
            kills.round()
            attack.round(LIVE)
        mutations.join()
        kills.check(everything=True)
        growth = attack.growth()
    finally:
        kills.victim.close()
        attack.victim.close()
        mutations.join()
    return {
        "kills": kills.kills.total(),
        "acknowledged": len(kills.acknowledged) + len(attack.taken),
        "lost": len(kills.lost),
        "wrong_success": len(kills.wrong) + len(attack.wrong),
        "fuzzed": mutations.tried + attack.tried,
        "crashes": kills.crashes + attack.crashes + len(mutations.crashes),
        "rss_growth_mb": growth["rss_mb"],
        "fd_growth": growth["fd"],
        "thread_growth": growth["threads"],
        "seed": seed,
        "seconds": round(time.monotonic() - began),
        "purged_and_reconstructed": len(kills.reconstructed),
        "killed_while": dict(kills.kills),
        "mutated": {**mutations.kinds, "live": attack.tried},
        "found": [*kills.found, *attack.found, *mutations.crashes],
    }


class Mutations(threading.Thread):
    """Runs processes that mutate inputs, one after the other until the deadline."""

    def __init__(self, folder: Path, seed: int, deadline: float) -> None:
        super().__init__(name="mutations")
        self._folder, self._seed, self._deadline = folder, seed, deadline
        self.tried, self.kinds, self.crashes = 0, Counter[str](), list[str]()

    def run(self) -> None:
        first = 0
        while (left := self._deadline - time.monotonic()) > 0:
            done = fuzz_in_process_of_its_own(self._seed, first, 10**6, min(left, BATCH), self._folder)
            self.tried += done["tried"]
            self.kinds.update(done["kinds"])
            self.crashes += done["crashes"]
            first += 10**6


def show(report: dict[str, Any]) -> None:
    """Print the figures as a table, and each finding as a line."""
    table = Table("measure", "value", title="Torture")
    for name in (*list(report)[:9], "purged_and_reconstructed", "killed_while", "mutated"):
        value = report[name]
        text = ", ".join(f"{each} {count}" for each, count in value.items()) if isinstance(value, dict) else str(value)
        table.add_row(name.replace("_", " "), text)
    Console().print(table)
    for line in report["found"]:
        Console(soft_wrap=True).print(f"found: {line}", markup=False)


if __name__ == "__main__":
    main()
