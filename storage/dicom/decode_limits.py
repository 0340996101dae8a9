"""Limits of this process for decoding and inflating a peer's bytes.

They are set once, when a process starts (``set_decode_limits``), like pydicom's settings. They are not parameters,
because a caller that forgot to pass them on would have no limits.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DecodeLimits:
    """``pixels``: maximum samples of a frame. ``inflated``: maximum bytes of an inflated data set.

    ``ratio``: maximum of inflated size over deflated size, above ``FREE`` bytes. ``memory``: maximum bytes that a
    worker may allocate beyond those it starts with; 0 means no limit. ``seconds``: maximum processor time of a request
    to a worker that decodes one frame; 0 means no limit.
    """

    pixels: int = 128_000_000
    inflated: int = 512_000_000
    ratio: int = 100
    memory: int = 0
    seconds: float = 0.0


FREE = 64 << 20
"""Inflated size in bytes up to which ``ratio`` does not apply: an empty mask deflates by a factor of a thousand."""

_limits = DecodeLimits()


def set_decode_limits(new: DecodeLimits) -> None:
    """Set the limits of this process. Called once, at its start."""
    global _limits  # noqa: PLW0603 - limits of a process are its state, as pydicom's settings are
    _limits = new


def decode_limits() -> DecodeLimits:
    return _limits
