"""The bits of a pixel cell beyond Bits Stored, when codestreams are decoded (PS3.5 8.1.1).

They hold values if High Bit is not Bits Stored - 1, and overlays of old devices. pydicom and GDCM clear them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.uid import JPEGLossless, JPEGLosslessSV1, RLELossless

_OF_WHOLE_CELLS = {JPEGLossless, JPEGLosslessSV1, RLELossless}
"""Transfer syntaxes whose encoders may keep all bits of a cell, and whose decoders take Bits Stored as an option."""


def decoder_options(syntax: str, bits_allocated: int) -> dict[str, Any]:
    """Options of pydicom's decoders with which they return every bit of the codestream."""
    return {"bits_stored": bits_allocated} if syntax in _OF_WHOLE_CELLS else {}


def sign_extended(values: NDArray[Any], syntax: str, bits_stored: int, high_bit: int) -> NDArray[Any]:
    """Decoded pixels, with the sign of signed values extended into the unused bits, as in native pixels.

    A lossless JPEG codestream whose precision is Bits Stored has no unused bits, and its decoder sets them to zero. If
    any pixel has an unused bit that is set, the codestream holds these bits, and the pixels are returned unchanged. RLE
    always holds them.
    """
    unused = values.dtype.itemsize * 8 - bits_stored
    if values.dtype.kind != "i" or syntax not in {JPEGLossless, JPEGLosslessSV1}:
        return values
    if unused <= 0 or high_bit != bits_stored - 1 or np.any(values.view(f"u{values.dtype.itemsize}") >> bits_stored):
        return values
    return np.asarray((values << unused) >> unused)
