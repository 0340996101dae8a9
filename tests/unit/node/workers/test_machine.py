"""Reads limits of control groups as containers and systemd set them (node/workers/machine.py)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from node.workers.machine import available_cores, available_memory, cores_of_quota


@pytest.mark.parametrize(
    ("own", "limit"),
    [
        ("0::/", "memory.max"),
        ("0::/system.slice/latent-pacs.service", "system.slice/latent-pacs.service/memory.max"),
        ("0::/system.slice/latent-pacs.service", "system.slice/memory.max"),
        ("4:memory:/docker/0a1b", "memory/docker/0a1b/memory.limit_in_bytes"),
        ("4:memory:/docker/of/the/host", "memory/memory.limit_in_bytes"),
    ],
    ids=["container", "systemd", "slice", "version 1", "container, version 1"],
)
def test_a_control_group_may_have_less_memory_than_its_machine(tmp_path: Path, own: str, limit: str) -> None:
    groups = tmp_path / "cgroup"
    machine = available_memory(groups, tmp_path)
    groups.write_text(f"9:name=systemd:/\n1:cpu:/\n{own}\n")
    (tmp_path / limit).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / limit).write_text("1000000000\n")
    assert available_memory(groups, tmp_path) == min(10**9, machine)
    (tmp_path / limit).write_text("max\n")
    assert available_memory(groups, tmp_path) == machine > 0


@pytest.mark.parametrize(
    ("own", "files", "cores"),
    [
        ("0::/", {"cpu.max": "150000 100000"}, 2),
        ("0::/", {"cpu.max": "max 100000"}, 0),
        ("0::/a/b", {"a/b/cpu.max": "300000 100000", "a/cpu.max": "100000 100000"}, 1),
        ("4:cpuacct,cpu:/docker/x", {f"cpu/docker/x/cpu.cfs_{n}_us": "50000" for n in ("quota", "period")}, 1),
        ("4:cpu:/docker/of/the/host", {"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4),
        ("4:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 0),
        ("4:cpuset:/", {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 0),
    ],
    ids=["container", "no limit", "slice", "version 1", "container, version 1", "no limit, version 1", "another"],
)
def test_a_control_group_may_have_a_quota_of_processor_time(
    tmp_path: Path, own: str, files: dict[str, str], cores: int
) -> None:
    groups = tmp_path / "cgroup"
    groups.write_text(f"{own}\n")
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert cores_of_quota(groups, tmp_path) == cores
    own_cores = len(os.sched_getaffinity(0))
    assert available_cores(groups, tmp_path) == min(cores or own_cores, own_cores)
