"""Why an image is left out of reconstruction: one sentence for each reason, the same for every image.

The index keeps the sentence as the instance's reason, and ``latent-pacs status`` counts instances by it. What a
sentence is about (the SOP class, the bits) is in the instance's header. Several may hold for one image; the first in
the order of the rules counts.
"""

from __future__ import annotations

from enum import StrEnum


class LeftOut(StrEnum):
    """The reasons of the allow-list (node/archive/intake/eligibility.py) and of the pixels
    (node/codec/encode/source_image.py).
    """

    SOP_CLASS = "SOP class, with this modality, is not in eligibility.classes"
    NO_PIXELS = "no pixel data"
    MULTI_FRAME = "multi-frame"
    PHOTOMETRIC = "photometric interpretation is neither MONOCHROME1 nor MONOCHROME2"
    BITS_ALLOCATED = "bits allocated are not 16"
    BITS_STORED = "bits stored are not 8 to 16"
    HIGH_BIT = "high bit is not bits stored - 1"
    SIGNED_PIXELS = "signed pixels"
    SMALL = "smaller than 256 pixels a side"
    LARGE = "larger than limits.encoder_memory can encode"
    LOSSY = "already lossy"
    BIG_ENDIAN = "big endian"
    SIGNATURE = "digitally signed"
    OURS = "a reconstruction of this archive"
    BURNED_IN = "burned-in annotation"
    QUALITY_CONTROL = "quality control image"
    FOR_PROCESSING = "for processing"
    MAGNIFICATION_VIEW = "magnification view"
    SPOT_VIEW = "spot compression view"
    SPECIMEN = "specimen"
    MAGNIFIED = "magnified more than 1.2 times"
    STRAY_BITS = "pixels have bits set above Bits Stored"
    ALL_PADDING = "all pixels are padding"
