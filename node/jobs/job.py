"""What a job is, and what it may ask of the run that it is in. ``node/app.py`` composes the jobs there are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

JSON = str | int | float | bool | None | list[Any] | dict[str, Any]


class Run(Protocol):
    """One run in progress, as its job sees it."""

    def progress(self, done: int, total: int, text: str = "") -> None:
        """How far it is; cheap, to be called often. No patient data in ``text``."""

    @property
    def cancelled(self) -> bool:
        """True once the run should end: somebody cancelled it, the node stops, or the lease was lost."""


class Job(Protocol):
    """Work that begins on schedule or on request, one run at a time in a group of nodes.

    A run may be cut off at any point and begin again: what it does must be safe to do twice.
    """

    @property
    def name(self) -> str: ...

    @property
    def summary(self) -> str:
        """One line for ``latent-pacs jobs list``."""

    def run(self, run: Run) -> dict[str, JSON]:
        """Do the work; the report goes into the history. An exception makes the run ``failed``."""


@dataclass(frozen=True)
class FunctionJob:
    """A function as a job: its report from ``work(progress(done, total), cancelled())``."""

    name: str
    summary: str
    work: Callable[[Callable[[int, int], None], Callable[[], bool]], dict[str, JSON]]

    def run(self, run: Run) -> dict[str, JSON]:
        return self.work(run.progress, lambda: run.cancelled)
