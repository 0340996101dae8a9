"""Memory and processor time of a worker: their limits, and how freed memory is kept while it works on an image.

By default glibc maps every array above 32 MB anew and unmaps it at once, so that the system zeroes each page again:
a tenth of the time of encoding (mallopt(3), M_MMAP_MAX). Here freed memory is kept during a request, and returned to
the system afterwards. Without glibc, nothing is changed.
"""

from __future__ import annotations

import ctypes
import math
import resource
import sys
import time
from functools import lru_cache
from pathlib import Path

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
"""Parameters of mallopt, from malloc.h."""
_NEVER = 0x7FFFFFFF
"""Trim threshold, in bytes, that is never reached."""
_PADDING = 64 << 20
"""Bytes that the heap grows by at once."""


def keep_freed() -> None:
    """Keep freed memory in the process until ``give_back``."""
    library = _glibc()
    if library is not None:
        library.mallopt(_MMAP_MAX, 0)
        library.mallopt(_TRIM_THRESHOLD, _NEVER)
        library.mallopt(_TOP_PAD, _PADDING)


def give_back() -> None:
    """Return free memory to the system."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


def limit_to(bytes_more: int) -> None:
    """Limit the further address space of this process, in bytes; 0 is no limit.

    An allocation beyond it fails with MemoryError. CUDA reserves address space for the whole device, so a process on a
    machine with an NVIDIA device is not limited.
    """
    if not bytes_more or any(Path("/dev").glob("nvidia[0-9]*")):
        return
    has = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = has + bytes_more
    resource.setrlimit(resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def limit_time(seconds_more: float) -> None:
    """Limit the further processor time of this process, in seconds; 0 is no limit. The system ends it with SIGXCPU."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = math.ceil(time.process_time() + seconds_more) if seconds_more else resource.RLIM_INFINITY
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


@lru_cache(maxsize=1)
def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
