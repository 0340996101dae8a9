"""Runs a node in a separate process that can be killed and attacked; part of benchmarks.torture and benchmarks.load."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from pynetdicom import AE

from benchmarks.ingest import free_port
from benchmarks.upper_layer import VERIFICATION
from node.dimse.client import Address
from storage.index import Index

ROOT = Path(__file__).parent.parent
COMMAND = [sys.executable, "-W", "ignore", "-m", "node.cli"]
CHEAP: dict[str, Any] = {
    "archivist": {"poll": 0.1, "lease": 2, "concurrency": 1},
    "reconstruct": {"upscaler": "bicubic", "threads": 1, "cache": "100MB"},
    "gate": {"patches": {"share": 0.5}},
    "codec": {"scales": [1], "effort": 1},
    "originals": {"coder": "jpegls", "retain_for": "0h"},
    "jobs": {"lease": 2, "poll": 0.5} | {name: {"enabled": False} for name in ("scrub", "reverify", "purge")},
    "audit": {"enabled": False, "reserve": "0%"},
    "unknown_peers": {"allow": ["echo"]},
    "peers": [
        {"ae_title": "MODALITY", "allow": ["echo", "store"]},
        {"ae_title": "VIEWER", "allow": ["echo", "find", "get"], "rendition": "auto"},
    ],
}
"""Settings that make every step fast. Originals may be purged as soon as their images are verified."""


class Victim:
    """A node with a fixed port and folder, which can be restarted."""

    def __init__(self, folder: Path, **node: Any) -> None:
        folder.mkdir()
        self.folder, self.root, self.port = folder, folder / "archive", free_port()
        self.config = folder / "config.yaml"
        settings = {"host": "127.0.0.1", "port": self.port, "shutdown_timeout": 2, **node}
        storage = {"root": str(self.root), "min_free": 0}
        self.config.write_text(yaml.safe_dump({**CHEAP, "node": settings, "storage": storage}))
        self.process: subprocess.Popen[bytes] | None = None
        """The node; None before the first start and after a kill."""
        self._groups: list[int] = []

    @property
    def address(self) -> Address:
        return Address("127.0.0.1", self.port, "LATENTPACS")

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> bool:
        """Start the node unless it runs. Returns False if it does not listen within a minute."""
        if self.alive:
            return True
        self.process = self._started("serve")
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self.alive:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return True
            time.sleep(0.02)
        return False

    def command(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a command of latent-pacs on this archive."""
        return self._started(*arguments)

    def _started(self, command: str, *arguments: str) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            words = [*COMMAND, command, *arguments, "-c", str(self.config)]
            started = subprocess.Popen(words, stdout=log, stderr=log, cwd=ROOT, start_new_session=True)
        self._groups.append(started.pid)
        return started

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def last_words(self) -> str:
        """The last line of the log."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return lines[-1] if lines else ""

    def kill(self) -> bool:
        """Kill the node by SIGKILL. Returns False if it did not run."""
        done, self.process = killed(self.process), None
        return done

    def workers(self) -> list[int]:
        """Process ids of the node's children."""
        return children(self.process.pid) if self.process is not None and self.alive else []

    def close(self) -> None:
        """End the node, its commands and all their children."""
        killed(self.process)
        for group in self._groups:
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)

    def index(self) -> Index:
        return Index.open(f"sqlite:///{self.root / 'index.sqlite'}")

    def answers(self, seconds: float = 20) -> bool:
        """Whether a C-ECHO succeeds within that many seconds."""
        entity = AE("ECHO")
        entity.add_requested_context(VERIFICATION.decode())
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = entity.connection_timeout = seconds
        assoc = entity.associate("127.0.0.1", self.port)
        if not assoc.is_established:
            return False
        status = assoc.send_c_echo()
        assoc.release()
        return int(status.get("Status", 0xC000)) == 0

    def usage(self) -> dict[str, float]:
        """Resident memory in MB, open file descriptors and threads of the node, without its workers."""
        assert self.process is not None
        proc = Path(f"/proc/{self.process.pid}")
        pages = int((proc / "statm").read_text().split()[1])
        return {
            "rss_mb": pages * os.sysconf("SC_PAGE_SIZE") / 1e6,
            "fd": len(list((proc / "fd").iterdir())),
            "threads": len(list((proc / "task").iterdir())),
        }


def killed(process: subprocess.Popen[Any] | None) -> bool:
    """Kill a process by SIGKILL. Returns False if it had ended already."""
    if process is None or process.poll() is not None:
        return False
    process.kill()
    process.wait()
    return True


def children(parent: int) -> list[int]:
    """Process ids of the living children of a process."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                state, number, *_ = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                if int(number) == parent and state != "Z":
                    found.append(int(entry.name))
    return found
