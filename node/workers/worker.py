"""The code of a worker process, and the state that it keeps between requests.

Nothing here uses DIMSE or the index. A crash in a decoder or in torch ends this process only.
"""

from __future__ import annotations

import os
import signal
import threading

from node.config import ReconstructSettings
from node.upscalers.catalogue import Catalogue
from node.workers.machine import cores_of_quota
from node.workers.memory import give_back, keep_freed, limit_time, limit_to
from node.workers.requests import Answer, CheckRequest, Request
from storage.dicom.decode_limits import DecodeLimits, decode_limits, set_decode_limits
from storage.dicom.dicomfile import accept_odd_values
from storage.errors import OutOfMemory

NICE = 12
"""Added to the nice value of a worker process, so that associations come first. Chosen, not measured."""

WHOLE_OBJECT_FACTOR = 30
"""Multiple of limits.decoder_time that a request other than CheckRequest may take: it is about a whole object, which
may have many frames. Chosen, not measured."""

_catalogue: Catalogue | None = None


def start(settings: ReconstructSettings, nice: int = NICE, within: DecodeLimits | None = None) -> None:
    """Initialise a worker process; runs once, before its first request."""
    global _catalogue  # noqa: PLW0603 - the state of a worker process is its module
    set_decode_limits(within or DecodeLimits())
    limit_to(decode_limits().memory)
    _catalogue = Catalogue(settings)
    accept_odd_values()
    keep_freed()
    for number in (signal.SIGINT, signal.SIGHUP):  # a terminal sends them to the whole group; the parent handles them
        signal.signal(number, signal.SIG_IGN)
    os.nice(nice)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if settings.threads:
        os.environ["OMP_NUM_THREADS"] = str(settings.threads)
    elif cores := cores_of_quota():
        os.environ.setdefault("OMP_NUM_THREADS", str(cores))


def answer(request: Request[Answer]) -> Answer:
    """Answer one request; the parent raises its errors. Raises OutOfMemory if the memory limit was reached."""
    assert _catalogue is not None, "the worker was not started"
    kind: type = type(request)
    limit_time(decode_limits().seconds * (1 if kind is CheckRequest else WHOLE_OBJECT_FACTOR))
    try:
        return request.answer(_catalogue)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "allocate memory" not in str(error):  # torch's message
            raise
        raise OutOfMemory(f"{kind.__name__} takes more memory than a worker may have (limits)") from error
    finally:
        give_back()


def _end_with_parent() -> None:
    """End this process when the parent ends; otherwise, it would wait forever after the parent was killed."""
    from multiprocessing import connection, parent_process

    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
