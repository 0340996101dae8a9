"""Deflated data sets (PS3.5 A.5) inflated into a file, piece by piece, within the limits of this process."""

from __future__ import annotations

import mmap
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from storage.dicom.decode_limits import FREE, decode_limits
from storage.errors import InflatesTooFar, Unparseable

_PIECE = 1 << 20
"""Bytes that are inflated at a time."""


@contextmanager
def inflated(data: memoryview, folder: Path) -> Iterator[mmap.mmap | bytes]:
    """The data set inflated into a file without a name in ``folder``, and mapped from there.

    Raises InflatesTooFar beyond the limits, and Unparseable where the bytes cannot be inflated.
    """
    with _nameless(folder) as file:
        if not _inflate(data, file, min(decode_limits().inflated, max(FREE, decode_limits().ratio * len(data)))):
            yield b""  # which cannot be mapped
            return
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        try:
            yield mapped
        finally:
            with suppress(BufferError):  # views of it may outlive this block: then it closes with them
                mapped.close()


def _inflate(data: memoryview, file: IO[bytes], most: int) -> int:
    written = 0
    for piece in _pieces(data):
        written += file.write(piece)
        if written > most:
            raise InflatesTooFar(
                f"deflated data set of {len(data)} bytes inflates to more than the {most} bytes that are taken "
                "(limits.inflated, limits.ratio)"
            )
    file.flush()
    return written


def _pieces(data: memoryview) -> Iterator[bytes]:
    """What the stream inflates to, in pieces; what lies behind its end is padding."""
    engine, start = zlib.decompressobj(-zlib.MAX_WBITS), 0
    try:
        while not engine.eof:
            coming = engine.unconsumed_tail
            if not coming:
                coming = bytes(data[start : start + _PIECE])
                start += len(coming)
            piece = engine.decompress(coming, _PIECE)
            yield piece
            if not coming and not piece:
                raise Unparseable("deflated data set is truncated")
    except zlib.error as error:
        raise Unparseable(f"deflated data set cannot be inflated: {error}") from error


def _nameless(folder: Path) -> IO[bytes]:
    """A file beside the deflated one, which is on a disk; in the system's folder where that cannot be written to."""
    try:
        return tempfile.TemporaryFile(dir=folder)
    except OSError:
        return tempfile.TemporaryFile()
