"""What a worker does with memory it has freed: kept while an image is worked on, given back after it.

glibc asks the system anew for every array above 32 MB and returns it at once, so that each page of it is zeroed again:
a tenth of the time that encoding takes (mallopt(3), M_MMAP_MAX). Elsewhere than on glibc nothing is changed.
"""

from __future__ import annotations

import ctypes
import sys
from functools import lru_cache
from pathlib import Path

try:
    import resource
except ImportError:  # not on this system
    resource = None  # type: ignore[assignment]

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
"""Parameters of mallopt, from malloc.h."""
_KEPT = 0x7FFFFFFF
_AT_A_TIME = 64 << 20


def keep_freed() -> None:
    """From now on freed memory stays with the process, until ``give_back``."""
    library = _glibc()
    if library is not None:
        library.mallopt(_MMAP_MAX, 0)
        library.mallopt(_TRIM_THRESHOLD, _KEPT)
        library.mallopt(_TOP_PAD, _AT_A_TIME)


def give_back() -> None:
    """Return what is free to the system."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


def limit_to(bytes_more: int) -> None:
    """Let this process take at most so much address space more; 0 is no limit.

    An allocation beyond it fails with MemoryError. CUDA reserves address space for the whole device, so a process that
    may use one is not limited.
    """
    if not bytes_more or resource is None or any(Path("/dev").glob("nvidia[0-9]*")):
        return
    has = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = has + bytes_more
    resource.setrlimit(resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


@lru_cache(maxsize=1)
def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
