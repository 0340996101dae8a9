"""The progress of long commands, on standard error: a bar on a terminal, otherwise a line every few seconds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from node.cli.console import Console

_INTERVAL = 5.0
"""Seconds between two lines."""


class Report(Protocol):
    """Shows the progress. ``total`` is 0 while it is unknown; ``note`` names the current item."""

    def __call__(self, done: int, total: int = 0, note: str = "") -> None: ...


@contextmanager
def progress(name: str, unit: str = "", *, interval: float = _INTERVAL) -> Iterator[Report]:
    """Show the progress of one task within the block."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(console, name, unit, interval)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit, markup=False),
        TextColumn("{task.fields[note]}", markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(name, total=None, note="")

        def report(done: int, total: int = 0, note: str = "") -> None:
            bar.update(task, completed=done, total=total or None, note=note)

        yield report


class _Lines:
    """Prints a line at most every ``interval`` seconds, and when a task that printed one is complete."""

    def __init__(self, console: Console, name: str, unit: str, interval: float) -> None:
        self._console, self._name, self._unit, self._interval = console, name, unit, interval
        self._began = self._printed = time.monotonic()
        self._last = (0, 0)

    def __call__(self, done: int, total: int = 0, note: str = "") -> None:
        now, complete = time.monotonic(), bool(total) and done >= total
        seen_before = (done, total) == self._last
        if now - self._printed < self._interval and not (complete and self._printed > self._began and not seen_before):
            return
        self._printed, self._last = now, (done, total)
        of = f" of {total}" if total else ""
        words = [f"{self._name}: {done}{of}", self._unit, f"{100 * done // total}%" if total else "", note]
        text = " ".join(word for word in words if word)
        self._console.print(f"{text} ({now - self._began:.0f} s)", soft_wrap=True)
