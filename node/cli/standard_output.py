"""Standard output as a file that an error names. If its reader closes the pipe, the command ends silently.

A standard stream that the caller closed is the null device.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from node.cli.exit_codes import PIPE_CLOSED

NAME = "standard output"


def replace_closed_streams() -> None:
    """Open the null device for each of the descriptors 0 to 2 that is closed.

    A file of the archive would get its number, and receive what a library prints.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:  # the lowest one that is free
        os.set_inheritable(number, True)  # by the worker processes
    os.close(number)


def name_standard_output() -> None:
    """Make errors of standard output name it. If the caller has closed it, what the command prints is dropped.

    What its encoding lacks, such as a Japanese name in Latin 1, is escaped as Python does on standard error.
    """
    out = sys.stdout
    if out is None:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - it stays open until the process ends
    else:
        unbuffered = getattr(out, "write_through", False)  # as PYTHONUNBUFFERED demands
        errors = "backslashreplace" if out.errors == "strict" else out.errors
        sys.stdout = _StandardOutput(
            out.buffer, out.encoding, errors, line_buffering=out.isatty(), write_through=unbuffered
        )


class _StandardOutput(io.TextIOWrapper):
    def write(self, text: str) -> int:
        with _named():
            return super().write(text)

    def flush(self) -> None:
        with _named():
            super().flush()


@contextmanager
def _named() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        sys.stdout = None  # what it still holds cannot be written at the end of the process either
        sys.exit(PIPE_CLOSED)
    except OSError as error:
        error.filename = NAME
        raise
