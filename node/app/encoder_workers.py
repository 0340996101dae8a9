"""How many images the archivist encodes at once, and the workers that do it.

One image after the other leaves cores idle: a coder of one thread, a search whose next step rests on the last one. So
each of several has a process of its own, with its share of the cores, and viewers have another, to which these give
way.
"""

from __future__ import annotations

import os
from pathlib import Path

from node.config import Settings
from node.workers.pool import WorkerPool
from node.workers.worker import NICE

EACH = 2_500_000_000
"""Bytes that encoding an image of 13 megapixels takes at most."""
_OF_MEMORY = 0.75
"""Of the memory that is there, what encoding may take where the number of images is left to us."""
_MOST = 8
"""Images at once where that is left to us: on a GPU each worker has a context of its own there."""
_GIVES_WAY = 5
"""Beyond what workers leave to associations, what these leave to the one that viewers wait for."""
_LIMIT = Path("/sys/fs/cgroup/memory.max")


def encoders_beside(pool: WorkerPool, settings: Settings) -> WorkerPool:
    """The archivist's workers; ``pool``, which serves viewers, where one image is encoded at once."""
    cores = settings.reconstruct.threads or available_cores()
    size = settings.archivist.at_once or max(1, min(cores, int(_OF_MEMORY * available_memory() / EACH), _MOST))
    if size == 1 or settings.reconstruct.upscaler == "sd_x2":  # whose pixels depend on the number of threads
        return pool
    each = settings.reconstruct.model_copy(update={"threads": max(1, cores // size)})
    return WorkerPool(
        each,
        size=size,
        name="encode",
        nice=NICE + _GIVES_WAY,
        within=settings.limits.encoders,
        idle=settings.limits.idle,
    )


def available_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory(limit: Path = _LIMIT) -> int:
    """Bytes of the machine, or of the control group where that has less."""
    has = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(has, int(limit.read_text()))
    except (OSError, ValueError):  # another system, or "max"
        return has
