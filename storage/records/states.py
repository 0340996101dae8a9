"""The states of an instance, and codes for their reasons. Programs use the code, and people read ``reason``."""

from __future__ import annotations

from enum import StrEnum


class InstanceState(StrEnum):
    """The state of one instance. The archivist works on RECEIVED instances. Other states last until an audit, a scrub,
    a marked region or a person changes them.

    In VERIFIED and MEASURED, a peer gets what its ``rendition`` in config.yaml says. In the other states, it gets the
    original.
    """

    RECEIVED = "received"
    """The original is durable, and waits to be encoded, for the first time or again."""
    VERIFIED = "verified"
    """A rendition passed the gate against this original."""
    MEASURED = "measured"
    """A rendition was measured but not gated (profile ``paper``). Its original is never purged."""
    EXACT = "exact"
    """The image is not eligible, or no operating point passed the gate. ``reason`` says why."""
    WITHDRAWN = "withdrawn"
    """An audit failed its rendition (``reason`` says how) and withdrew it. ``latent-pacs retry`` encodes it again."""
    FAILED = "failed"
    """The archivist could not finish, an audit failed its rendition after the original was gone, or nothing whole is
    left (``reason`` says which). ``latent-pacs retry`` encodes it again, unless an audit flagged it or the original was
    purged."""


RENDITION_STATES = (InstanceState.VERIFIED, InstanceState.MEASURED)
"""The states in which an image's current rendition stands for it."""


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
    LARGE_SEQUENCES = "large-sequences", "sequences of more than 2 MB or 20,000 items"
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
