"""Encodes RLE Lossless (PS3.5 Annex G) as most toolkits do, so that a codestream can be rebuilt from its pixels.

PackBits leaves choices to the encoder. These rules reproduce the codestreams of CBIS-DDSM byte for byte:

- Two equal bytes form a run, unless they are inside a literal.
- A literal ends before three equal bytes, or before two at the end of the line or at the literal's 127th byte.
- A literal of 127 bytes takes one byte more.

Every packed codestream is compared with the original by digest (storage/formats/packed_original.py).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_LINES_AT_ONCE = 1024
"""Lines that are encoded together. Chosen, not measured."""
_MAX_LENGTH = 128
"""Maximum bytes of a literal or a run."""


def encode_plane(plane: NDArray[np.uint8]) -> bytes:
    """Encode one byte plane, shape (rows, columns), as a segment that is not padded to an even length."""
    blocks = range(0, len(plane), _LINES_AT_ONCE)
    return b"".join(_encode_lines(np.ascontiguousarray(plane[at : at + _LINES_AT_ONCE])) for at in blocks)


def _encode_lines(lines: NDArray[np.uint8]) -> bytes:
    """Encode all lines in parallel: each iteration encodes the next literal or run of every unfinished line."""
    count, width = lines.shape
    run, stop = _lookahead(lines)
    at = np.zeros(count, np.int64)
    unfinished = np.arange(count)
    parts: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]] = []
    while unfinished.size:
        offset = at[unfinished]
        flat = offset * count + unfinished
        is_run = run[flat] >= 2
        ends_in_pair = run[np.minimum(offset + _MAX_LENGTH - 2, width) * count + unfinished] >= 2
        literal = stop[flat] - offset
        full = np.where(ends_in_pair, _MAX_LENGTH - 2, np.minimum(_MAX_LENGTH, width - offset))
        literal = np.where(literal <= _MAX_LENGTH - 2, literal, full)
        size = np.where(is_run, np.minimum(run[flat], _MAX_LENGTH), literal)
        parts.append((unfinished * width + offset, size, is_run))
        at[unfinished] = offset + size
        unfinished = unfinished[offset + size < width]
    starts, sizes, runs = (np.concatenate(part) for part in zip(*parts, strict=True))
    order = np.argsort(starts)
    return _assemble(lines, starts[order], sizes[order], runs[order])


def _lookahead(lines: NDArray[np.uint8]) -> tuple[NDArray[np.int16], NDArray[np.int32]]:
    """For each byte and one position past each line's end, in column-major order: the number of equal bytes that start
    here, and the column at which a literal that includes this position ends."""
    count, width = lines.shape
    columns = np.ascontiguousarray(lines.T)  # columns are contiguous, which is faster
    same = np.zeros((width, count), np.int16)
    same[:-1] = columns[:-1] == columns[1:]
    run = np.zeros((width + 1, count), np.int16)
    stop = np.full((width + 1, count), width, np.int32)
    for column in range(width - 1, -1, -1):
        here = run[column]
        np.minimum(run[column + 1], _MAX_LENGTH, out=here)
        here *= same[column]
        here += 1
        ends = here >= (2 if column == width - 2 else 3)
        np.copyto(stop[column], stop[column + 1])
        np.putmask(stop[column], ends, column)
    return run.ravel(), stop.ravel()


def _assemble(
    lines: NDArray[np.uint8], starts: NDArray[np.int64], sizes: NDArray[np.int64], runs: NDArray[np.bool_]
) -> bytes:
    """Headers and data bytes in order: the first byte of each run, all bytes of each literal."""
    edges = np.zeros(lines.size + 1, np.int8)
    edges[starts[runs] + 1] += 1
    edges[starts[runs] + sizes[runs]] -= 1
    kept = np.cumsum(edges[:-1], dtype=np.int8) == 0
    bytes_of = np.where(runs, 2, sizes + 1)
    headers = np.cumsum(bytes_of) - bytes_of
    out = np.empty(int(bytes_of.sum()), np.uint8)
    is_byte = np.ones(out.size, np.bool_)
    is_byte[headers] = False
    out[headers] = np.where(runs, 257 - sizes, sizes - 1).astype(np.uint8)
    out[is_byte] = lines.ravel()[kept]
    return out.tobytes()
