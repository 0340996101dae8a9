"""Runs a function on the parts of an image in threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def on_all_cores(one: Callable[[T], R], parts: Iterable[T]) -> list[R]:
    """The results of ``one`` for every part, in order. Each call runs in a thread in which torch uses one core.

    The operations on a part are too small to be shared between cores, and on a busy machine threads that synchronise at
    every operation lose much time. The result does not depend on the number of cores.
    """
    import torch

    cores = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as threads:
            return list(threads.map(one, parts))
    finally:
        torch.set_num_threads(cores)
