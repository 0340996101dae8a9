"""Shared fixtures: a node in a temporary folder, and the tools that some tests need.

If a tool is missing, its tests are skipped, and the summary names it. With LATENT_PACS_NO_SKIPS=1, as CI sets it, a
missing tool makes them fail.
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from node.app import Node
from node.config import Settings, parse
from node.dimse.client import Address, Receiver
from storage.records import InstanceState, StoredInstance
from tests.support.faster import (
    build_commands_once,
    copy_new_indexes,
    fork_workers_from_a_warm_process,
    measure_fsim_of_two_tiles,
    stop_servers_at_once,
)
from tests.support.requestors import keep_responses_of_all_requestors

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported; its threads spin on a busy machine

hypothesis_settings.register_profile("busy machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.load_profile("busy machine")

for _number in (signal.SIGINT, signal.SIGHUP):
    # nohup and the background of a script ignore them, and the nodes that tests start would inherit that. They do not
    # inherit a handler.
    if signal.getsignal(_number) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
        signal.signal(_number, lambda *_: None)

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


def need(*tools: str) -> None:
    """Skip the test if a program is missing, or fail it if skipping is forbidden."""
    missing = [tool for tool in tools if shutil.which(tool, path=f"{os.environ.get('PATH', '')}:/usr/sbin") is None]
    if missing:
        packages = "dcmtk, orthanc, dicom3tools, libgdcm-tools, chromium"
        unavailable(f"{', '.join(missing)} not installed (Debian: {packages})")


def unavailable(why: str) -> None:
    """Skip the test for this reason, or fail it if skipping is forbidden."""
    if os.environ.get("LATENT_PACS_NO_SKIPS") == "1":
        pytest.fail(f"skipping is forbidden here: {why}")
    pytest.skip(why)


def wait_for(condition: Callable[[], Any], *, timeout: float = 300.0, what: str = "") -> Any:
    """Wait until a condition holds, and return its value.

    The timeout is for conditions that never hold. Workers get little processor time on a busy machine, so no test may
    set a shorter one.
    """
    deadline, pause = time.monotonic() + timeout, 0.01
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(pause)
        pause = min(0.1, 1.2 * pause)  # a query takes processor time from the processes that the test waits for
    raise AssertionError(f"not within {timeout:g} s: {what or condition}")


def spooled(spool: Path) -> list[Path]:
    """The files in a spool folder. Folders may appear and disappear meanwhile, on which rglob fails and os.walk does
    not."""
    return [Path(folder) / name for folder, _, names in os.walk(spool) for name in names]


def size_of(path: Path) -> int:
    """The size of a file in bytes; 0 if it no longer exists."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def settings_for(root: Path, receiver_port: int = 1, **changes: Any) -> Settings:
    """Settings for a test node: any free port, four peers, scanned film eligible. ``changes``: values by section."""
    peers = [{"ae_title": "MODALITY", "allow": ["echo", "store"]}]
    for title, rendition in (("VIEWER", "reconstructed"), ("EXACTVIEW", "original"), ("AUTOVIEW", "auto")):
        peers.append(
            {
                "ae_title": title,
                "host": "127.0.0.1",
                "port": receiver_port,
                "allow": ["echo", "find", "move", "get"],
                "rendition": rendition,
            }
        )
    raw: dict[str, Any] = {
        "node": {"host": "127.0.0.1", "port": 0, "shutdown_timeout": 10},
        "peers": peers,
        "storage": {"root": str(root), "min_free": 0},
        "archivist": {"poll": 0.1, "concurrency": 1},
        "codec": {"scales": [1]},  # half the time of two; the search over scales has tests of its own
        "gate": {"patches": {"share": 0.5}},  # images here have few tiles, of which marks cover a large share
        "originals": {"coder": "none"},  # verbatim objects stay where tests look for them; packing has tests of its own
        "audit": {"reserve": "0%"},  # otherwise one original in a hundred would not be purged
        "reconstruct": {"threads": 1, "upscaler": "bicubic"},  # starts fast; mammo has journeys of its own
        "eligibility": {
            "classes": [
                {"sop_class": "1.2.840.10008.5.1.4.1.1.1.2"},
                {"sop_class": SECONDARY_CAPTURE, "modality": "MG"},
            ]
        },
    }
    for section, values in changes.items():
        raw[section] = {**raw.get(section, {}), **values} if isinstance(values, dict) else values
    return parse(raw, "test settings")


class Archive:
    """A running node with a receiver for its moves, and shortcuts for tests."""

    def __init__(self, node: Node, receiver: Receiver) -> None:
        self.node, self.receiver = node, receiver

    @property
    def address(self) -> Address:
        return Address("127.0.0.1", self.node.server.port, self.node.settings.node.ae_title)

    def settled(self, uid: str) -> StoredInstance:
        """The instance, once the archivist is done with it."""

        def at_rest() -> StoredInstance | None:
            held = self.node.index.by_uid(uid)
            return held if held is not None and held.state is not InstanceState.RECEIVED else None

        found: StoredInstance = wait_for(at_rest, what=f"{uid} at rest")
        return found


@pytest.fixture(scope="session", autouse=True)
def _faster(tmp_path_factory: pytest.TempPathFactory) -> None:
    fork_workers_from_a_warm_process()
    stop_servers_at_once()
    measure_fsim_of_two_tiles()
    build_commands_once()
    copy_new_indexes(tmp_path_factory.mktemp("index"))


@pytest.fixture(scope="session", autouse=True)
def _reliable_requestors() -> None:
    keep_responses_of_all_requestors()


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    folder = tmp_path / "received"
    folder.mkdir()
    with Receiver(folder) as listening:
        yield listening


@pytest.fixture
def archive(tmp_path: Path, receiver: Receiver) -> Iterator[Archive]:
    """A node with an empty store and a running archivist."""
    with Node(settings_for(tmp_path / "archive", receiver.port)) as node:
        yield Archive(node, receiver)


@pytest.fixture
def quiet_archive(tmp_path: Path, receiver: Receiver) -> Iterator[Archive]:
    """A node whose archivist is switched off, so that nothing is encoded."""
    with Node(settings_for(tmp_path / "archive", receiver.port, archivist={"enabled": False})) as node:
        yield Archive(node, receiver)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One process more than there are processors, since many tests wait for the network and for timeouts."""
    return (os.cpu_count() or 1) + 1
