"""Inflates deflated data sets (PS3.5 A.5) into a temporary file, within the limits of this process, and deflates them.

The inflated bytes are written in pieces, so that they are never in memory as a whole.
"""

from __future__ import annotations

import mmap
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, JPIPHTJ2KReferencedDeflate

from storage.dicom.decode_limits import FREE, decode_limits
from storage.errors import InflatesTooFar, Unparseable

JPIP_REFERENCED_DEFLATE = UID("1.2.840.10008.1.2.4.95")
DEFLATED = frozenset({DeflatedExplicitVRLittleEndian, JPIP_REFERENCED_DEFLATE, JPIPHTJ2KReferencedDeflate})
"""Transfer syntaxes whose data set is deflated (PS3.5 A.5, A.7, A.14)."""
_PIECE = 1 << 20
"""Bytes that are read and inflated at a time."""


@contextmanager
def inflated(data: memoryview, folder: Path) -> Iterator[mmap.mmap | bytes]:
    """Inflate a data set into an unnamed file in ``folder``, and map it into memory.

    Raises InflatesTooFar above the limits, and Unparseable if the bytes cannot be inflated.
    """
    with _unnamed(folder) as file:
        if not _inflate(data, file, min(decode_limits().inflated, max(FREE, decode_limits().ratio * len(data)))):
            yield b""  # an empty file cannot be mapped
            return
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        try:
            yield mapped
        finally:
            with suppress(BufferError):  # views may outlive this block; the mapping is closed when they are freed
                mapped.close()


def deflated(pieces: Iterable[bytes | memoryview]) -> Iterator[bytes]:
    """A data set in pieces, deflated."""
    engine = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    length = 0
    for piece in (*map(engine.compress, pieces), engine.flush()):
        length += len(piece)
        yield piece
    yield b"\0" * (length % 2)  # PS3.5 A.5


def _inflate(data: memoryview, file: IO[bytes], limit: int) -> int:
    written = 0
    for piece in _pieces(data):
        written += file.write(piece)
        if written > limit:
            raise InflatesTooFar(
                f"deflated data set of {len(data)} bytes inflates to more than {limit} bytes "
                "(limits.inflated, limits.ratio)"
            )
    file.flush()
    return written


def _pieces(data: memoryview) -> Iterator[bytes]:
    """The inflated stream in pieces. Bytes after its end are padding, and are ignored."""
    engine, start = zlib.decompressobj(-zlib.MAX_WBITS), 0
    try:
        while not engine.eof:
            source = engine.unconsumed_tail
            if not source:
                source = bytes(data[start : start + _PIECE])
                start += len(source)
            piece = engine.decompress(source, _PIECE)
            yield piece
            if not source and not piece:
                raise Unparseable("deflated data set is truncated")
    except zlib.error as error:
        raise Unparseable(f"deflated data set cannot be inflated: {error}") from error


def _unnamed(folder: Path) -> IO[bytes]:
    """A temporary file beside the deflated one, or in the system's folder if that is not writable.

    The system's folder may be in memory, so it comes second.
    """
    try:
        return tempfile.TemporaryFile(dir=folder)
    except OSError:
        return tempfile.TemporaryFile()
