"""Work on parts of an image, a part per thread."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def on_all_cores(one: Callable[[T], R], parts: Iterable[T]) -> list[R]:
    """``one`` for every part, in order, each in a thread with torch on one core.

    A part's operations are too small to share between cores, and threads that wait for each other at every one of them
    lose badly on a busy machine. The result does not depend on how many cores there are.
    """
    import torch

    cores = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as threads:
            return list(threads.map(one, parts))
    finally:
        torch.set_num_threads(cores)
