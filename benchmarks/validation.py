"""Times a validation of phantoms with a planted sign, which are stored and retrieved through a real node.

Images are 1024 x 1024, two per patient, and half of the patients have the sign. The weights are ``none``; other
settings are the defaults. The codec profile is ``paper`` (x2, 16-bit PNG, no gate), which encodes every image.
``validate_s`` is the time of the run: retrieval, features, figures, training and report. ``cpu_s`` is the processor
time of all its processes, and ``load`` the load average of the machine at the end. With ``--sign fine`` the sign is at
the limit of resolution, and compression removes it.

    python -m benchmarks.validation [--images 200] [--side 1024] [--sign coarse] [--upscaler bicubic] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.phantoms import COARSE, FINE, cohort
from node.app import Node, plan_jobs
from node.config import Settings, parse
from node.dimse import client
from node.dimse.client import Address
from node.validation.label_file import read_labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--sign", choices=(COARSE, FINE), default=COARSE)
    parser.add_argument("--upscaler", choices=("bicubic", "mammo"), default="bicubic")
    parser.add_argument("--keep", type=Path, help="a folder to keep the archive and its report in")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = options.keep or Path(folder)
        files, labels = cohort(work / "phantoms", options.images, options.sign, rows=options.side, columns=options.side)
        with Node(settings(work / "archive", options.upscaler)) as node:
            report = measured(node, files, labels)
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        for name, value in report.items():
            Console().print(f"{name}: {value}", highlight=False)


def settings(root: Path, upscaler: str) -> Settings:
    raw = {
        "node": {"host": "127.0.0.1", "port": 0},
        "peers": [{"ae_title": "MODALITY", "allow": ["echo", "store"]}],
        "storage": {"root": str(root), "min_free": 0},
        "codec": {"profile": "paper"},
        "reconstruct": {"upscaler": upscaler},
        "jobs": {"validation": {"weights": "none"}},
    }
    return parse(raw, "benchmark settings")


def measured(node: Node, files: list[Path], labels: Path) -> dict[str, Any]:
    """Store the files, wait for the archivist, set labels, and validate."""
    began = time.perf_counter()
    address = Address("127.0.0.1", node.server.port, node.settings.node.ae_title)
    client.store(files, address, calling="MODALITY", each=lambda *_: None)
    stored = time.perf_counter()
    while node.index.counts().backlog:
        time.sleep(0.2)
    encoded = time.perf_counter()
    node.index.classes.put(read_labels(labels, node.index).classes, who="user:benchmark")
    planned = plan_jobs(node.archive)
    [job] = [one.job for one in planned if one.job.name == "validation"]
    before, start = _processor_seconds(), time.perf_counter()
    report = job.work(_print_progress, lambda: False)
    took = time.perf_counter() - start
    return {
        "images": len(files),
        "store_s": round(stored - began, 1),
        "encode_s": round(encoded - stored, 1),
        "validate_s": round(took, 1),
        "cpu_s": round(_processor_seconds() - before, 1),
        "cores": os.cpu_count(),
        "load": [round(each, 1) for each in os.getloadavg()],
        "sentence": report["sentence"],
        "report": report,
    }


def _print_progress(done: int, total: int, text: str = "") -> None:
    Console(stderr=True).print(f"{done} of {total}", highlight=False)


def _processor_seconds() -> float:
    """Processor time of this process and of its children, in seconds."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    running = 0.0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == os.getpid():
            running += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return own.ru_utime + own.ru_stime + ended.ru_utime + ended.ru_stime + running


if __name__ == "__main__":
    main()
