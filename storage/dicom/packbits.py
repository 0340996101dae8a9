"""RLE Lossless (PS3.5 Annex G) as most toolkits write it, so that a codestream can be rebuilt from its pixels.

PackBits leaves choices to the encoder. The rule here, found by comparing with codestreams of CBIS-DDSM and true for
them byte by byte: two equal bytes are a run, except inside a literal, which only three end, or two at the end of the
line or at its 127th byte; a literal of 127 takes one byte more. Whether it holds for a given codestream is proved
each time by comparing digests (storage/formats/packed_original.py).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_LINES_AT_ONCE = 1024
_MOST = 128
"""Bytes that one literal or run holds at most."""


def encode_plane(plane: NDArray[np.uint8]) -> bytes:
    """One byte plane, shape (rows, columns), as the segment that the rule gives; not padded to an even length."""
    blocks = range(0, len(plane), _LINES_AT_ONCE)
    return b"".join(_encode_lines(np.ascontiguousarray(plane[at : at + _LINES_AT_ONCE])) for at in blocks)


def _encode_lines(lines: NDArray[np.uint8]) -> bytes:
    """All lines at once: each turn of the loop takes one literal or run off every line."""
    count, width = lines.shape
    run, stop = _lookahead(lines)
    at = np.zeros(count, np.int64)
    open_lines = np.arange(count)
    found: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]] = []
    while open_lines.size:
        offset = at[open_lines]
        flat = offset * count + open_lines
        is_run = run[flat] >= 2
        pair_at_the_end = run[np.minimum(offset + _MOST - 2, width) * count + open_lines] >= 2
        literal = stop[flat] - offset
        full = np.where(pair_at_the_end, _MOST - 2, np.minimum(_MOST, width - offset))
        literal = np.where(literal <= _MOST - 2, literal, full)
        size = np.where(is_run, np.minimum(run[flat], _MOST), literal)
        found.append((open_lines * width + offset, size, is_run))
        at[open_lines] = offset + size
        open_lines = open_lines[offset + size < width]
    starts, sizes, runs = (np.concatenate(part) for part in zip(*found, strict=True))
    order = np.argsort(starts)
    return _assemble(lines, starts[order], sizes[order], runs[order])


def _lookahead(lines: NDArray[np.uint8]) -> tuple[NDArray[np.int16], NDArray[np.int32]]:
    """Per byte (and one past each line's end), column by column: how many equal bytes begin here, and where a literal
    that reaches here ends."""
    count, width = lines.shape
    columns = np.ascontiguousarray(lines.T)  # a column is faster to work on where it lies together
    same = np.zeros((width, count), np.int16)
    same[:-1] = columns[:-1] == columns[1:]
    run = np.zeros((width + 1, count), np.int16)
    stop = np.full((width + 1, count), width, np.int32)
    for column in range(width - 1, -1, -1):
        here = run[column]
        np.minimum(run[column + 1], _MOST, out=here)
        here *= same[column]
        here += 1
        ends = here >= (2 if column == width - 2 else 3)
        np.copyto(stop[column], stop[column + 1])
        np.putmask(stop[column], ends, column)
    return run.ravel(), stop.ravel()


def _assemble(
    lines: NDArray[np.uint8], starts: NDArray[np.int64], sizes: NDArray[np.int64], runs: NDArray[np.bool_]
) -> bytes:
    """Headers and bytes in their order: of a run its first byte, of a literal all."""
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
