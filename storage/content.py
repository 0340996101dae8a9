"""Sameness of content: a digest over the data set's elements and pixels, not over its bytes.

A study sent twice often differs in transfer syntax, sequence lengths or group lengths and is the same study.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from pydicom import Dataset
from pydicom.pixels.utils import pixel_array

from storage.dicomfile import PixelShape, opened, quiet
from storage.errors import PixelError

_BULK = {"PixelData", "FloatPixelData", "DoubleFloatPixelData"}


def content_digest(path: Path) -> str:
    """SHA-256, hex, over every element (group lengths and padding left out) and the decoded pixels.

    Raises PixelError where encapsulated pixels cannot be decoded, and Unparseable.
    """
    with opened(path) as file:
        header = file.header()
        digest = hashlib.sha256(_canonical(header))
        if not file.layout.has_pixels:
            return digest.hexdigest()
        if not file.layout.encapsulated:
            native = PixelShape.of(header).native_bytes
            digest.update(bytes(file.native_value()[:native]))
            return digest.hexdigest()
    with quiet():
        try:
            digest.update(pixel_array(path, raw=True).tobytes())
        except Exception as error:
            raise PixelError(f"codestream cannot be decoded: {error}") from error
    return digest.hexdigest()


def same_content(one: Path, other: Path) -> bool:
    """True when both hold the same elements and pixels; False also where that cannot be established."""
    try:
        return content_digest(one) == content_digest(other)
    except PixelError:
        return False


def _canonical(header: Dataset) -> bytes:
    with quiet():
        kept = Dataset()
        for element in header:
            if element.tag.element != 0 and element.tag != 0xFFFCFFFC and element.keyword not in _BULK:
                kept.add(element)
        return json.dumps(kept.to_json_dict(suppress_invalid_tags=True), sort_keys=True).encode()
