"""What the machine, or the control groups of this process, grant: processor cores and memory.

A control group may grant less than the machine has, as in a container or with CPUQuota and MemoryMax of systemd.
Version 1 and version 2 of cgroups are read, both of the group itself and of those above it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_OWN = Path("/proc/self/cgroup")
_TREE = Path("/sys/fs/cgroup")


def available_cores(own: Path = _OWN, tree: Path = _TREE) -> int:
    """The number of cores that this process may use up.

    ``own``: names the groups of this process, as in cgroups(7); ``tree``: where they are mounted.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, cores_of_quota(own, tree) or cores)


def cores_of_quota(own: Path = _OWN, tree: Path = _TREE) -> int:
    """The number of cores, rounded up, that use up this process's quota of processor time; 0 if it has no quota.

    The system stops threads that have used up the quota, so that more threads than this only wait for each other.
    ``own`` and ``tree``: as for ``available_cores``.
    """
    found = []
    for folder in _groups("cpu", own, tree):
        with suppress(OSError, ValueError):  # it is not mounted here, or "max"
            if (both := folder / "cpu.max").exists():
                quota, period = map(int, both.read_text().split())
            else:
                quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
            if quota > 0 and period > 0:  # -1 is no limit in version 1
                found.append(math.ceil(quota / period))
    return min(found, default=0)


def available_memory(own: Path = _OWN, tree: Path = _TREE) -> int:
    """Bytes of memory of the machine, or of a control group of this process if that is less.

    ``own`` and ``tree``: as for ``available_cores``.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for folder in _groups("memory", own, tree):
        for name in ("memory.max", "memory.limit_in_bytes"):
            with suppress(OSError, ValueError):
                memory = min(memory, int((folder / name).read_text()))
    return memory


def _groups(controller: str, own: Path, tree: Path) -> Iterator[Path]:
    """The folders of the groups of this process that may limit ``controller``, and of those above them."""
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:  # another system
        return
    for _, controllers, name in lines:
        if not controllers or controller in controllers.split(","):
            top = tree / controller if controllers else tree  # a link, if several controllers share a folder
            group = Path(name.lstrip("/"))
            yield from (top / one for one in (group, *group.parents))
