"""A node in a process of its own, which tests stop, kill and start again."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from benchmarks.ingest import free_port
from node.dimse.client import Address
from tests.conftest import wait_for

COMMAND = [sys.executable, "-W", "ignore", "-m", "node.cli"]


class NodeProcess:
    """A node in a process of its own, with a fixed port and folder, so that it can be restarted."""

    def __init__(self, folder: Path) -> None:
        self.root, self.config, self.port = folder / "archive", folder / "config.yaml", free_port()
        self.log = (folder / "node.log").open("ab")
        self.config.write_text(
            yaml.safe_dump(
                {
                    "node": {"host": "127.0.0.1", "port": self.port, "shutdown_timeout": 200},
                    "storage": {"root": str(self.root), "min_free": 0},
                    "archivist": {"poll": 0.1, "lease": 2},
                    "reconstruct": {"upscaler": "bicubic"},
                    "gate": {"patches": {"share": 0.5}},
                    "codec": {"scales": [1]},
                    "originals": {"coder": "none"},
                    "peers": [
                        {"ae_title": "MODALITY", "allow": ["echo", "store"]},
                        {"ae_title": "EXACTVIEW", "allow": ["find", "get"], "rendition": "original"},
                    ],
                }
            )
        )
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> Address:
        return Address("127.0.0.1", self.port, "LATENTPACS")

    def start(self, *, verbose: bool = False) -> None:
        flags = ["--verbose"] if verbose else []
        self.process = subprocess.Popen([*COMMAND, "serve", "-c", str(self.config), *flags], stderr=self.log)

        def started() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, "the node ended at start"
            return self.listening()

        wait_for(started, what="a listening node")

    def listening(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def ended(self) -> int:
        assert self.process is not None
        return self.process.wait(timeout=300)

    def status(self) -> dict[str, Any]:
        done = subprocess.run([*COMMAND, "status", "-c", str(self.config), "--json"], capture_output=True, check=True)
        report: dict[str, Any] = json.loads(done.stdout)
        return report
