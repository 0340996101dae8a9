"""Times the services of a node for its metrics page. ``node.app`` applies this only if metrics are on."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from node.archive.intake.ingest import Ingest
from node.archive.serve.retrieve import Choice, Retrieve, Sendable
from node.codec.encode.encode_request import EncodeRequest, ReverifyRequest
from node.workers.auditing import AuditRequest
from node.workers.pool import Priority, WorkerPool
from node.workers.requests import Answer, ProofRequest, ReconstructRequest, Request

Observe = Callable[[str, float], None]
"""A function that records an outcome and a duration in seconds."""

_REQUESTS: dict[type, str] = {
    ReconstructRequest: "reconstruct",
    EncodeRequest: "encode",
    ReverifyRequest: "reverify",
    AuditRequest: "audit",
    ProofRequest: "prove",
}
"""The outcome of each type of request; others are not timed."""


def time_ingest(ingest: Ingest, observe: Observe) -> None:
    """Time each reception. Outcomes: ``stored``, ``refused``."""
    _time(ingest, "receive", observe, lambda receipt, *_: "stored", failed="refused")


def time_retrieve(retrieve: Retrieve, observe: Observe) -> None:
    """Time each image until its file is ready to send. Outcomes: ``original``, ``reconstruction``, ``failed``."""

    def outcome(made: Sendable, choice: Choice, *_: str) -> str:
        original = choice.rendition is None or made.sop_instance_uid == choice.instance.sop_instance_uid
        return "original" if original else "reconstruction"

    _time(retrieve, "make", observe, outcome, failed="failed")


def time_requests(pool: WorkerPool, observe: Observe) -> None:
    """Time each request with its wait in the queue. Outcomes: values of ``_REQUESTS``, plus `` failed`` on error."""
    submit = pool.submit

    def timed(request: Request[Answer], priority: Priority) -> Future[Answer]:
        began, future = time.monotonic(), submit(request, priority)
        name = _REQUESTS.get(type(request))

        def report(done: Future[Answer]) -> None:
            if name is not None and not done.cancelled():
                observe(f"{name} failed" if done.exception() else name, time.monotonic() - began)

        future.add_done_callback(report)
        return future

    pool.submit = timed  # type: ignore[method-assign]


def _time(service: object, method: str, observe: Observe, outcome: Callable[..., str], *, failed: str) -> None:
    """Replace a method of one service by one that is timed.

    ``outcome``: gives the outcome from the result and the arguments. ``failed``: the outcome of an exception.
    """
    call = getattr(service, method)

    @functools.wraps(call)
    def timed(*arguments: Any, **options: Any) -> Any:
        began, name = time.monotonic(), failed
        try:
            result = call(*arguments, **options)
            name = outcome(result, *arguments)
            return result
        finally:
            observe(name, time.monotonic() - began)

    setattr(service, method, timed)
