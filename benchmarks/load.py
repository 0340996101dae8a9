"""Puts a mixed load on one node until time is up: nothing may be lost, reappear or grow, and it must stop in time.

Ten senders send one instance at the same moment. Others send new studies, retrieve and query. In rounds, images are
stored to one study while it is retrieved, queried, amended, purged, scrubbed and deleted. A process sends a C-ECHO
twice a second. Every answer is compared with what was sent. At the end all acknowledged images that are not deleted
must be retrieved byte for byte, or as the verified reconstruction. Then the node is stopped while it stores and sends.
The exit code is 1 if anything was lost, wrong or crashed, or if the node stopped too late.

    python -m benchmarks.load --minutes 30 [--seed S] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from benchmarks.contests import Contests
from benchmarks.ledger import NEVER, Ledger
from benchmarks.traffic import LARGE, Mover, Traffic
from benchmarks.victim import ROOT, Victim
from storage.dicom.dicomfile import accept_odd_values

STOP_LIMIT = 10
"""Seconds within which the node must stop: its node.shutdown_timeout."""
BETWEEN_SAMPLES = 3.0
"""Seconds between two samples of the node's resources."""
WARM_UP = 60.0
"""Seconds after which resources are sampled; a tenth of the whole time, if that is less."""
SETTLING = 120
"""Seconds to wait until the last images are encoded."""
REASON = re.compile(r"WARNING node\.dimse\.associations\.refusals: refused .*: ([0-9A-F]{4}, .*)")
"""A line of the log that says why a request was refused."""
NICE = 5
"""Nice value of peers and commands: node and C-ECHO have priority, since peers usually run on other machines."""
LAST_STORES = 40
"""Number of images in the association that is open when the node is stopped."""
CRASH = re.compile(r"Traceback \(most recent|\[\w+ at \S+\.py:\d+ ")
"""A line of the log by which node/cli/logs.py or Python reports an unexpected error."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the node too
    with tempfile.TemporaryDirectory(prefix="latent-pacs-load-") as folder:
        report = loaded(Path(folder), options.minutes * 60, options.seed)
    print(json.dumps(report, indent=2)) if options.json else show(report)
    late = report["stop_seconds"] > report["stop_limit_seconds"]
    sys.exit(bool(report["lost"] or report["wrong_success"] or report["crashes"] or late))


def loaded(folder: Path, seconds: float, seed: int = 0) -> dict[str, Any]:
    """Load a node for ``seconds``, check it, stop it, and return the figures."""
    load = Load(folder, seed)
    try:
        load.run(seconds)
        load.check()
        load.stop_under_load()
        return load.report(seconds)
    finally:
        load.close()


class Load:
    """A node under load, and the observations."""

    def __init__(self, folder: Path, seed: int) -> None:
        accept_odd_values()
        self.victim = Victim(folder / "loaded", shutdown_timeout=STOP_LIMIT)
        self.ledger, self.lost, self.crashes = Ledger(), set[str](), list[str]()
        self.samples: list[dict[str, float]] = []
        self.pulse: list[tuple[float, float, float, bool]] = []
        """For each C-ECHO, its start (s), milliseconds until its association and until its answer, and its success."""
        self.stop_seconds = 0.0
        self.stored_while_stopping = 0
        self._seed, self._over = seed, threading.Event()
        mover = Mover(folder / "moved", "MOVER")
        mover.folder.mkdir()
        self._mover = mover.__enter__()
        self._configure(mover.port)
        if not self.victim.start():
            raise SystemExit(f"the node does not start: {self.victim.last_words()}")
        self.index = self.victim.index()
        self.traffic = Traffic(folder, self.victim.address, self.index, self.ledger, mover)
        self.contests = Contests(self.victim.config, self.traffic, self.index, self.ledger)

    def _configure(self, mover_port: int) -> None:
        """Add a move destination, and make leases long enough for a busy machine."""
        settings = yaml.safe_load(self.victim.config.read_text())
        mover = {"ae_title": "MOVER", "host": "127.0.0.1", "port": mover_port, "allow": ["move"], "rendition": "auto"}
        settings["peers"].append(mover)
        settings["archivist"]["lease"] = settings["jobs"]["lease"] = 60
        self.victim.config.write_text(yaml.safe_dump(settings))

    # --- load ---

    def run(self, seconds: float) -> None:
        """Let all peers and operators work for ``seconds``."""
        tasks = [*self.traffic.tasks(), self.contests.round]
        threads = [
            threading.Thread(target=self._repeat, args=(task, random.Random(f"{self._seed} {number}")), daemon=True)
            for number, task in enumerate(tasks)
        ]
        words = [sys.executable, "-m", "benchmarks.pulse", "--port", str(self.victim.port)]
        pulse = subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        began = time.monotonic()
        for thread in threads:
            thread.start()
        beats = threading.Thread(target=self._listen, args=(pulse,), daemon=True)
        beats.start()
        warm = min(WARM_UP, seconds / 10)
        while (passed := time.monotonic() - began) < seconds and self.victim.alive:
            if passed >= warm:
                self.samples.append(self._sample())
            time.sleep(BETWEEN_SAMPLES)
        self._over.set()
        assert pulse.stdin is not None
        pulse.stdin.close()
        for thread in (*threads, beats):
            thread.join(300)
            if thread.is_alive():
                self.crashes.append("a peer or an operator waits for an answer without end")

    def _repeat(self, task: Callable[[random.Random], None], chance: random.Random) -> None:
        os.nice(NICE)  # of this thread, and of the threads and processes that it starts
        while not self._over.is_set():
            try:
                task(chance)
            except Exception as error:  # noqa: BLE001 - an error of this program must not end the load unnoticed
                self.crashes.append(f"{getattr(task, '__name__', task)}: {type(error).__name__}: {error}")
                time.sleep(1)

    def _listen(self, pulse: subprocess.Popen[str]) -> None:
        assert pulse.stdout is not None
        for line in pulse.stdout:
            at, accepted, answered, success = line.split()
            self.pulse.append((float(at), float(accepted), float(answered), success == "1"))

    def _sample(self) -> dict[str, float]:
        usage = self.victim.usage()
        stored = sum(path.is_file() for path in (self.victim.root / "objects").rglob("*"))
        return {
            **usage,
            "fds": usage["fd"],
            "workers": len(self.victim.workers()),
            "objects": stored,
            "load": os.getloadavg()[0],
        }

    # --- checks ---

    def check(self) -> None:
        """Retrieve every image that must be held, and query for every image that must not."""
        if not self.victim.alive:
            self.crashes.append(f"the node ended by itself: {self.victim.last_words()}")
            self.victim.start()
        self._settle()
        self.contests.undo_all()
        returned: set[str] = set()
        for study in self.ledger.studies():
            returned |= self.traffic.get(study)
        self.lost |= {one.uid for one in self.ledger.held()} - returned
        for study in {one.study for one in self.ledger.gone()}:
            self.traffic.find(study)
        for one in self.ledger.gone():
            if self.index.by_uid(one.uid) is not None:
                self.ledger.note(f"{one.uid}: deleted, and in the index at the end")

    def _settle(self) -> None:
        """Wait until every image is encoded or exact."""
        deadline = time.monotonic() + SETTLING
        while time.monotonic() < deadline:
            states = self.index.states([one.uid for one in self.ledger.held()])
            if "RECEIVED" not in {state.name for state in states.values()}:
                return
            time.sleep(1)
        self.crashes.append(f"images are still not encoded {SETTLING} s after the load")

    def stop_under_load(self) -> None:
        """Stop the node while it stores and sends. What it acknowledged meanwhile must be held after a start."""
        chance = random.Random(f"{self._seed} stop")
        first = self.traffic.new(chance, LARGE)
        images = [first, *(self.traffic.new(chance, LARGE, first.study) for _ in range(LAST_STORES - 1))]
        self._refused, self.ledger.refused = self.ledger.refused, Counter()
        studies = self.ledger.studies()
        threads = [threading.Thread(target=self.traffic.send, args=(images,), daemon=True)]
        threads += [threading.Thread(target=self._get_all, args=(studies,), daemon=True)]
        for thread in threads:
            thread.start()
        while not self.ledger.held(first.study) and threads[0].is_alive():
            time.sleep(0.01)
        assert self.victim.process is not None
        began = time.monotonic()
        self.victim.process.terminate()
        try:
            code = self.victim.process.wait(STOP_LIMIT * 6)
        except subprocess.TimeoutExpired:
            code = -1
        self.stop_seconds = round(time.monotonic() - began, 2)
        if code:
            self.crashes.append(f"the node ended with exit code {code} after SIGTERM")
        for thread in threads:
            thread.join(60)
        self.victim.kill()
        self.stored_while_stopping = len(self.ledger.held(first.study))
        self.victim.start()
        self.lost |= {one.uid for one in self.ledger.held(first.study)} - self.traffic.get(first.study)

    def _get_all(self, studies: list[str]) -> None:
        for study in studies:
            if not self.ledger.refused:
                self.traffic.get(study)

    # --- figures ---

    def report(self, seconds: float) -> dict[str, Any]:
        counts, latencies = self.traffic.counts, sorted(latency for *_, latency, _ in self.pulse)
        unanswered = sum(not answered for *_, answered in self.pulse)
        lines = self.victim.log.read_text(errors="replace").splitlines()
        unforeseen = [f"log: {line}" for line in lines if CRASH.search(line)]
        errors = [line.split(maxsplit=2)[2] for line in lines if " ERROR " in line[:50]]
        crashes = [*self.crashes, *self.contests.faults, *unforeseen]
        if unanswered:
            crashes.append(f"{unanswered} C-ECHO requests were not answered with success within 20 s")
        operations = {f"{name}s": self.contests.counts[name] for name in ("purge", "amend", "delete", "scrub")}
        return {
            "minutes": round(seconds / 60, 1),
            **{name: counts[name] for name in ("stores", "retrieves")},
            "echoes": len(self.pulse),
            "finds": counts["finds"],
            **operations,
            "acknowledged": sum(one.acknowledged < NEVER for one in self.ledger.images.values()),
            "lost": len(self.lost),
            "wrong_success": len(self.ledger.wrong),
            "crashes": len(crashes),
            "echo_p50_ms": _percentile(latencies, 0.5),
            "echo_p99_ms": _percentile(latencies, 0.99),
            "echo_worst_ms": _percentile(latencies, 1.0),
            "accepted_p99_ms": _percentile(sorted(accepted for _, accepted, *_ in self.pulse), 0.99),
            "rss_growth_mb": self._growth("rss_mb"),
            **{f"{name}_growth": self._growth(f"{name}s") for name in ("fd", "thread", "worker", "object")},
            "stop_seconds": self.stop_seconds,
            "stop_limit_seconds": STOP_LIMIT,
            "refused": dict(sorted(self._refused.items())),
            "refused_while_stopping": dict(sorted(self.ledger.refused.items())),
            "deleted_images": self.contests.counts["deleted images"],
            "purged_originals": self.contests.counts["purged originals"],
            "retrieved_as_reconstructions": len(self.ledger.reconstructed),
            "stored_while_stopping": self.stored_while_stopping,
            "rss_mb_by_fifth": self._fifths("rss_mb"),
            "reasons": dict(Counter(REASON.findall("\n".join(lines)))),
            "slowest_echoes": sorted(self.pulse, key=lambda one: -one[2])[:20],
            "errors_logged": errors[:20],
            "machine_load": _percentile(sorted(one["load"] for one in self.samples), 0.5),
            "seed": self._seed,
            "found": [*self.ledger.wrong, *crashes, *(f"{uid}: lost" for uid in sorted(self.lost))],
        }

    def _growth(self, key: str) -> float:
        """Median of the last fifth of the samples less that of the first fifth."""
        medians = self._fifths(key)
        return round(medians[-1] - medians[0], 1) if medians else 0.0

    def _fifths(self, key: str) -> list[float]:
        """Median of each fifth of the samples; an empty list if there are fewer than five samples."""
        values, fifth = [one[key] for one in self.samples], len(self.samples) // 5
        parts = [values[at * fifth : (at + 1) * fifth] for at in range(4)] + [values[4 * fifth :]]
        return [round(statistics.median(part), 1) for part in parts] if fifth else []

    def close(self) -> None:
        self._over.set()
        self._mover.__exit__(None, None, None)
        self.index.close()
        self.victim.close()


def show(report: dict[str, Any]) -> None:
    """Print the figures as a table, and each finding as a line."""
    table = Table("measure", "value", title="Mixed load")
    for name, value in report.items():
        text = ", ".join(f"{each} {count}" for each, count in value.items()) if isinstance(value, dict) else str(value)
        if not isinstance(value, list):
            table.add_row(name.replace("_", " "), text)
    Console().print(table)
    for line in (*report["found"], *report["errors_logged"]):
        Console(soft_wrap=True).print(f"found: {line}", markup=False)


def _percentile(ordered: list[float], share: float) -> float:
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else 0.0


if __name__ == "__main__":
    main()
