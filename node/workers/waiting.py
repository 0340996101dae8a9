"""Waits for the result of a future, ends the wait when it is cancelled, and keeps a lease alive meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from storage.errors import Cancelled

_POLL = 0.2
"""Seconds between two checks of whether the wait was cancelled."""

Result = TypeVar("Result")


def wait_for_result(
    future: Future[Result],
    cancelled: Callable[[], bool],
    *,
    renew: Callable[[], object] | None = None,
    every: float = 0.0,
) -> Result:
    """Wait for the result of a future, and call ``renew`` every ``every`` seconds meanwhile.

    Raises Cancelled, and cancels the future, once ``cancelled()`` is true; otherwise whatever the future raises.
    """
    renewed = time.monotonic()
    while not cancelled():
        try:
            return future.result(timeout=_POLL)
        except TimeoutError:
            if future.done():  # the work itself raised TimeoutError
                raise
        if renew is not None and time.monotonic() >= renewed + every:
            renew()
            renewed = time.monotonic()
    future.cancel()
    raise Cancelled
