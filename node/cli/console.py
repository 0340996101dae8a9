"""The console of all commands. Printed text is never interpreted as markup or as terminal control.

Names, reasons and UIDs come from peers: an AE title may be ``[/b]`` or contain an escape sequence. Bold and coloured
text uses styles. In a pipe or a file, tables have no frames and no line is wrapped.
"""

from __future__ import annotations

import sys
from typing import Any

from rich import console
from rich.table import Table
from rich.text import Text

from node.cli.exit_codes import PIPE_CLOSED
from storage.printable import plain

_WIDE = 100_000
"""Width in columns if the output is not a terminal: a cell of the audit trail may contain 100 UIDs."""


class Console(console.Console):
    """Prints text unchanged. ``stderr``: to standard error. ``soft_wrap``: the terminal wraps long lines."""

    def __init__(self, *, stderr: bool = False, soft_wrap: bool = False) -> None:
        super().__init__(stderr=stderr, soft_wrap=soft_wrap, markup=False, highlight=False, emoji=False)
        if not self.is_terminal:
            self.width = _WIDE

    def print(self, *objects: Any, **options: Any) -> None:
        """Print. No cell of a table is cut, since half a UID is useless. Without a terminal, tables have no frames, so
        that programs can read the columns."""
        for table in objects:
            if isinstance(table, Table):
                for column in table.columns:
                    column.overflow = "fold"
                if not self.is_terminal:
                    table.box, table.pad_edge, table.title_justify = None, False, "left"
        super().print(*objects, **options)

    def on_broken_pipe(self) -> None:
        """End the command, because the reader of standard error closed it."""
        sys.exit(PIPE_CLOSED)

    def render_str(self, text: str, **options: Any) -> Text:
        """Make every printed string, and every cell of a table, plain."""
        lines = text.split("\n") if isinstance(text, str) else [str(text)]
        return super().render_str("\n".join(map(plain, lines)), **options)


_SHOWN = 20
"""Lines of a list that are printed for people."""


def print_some(console: Console, lines: list[str]) -> None:
    """Print the first lines of a list of findings, and the number of the others."""
    for line in lines[:_SHOWN]:
        console.print(line, style="bold red")
    if len(lines) > _SHOWN:
        console.print(f"and {len(lines) - _SHOWN} more; --json lists them all")
