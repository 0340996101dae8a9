"""A job run without the job runner."""

from __future__ import annotations


class CountedRun:
    """A run that can be cancelled after so many steps."""

    def __init__(self, steps: int = 10**9) -> None:
        self.steps, self.last = steps, (0, 0, "")

    def progress(self, done: int, total: int, text: str = "") -> None:
        self.steps -= 1
        self.last = (done, total, text)

    @property
    def cancelled(self) -> bool:
        return self.steps <= 0
