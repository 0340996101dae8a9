"""Decides how many images are encoded at the same time, and starts the worker processes for it.

One image alone leaves cores idle: the coder uses one thread, and each step of the search depends on the step before.
With several images, each has its own process with a share of the cores. Viewers are then served by another process, and
the encoders have a lower scheduling priority than it.
"""

from __future__ import annotations

from node.config import Settings
from node.workers.machine import available_cores, available_memory
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
