"""Codes for the reason of an instance's state. Programs use the code; ``reason`` is a sentence for people."""

from __future__ import annotations

from enum import StrEnum


class ReasonCode(StrEnum):
    """Why an instance has the state that it has.

    A code with a ``sentence`` excludes an image from reconstruction, and every such image gets that sentence as its
    reason. node/archive/intake/eligibility.py checks most of these rules; the first one that applies counts.
    """

    sentence: str

    def __new__(cls, code: str, sentence: str = "") -> ReasonCode:
        member = str.__new__(cls, code)
        member._value_, member.sentence = code, sentence
        return member

    NONE = ""
    """The state needs no reason."""
    GATE = "gate"
    """No operating point passed the gate."""
    AUDIT = "audit"
    """An audit withdrew or flagged the rendition."""
    ORIGINAL_LOST = "original-lost"
    """A scrub found the original damaged or missing."""
    PAYLOAD_LOST = "payload-lost"
    """A scrub found the base or the rendition damaged or missing."""
    PIXELS = "pixels"
    """The pixels are short, odd or cannot be decoded."""
    NOT_SENDABLE = "not-sendable"
    """The reconstruction cannot be encoded as a whole DICOM object."""
    OTHER = "other"
    """The reason has no code of its own; its sentence says it."""

    SOP_CLASS = "sop-class", "SOP class, with this modality, is not in eligibility.classes"
    NO_PIXELS = "no-pixels", "no pixel data"
    MULTI_FRAME = "multi-frame", "multi-frame"
    PHOTOMETRIC = "photometric", "photometric interpretation is neither MONOCHROME1 nor MONOCHROME2"
    BITS_ALLOCATED = "bits-allocated", "bits allocated are not 16"
    BITS_STORED = "bits-stored", "bits stored are not 8 to 16"
    HIGH_BIT = "high-bit", "high bit is not bits stored - 1"
    SIGNED_PIXELS = "signed-pixels", "signed pixels"
    SMALL = "small", "smaller than 256 pixels a side"
    LARGE = "large", "larger than limits.encoder_memory can encode"
    LOSSY = "lossy", "already lossy"
    BIG_ENDIAN = "big-endian", "big endian"
    SIGNATURE = "signature", "digitally signed"
    OURS = "ours", "a reconstruction of this archive"
    BURNED_IN = "burned-in", "burned-in annotation"
    QUALITY_CONTROL = "quality-control", "quality control image"
    FOR_PROCESSING = "for-processing", "for processing"
    MAGNIFICATION_VIEW = "magnification-view", "magnification view"
    SPOT_VIEW = "spot-view", "spot compression view"
    SPECIMEN = "specimen", "specimen"
    MAGNIFIED = "magnified", "magnified more than 1.2 times"
    STRAY_BITS = "stray-bits", "pixels have bits set above Bits Stored"
    ALL_PADDING = "all-padding", "all pixels are padding"
