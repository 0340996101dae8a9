"""The console of every command. Nothing that is printed is markup, and nothing steers the terminal.

Names, reasons and UIDs come from peers: an AE title may be ``[/b]``, or hold an escape sequence. What is to be bold or
coloured says so by a style. Without a terminal, as in a pipe or a file, lines are as long as what they hold.
"""

from __future__ import annotations

from typing import Any

from rich import console
from rich.text import Text

from storage.printable import plain

_WIDE = 100_000
"""Columns where there is no terminal: the audit trail names up to 100 UIDs in one cell."""


class Console(console.Console):
    """Prints text as it is. ``stderr``: to standard error. ``soft_wrap``: lines are left to the terminal to wrap."""

    def __init__(self, *, stderr: bool = False, soft_wrap: bool = False) -> None:
        super().__init__(stderr=stderr, soft_wrap=soft_wrap, markup=False, highlight=False, emoji=False)
        if not self.is_terminal:
            self.width = _WIDE

    def render_str(self, text: str, **options: Any) -> Text:
        """Every string that is printed, and every cell of a table, comes by here."""
        lines = text.split("\n") if isinstance(text, str) else [str(text)]
        return super().render_str("\n".join(map(plain, lines)), **options)
