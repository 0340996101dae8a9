"""Points: small round spots that restore lost specks, in a few bytes each where an exact patch takes hundreds.

A calcification of a few pixels loses contrast in a downsampled base. The encoder measures the loss and stores the
positions, profiles and heights of the points that make up for it; the decoder adds them. Points restore signal that was
measured in the original, and the gate measures the result like everything else.

A calcification is an opaque grain, so the profiles are those of a disc: the whole disc, or the part of it that a
downsampled base lacks, which is a flat core with a dark rim.
"""

from __future__ import annotations

import lzma
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from storage.errors import PayloadError

Float = NDArray[np.float32]

DISCS = (4.0,)
"""Diameters of the profiles that are a whole disc, in pixels."""
EDGES = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)
"""Diameters of the discs for the other profiles, in pixels: the part of a disc that a low-pass filter removes."""
PROFILES = len(DISCS) + len(EDGES)
"""Number of profiles."""
REACH = 9
"""Distance from the centre of a profile beyond which it is 0, in pixels. Computed for the widest profile."""
_BLUR = 0.6
"""Standard deviation of the Gaussian that blurs each disc as a detector does, in pixels. Chosen, not measured."""
_LOW_PASS = 1.3
"""Standard deviation of the Gaussian that stands for the low-pass filter of a base of half the size, in pixels."""
_FINE = 8
"""Samples per pixel with which a disc is drawn. Chosen, not measured."""
_STEP = 1 / 1024
"""Profiles are rounded to multiples of this, so that they are the same on every machine."""
_LEAST, _PER_OCTAVE, _MOST = 0.25, 14.0, 255
"""Least height in grey levels and steps of heights per doubling, which were chosen, not measured; and the largest step,
which is beyond the range of 16 bits."""
_HEADER = struct.Struct("<BHHI")
_MOST_SPOTS = 1 << 20
"""Most points that a decoder reads: a limit against hostile bytes. An image of 13 megapixels has a few hundred."""
_PLANES = 6
"""Bytes of a point before they are packed, each in a plane of its own."""
_PACKED = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 0, "pb": 0, "dict_size": 1 << 16}]
"""LZMA without contexts: points are few, and a byte says little about the next one."""
_FORMAT = 1


class Point(NamedTuple):
    """One spot: its centre, the number of its ``profile``, and its height as ``level_of`` codes it."""

    row: int
    column: int
    profile: int
    height: int


@dataclass(frozen=True)
class Points:
    """The spots of one image of ``rows`` x ``columns`` pixels."""

    rows: int
    columns: int
    spots: tuple[Point, ...]

    def field(self) -> Float:
        """The sum of the spots: float32 (rows, columns), grey levels. Their order fixes how the sum rounds."""
        around = np.zeros((self.rows + 2 * REACH, self.columns + 2 * REACH), dtype=np.float32)
        for spot in self.spots:
            area = around[spot.row : spot.row + 2 * REACH + 1, spot.column : spot.column + 2 * REACH + 1]
            area += np.float32(grey_levels(spot.height)) * profile(spot.profile)
        return around[REACH : REACH + self.rows, REACH : REACH + self.columns]


def joined(some: Points | None, more: Points | None) -> Points | None:
    """The spots of both, in the order in which a decoder adds them; None if both are None."""
    if some is None or more is None:
        return some or more
    return replace(some, spots=tuple(sorted((*some.spots, *more.spots))))


@lru_cache(maxsize=PROFILES)
def profile(number: int) -> Float:
    """A profile with a peak of 1: float32, (2 REACH + 1, 2 REACH + 1). ``DISCS`` are numbered first, then ``EDGES``."""
    from scipy.ndimage import gaussian_filter

    side = 2 * REACH + 1
    axis = (np.arange(side * _FINE) + 0.5) / _FINE - side / 2
    inside = np.hypot(axis[:, None], axis) <= (DISCS + EDGES)[number] / 2
    spot = inside.reshape(side, _FINE, side, _FINE).mean(axis=(1, 3))
    spot = gaussian_filter(spot, _BLUR, mode="constant")
    if number >= len(DISCS):
        spot -= gaussian_filter(spot, _LOW_PASS, mode="constant")
    whole: Float = (np.rint(spot / spot.max() / _STEP) * _STEP).astype(np.float32)
    return whole


def level_of(grey: float) -> int:
    """The coded height nearest to ``grey`` levels: -255..255, 0 for none. Each step is a twentieth larger."""
    if abs(grey) < _LEAST / 2:
        return 0
    steps = 1 + round(_PER_OCTAVE * float(np.log2(max(abs(grey), _LEAST) / _LEAST)))
    return int(np.sign(grey)) * min(steps, _MOST)


def grey_levels(height: int) -> float:
    """The inverse of ``level_of``, in grey levels."""
    return float(np.sign(height)) * _LEAST * 2.0 ** ((abs(height) - 1) / _PER_OCTAVE) if height else 0.0


def encode_points(points: Points) -> bytes:
    """Points as bytes: format, size of the image, count; then six planes, packed by LZMA.

    The planes are the low and high bytes of all rows (as differences), those of all columns (as differences within a
    row), the profiles with the signs of the heights, and the absolute heights.
    """
    spots = np.array(sorted(points.spots), dtype=np.int64).reshape(-1, 4)
    down = np.diff(spots[:, 0], prepend=0)
    across = np.where(down == 0, np.diff(spots[:, 1], prepend=0), spots[:, 1])
    signed = 2 * spots[:, 2] + (spots[:, 3] < 0)
    planes = [down & 255, down >> 8, across & 255, across >> 8, signed, np.abs(spots[:, 3])]
    body = lzma.compress(np.array(planes, dtype=np.uint8).tobytes(), lzma.FORMAT_RAW, filters=_PACKED)
    return _HEADER.pack(_FORMAT, points.rows, points.columns, len(spots)) + body


def decode_points(data: bytes) -> Points:
    """The inverse of ``encode_points``, with the spots sorted. Raises PayloadError."""
    try:
        form, rows, columns, count = _HEADER.unpack_from(data)
        if form != _FORMAT:
            raise PayloadError(f"points have format {form}; this release reads {_FORMAT}")
        if count > _MOST_SPOTS:
            raise PayloadError(f"points are malformed: {count} are more than any image has")
        size = count * _PLANES
        raw = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_PACKED).decompress(data[_HEADER.size :], size + 1)
    except (struct.error, lzma.LZMAError) as error:
        raise PayloadError(f"points are malformed: {error}") from error
    if len(raw) != size:
        raise PayloadError(f"points hold {len(raw)} bytes, not {size}")
    planes = np.frombuffer(raw, np.uint8).reshape(_PLANES, count).astype(np.int64)
    steps, places, signed = planes[0] + 256 * planes[1], planes[2] + 256 * planes[3], planes[4]
    down, across, profiles = np.cumsum(steps), np.cumsum(places), signed >> 1
    before = np.flatnonzero(np.append(steps, 1)[1:] > 0)[:-1]  # the last spot of each row but the last
    across -= np.repeat(np.append(0, across[before]), np.diff([0, *(before + 1), count]))
    heights = np.where(signed & 1, -planes[5], planes[5])
    if count and (down.max() >= rows or across.max() >= columns or profiles.max() >= PROFILES):
        raise PayloadError("points lie outside the image, or have an unknown profile")
    return Points(rows, columns, _spots(down, across, profiles, heights))


def _spots(*planes: NDArray[np.generic]) -> tuple[Point, ...]:
    lists: Sequence[list[int]] = [plane.tolist() for plane in planes]
    return tuple(Point(*values) for values in zip(*lists, strict=True))
