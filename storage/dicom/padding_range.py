"""Which pixels of an image are padding (PS3.3 C.7.5.1.1.2)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from storage.dicom.elements import readable

_VALUES = 1 << 16
"""Number of values of a 16-bit pixel."""


def padding_range(header: Dataset) -> tuple[int, int] | None:
    """The inclusive range from Pixel Padding Value to Pixel Padding Range Limit, if given; None without padding.

    Pixels are unsigned here. Negative numbers, as of a wrong VR SS, are read as unsigned numbers of the same 16 bits. A
    range that only begins below 0 or ends above 65535 is clipped to these. If an attribute has several values, the
    range reaches from the least to the greatest of all.
    """
    values = _words(header, "PixelPaddingValue")
    if not values:
        return None
    values += _words(header, "PixelPaddingRangeLimit")
    low, high = min(values), max(values)
    if high < 0:
        low, high = low + _VALUES, high + _VALUES
    low, high = max(low, 0), min(high, _VALUES - 1)
    return (low, high) if low <= high else None


def padding_mask(pixels: NDArray[np.uint16], header: Dataset) -> NDArray[np.bool_] | None:
    """Which pixels are padding: bool, the shape of ``pixels``; None if none is."""
    padding = padding_range(header)
    if padding is None:
        return None
    inside = (pixels >= padding[0]) & (pixels <= padding[1])
    return inside if inside.any() else None


def _words(header: Dataset, keyword: str) -> list[int]:
    """The values of an attribute of 16-bit words as integers; an empty list if it is absent or cannot be read."""
    value = readable(header, keyword)
    try:
        if isinstance(value, bytes):  # received as OB, OW or UN
            return [int(one) for one in np.frombuffer(value, "<u2")]
        values = [] if value in (None, "") else [value] if isinstance(value, str) or not np.iterable(value) else value
        return [int(one) for one in values]
    except (TypeError, ValueError, OverflowError):
        return []
