"""The blur that tells fine detail from coarse, in strips of rows that stay in the processor's cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

Float = NDArray[np.float32]

_STRIP = 128
"""Rows at a time. The whole image at once takes seven times as long: every step of it would go to memory and back."""
_REACH = 2


def blurred(image: Float) -> Float:
    """Smoothed by 1 4 6 4 1 along both axes, the border repeated: float32, the image's shape."""
    import torch

    from node.fidelity.survey import on_all_cores

    source = torch.from_numpy(image)
    result = torch.empty_like(source)
    rows = len(source)

    def strip(top: int) -> None:
        bottom = min(top + _STRIP, rows)
        result[top:bottom] = _smoothed(_smoothed(_rows(source, top, bottom), 0), 1)

    on_all_cores(strip, range(0, rows, _STRIP))
    return result.numpy()


def _rows(image: torch.Tensor, top: int, bottom: int) -> torch.Tensor:
    """Rows ``top`` to ``bottom``, and as many columns, with ``_REACH`` more on every side."""
    import torch

    above, below = max(_REACH - top, 0), max(bottom + _REACH - len(image), 0)
    rows = image[max(top - _REACH, 0) : bottom + _REACH]
    rows = torch.cat([rows[:1]] * above + [rows] + [rows[-1:]] * below)
    return torch.cat([rows[:, :1]] * _REACH + [rows] + [rows[:, -1:]] * _REACH, dim=1)


def _smoothed(image: torch.Tensor, axis: int) -> torch.Tensor:
    """1 4 6 4 1 along an axis, which loses ``_REACH`` pixels at both ends."""
    size = image.shape[axis] - 2 * _REACH
    outer, inner, middle = (
        image.narrow(axis, first, size) + image.narrow(axis, 4 - first, size) for first in (0, 1, 2)
    )
    outer += inner.mul_(4)
    outer += middle.mul_(3)
    return outer.div_(16)
