"""The interfaces of a job and of its run. node/app/job_wiring.py builds the jobs of an archive."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

JSON = str | int | float | bool | None | list[Any] | dict[str, Any]


class Run(Protocol):
    """A run in progress, as its job sees it."""

    def progress(self, done: int, total: int, text: str = "") -> None:
        """Report progress; cheap, call it often. ``text`` must not contain patient data."""

    @property
    def cancelled(self) -> bool:
        """Whether the run should end: it was cancelled, the node stops, or the lease was lost."""


class Job(Protocol):
    """Work that starts on schedule or on request, one run at a time in a group of nodes.

    A run may be interrupted at any point and start again, so every step must be safe to repeat.
    """

    @property
    def name(self) -> str: ...

    @property
    def summary(self) -> str:
        """One line for ``latent-pacs jobs list``."""

    def run(self, run: Run) -> dict[str, JSON]:
        """Do the work; the report is stored in the history. An exception makes the run ``failed``."""


@dataclass(frozen=True)
class FunctionJob:
    """A job whose work is a function: ``work(progress, cancelled)`` returns its report."""

    name: str
    summary: str
    work: Callable[[Callable[[int, int], None], Callable[[], bool]], dict[str, JSON]]

    def run(self, run: Run) -> dict[str, JSON]:
        return self.work(run.progress, lambda: run.cancelled)
