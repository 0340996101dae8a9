"""A job: a name, and a function that does its work. node/app/job_wiring.py builds the jobs of an archive."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

JSON = str | int | float | bool | None | list[Any] | dict[str, Any]


class Progress(Protocol):
    """Reports the progress of a run; cheap, call it often. ``text`` must not contain patient data."""

    def __call__(self, done: int, total: int, text: str = "", /) -> None: ...


@dataclass(frozen=True)
class Job:
    """Work that starts on schedule or on request, one run at a time, in the node or in a command.

    ``summary``: one line for ``latent-pacs jobs list``. ``work(progress, cancelled)`` returns the report, which the
    history keeps; an exception makes the run ``failed``. ``cancelled()``: whether the run should end, because it was
    cancelled, the node stops, or the lease was lost. A run may be interrupted at any point and start again, so every
    step must be safe to repeat.
    """

    name: str
    summary: str
    work: Callable[[Progress, Callable[[], bool]], dict[str, JSON]]
