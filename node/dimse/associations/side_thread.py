"""Work in a thread of its own, for who has to look after something else meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


def is_done(future: Future[Any], within: float) -> bool:
    """Whether it has an outcome, be it an error, within so many seconds."""
    try:
        future.exception(timeout=within)
    except TimeoutError:
        return False
    return True


def aside(work: Callable[[], Any]) -> Future[Any]:
    """Work in a thread of its own, so that this one can keep the requester informed."""
    future: Future[Any] = Future()

    def carry_out() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - it belongs to whoever asks for the result
            future.set_exception(error)

    threading.Thread(target=carry_out, name="sub-operation", daemon=True).start()
    return future
