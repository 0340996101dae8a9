"""Decides how many images are encoded at the same time, and starts the worker processes for it.

One image alone leaves cores idle: the coder uses one thread, and each step of the search depends on the step before.
With several images, each has its own process with a share of the cores. Viewers are then served by another process, and
the encoders have a lower scheduling priority than it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from node.config import Settings
from node.workers.pool import WorkerPool
from node.workers.worker import NICE

EACH = 2_500_000_000
"""Bytes of memory that encoding one image of 13 megapixels takes, as measured."""
_SHARE_OF_MEMORY = 0.75
"""Largest share of the memory that encoding may use if archivist.concurrency is 0. Chosen, not measured."""
_MOST = 8
"""Most images that are encoded at the same time if archivist.concurrency is 0, since on a GPU each worker has a context
of its own. Chosen, not measured."""
_NICER = 5
"""Added to the nice value of encoders, so that the worker that serves viewers comes first. Chosen, not measured."""
_CONTROL_GROUPS = Path("/sys/fs/cgroup")


def encoders_beside(pool: WorkerPool, settings: Settings) -> WorkerPool:
    """The pool of the encoder workers: ``pool``, which also serves viewers, if only one image is encoded at a time."""
    cores = settings.reconstruct.threads or available_cores()
    possible = min(cores, int(_SHARE_OF_MEMORY * available_memory() / EACH), _MOST)
    size = settings.archivist.concurrency or max(1, possible)
    if size == 1 or settings.reconstruct.upscaler == "sd_x2":  # the pixels of sd_x2 depend on the number of threads
        return pool
    each = settings.reconstruct.model_copy(update={"threads": max(1, cores // size)})
    limits = settings.limits
    return WorkerPool(each, size=size, name="encode", nice=NICE + _NICER, within=limits.encoders, idle=limits.idle)


def available_cores() -> int:
    """The number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory(own: Path = Path("/proc/self/cgroup"), tree: Path = _CONTROL_GROUPS) -> int:
    """Bytes of memory of the machine, or of a control group of this process if that is less, as in a container or with
    MemoryMax of systemd. ``own``: names its groups, as in cgroups(7)."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in _limits(own, tree):
        with suppress(OSError, ValueError):  # it is not mounted here, or "max"
            memory = min(memory, int(limit.read_text()))
    return memory


def _limits(own: Path, tree: Path) -> Iterator[Path]:
    """The files of limits of the groups of this process and of those above them, in version 2 and in version 1."""
    try:
        groups = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:  # another system
        return
    for _, controllers, name in groups:
        top, file = (tree / "memory", "memory.limit_in_bytes") if controllers else (tree, "memory.max")
        if controllers in ("", "memory"):
            group = Path(name.lstrip("/"))
            yield from (top / one / file for one in (group, *group.parents))
