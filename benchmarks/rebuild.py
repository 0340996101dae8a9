"""Times ``latent-pacs index rebuild``, and checks that every row is restored.

It fills an archive in a temporary folder with small objects, and commits rows as a node does (arrival, renditions,
state), 400 images at a time, so that the journal has the records of a node. Then it deletes and rebuilds the index, and
compares both.

    python -m benchmarks.rebuild [--instances 100000] [--renditions 2] [--json]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from sqlalchemy import Table, insert, update

from benchmarks.find import mammogram, rows_of
from node.app import rebuild_index
from node.archive.index_opening import open_for_node
from node.config import parse
from storage.index.change_capture import TABLES
from storage.index.connection import writing
from storage.index.original_locations import insert_original
from storage.index.tables import instance, patient, rendition, series, study
from storage.objects.store import ObjectStore
from storage.records import InstanceState

PATIENTS_AT_ONCE = 25
POINT = {"scale": 2, "coder": "jpegxl", "distance": 0.3, "effort": 7, "companded": True}
TRIED = [
    {"point": "x2 jpegxl d0.3", "upscaler": "mammo", "payload_bytes": 90_000, "failures": [], "seconds": 2.5},
    {"point": "x2 jpegxl d0.6", "upscaler": "mammo", "payload_bytes": 60_000, "failures": ["lost 1.1"], "seconds": 2.1},
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=int, default=100_000)
    parser.add_argument("--renditions", type=int, default=2, help="renditions per instance")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    console = Console(stderr=True, quiet=options.json)
    with tempfile.TemporaryDirectory(prefix="latent-pacs-rebuild-") as folder:
        report = measure(Path(folder), options.instances, options.renditions, console)
    if options.json:
        print(json.dumps(report, indent=2))
        return
    for name, value in report.items():
        Console().print(f"{name}: {value}", highlight=False)


def measure(root: Path, instances: int, renditions: int, console: Console) -> dict[str, Any]:
    """Fill an archive, delete its index, rebuild it and compare both."""
    settings = parse({"storage": {"root": str(root), "min_free": 0}}, "benchmark")
    store = ObjectStore(root)
    index = open_for_node(settings, accept_empty=False)
    began = time.monotonic()
    patients = max(1, instances // 16)
    starts = range(0, patients, PATIENTS_AT_ONCE)
    for first in track(starts, "filling", console=console, disable=console.quiet):
        fill(index.engine, store, range(first, min(first + PATIENTS_AT_ONCE, patients)), renditions)
    index.close()
    filled, file = time.monotonic() - began, root / "index.sqlite"
    before, size = digests(file), file.stat().st_size
    for part in root.glob("index.sqlite*"):
        part.unlink()
    made = rebuild_index(settings, lambda *_: None)
    after = digests(file)
    return {
        "instances": made.rows["instance"],
        "renditions": made.rows["rendition"],
        "seconds": made.seconds,
        "changes": made.changes,
        "journal_bytes": sum(one.stat().st_size for one in (root / "journal").iterdir()),
        "index_bytes": size,
        "tables_that_differ": sorted(name for name in before if before[name] != after[name]),
        "filled_s": round(filled, 1),
    }


def fill(engine: Any, store: ObjectStore, numbers: range, renditions: int) -> None:
    """Commit the rows of some patients' images: arrival, renditions and final state."""
    template, now = mammogram(), datetime.now(UTC).replace(tzinfo=None)
    rows: dict[str, list[dict[str, Any]]] = {"patient": [], "study": [], "series": [], "instance": []}
    for number in numbers:
        for table, row in rows_of(template, number):
            rows[table].append(row)
    for row in rows["instance"]:
        row["original_digest"] = put(store, f"original {row['key']}")
        row["received_at"] = now
    made = [one for row in rows["instance"] for one in renditions_of(store, row["key"], renditions, now)]
    with writing(engine) as connection:
        tables: tuple[Table, ...] = (patient, study, series, instance)
        for table in tables:
            connection.execute(insert(table), rows[table.name])
        for row in rows["instance"]:
            insert_original(connection, row["key"], row["original_digest"], row["original_bytes"])
    keys = [row["key"] for row in rows["instance"]]
    for turn in range(renditions):
        with writing(engine) as connection:
            connection.execute(insert(rendition), made[turn::renditions])
            current = instance.c.key * renditions - (renditions - 1 - turn)
            news = {"state": InstanceState.VERIFIED, "rendition_key": current, "attempts": 1}
            connection.execute(update(instance).where(instance.c.key.in_(keys)).values(news))


def renditions_of(store: ObjectStore, key: int, count: int, now: datetime) -> Iterator[dict[str, Any]]:
    for turn in range(count):
        number = key * count - (count - 1 - turn)
        yield {
            "key": number,
            "instance_key": key,
            "derived_uid": f"2.25.1{number:020d}",
            "structure_uid": f"2.25.2{number:020d}",
            "base_digest": put(store, f"base {number}"),
            "base_bytes": 80_000,
            "rendition_digest": put(store, f"rendition {number}"),
            "rendition_bytes": 9_000,
            "point": POINT,
            "upscaler": "mammo",
            "weights_digest": "ab" * 32,
            "output_digest": "cd" * 32,
            "structure_digest": "ef" * 32,
            "psnr_db": 45.1 + number * 1e-7,
            "fsim_mean": 0.98,
            "fsim_p5": 0.97,
            "tiles": 31,
            "figures": {f"lost_{band}": 0.5 + band / 7 for band in range(12)},
            "gated": 1,
            "recipe": "steps 4",
            "tried": TRIED,
            "seconds": 4.6,
            "verified_at": now,
            "withdrawn": "",
        }


def put(store: ObjectStore, text: str) -> str:
    """Write a small object without fsync."""
    data = text.encode()
    digest = hashlib.sha256(data).hexdigest()
    path = store.path(digest)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return digest


def digests(file: Path) -> dict[str, str]:
    """A digest of the rows of each table that a rebuild restores."""
    connection = sqlite3.connect(file)
    found = {}
    for name in [*TABLES, "trail", "archive"]:
        digest = hashlib.sha256()
        for row in connection.execute(f'SELECT * FROM "{name}" ORDER BY 1'):
            digest.update(repr(row).encode())
        found[name] = digest.hexdigest()
    connection.close()
    return found


if __name__ == "__main__":
    main()
