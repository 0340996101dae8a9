"""Times C-STORE of full-field images to this archive and to Orthanc, in turn, by the same sender (DCMTK storescu).

Both are durable: this archive syncs object and journal before it answers 0x0000, and Orthanc uses its default
SyncStorageArea. The archivist is off for the ratio, since Orthanc does no work after storing. The time with the
archivist on is printed too.

    python -m benchmarks.ingest [--images 30] [--rounds 3] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from pydicom.uid import generate_uid
from rich.console import Console
from rich.table import Table

from benchmarks.samples import mammogram, write

ROWS, COLUMNS = 4096, 2048
"""Size of an image, whose pixels are 16.8 MB."""
_given: set[int] = set()
"""Ports that ``free_port`` has returned."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    for tool in ("storescu", "Orthanc"):
        if not shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin"):
            sys.exit(f"{tool} is not installed (Debian: dcmtk, orthanc)")
    with tempfile.TemporaryDirectory(prefix="latent-pacs-bench-") as folder:
        report = compare(Path(folder), options.images, options.rounds)
    if options.json:
        print(json.dumps(report, indent=2))
        return
    table = Table("", "seconds (median)", "MB/s", title=f"C-STORE of {options.images} images of 17 MB, one association")
    for name in ("ours", "orthanc", "ours_with_archivist"):
        seconds = report[f"{name}_s"]
        table.add_row(name.replace("_", " "), f"{seconds:.2f}", f"{report['megabytes'] / seconds:.0f}")
    Console().print(table)
    Console().print(f"ratio, Orthanc's time over this archive's: {report['ratio']:.2f} (per round: {report['ratios']})")


def compare(folder: Path, images: int, rounds: int) -> dict[str, Any]:
    """Send the same images to each archive in every round, each time with new UIDs."""
    batch = Batch(folder / "files", images)
    times: dict[str, list[float]] = {"ours": [], "orthanc": [], "ours_with_archivist": []}
    servers: dict[str, Callable[[Path, int], subprocess.Popen[bytes]]] = {
        "ours": lambda at, port: start_ours(at, port, archivist=False),
        "orthanc": start_orthanc,
        "ours_with_archivist": lambda at, port: start_ours(at, port, archivist=True),
    }
    for number in range(rounds):
        for name, start in servers.items():
            at, port = folder / f"{name}-{number}", free_port()
            at.mkdir()
            process = start(at, port)
            try:
                wait_until_listening(process, port)
                batch.renew()
                times[name].append(batch.send(port))
            finally:
                process.terminate()
                process.wait(timeout=60)
                shutil.rmtree(at)
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratios = [round(theirs / ours, 3) for theirs, ours in zip(times["orthanc"], times["ours"], strict=True)]
    return {
        "images": images,
        "megabytes": batch.megabytes,
        **{f"{name}_s": round(value, 3) for name, value in medians.items()},
        "ratio": round(statistics.median(ratios), 3),
        "ratios": ratios,
    }


class Batch:
    """Files of one study, whose UIDs are overwritten before each sending.

    ``pixels``: uint16 (rows, columns) of a mammogram, which each image shows shifted by another number of rows; None
    means noise on a ramp.
    """

    def __init__(self, folder: Path, images: int, *, pixels: NDArray[np.uint16] | None = None, **changes: Any) -> None:
        folder.mkdir()
        random = np.random.default_rng(0)
        self._count, self.study = 0, generate_uid()
        self._files: list[tuple[Path, bytes]] = []
        for number in range(images):
            frame = noise_on_a_ramp(random) if pixels is None else np.roll(pixels, 16 * number, axis=0)
            uid = f"2.25.{10**38 + number}"
            ds = mammogram(frame, SOPInstanceUID=uid, StudyInstanceUID=self.study, **changes)
            self._files.append((write(ds, folder / f"{number:03d}.dcm"), uid.encode()))
        self.megabytes = sum(path.stat().st_size for path, _ in self._files) / 1e6

    def renew(self) -> None:
        """Write new SOP Instance UIDs of the same length into the files."""
        self._count += 1
        renewed = []
        for number, (path, uid) in enumerate(self._files):
            fresh = f"2.25.{10**38 + self._count * 10**6 + number}".encode()
            with path.open("r+b") as file:
                head = file.read(4096)
                file.seek(0)
                file.write(head.replace(uid, fresh))
            renewed.append((path, fresh))
        self._files = renewed

    def send(self, port: int) -> float:
        """Seconds for storescu to send all files on one association. Exits if one is refused."""
        files = [str(path) for path, _ in self._files]
        command = [
            "storescu",
            "--propose-uncompr",
            "--max-send-pdu",
            "131072",
            "-aet",
            "MODALITY",
            "127.0.0.1",
            str(port),
        ]
        began = time.monotonic()
        done = subprocess.run([*command, *files], capture_output=True, text=True, check=False)
        seconds = time.monotonic() - began
        if done.returncode != 0 or "E:" in done.stderr:
            sys.exit(f"storescu failed: {done.stderr}")
        return seconds


def noise_on_a_ramp(random: np.random.Generator) -> NDArray[np.uint16]:
    """Pixels that compress badly: JPEG-LS needs 8.2 bits per pixel for them, and 2 to 4 for a mammogram."""
    ramp = np.linspace(0, 3800, COLUMNS, dtype=np.uint16)[None, :]
    return ramp + random.integers(0, 200, (ROWS, COLUMNS), np.uint16)


def start_ours(folder: Path, port: int, *, archivist: bool, **sections: Any) -> subprocess.Popen[bytes]:
    """Start this archive as a process, with further ``sections`` of config.yaml."""
    config = folder / "config.yaml"
    settings = {
        "node": {"host": "127.0.0.1", "port": port, "shutdown_timeout": 0},
        "storage": {"root": str(folder / "archive"), "min_free": 0},
        "archivist": {"enabled": archivist},
        **sections,
    }
    config.write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-W", "ignore", "-m", "node.cli", "serve", "-c", str(config)]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


def start_orthanc(folder: Path, port: int, **configuration: Any) -> subprocess.Popen[bytes]:
    """Start Orthanc with its defaults, synced storage and further ``configuration``."""
    config = folder / "orthanc.json"
    settings = {
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "DicomPort": port,
        "HttpPort": free_port(),
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "SyncStorageArea": True,
        "DicomCheckCalledAet": False,
        "DicomAlwaysAllowStore": True,
        "Plugins": [],
        **configuration,
    }
    config.write_text(json.dumps(settings))
    binary = shutil.which("Orthanc", path=f"{Path('/usr/sbin')}:{Path('/usr/bin')}") or "Orthanc"
    return subprocess.Popen([binary, str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def free_port() -> int:
    """A free port that was not returned before, outside the range of ports for outgoing connections."""
    for port in random.sample(range(20000, 32000), 200):
        with socket.socket() as probe, suppress(OSError):
            if port not in _given:
                probe.bind(("", port))
                _given.add(port)
                return port
    raise RuntimeError("no free port between 20000 and 32000")


def wait_until_listening(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    sys.exit("a server did not start")


if __name__ == "__main__":
    main()
