"""The services that are timed: the same services, which also say how long each piece of work took.

``observe(outcome, seconds)`` is set by whoever wants to know; by itself nobody does.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

from node.archive.intake.ingest import Ingest, Receipt
from node.archive.serve.retrieve import Choice, Retrieve, Sendable
from node.codec.encode.encode_request import EncodeRequest, ReverifyRequest
from node.workers.auditing import AuditRequest
from node.workers.pool import Priority, WorkerPool
from node.workers.worker import Answer, ReconstructRequest, Request

Observe = Callable[[str, float], None]


def nobody(outcome: str, seconds: float) -> None:
    """Nobody wants to know."""


class MeasuredIngest(Ingest):
    """Outcomes: ``stored``, ``refused``."""

    observe: Observe = staticmethod(nobody)

    def receive(self, spooled: Path, *, sop_class: str, sop_instance: str, calling_aet: str) -> Receipt:
        began, outcome = time.monotonic(), "refused"
        try:
            receipt = super().receive(spooled, sop_class=sop_class, sop_instance=sop_instance, calling_aet=calling_aet)
            outcome = "stored"
            return receipt
        finally:
            self.observe(outcome, time.monotonic() - began)


class MeasuredRetrieve(Retrieve):
    """Outcomes: ``original``, ``reconstruction``, ``failed``. The time until the file is there, not its sending."""

    observe: Observe = staticmethod(nobody)

    def make(self, choice: Choice, expected: str = "") -> Sendable:
        began, outcome = time.monotonic(), "failed"
        try:
            made = super().make(choice, expected)
            original = choice.rendition is None or made.sop_instance_uid == choice.instance.sop_instance_uid
            outcome = "original" if original else "reconstruction"
            return made
        finally:
            self.observe(outcome, time.monotonic() - began)


class MeasuredPool(WorkerPool):
    """Outcomes: ``reconstruct``, ``encode``, ``reverify``, ``audit``, each with `` failed`` too; waiting counts."""

    observe: Observe = staticmethod(nobody)

    def submit(self, request: Request, priority: Priority) -> Future[Answer]:
        began, future = time.monotonic(), super().submit(request, priority)
        name = _NAMES.get(type(request))
        if name is not None:
            future.add_done_callback(lambda done: self._settled(name, done, time.monotonic() - began))
        return future

    def _settled(self, name: str, done: Future[Answer], seconds: float) -> None:
        if not done.cancelled():
            self.observe(f"{name} failed" if done.exception() else name, seconds)


_NAMES: dict[type, str] = {
    ReconstructRequest: "reconstruct",
    EncodeRequest: "encode",
    ReverifyRequest: "reverify",
    AuditRequest: "audit",
}
