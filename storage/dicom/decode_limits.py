"""How much a peer's bytes may become when they are decoded or inflated: limits of this process.

They are set once, when a process starts (``set_decode_limits``), as pydicom's settings are: every way to a decoder
or to an inflater looks at them, and a way that forgot to pass them on would have none.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DecodeLimits:
    """``pixels``: samples of one frame that are decoded. ``inflated``: bytes that a deflated data set may become.

    ``ratio``: how many times its size it may become, beyond ``FREE`` bytes. ``memory``: bytes that a worker may take
    beyond those that it starts with; 0 is no limit.
    """

    pixels: int = 128_000_000
    inflated: int = 512_000_000
    ratio: int = 100
    memory: int = 0


FREE = 64 << 20
"""Bytes up to which the ratio of a deflated data set does not matter: an empty mask deflates a thousandfold."""

_bounds = DecodeLimits()


def set_decode_limits(new: DecodeLimits) -> None:
    """Set the limits of this process; called once per process at its start."""
    global _bounds  # noqa: PLW0603 - limits of a process are its state, as pydicom's settings are
    _bounds = new


def decode_limits() -> DecodeLimits:
    """The limits of this process."""
    return _bounds
