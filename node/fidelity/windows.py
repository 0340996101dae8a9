"""Chooses the display window of an image, in stored values: one from the header, or one made from the breast.

The windows of the header are tried in the order in which a viewer would offer them: each pair of Window Center and
Window Width, then the items of the VOI LUT Sequence (PS3.3 C.11.2). A window is skipped if it shows nothing of the
breast, is narrower than one stored value, or is far wider than the range of the breast, since a measurement through it
would be meaningless. Windows apply to the output of the Modality LUT Sequence or of Rescale Slope and Intercept (PS3.3
C.11.1). This module converts them to stored values.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.sequence import Sequence

from node.fidelity.breast_regions import Mask, Pixels, Shape, Window
from storage.dicom.elements import readable

_SHAPES: dict[str, Shape] = {"LINEAR": "linear", "LINEAR_EXACT": "linear_exact", "SIGMOID": "sigmoid"}
_ENDS = 0.5, 99.5
"""Percentiles of the breast at the ends of a window that is made from it. Chosen, not measured."""
_WIDEST = 4.0
"""Widest window that is used, over the one made from the breast. A wider one, such as a 16-bit window for 12-bit
pixels, would make any error look small. Chosen, not measured."""


def display_window(header: Dataset, pixels: Pixels, mask: Mask) -> Window:
    """The first window of the header through which the breast can be seen; without one, a ``linear_exact`` window from
    the 0.5th to the 99.5th percentile of the breast.

    ``pixels``: uint16 (rows, columns), stored values. ``mask``: the result of ``breast_mask``. No error is
    raised, whatever the header contains. MONOCHROME1 and Presentation LUT Shape are ignored: they only decide which end
    is bright, and no figure depends on that.
    """
    rows, columns = pixels.shape
    breast = pixels[::4, ::4][np.kron(mask, np.ones((4, 4), dtype=bool))[: -(-rows // 4), : -(-columns // 4)]]
    low, high = (float(value) for value in np.percentile(breast, _ENDS))
    own = Window(low, max(high, low + 1.0))
    for window in _own_windows(header):
        if 1 <= window.width <= _WIDEST * own.width and window.low < high and window.high > low:
            return window
    return own


def is_inverted(header: Dataset) -> bool:
    """Whether dense tissue is dark in stored values: MONOCHROME1 or a falling rescale, but not both."""
    dark_is_high = str(readable(header, "PhotometricInterpretation")) == "MONOCHROME1"
    return dark_is_high != _Modality.of(header).falls


def _own_windows(header: Dataset) -> Iterator[Window]:
    """The well-formed windows of the header, in stored values and in order."""
    modality = _Modality.of(header)
    shape = _SHAPES.get(str(readable(header, "VOILUTFunction") or "LINEAR").strip(), "linear")
    for centre, width in zip(
        _numbers(readable(header, "WindowCenter")), _numbers(readable(header, "WindowWidth")), strict=False
    ):
        if width >= (2 if shape == "linear" else 0):  # a linear window of 1 is a threshold
            yield modality.stored(centre - width / 2, centre + width / 2, shape)
    for item in _items(readable(header, "VOILUTSequence")):
        table = _Table.of(item)
        if table is not None:
            yield modality.stored(*table.slope(), "linear_exact")


@dataclass(frozen=True)
class _Table:
    """A lookup table (PS3.3 C.11.1.1, C.11.2.1.1). ``values``: float64, the outputs for ``first``, ``first`` + 1 ..."""

    first: int
    values: NDArray[np.float64]

    @classmethod
    def of(cls, item: Dataset) -> _Table | None:
        """The table of a sequence item; None if it is malformed or has one value only."""
        descriptor, data = _numbers(readable(item, "LUTDescriptor")), readable(item, "LUTData")
        if len(descriptor) != 3:
            return None
        bits = int(descriptor[2])
        if isinstance(data, bytes):
            values = np.frombuffer(data[: len(data) // 2 * 2], "<u2").astype(np.float64)
        else:
            values = np.array(_numbers(data), dtype=np.float64)
        count = int(descriptor[0]) or 65536
        if values.size * 2 == count and bits <= 8:  # two entries of 8 bits to a word
            values = values.astype("<u2").view(np.uint8).astype(np.float64)
        values = values[:count]
        if values.size < 2 or values.min() == values.max():
            return None
        return cls(int(descriptor[1]), values)

    def slope(self) -> tuple[float, float]:
        """The inputs between which the output goes from 1% to 99% of its range, rising or falling."""
        share = (self.values - self.values.min()) / np.ptp(self.values)
        inside = np.flatnonzero((share > 0.01) & (share < 0.99))
        if inside.size == 0:  # a step, whose window of width 0 is skipped
            return self.first, self.first
        return self.first + float(inside[0]) - 1, self.first + float(inside[-1]) + 1

    @property
    def falls(self) -> bool:
        return bool(self.values[0] > self.values[-1])

    def input(self, output: float) -> float:
        """The input whose output is nearest to ``output``, the first of several."""
        return self.first + float(np.abs(self.values - output).argmin())


@dataclass(frozen=True)
class _Modality:
    """The modality transformation from stored values to the values of windows: a table, or slope and intercept."""

    slope: float = 1.0
    intercept: float = 0.0
    table: _Table | None = None

    @classmethod
    def of(cls, header: Dataset) -> _Modality:
        tables = [table for item in _items(readable(header, "ModalityLUTSequence")) if (table := _Table.of(item))]
        if tables:
            return cls(table=tables[0])
        slope, intercept = (_numbers(readable(header, name)) for name in ("RescaleSlope", "RescaleIntercept"))
        return cls((slope[0] if slope else 0.0) or 1.0, intercept[0] if intercept else 0.0)

    @property
    def falls(self) -> bool:
        return self.slope < 0 if self.table is None else self.table.falls

    def stored(self, low: float, high: float, shape: Shape) -> Window:
        """The window on stored values that is equivalent to one from ``low`` to ``high`` after this transformation."""
        if self.table is None:
            ends = sorted(((low - self.intercept) / self.slope, (high - self.intercept) / self.slope))
            return Window(ends[0], ends[1], shape, unit=1 / self.slope if shape == "linear" else 1.0)
        ends = sorted((self.table.input(low), self.table.input(high)))
        return Window(ends[0], ends[1], "linear_exact" if shape == "linear" else shape)


def _items(sequence: Any) -> list[Dataset]:
    """The items of a sequence; an empty list for any other value."""
    return [item for item in sequence if isinstance(item, Dataset)] if isinstance(sequence, Sequence) else []


def _numbers(value: Any) -> list[float]:
    """One or several values as numbers, up to the first that is not a finite number."""
    if value is None or isinstance(value, bytes | str):
        values = [value] if isinstance(value, str) else []
    else:
        values = list(value) if hasattr(value, "__iter__") else [value]
    numbers: list[float] = []
    for each in values:
        try:
            number = float(each)
        except (TypeError, ValueError, OverflowError):
            break
        if not np.isfinite(number):
            break
        numbers.append(number)
    return numbers
