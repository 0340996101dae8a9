"""Runs work in a thread of its own while the caller keeps a peer informed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any


def is_done(future: Future[Any], within: float) -> bool:
    """Wait at most ``within`` seconds; True if the future has a result or an error."""
    return bool(wait([future], timeout=within).done)


def run_in_thread(work: Callable[[], Any]) -> Future[Any]:
    """Start work in a thread of its own and return its future."""
    future: Future[Any] = Future()

    def work_in_thread() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised to the caller of result()
            future.set_exception(error)

    threading.Thread(target=work_in_thread, name="sub-operation", daemon=True).start()
    return future
